"""Hostfiles: what MLX reads from one is what we read, and a wrong one is explained."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from mlx._distributed_utils.common import Hostfile as MlxHostfile

from macluster.engine.errors import HostfileError, MaclusterError, UsageError
from macluster.engine.hostfile import (
    Host,
    Hostfile,
    describe_ranks,
    parse_ranks,
    split_assignment,
)

# The four Macs of "Explore distributed inference and training with MLX" (WWDC26, 8:31).
WWDC = [
    {
        "ssh": f"m3-ultra-{rank}",
        "ips": [f"192.168.1.1{rank}"],
        "rdma": [*row[:rank], None, *row[rank:]],
    }
    for rank, row in enumerate([["rdma_en5", "rdma_en4", "rdma_en3"]] * 4)
]

GOOD: dict[str, Any] = {
    "the WWDC list": WWDC,
    "what mlx.distributed_config writes": {
        "backend": "jaccl",
        "envs": ["MLX_METAL_FAST_SYNCH=1"],
        "hosts": WWDC,
    },
    "only the hosts": {"hosts": WWDC},
    "no backend": {"envs": ["A=1", "B=x=y z"], "hosts": WWDC},
    "an empty backend": {"backend": "", "envs": [], "hosts": WWDC},
    "ssh alone": [{"ssh": "mac-0"}, {"ssh": "mac-1"}],
    "ring": [{"ssh": "127.0.0.1", "ips": ["127.0.0.1", "127.0.0.2"]}] * 3,
    "two cables between two Macs": [
        {"ssh": "a", "ips": ["10.0.0.1"], "rdma": [None, ["rdma_en2", "rdma_en3"]]},
        {"ssh": "b", "ips": [], "rdma": [["rdma_en2", "rdma_en3"], None]},
    ],
    "a cable that is not there": [
        {"ssh": "a", "ips": ["10.0.0.1"], "rdma": [None, None, "rdma_en2"]},
        {"ssh": "b", "ips": ["10.0.0.2"], "rdma": []},
        {"ssh": "c", "ips": ["10.0.0.3"], "rdma": ["rdma_en2", None, None]},
    ],
    "keys of a later MLX": [{"ssh": "a", "ips": ["10.0.0.1"], "cores": 32}],
}


def written(folder: Path, data: object) -> Path:
    path = folder / "hosts.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def read_by_mlx(path: Path) -> Any:
    with warnings.catch_warnings():
        # It leaves the file to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        return MlxHostfile.from_file(path).to_json()


def assert_explained(error: MaclusterError, *places: str) -> None:
    assert error.why
    assert error.do
    for place in places:
        assert place in error.what


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
def test_a_hostfile_reads_as_mlx_reads_it(tmp_path: Path, data: Any) -> None:
    path = written(tmp_path, data)
    assert Hostfile.load(path).to_json() == read_by_mlx(path)


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
def test_a_saved_hostfile_reads_back_the_same_here_and_in_mlx(tmp_path: Path, data: Any) -> None:
    first, second = written(tmp_path, data), tmp_path / "saved.json"
    loaded = Hostfile.load(first)
    loaded.save(second)
    again = Hostfile.load(second)
    assert (again.hosts, again.backend, again.envs) == (loaded.hosts, loaded.backend, loaded.envs)
    assert read_by_mlx(second) == read_by_mlx(first)


def test_both_forms_give_the_same_hosts(tmp_path: Path) -> None:
    rows = Hostfile.from_json(WWDC)
    full = Hostfile.from_json({"backend": "jaccl", "envs": ["A=1"], "hosts": WWDC})
    assert rows.hosts == full.hosts
    assert (rows.backend, rows.envs) == ("", ())
    assert (full.backend, full.envs) == ("jaccl", ("A=1",))
    assert full.hosts[2] == Host(
        "m3-ultra-2", ("192.168.1.12",), ("rdma_en5", "rdma_en4", None, "rdma_en3")
    )


def test_a_hostfile_knows_its_length_source_and_environment(tmp_path: Path) -> None:
    path = written(tmp_path, {"envs": ["A=1", "B=x=y z", "C="], "hosts": WWDC})
    hostfile = Hostfile.load(path)
    assert len(hostfile) == 4
    assert hostfile.source == str(path)
    assert hostfile.environment() == {"A": "1", "B": "x=y z", "C": ""}


def test_a_path_may_start_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, WWDC)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Hostfile.load("~/hosts.json").hosts == Hostfile.from_json(WWDC).hosts


@pytest.mark.parametrize(
    ("names", "local"),
    [
        (["127.0.0.1", "localhost"], True),
        (["127.0.0.1", "mac-1"], False),
        (["mac-0", "mac-1"], False),
    ],
)
def test_a_hostfile_is_local_when_every_host_is(names: list[str], local: bool) -> None:
    assert Hostfile.from_json([{"ssh": name} for name in names]).is_local is local


def test_local_ranks_share_the_loopback_address() -> None:
    hostfile = Hostfile.local(3)
    assert hostfile.hosts == (Host("127.0.0.1", ("127.0.0.1",)),) * 3
    assert hostfile.is_local


@pytest.mark.parametrize("n", [0, -1])
def test_a_world_of_no_ranks_is_refused(n: int) -> None:
    with pytest.raises(UsageError) as caught:
        Hostfile.local(n)
    assert_explained(caught.value, str(n))


# -- what can be wrong with the file --------------------------------------------------------------


def test_a_missing_hostfile_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostfileError) as caught:
        Hostfile.load(tmp_path / "nowhere.json")
    assert_explained(caught.value, str(tmp_path / "nowhere.json"))


def test_a_folder_is_no_hostfile(tmp_path: Path) -> None:
    with pytest.raises(HostfileError) as caught:
        Hostfile.load(tmp_path)
    assert_explained(caught.value, str(tmp_path))


def test_the_home_of_a_stranger_is_no_place_for_a_hostfile() -> None:
    with pytest.raises(HostfileError) as caught:
        Hostfile.load("~nobody-of-that-name/hosts.json")
    assert_explained(caught.value, "~nobody-of-that-name")


def test_a_binary_file_is_no_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HostfileError) as caught:
        Hostfile.load(path)
    assert_explained(caught.value, str(path))


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("", 1, 1),
        ('[{"ssh": "a"},\n {"ssh": b}]', 2, 10),
        ('[\n  {"ssh": "a"}\n  {"ssh": "b"}\n]', 3, 3),
        ("mac-0\nmac-1\n", 1, 1),
    ],
)
def test_text_that_is_not_json_is_shown_by_line_and_column(
    tmp_path: Path, text: str, line: int, column: int
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(HostfileError) as caught:
        Hostfile.load(path)
    assert_explained(caught.value, str(path), f"line {line}, column {column}.")


def hosts(**wrong: Any) -> list[dict[str, Any]]:
    """Three good hosts, the second one changed. A value of None takes the key away."""
    rows: list[dict[str, Any]] = [
        {"ssh": "a", "ips": ["10.0.0.1"], "rdma": [None, "en1", "en2"]},
        {"ssh": "b", "ips": ["10.0.0.2"], "rdma": ["en1", None, "en2"]},
        {"ssh": "c", "ips": ["10.0.0.3"], "rdma": ["en1", "en2", None]},
    ]
    for key, value in wrong.items():
        rows[1].pop(key)
        if value is not None:
            rows[1][key] = value
    return rows


MALFORMED: dict[str, tuple[Any, list[str]]] = {
    "an empty list": ([], ["list of hosts"]),
    "an empty list under hosts": ({"hosts": []}, ["list of hosts"]),
    "no hosts key": ({"backend": "ring", "host": WWDC}, ['"hosts"']),
    "hosts is an object": ({"hosts": {"a": 1}}, ["list of hosts"]),
    "a text": ("mac-0", ["list of hosts"]),
    "a number": (4, ["list of hosts"]),
    "null": (None, ["list of hosts"]),
    "a host is a text": (["mac-0"], ["host 0", "'mac-0'"]),
    "the second host is null": ([{"ssh": "a"}, None], ["host 1"]),
    "the backend is a number": ({"backend": 3, "hosts": WWDC}, ['"backend"', "3"]),
    "a short row": (hosts(rdma=["en1", None]), ["host 1", "(b)", "2 entries for 3 hosts"]),
    "a long row": (hosts(rdma=["en1", None, "e", "e"]), ["host 1", "4 entries for 3 hosts"]),
    "a device for the host itself": (
        hosts(rdma=["en1", "en7", "en2"]),
        ["host 1", "(b)", "'en7'", "itself"],
    ),
    "devices for the host itself": (hosts(rdma=["en1", ["en7"], "en2"]), ["host 1", "en7"]),
    "an RDMA row that is a text": (hosts(rdma="en1"), ["host 1", "(b)", '"rdma"']),
    "an RDMA entry that is a number": (hosts(rdma=["en1", None, 2]), ["host 1", '"rdma"']),
    "an RDMA entry that is empty": (hosts(rdma=["en1", None, ""]), ["host 1", '"rdma"']),
    "an RDMA entry without names": (hosts(rdma=["en1", None, []]), ["host 1", '"rdma"']),
    "an RDMA entry with an empty name": (hosts(rdma=["en1", None, ["x", ""]]), ["host 1"]),
    "an RDMA entry with a null name": (hosts(rdma=["en1", None, [None]]), ["host 1"]),
    "ips is a text": (hosts(ips="10.0.0.2"), ["host 1", "(b)", '"ips"']),
    "ips holds a number": (hosts(ips=[10]), ["host 1", "(b)", '"ips"']),
    "ips holds an empty text": (hosts(ips=[""]), ["host 1", "(b)", '"ips"']),
    "no ssh": (hosts(ssh=None), ["host 1", '"ssh"']),
    "an empty ssh": (hosts(ssh=""), ["host 1", '"ssh"']),
    "ssh is a list": (hosts(ssh=["b"]), ["host 1", '"ssh"']),
    "ssh is an option": (hosts(ssh="-oProxyCommand=true"), ["host 1", "-oProxyCommand=true"]),
    "envs is an object": ({"envs": {"A": "1"}, "hosts": WWDC}, ['"envs"']),
    "envs is a text": ({"envs": "A=1", "hosts": WWDC}, ['"envs"', "A=1"]),
    "an env without a value": ({"envs": ["A=1", "B"], "hosts": WWDC}, ['"envs"', "'B'"]),
    "an env that is a number": ({"envs": [1], "hosts": WWDC}, ['"envs"']),
    # mlx.launch warns about these and leaves them out.
    "an env without a name": ({"envs": ["=1"], "hosts": WWDC}, ['"envs"', "'=1'"]),
    "an env with a bad name": ({"envs": ["A-B=1"], "hosts": WWDC}, ['"envs"', "'A-B=1'"]),
}


@pytest.mark.parametrize(("data", "places"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_hostfile_is_explained(tmp_path: Path, data: Any, places: list[str]) -> None:
    path = written(tmp_path, json.dumps(data))
    with pytest.raises(HostfileError) as caught:
        Hostfile.load(path)
    assert_explained(caught.value, str(path), *places)


def test_the_unchanged_hosts_of_the_malformed_cases_are_fine() -> None:
    assert len(Hostfile.from_json(hosts())) == 3


def test_the_example_in_the_remedy_is_a_hostfile() -> None:
    with pytest.raises(HostfileError) as caught:
        Hostfile.from_json([])
    example = caught.value.do.removeprefix("the smallest one is ")
    assert len(Hostfile.from_json(json.loads(example))) == 2


# -- small texts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("all", [0, 1, 2, 3]),
        (" ALL ", [0, 1, 2, 3]),
        ("0", [0]),
        ("3,1,1", [1, 3]),
        ("0,2-3", [0, 2, 3]),
        ("2-2", [2]),
        (" 1 , 2 ", [1, 2]),
        ("0-1,1-3", [0, 1, 2, 3]),
    ],
)
def test_ranks_are_read_sorted_and_once(text: str, ranks: list[int]) -> None:
    assert parse_ranks(text, 4) == ranks


@pytest.mark.parametrize(
    "text", ["", "x", "1-", "-1", "3-1", "1..2", "0,,1", "0 1", "0,all", "0.5"]
)
def test_text_that_names_no_ranks_is_quoted(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_ranks(text, 4)
    assert_explained(caught.value, repr(text))
    # `%%rank` has no such option.
    assert "--targets" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [("4", "rank 4,"), ("0-5", "ranks 4-5,"), ("0,9", "rank 9,"), ("4,6-7", "ranks 4, 6-7,")],
)
def test_ranks_outside_of_the_world_are_named(text: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_ranks(text, 4)
    assert_explained(caught.value, named, "ranks 0 to 3")


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([2], "rank 2"),
        ([1, 2, 3], "ranks 1-3"),
        ([3, 0, 2], "ranks 0, 2-3"),
        ([0, 1], "ranks 0-1"),
        ([0, 2], "ranks 0, 2"),
        ([1, 2, 4, 6, 7, 8], "ranks 1-2, 4, 6-8"),
        (range(8), "ranks 0-7"),
        ((rank for rank in (1, 0)), "ranks 0-1"),
    ],
)
def test_ranks_are_described_in_spans(ranks: Any, text: str) -> None:
    assert describe_ranks(ranks) == text


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("A=1", ("A", "1")),
        ("A=", ("A", "")),
        ("A=b=c", ("A", "b=c")),
        ("_MLX_2= x ", ("_MLX_2", " x ")),
    ],
)
def test_an_assignment_is_split_at_its_first_equals_sign(text: str, pair: tuple[str, str]) -> None:
    assert split_assignment(text) == pair


@pytest.mark.parametrize("text", ["", "A", "=1", "1A=2", "A B=1", "A-B=1", "A;B=1", " A=1"])
def test_text_that_sets_no_variable_is_quoted(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_assignment(text)
    assert_explained(caught.value, repr(text))
