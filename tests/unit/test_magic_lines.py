"""The magics' lines: options, code, line numbers and completion, read without a cluster."""

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from macluster.engine.errors import UsageError
from macluster.engine.files import Listing
from macluster.magics import cluster, completion
from macluster.magics.arguments import Arguments
from macluster.magics.completion import body_start, option_completions
from macluster.magics.distributed import DISTRIBUTED, RANK, numbered, split_line

# -- arguments ------------------------------------------------------------------------------------


def test_a_line_is_read_like_a_command_line() -> None:
    options = cluster.START.read('"my hosts.json" --env A=1 --env "B=x y" --backend=ring')
    assert options.hosts == "my hosts.json"
    assert options.env == ["A=1", "B=x y"]
    assert options.backend == "ring"


def test_lists_of_options_do_not_grow_from_line_to_line() -> None:
    cluster.START.read("2 --env A=1")
    assert cluster.START.read("2").env == []


@pytest.mark.parametrize(
    ("parser", "line", "named"),
    [
        (cluster.START, "2 --backends ring", "--backends"),
        (cluster.START, "2 --back ring", "--back"),  # no abbreviations
        (cluster.START, "2 --backend", "--backend"),
        (cluster.START, "2 3", "3"),
        (cluster.START, "2 --help", "--help"),
        (cluster.STOP, "now", "now"),
        (cluster.OUTPUT, "--lines many", "many"),
        (DISTRIBUTED, "--group-outputs rank", "rank"),
        (DISTRIBUTED, "--timeout soon", "soon"),
        (DISTRIBUTED, "--timeout 0", "0 seconds"),
        (DISTRIBUTED, "--timeout nan", "nan"),
        (DISTRIBUTED, "--target 0", "--target"),
        (RANK, "", "RANKS"),
        (RANK, "--targets 0", "--targets"),
        (DISTRIBUTED, "-o 'open", "open"),
    ],
)
def test_a_wrong_line_is_explained(parser: Arguments, line: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        parser.read(line)
    error = caught.value
    assert error.what.startswith(f"{parser.prog}: ")
    assert named in error.what
    assert error.why
    # The usage and where there is more.
    assert error.do.startswith(parser.prog)
    assert error.do.endswith(f"{parser.prog.split()[0]}? explains it")


@pytest.mark.parametrize("parser", [*cluster.VERBS.values(), *completion.OPTIONS.values()])
def test_every_magic_has_a_help_text_and_long_options(parser: Arguments) -> None:
    assert parser.format_help().startswith(f"usage: {parser.prog}")
    names = parser.option_names()
    assert names == sorted(names)
    assert all(name.startswith("--") and name in parser.format_help() for name in names)


# -- %distributed, the line -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "targets", "out", "code"),
    [
        ("print(rank)", "all", None, "print(rank)"),
        ("  print(rank)  ", "all", None, "print(rank)"),
        ("-t 0 print(rank)", "0", None, "print(rank)"),
        ("--targets 0,2-3 -o run x = 1", "0,2-3", "run", "x = 1"),
        ("--targets=1 --out=run x = 1", "1", "run", "x = 1"),
        ("-t   1   x", "1", None, "x"),
        ("-t 0 print('a  b', \"c\")", "0", None, "print('a  b', \"c\")"),
        ("print('it''s')", "all", None, "print('it''s')"),
        ("x = '--targets 0'", "all", None, "x = '--targets 0'"),
        ("f(x) --targets 0", "all", None, "f(x) --targets 0"),
        ("-x + 1", "all", None, "-x + 1"),
        ("-1", "all", None, "-1"),
        ("--x", "all", None, "--x"),
        ("-t 0 -x.sum()", "0", None, "-x.sum()"),
        ("-x=1", "all", None, "-x=1"),
        ("", "all", None, ""),
        ("-t 0", "0", None, ""),
        ('-t "0,2" print("a")', "0,2", None, 'print("a")'),
        ("--targets='0, 2' print('a')", "0, 2", None, "print('a')"),
        ("-t\t0\tprint(rank)", "0", None, "print(rank)"),
    ],
)
def test_options_end_where_the_code_begins(
    line: str, targets: str, out: str | None, code: str
) -> None:
    options, rest = split_line(DISTRIBUTED, line)
    assert (options.targets, options.out, rest) == (targets, out, code)


