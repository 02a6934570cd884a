"""`%topology` and `%measure` without a cluster: their lines, and Macs that nobody has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from IPython.core.interactiveshell import InteractiveShell

import macluster
from macluster.engine.errors import ClusterNotFound, UsageError
from macluster.engine.measure.record import MeasuredRank, Measurement
from macluster.engine.topology.topology import Link, Node, Topology
from macluster.magics import wires as wires_module
from macluster.magics.quiet import DATA, _last
from macluster.magics.session import Session
from macluster.magics.wires import MEASURE, TOPOLOGY, WireMagics, measure_code, measure_view
from macluster.widgets.measure import MeasureView
from macluster.widgets.topology import TopologyView


@pytest.fixture
def wires(shell: InteractiveShell) -> WireMagics:
    return WireMagics(shell, Session())


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("", "macluster.measure()"),
        ("--quick", "macluster.measure(ops=('all_sum', 'barrier'), most=1048576)"),
        ("--quick --most 4M", "macluster.measure(ops=('all_sum', 'barrier'), most=4194304)"),
        ("--links none --ops barrier", "macluster.measure(links=False, ops=('barrier',))"),
        ("--links neighbours --ops ''", "macluster.measure(links='neighbours', ops=())"),
        ("--most 64kB --save x.json", "macluster.measure(most=64000)"),
        ("--ops barrier,all_sum,barrier", "macluster.measure(ops=('barrier', 'all_sum'))"),
        ("--most 4", "macluster.measure(most=4)"),
    ],
)
def test_what_the_ranks_are_asked_to_do(line: str, code: str) -> None:
    assert measure_code(MEASURE.read(line)) == code


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--most many", "not a size like 64MiB"),
        ("--most -4", "-4 is not a size"),
        ("--most 0", "0 is too small: the smallest collective has 4 B"),
        ("--most 3B", "3B is too small"),
        ("--ops all_reduce", "all_reduce is none of all_sum"),
        ("--links some", "invalid choice: 'some'"),
    ],
)
def test_wrong_lines_are_explained(line: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        MEASURE.read(line)


@pytest.mark.parametrize(
    ("magic", "line", "said"),
    [
        ("measure", '"4 x M3 Ultra" --quick', "simulated whole: leave --quick out"),
        ("measure", '"1025 x M3 Ultra"', r"1,025 hosts are not drawn, only up to 1,024"),
        ("measure", "--load x.json --ops barrier", "measures nothing"),
        ("measure", '--load x.json "4 x M3 Ultra"', "measures nothing"),
        ("measure", "--load nowhere.json", "no measurement in nowhere.json"),
        ("measure", "--against nowhere.json", "no measurement in nowhere.json"),
        ("measure", '"4 x M3 Ultra" --against x.json', "HOSTS are simulated"),
        ("measure", '"4 x M3 Ultra" --save /nowhere/at/all.json', "Nothing can be saved"),
        ("measure", '"4 x M3 Ultra" --save /tmp', "Nothing can be saved"),
        ("topology", '"4 x M3 Ultra" --measured x.json', "are simulated"),
        ("topology", '"4 x M9"', "no chip 'M9'"),
    ],
)
def test_what_does_not_go_together_is_refused(
    wires: WireMagics, magic: str, line: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        getattr(wires, magic)(line)


@pytest.mark.parametrize("magic", ["measure", "topology"])
def test_without_a_cluster_and_without_hosts_it_says_so(wires: WireMagics, magic: str) -> None:
    with pytest.raises(ClusterNotFound):
        getattr(wires, magic)("")


def test_simulated_macs_are_shown(wires: WireMagics) -> None:
    network = wires.topology('"4 x M3 Ultra 512GB, mesh"')
    assert isinstance(network, TopologyView)
    assert network.topology.simulated == "4 x M3 Ultra 512GB, mesh"
    assert len(network.topology.links) == 6
    shown = wires.measure('"4 x M3 Ultra 512GB, mesh"')
    assert isinstance(shown, MeasureView)
    assert shown.measurement.simulated == "4 x M3 Ultra 512GB, mesh"


def test_what_was_saved_is_shown_again_and_a_simulation_is_no_baseline(
    wires: WireMagics, tmp_path: Path
) -> None:
    path = tmp_path / "wires.json"
    wires.measure(f'"4 x M3 Ultra 512GB, mesh" --save {path}')
    again = wires.measure(f"--load {path}")
    assert again.measurement == macluster.Measurement.load(path)
    with pytest.raises(UsageError, match="no baseline"):
        wires.measure(f"--load {path} --against {path}")


class Ranks:
    """Two ranks of one host that say who they are, and do nothing that they are asked to do."""

    size, backend = 2, "ring"

    def topology(self, measured: object = None, *, age: float = 0.0) -> Topology:
        nodes = tuple(Node(rank, "mac", state="ok", own_name="mac") for rank in range(2))
        return Topology(nodes, (Link(0, 1, "loopback"),), "ring")


class Running(Session):
    @property
    def world(self) -> Any:
        return Ranks()


@pytest.mark.parametrize("line", ["measure --against", "topology --measured"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"simulated": "2 x M3 Ultra, mesh"}, "simulated, and not measured: 2 x M3 Ultra, mesh"),
        ({"ranks": (MeasuredRank("mac"), MeasuredRank("mini"))}, "other hosts: mac, mini there"),
        ({"backend": "mpi"}, "other backends: mpi there, ring here"),
        ({"ranks": (MeasuredRank("mac"),)}, "other ranks: 1 there, 2 here"),
    ],
    ids=["simulated", "hosts", "backend", "ranks"],
)
def test_what_was_measured_on_others_is_refused_at_once(
    shell: InteractiveShell, tmp_path: Path, line: str, changes: dict[str, Any], said: str
) -> None:
    path = tmp_path / "wires.json"
    base = Measurement("ring", (MeasuredRank("mac"), MeasuredRank("mac")))
    attrs.evolve(base, **changes).save(path)
    magic, option = line.split()
    with pytest.raises(UsageError, match=said):
        getattr(WireMagics(shell, Running()), magic)(f"{option} {path}")


def test_a_comparison_that_fails_does_not_lose_what_was_measured(
    shell: InteractiveShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = Measurement("ring", (MeasuredRank("mac"), MeasuredRank("mac")))
    other = attrs.evolve(base, ranks=(MeasuredRank("mac"), MeasuredRank("mini")))
    path = tmp_path / "wires.json"
    base.save(path)
    # The ranks have moved to another host while they were measured.
    monkeypatch.setattr(wires_module, "told", lambda *_, **__: other.as_json())
    shown = WireMagics(shell, Running()).measure(f"--against {path}")
    assert shown.measurement == other
    assert "other hosts: mac, mac there, mac, mini here" in capsys.readouterr().out


def test_the_data_of_a_cell_is_not_shown_as_its_progress() -> None:
    printed = "\rlinks, 3 s left\rmeasured in 1.4 s\n"
    for data in ("", DATA, DATA + '{"format": "macl', DATA + '{"format": 1}\n'):
        assert _last(printed + data) == "measured in 1.4 s"


def test_a_ring_and_a_mesh_are_drawn_beside_what_was_measured() -> None:
    found = macluster.simulate("4 x M3 Ultra 512GB, mesh").measure()
    data = measure_view(found, None).data
    assert "mesh is faster" in data["notes"][-1]
    names = [each["name"] for each in data["series"]]
    assert names[-2:] == ["ring, predicted", "mesh, predicted"]
    pair = macluster.simulate("2 x M3 Ultra 512GB, mesh").measure()
    assert "predicted" not in str([x["name"] for x in measure_view(pair, None).data["series"]])


def test_both_explain_themselves() -> None:
    for magic, parser in ((WireMagics.measure, MEASURE), (WireMagics.topology, TOPOLOGY)):
        for option in parser.option_names():
            assert option in str(magic.__doc__)