@pytest.mark.parametrize(
    ("line", "block", "local"),
    [
        ("x", True, False),
        ("--noblock x", False, False),
        ("-a --local x", False, True),
        ("--noblock --block x", True, False),
    ],
)
def test_switches_take_no_value_from_the_code(line: str, block: bool, local: bool) -> None:
    options, rest = split_line(DISTRIBUTED, line)
    assert (options.block, options.local, rest) == (block, local, "x")


@pytest.mark.parametrize(
    "line", ["--timeout x = 1", "--timeout", "--group-outputs no x", "--local=1"]
)
def test_a_wrong_option_of_a_line_is_explained(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_line(DISTRIBUTED, line)
    assert line.partition(" ")[0].partition("=")[0] in caught.value.what


# -- line numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["x = 1\n1 / 0\n", "\n\n1 / 0", "'''doc'''\n", "%time x\n", ""])
def test_the_magics_line_becomes_a_comment_so_that_numbers_stay(body: str) -> None:
    source = numbered("%%distributed -t 0 --out 'a'  ", body)
    assert source.splitlines()[0] == "# %%distributed -t 0 --out 'a'"
    assert source.split("\n")[1:] == body.split("\n")


def test_an_error_is_on_the_line_that_the_notebook_shows() -> None:
    notebook_cell = "%%distributed --targets 0\nx = 1\n\n1 / 0\n"
    first, _, body = notebook_cell.partition("\n")
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile(numbered(first, body), "cell", "exec"), {})
    assert caught.traceback[-1].lineno + 1 == 4
    assert notebook_cell.splitlines()[caught.traceback[-1].lineno] == "1 / 0"


@pytest.mark.parametrize("body", ["%%time\nx = 1\n", "\n%%capture out\nx\n", "  %%bash\nls\n"])
def test_a_cell_magic_inside_stays_on_top(body: str) -> None:
    assert numbered("%%distributed", body) == body


@pytest.mark.parametrize(
    "body",
    ["    x = 1\n    y = x + 1\n", ">>> x = 1\n>>> y = x + 1\n", "x = 1\nif x:\n    y = 2\n"],
    ids=["indented", "prompts", "plain"],
)
def test_a_body_that_runs_here_runs_on_the_ranks(body: str) -> None:
    """IPython takes indentation and prompts off a pasted cell, and looks at its first line."""
    here: dict[str, int] = {}
    exec(TransformerManager().transform_cell(body), here)
    there: dict[str, int] = {}
    exec(TransformerManager().transform_cell(numbered("%%distributed", body)), there)
    assert (there["x"], there["y"]) == (here["x"], here["y"]) == (1, 2)


# -- completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("%%distributed\nx.", "x."),
        ("%%distributed --targets 0\nx.\ny", "x.\ny"),
        ("%%rank 0,2\nx.", "x."),
        ("\n  %%distributed\nx.", "x."),
        ("%%distributed\n", ""),
        ("%distributed x.", "x."),
        ("%distributed   print(x.", "print(x."),
    ],
)
def test_code_for_the_ranks_starts_behind_the_magic(code: str, body: str) -> None:
    start = body_start(code)
    assert start is not None
    assert code[start:] == body


@pytest.mark.parametrize(
    "code",
    [
        "x.",
        "",
        "%%distributed",
        "%%distributed --tar",
        "%%distributedly\nx",
        "%%ranks 0\nx",
        "%%time\nx",
        "%distributed",
        "%distributed --tar",
        "%distributedly x",
        "%rank 0",
        "x = 1\n%%distributed\nx",
        # The second line runs here.
        "%distributed\nx.",
    ],
)
def test_other_code_is_completed_here(code: str) -> None:
    assert body_start(code) is None


@pytest.mark.parametrize("line", ["%distributed -t 0 x.", "%distributed --targets=0 --local x."])
def test_code_behind_options_of_a_line_is_for_the_ranks(line: str) -> None:
    start = body_start(line)
    assert start is not None
    assert line[start:] == "x."


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%cluster ", [*cluster.VERBS]),
        ("%cluster st", ["start", "status", "stacks", "stop"]),
        ("%cluster start", ["start"]),
        ("%cluster x", []),
        ("%cluster start -", ["--backend", "--checked", "--env", "--keep", "--name"]),
        ("%cluster start 2 --b", ["--backend"]),
        (
            "%cluster start --env A=1 --",
            ["--backend", "--checked", "--env", "--keep", "--name"],
        ),
        ("%cluster output --", ["--lines", "--rank", "--save"]),
        ("%cluster stop --", ["--force"]),
        ("%%distributed --no", ["--noblock"]),
        ("%%distributed -t 0 --l", ["--local"]),
        ("%distributed --t", ["--targets", "--timeout"]),
        ("%%rank 0 --ta", []),
        ("%pull x --t", ["--targets"]),
        ("%cluster start 2 --backend ", ["jaccl", "jaccl-ring", "ring", "mpi", "nccl"]),
        ("%cluster start 2 --backend j", ["jaccl", "jaccl-ring"]),
        ("%cluster start --backend=r", ["--backend=ring"]),
        ("%cluster start 2 --backend x", []),
        ("%cluster start --backend ring --n", ["--name"]),
        ("%%distributed --group-outputs ", ["engine", "type", "order"]),
        ("%%rank --group-outputs=t", ["--group-outputs=type"]),
        ("%%distributed --noblock --group-outputs o", ["order"]),
    ],
)
def test_verbs_options_and_values_are_completed(line: str, words: list[str]) -> None:
    assert option_completions(line) == words


def test_names_of_running_clusters_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = [Listing(name, 2, "ring", 1, "") for name in ("desk", "den", "lab")]
    monkeypatch.setattr(completion.Cluster, "running", lambda: clusters)
    assert option_completions("%cluster connect ") == ["desk", "den", "lab"]
    assert option_completions("%cluster connect de") == ["desk", "den"]
    assert option_completions("%cluster connect desk ") is None
    assert option_completions("%cluster start --name ") is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%pull ", True),
        ("%pull lo", True),
        ("%pull x lo", True),
        ("%pull -t 0 x.sh", True),
        ("%pull --targets=0 x", True),
        ("%gather ", True),
        ("%gather --as y x", True),
        ("%gather x ", False),  # it joins one
        ("%pull", False),
        ("%pull --ma", False),
        ("%pull x --targets ", False),
        ("%pull x --as ", False),  # a name of this notebook
        ("%push ", False),
        ("%scatter x", False),
        ("%cluster connect ", False),
        ("pull x", False),
        ("", False),
    ],
)
def test_names_of_the_ranks_belong_behind_pull_and_gather(line: str, expected: bool) -> None:
    assert completion.names_ranks(line) is expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "   ",
        "x = 1",
        "%clu",
        "%cluster",  # the name of the magic is IPython's to complete
        "%cluster start 2",
        "%cluster start ",
        "%cluster start --name ",
        "%cluster start --name=",
        "%cluster nonsense --",
        "%%distributed",
        "%%distributed -t 0 ",
        "%push x",
        "%timeit -",
    ],
)
def test_other_lines_are_left_to_ipython(line: str) -> None:
    assert option_completions(line) is None


@pytest.mark.parametrize("magic", completion.OPTIONS)
def test_every_magic_offers_all_of_its_options(magic: str) -> None:
    assert option_completions(f"{magic} --") == completion.OPTIONS[magic].option_names()
