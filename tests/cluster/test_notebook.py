"""Distributed cells in a real kernel look and behave as cells that ran there."""

import ast
import base64
import itertools
import json
import re
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.notebook import ANSI, Notebook, Output, comparable

NAME = "test-notebook"
RANKS = 3
PID = "__import__('os').getpid()"
SOON = 5.0  # seconds within which an interrupted cell has ended, on a busy machine too
MIB = 2**20
# A file that every front end can show: one black dot.
_PNG_PARTS = [
    (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
    (b"IDAT", zlib.compress(b"\0\0")),
    (b"IEND", b""),
]
PNG = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    for kind, body in _PNG_PARTS
)


@pytest.fixture(scope="module")
def nb() -> Iterator[Notebook]:
    # Without this MLX calls a C++ compiler for every new kernel where there is no GPU.
    notebook = Notebook(MLX_DISABLE_COMPILE="1")
    try:
        notebook.ok("%load_ext macluster")
        notebook.ok(f"%cluster start {RANKS} --name {NAME}")
        yield notebook
    finally:
        notebook.close()


def on_ranks(nb: Notebook, expression: str) -> list[Any]:
    """The value of an expression on each rank."""
    nb.ok(f"%%distributed -o seen\nimport json\nprint('\\n' + json.dumps({expression}))")
    texts = ast.literal_eval(nb.ok(f"[seen.text(rank) for rank in range({RANKS})]").result)
    return [json.loads(text.splitlines()[-1]) for text in texts]


def wait_for_ranks(nb: Notebook, handle: str, text: str) -> None:
    """Return once every rank has printed `text` in the cell behind `handle`."""
    nb.ok(
        "import time\n"
        f"while not all({text!r} in {handle}.text(rank) for rank in range({RANKS})):\n"
        "    time.sleep(0.01)"
    )


def check_usage(ran: Any, ename: str = "UsageError") -> None:
    """An error in three parts: what, why, and what to do."""
    assert ran.ename == ename, ran.traceback or ran.outputs
    what, why, do = re.split(r"\n +(?:Why|Do): +", ran.evalue, maxsplit=2)
    assert what
    assert why
    assert do
    assert "\n  Why: " in ran.traceback
    assert "\n  Do:  " in ran.traceback


# -- rank 0 looks as if it had run here ----------------------------------------------------------

TQDM = "for i in tqdm(range(3), mininterval=60): pass"
FIGURE = "import matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1))\nplt.plot([1, 3, 2])"
LIKE_LOCAL = {
    "prints": "print('a')\nprint('b', end='')\nprint('c', 'd', sep='\\n')",
    "prints in another alphabet": "print('größer ≥ 漢字 🙂')",
    "stdout and stderr in order": """
import sys
for i in range(5):
    print("out", i, flush=True)
    print("err", i, file=sys.stderr, flush=True)""",
    "logging and warnings": """
import logging, warnings
logging.getLogger("x").warning("logged")
warnings.warn("warned")""",
    "carriage return": "for i in range(3): print(f'\\r{i * 50} %', end='', flush=True)",
    "colours": "print('\\x1b[1;31mred\\x1b[0m plain')",
    "text progress bar": f"from tqdm import tqdm\n{TQDM}",
    "progress bar": f"from tqdm.auto import tqdm\n{TQDM}",
    "widget": """
import ipywidgets
slider = ipywidgets.IntSlider(3, description="n")
display(slider)
slider.value = 4
slider.close()""",
    "widget with binary data": f"""
import ipywidgets
picture = ipywidgets.Image(value={PNG!r})
display(picture)
picture.value = {PNG!r} + b"more" """,
    "clear_output": """
from IPython.display import clear_output
print("gone")
clear_output()
print("stays")""",
    "clear_output that waits": """
from IPython.display import clear_output
for i in range(3):
    clear_output(wait=True)
    print("step", i)""",
    "display": "display(1, 'two', [3])",
    "display with metadata": """
from IPython.display import Image
display({"text/plain": "t", "application/json": {"a": [1]}}, raw=True, metadata={"m": 1})
display(Image(""" + repr(PNG) + """, width=7))""",
    "display with id and update": """
from IPython.display import HTML
handle = display(HTML("<b>one</b>"), display_id=True)
handle.update(HTML("<b>two</b>"))
named = display("three", display_id="name")
named.update("four")""",
    "html, markdown and latex": """
from IPython.display import HTML, Latex, Markdown
display(HTML("<i>h</i>"), Markdown("*m*"), Latex("$x^2$"))""",
    "figure": FIGURE + ";",
    "figure, shown": f"print('before')\n{FIGURE}\nplt.show()\nprint('after')",
    # Not the figure's own repr: it has an address in it.
    "figure under a result": f"{FIGURE};\n'the result'",
    "figure inline": f"%matplotlib inline\n{FIGURE};",
    "rich text": """
import rich
from rich.table import Table
table = Table("name", title="t")
table.add_row("[red]x[/red]")
rich.print("[bold]b[/bold]", table)""",
    "result": "print('first')\n6 * 7",
    "result over many lines": "{i: 'x' * i for i in range(40)}",
    "result with several forms": "from IPython.display import HTML\nHTML('<b>x</b>')",
    "result that is a picture": f"from IPython.display import Image\nImage({PNG!r})",
    "result of None": "None",
    "trailing semicolon": "print('kept')\n6 * 7;",
    "nothing": "x = 1",
    "await": "import asyncio\nawait asyncio.sleep(0.01)\nawait asyncio.sleep(0.01, 'slept')",
    "shell": "!echo one; echo two >&2\nlines = !echo three\nlines",
    "magic": "%env MACLUSTER_TEST=1\n%who_ls nothing_of_this_type",
    "error": "print('before')\nfirst = 1\nfirst / 0",
    "error in a function": """
def outer(n):
    return inner(n)

def inner(n):
    return [][n]

outer(5)""",
    "error with a cause": """
try:
    {}["missing"]
except KeyError as error:
    raise ValueError("bad") from error""",
    "error without text": "assert 1 == 2",
    "error in an await": "import asyncio\nawait asyncio.sleep(0.01)\n1 / 0",
    "syntax error": "x = 1\ny = (\nz = 2",
    "indentation error": "if True:\n  x = 1\n    y = 2",
}  # fmt: skip


@pytest.mark.parametrize("what", LIKE_LOCAL)
def test_rank_0_looks_as_if_the_cell_had_run_here(nb: Notebook, what: str) -> None:
    magic, source = "%%distributed --targets 0", LIKE_LOCAL[what].strip("\n")
    # The same text, so that hashes and line numbers in tracebacks agree.
    local = nb.run(f"# {magic}\n{source}\n")
    ran = nb.run(f"{magic}\n{source}")
    assert ran.reply["status"] == local.reply["status"]
    expected, seen = comparable(local.outputs), comparable(ran.outputs)
    for here, there in zip(expected, seen, strict=False):
        if here[0] == there[0] == "error":
            # The cell's error also says which ranks raised it.
            ours, own = there[1], here[1]
            ours["traceback"] = ours["traceback"][: len(own["traceback"])]
            ours["evalue"] = ours["evalue"][: len(own["evalue"])]
    assert seen == expected
    assert [output.content["execution_count"] for output in ran.all("execute_result")] == [
        ran.reply["execution_count"] for _ in local.all("execute_result")
    ]


@pytest.mark.parametrize("what", ["prints", "result", "display", "figure", "clear_output"])
def test_folded_block_comes_last(nb: Notebook, what: str) -> None:
    ran = nb.ok("%%distributed\n" + LIKE_LOCAL[what].strip("\n"))
    assert ran.own
    assert ran.outputs[-1] is ran.folded
    assert ran.folded.plain == "[ranks 1-2: same output]"


@pytest.mark.parametrize("how", ["figure", "figure inline"])
def test_figure_is_a_picture(nb: Notebook, how: str) -> None:
    ran = nb.ok("%%distributed\n" + LIKE_LOCAL[how])
    [figure] = [output for output in ran.own if output.kind == "display_data"]
    assert base64.b64decode(figure.content["data"]["image/png"]).startswith(b"\x89PNG")


def test_traceback_counts_lines_as_the_notebook_does(nb: Notebook) -> None:
    ran = nb.run("%%distributed --targets 0\ndef f(n):\n    return 1 / n\n\nf(0)")
    assert ran.ename == "ZeroDivisionError"
    assert re.search(r"-> 5 f\(0\)", ran.traceback)
    assert re.search(r"-> 3 +return 1 / n", ran.traceback)
    assert f"In[{ran.reply['execution_count']}], line 5" in ran.traceback


def test_error_in_a_function_of_an_earlier_cell_shows_its_source(nb: Notebook) -> None:
    earlier = nb.ok("%%distributed\n\ndef earlier(n):\n    return 1 / n")
    ran = nb.run("%%distributed\nearlier(0)")
    assert f"In[{earlier.reply['execution_count']}], line 4" in ran.traceback
    assert re.search(r"-> 4 +return 1 / n", ran.traceback)


def test_output_is_cleared_in_time_and_the_last_output_stays(nb: Notebook) -> None:
    """`clear_output(wait=True)` without anything behind it clears nothing."""
    ran = nb.ok(
        "%%distributed\nfrom IPython.display import clear_output\nprint(1)\nclear_output(wait=True)"
    )
    seen: list[str] = []
    waiting = False
    for output in ran.outputs:
        if output.kind == "clear_output":
            waiting = True
            continue
        if waiting:
            seen.clear()
        waiting = False
        seen.append(output.plain)
    assert "1\n" in seen, "the folded block made the front end clear what rank 0 had printed"


def test_result_is_underscore_and_out(nb: Notebook) -> None:
    ran = nb.ok("%%distributed\nrank + 40")
    count = ran.reply["execution_count"]
    assert ran.result == "40"
    assert nb.ok("_").result == "40"
    assert nb.ok(f"Out[{count}]").result == "40"
    # On the ranks both are the values.
    assert nb.ok(f"%pull Out[{count}]").result == "[40, 41, 42]"
    assert nb.ok("%%distributed\n_ + 1").result == "41"


def test_underscore_shows_what_the_result_showed(nb: Notebook) -> None:
    ran = nb.ok("%%distributed\nfrom IPython.display import HTML\nHTML('<b>x</b>')")
    again = nb.ok("_")
    assert (
        again.all("execute_result")[0].content["data"]
        == ran.all("execute_result")[0].content["data"]
    )


def test_exit_fails_the_cell_and_leaves_the_ranks_alone(nb: Notebook) -> None:
    pids = on_ranks(nb, PID)
    ran = nb.run("%%distributed\nimport sys\nsys.exit('enough')")
    assert ran.ename == "SystemExit"
    assert ran.evalue.startswith("enough")
    assert on_ranks(nb, PID) == pids


# -- a cell fails --------------------------------------------------------------------------------


def test_error_of_one_rank_fails_the_cell_under_its_own_name(nb: Notebook) -> None:
    ran = nb.run("%%distributed\nprint('fine')\nif rank == 1:\n    raise ValueError('boom')")
    [error] = ran.all("error")
    assert error.content["ename"] == "ValueError"
    assert error.content["evalue"].startswith("boom")
    assert re.search(r"-> 4 +raise ValueError\('boom'\)", ran.traceback)
    assert "raised on rank 1" in ran.traceback
    assert "ranks 0, 2: ended without an error" in ran.traceback
    assert ran.text() == "fine\n"


def test_errors_of_other_ranks_are_mentioned(nb: Notebook) -> None:
    ran = nb.run("%%distributed\nif rank:\n    raise {1: ValueError, 2: KeyError}[rank]('of it')")
    assert ran.ename == "ValueError"
    assert "raised on rank 1" in ran.traceback
    assert "rank 2: KeyError: 'of it'" in ran.traceback
    assert "rank 0: ended without an error" in ran.traceback


def test_output_of_native_code_is_there_when_the_cell_ends(nb: Notebook) -> None:
    nb.ok("%%distributed\nimport os")
    for number in range(20):
        # A plain cell may lose this: ipykernel reads the pipe whenever its thread gets to it.
        assert nb.ok(f"%distributed os.system('echo {number}');").text() == f"{number}\n"


def test_same_error_on_all_ranks_is_shown_once(nb: Notebook) -> None:
    ran = nb.run("%%distributed\n1 / 0")
    assert ran.traceback.count("-> 2 1 / 0") == 1
    assert re.search(r"raised on rank 0( at line .*)? \(and the same on ranks 1-2\)", ran.traceback)


def test_run_all_stops_at_a_cell_that_failed_on_a_rank(nb: Notebook) -> None:
    failing = nb.send("%%distributed\nif rank == 2: raise ValueError", stop_on_error=True)
    following = nb.send("%distributed went_on = True", stop_on_error=True)
    assert nb.finish(failing).ename == "ValueError"
    assert nb.finish(following).reply["status"] == "aborted"
    assert on_ranks(nb, "'went_on' in globals()") == [False] * RANKS


def test_ranks_work_after_a_failed_cell(nb: Notebook) -> None:
    assert not nb.run("%%distributed\n1 / 0").ok
    assert on_ranks(nb, "mx.distributed.all_sum(mx.array(rank)).item()") == [3] * RANKS


# -- the other ranks -----------------------------------------------------------------------------


def folded(ran: Any) -> Output:
    assert ran.folded is not None, ran.outputs
    assert isinstance(ran.folded, Output)
    return ran.folded


def test_equal_output_is_one_line(nb: Notebook) -> None:
    block = folded(nb.ok("%%distributed\nprint('hello')"))
    assert block.plain == "[ranks 1-2: same output]"
    html = block.content["data"]["text/html"]
    assert "ranks 1-2: same output" in html
    assert "<details" not in html


def test_equal_text_is_the_same_however_it_was_cut(nb: Notebook) -> None:
    ran = nb.ok("%%distributed\nfor _ in range(5): print('x', end='', flush=rank == 1)")
    assert folded(ran).plain == "[ranks 1-2: same output]"


def test_different_outputs_are_folded_by_group(nb: Notebook) -> None:
    block = folded(nb.ok("%%distributed\nprint('zero' if rank == 0 else '<other>\\nlines')"))
    assert block.plain == "[ranks 1-2]\n<other>\nlines"
    html = block.content["data"]["text/html"]
    assert html.count("<details>") == 1
    assert "ranks 1-2: 2 lines" in html
    assert "&lt;other&gt;" in html

    block = folded(nb.ok("%%distributed\nprint('rank', rank)"))
    assert block.plain == "[rank 1]\nrank 1\n[rank 2]\nrank 2"
    assert block.content["data"]["text/html"].count("<details>") == 2


def test_silent_ranks_are_not_mentioned(nb: Notebook) -> None:
    ran = nb.ok("%%distributed\nrprint('only rank 0')")
    assert ran.text() == "only rank 0\n"
    assert ran.folded is None
    assert nb.ok("%%distributed\nif rank == 2: print('only rank 2')").folded is not None


def test_ranks_that_differ_only_in_silence_are_told_apart(nb: Notebook) -> None:
    block = folded(nb.ok("%%distributed\nif rank != 1: print('x')"))
    assert block.plain == "[rank 2: same output]"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("%no_such_magic", "Line magic function `%no_such_magic` not found."),
        ("%%no_such_magic\n1", "Cell magic `%%no_such_magic` not found."),
        ("%timeit -z", "option -z not recognized"),
    ],
)
def test_a_wrong_magic_is_told_once_and_fails_the_cell(
    nb: Notebook, source: str, problem: str
) -> None:
    assert not nb.run(source).ok
    ran = nb.run(f"%%distributed\n{source}")
    assert ran.ename == "UsageError"
    [output] = ran.outputs
    assert output.kind == "error"
    assert ran.traceback.count(problem) == 1
    assert re.search(r"raised on rank 0( at line .*)? \(and the same on ranks 1-2\)", ran.traceback)


def test_a_wrong_magic_that_fails_no_cell_is_told_as_ever(nb: Notebook) -> None:
    source = "get_ipython().run_cell('%no_such_magic');"
    expected = nb.ok(source).text("stderr")
    assert nb.ok(f"%%distributed\n{source}").text("stderr") == expected != ""


def test_errors_of_other_ranks_are_shown_and_not_folded(nb: Notebook) -> None:
    ran = nb.ok("%%distributed\nimport sys\nif rank == 1: print('careful', file=sys.stderr)")
    assert ran.text("stderr") == "[rank 1] careful\n"
    assert ran.folded is None


def test_equal_warnings_of_all_ranks_are_shown_once(nb: Notebook) -> None:
    """The file name of a cell in a warning differs between processes, and nothing else does."""
    ran = nb.ok("%%distributed\nimport warnings\nwarnings.warn('careful')")
    assert ran.text("stderr").count("UserWarning: careful") == 1
    assert folded(ran).plain == "[ranks 1-2: same output]"


def test_name_of_the_rank_is_not_overwritten_by_its_progress_bar(nb: Notebook) -> None:
    ran = nb.ok(
        "%%distributed\nimport sys\n"
        "for i in range(3):\n"
        "    print(f'\\rstep {i} of rank {rank}', end='', file=sys.stderr, flush=True)"
    )
    # What a terminal or a notebook leaves to see: rank 0's bar, and the others' in the fold.
    seen = [line.rpartition("\r")[2] for line in ran.text("stderr").split("\n")]
    assert seen == ["step 2 of rank 0"]
    assert folded(ran).plain == "[rank 1]\nstep 2 of rank 1\n[rank 2]\nstep 2 of rank 2"


def test_long_output_of_another_rank_is_cut(nb: Notebook) -> None:
    block = folded(nb.ok("%%distributed\nif rank: print('x' * 200_000)"))
    assert len(json.dumps(block.content)) < 100_000
    assert "%cluster output" in block.plain
    ran = nb.ok("%cluster output -t 1")
    assert ran.text() == "x" * 200_000 + "\n"


GROUPED = """
import sys
print("one", rank, flush=True)
print("bad", rank, file=sys.stderr, flush=True)
display(f"shown {rank}")
rank * 10"""


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("engine", "one 0|bad 0|'shown 0'|0|one 1|bad 1|'shown 1'|10|one 2|bad 2|'shown 2'|20"),
        ("type", "one 0|one 1|one 2|bad 0|bad 1|bad 2|'shown 0'|'shown 1'|'shown 2'|0|10|20"),
        ("order", "one 0|one 1|one 2|bad 0|bad 1|bad 2|'shown 0'|'shown 1'|'shown 2'|0|10|20"),
    ],
)
def test_group_outputs_orders_what_all_ranks_said(nb: Notebook, how: str, expected: str) -> None:
    ran = nb.ok(f"%%distributed --group-outputs {how}{GROUPED}")
    text = "\n".join(output.plain for output in ran.outputs)
    lines = [line for line in text.splitlines() if line and not line.startswith("[")]
    assert "|".join(lines) == expected
    for rank in range(RANKS):
        assert f"[stdout:{rank}]" in ran.text()
        assert f"[stderr:{rank}]" in ran.text("stderr")
        assert f"[output:{rank}]" in ran.text()
    # Each display stands directly under its heading.
    for before, output in itertools.pairwise(ran.outputs):
        if output.kind == "display_data":
            assert re.search(r"\[output:\d\]\n$", before.plain), before


# -- options -------------------------------------------------------------------------------------


def test_targets_choose_the_ranks(nb: Notebook) -> None:
    nb.ok("%%distributed --targets 0,2\nchosen = True")
    assert on_ranks(nb, "'chosen' in globals()") == [True, False, True]
    # The first of them is the one that is shown.
    ran = nb.ok("%%distributed -t 1-2\nprint('I am', rank)\nrank")
    assert ran.text() == "I am 1\n"
    assert ran.result == "1"
    assert folded(ran).plain == "[rank 2]\nI am 2\n2"


def test_rank_magic_chooses_the_ranks(nb: Notebook) -> None:
    ran = nb.ok("%%rank 0,2\nprint('I am', rank)")
    assert ran.text() == "I am 0\n"
    assert folded(ran).plain == "[rank 2]\nI am 2"
    ran = nb.run("%%rank 2\n\n1 / 0")
    assert re.search(r"-> 3 1 / 0", ran.traceback)
    assert "raised on rank 2" in ran.traceback


def test_line_form_runs_the_line(nb: Notebook) -> None:
    assert nb.ok("%distributed rank + 5").result == "5"
    assert nb.ok("%distributed --targets 1 rank * 10").result == "10"
    ran = nb.ok("%distributed -t 2 print('two  blanks', \"and 'quotes'\", -rank)")
    assert ran.text() == "two  blanks and 'quotes' -2\n"


@pytest.mark.parametrize("code", ["print({1, 2})", "print(f'{size}')", "print('$size')"])
def test_line_form_runs_the_line_as_it_was_written(nb: Notebook, code: str) -> None:
    """IPython fills {} and $ in from the notebook's own variables unless it is told not to."""
    nb.ok("size = 'of the notebook'")
    expected = nb.ok(f"%%distributed\n{code}").text()
    assert nb.ok(f"%distributed {code}").text() == expected


def test_out_binds_the_handle(nb: Notebook) -> None:
    ran = nb.ok("%%distributed -o run\nprint('rank', rank)")
    assert ran.text() == "rank 0\n"
    assert nb.ok("run.done, run.text(), run.text(2)").result == "(True, 'rank 0\\n', 'rank 2\\n')"


def test_noblock_returns_a_handle_at_once(nb: Notebook) -> None:
    ran = nb.ok(
        "%%distributed --noblock -o run\n"
        "import time\nprint('on', flush=True)\ntime.sleep(1)\nprint('end')"
    )
    assert ran.seconds < 1
    assert ran.text() == ""
    wait_for_ranks(nb, "run", "on")
    assert nb.ok("run.done, run.wait(0.01), run.text(1)").result == "(False, False, 'on\\n')"
    assert nb.ok("run.wait(30), run.done").result == "(True, True)"
    assert nb.ok("run.result(1) is run").result == "True"
    ran = nb.ok("run.show('type')")
    assert ran.text().count("end") == RANKS
    assert "done" in nb.ok("run").result


def test_repr_of_a_handle_shows_the_code(nb: Notebook) -> None:
    nb.ok("%%distributed -o run\nanswer = 6 * 7")
    assert "answer = 6 * 7" in nb.ok("run").result


def test_result_of_a_handle_raises_what_the_cell_raised(nb: Notebook) -> None:
    nb.ok("%%distributed --noblock -o run\nif rank == 1: raise LookupError('lost')")
    assert nb.ok("run.wait(30)").result == "True"
    ran = nb.run("run.result()")
    assert ran.ename == "LookupError"
    assert "raised on rank 1" in ran.traceback


def test_handle_cancels_its_cell(nb: Notebook) -> None:
    nb.ok("%%distributed --noblock -o run\nkept = rank\nprint('on', flush=True)\nwhile True: pass")
    wait_for_ranks(nb, "run", "on")
    ran = nb.ok("run.cancel()\nrun.done")
    assert ran.result == "True"
    assert ran.seconds < SOON
    assert nb.run("run.result()").ename == "KeyboardInterrupt"
    assert on_ranks(nb, "kept") == [0, 1, 2]


def test_wrong_grouping_of_a_handle_is_a_usage_error(nb: Notebook) -> None:
    nb.ok("%%distributed -o run\n1")
    check_usage(nb.run("run.show('nonsense')"))


def test_local_runs_the_cell_here_too(nb: Notebook) -> None:
    ran = nb.ok("%%distributed --local\neverywhere = 11\nprint('said')")
    assert ran.text() == "said\nsaid\n"
    assert nb.ok("everywhere").result == "11"
    assert on_ranks(nb, "everywhere") == [11] * RANKS


def test_timeout_stops_the_cell_and_keeps_the_variables(nb: Notebook) -> None:
    began = time.monotonic()
    ran = nb.run("%%distributed --timeout 0.5\nkept = rank + 7\nif rank:\n    while True: pass")
    assert time.monotonic() - began < SOON
    check_usage(ran, "CellTimeout")
    assert "ranks 1-2 had not ended" in ran.evalue
    assert on_ranks(nb, "kept") == [7, 8, 9]


@pytest.mark.parametrize(
    "magic",
    [
        "%%distributed --bogus",
        "%%distributed stray",
        "%%distributed --targets 3",
        "%%distributed --targets x",
        "%%distributed --targets 2-1",
        "%%distributed --targets ''",
        "%%distributed --targets",
        "%%distributed -o 1x",
        "%%distributed --group-outputs rank",
        "%%distributed --timeout soon",
        "%%distributed --timeout 0",
        "%%distributed --timeout -1",
        "%%distributed 'open",
        "%%rank",
        "%%rank 0-5",
        "%%rank 0 --targets 1",
    ],
)
def test_wrong_arguments_are_explained_and_nothing_runs(nb: Notebook, magic: str) -> None:
    ran = nb.run(f"{magic}\nran_with_wrong_arguments = True\nprint('ran')")
    try:
        check_usage(ran)
        assert ran.text() == ""
        assert on_ranks(nb, "'ran_with_wrong_arguments' in globals()") == [False] * RANKS
    finally:
        nb.ok("%%distributed\nglobals().pop('ran_with_wrong_arguments', None);")


@pytest.mark.parametrize(
    "line",
    [
        "%distributed",
        "%distributed -t 7 1",
        "%cluster",
        "%cluster nonsense",
        "%cluster start",
        "%cluster output -t 9",
        "%push",
        "%scatter",
        "%pull x --max-bytes many",
    ],
)
def test_wrong_lines_are_explained(nb: Notebook, line: str) -> None:
    check_usage(nb.run(line))


# -- what a cell may contain ---------------------------------------------------------------------


def test_magics_work_on_the_ranks(nb: Notebook) -> None:
    ran = nb.ok("%%distributed\n%env ON_A_RANK=yes")
    assert ran.text() == "env: ON_A_RANK=yes\n"
    assert on_ranks(nb, "__import__('os').environ['ON_A_RANK']") == ["yes"] * RANKS
    assert "per loop" in nb.ok("%%distributed\n%timeit -n1 -r1 1 + 1").text()


def test_cell_magic_may_follow(nb: Notebook) -> None:
    ran = nb.ok("%%distributed\n%%time\nprint('timed')\nunder_time = 6 * 7\nunder_time")
    assert ran.text().startswith("timed\n")
    assert "Wall time" in ran.text()
    assert ran.result == "42"
    assert on_ranks(nb, "under_time") == [42] * RANKS
    ran = nb.ok("%%distributed\n%%capture captured\nprint('hidden')")
    assert ran.text() == ""


def test_time_may_come_first(nb: Notebook) -> None:
    ran = nb.ok("%%time\n%distributed print('timed')")
    assert "timed\n" in ran.text()
    assert "Wall time" in ran.text()


def test_two_cells_in_a_row_may_await(nb: Notebook) -> None:
    first = nb.send("%%distributed\nimport asyncio\nawait asyncio.sleep(0.05, 'first')")
    second = nb.send(
        "%%distributed\ntask = asyncio.ensure_future(asyncio.sleep(0.05, 'second'))\nawait task"
    )
    assert nb.finish(first).result == "'first'"
    assert nb.finish(second).result == "'second'"


def test_task_of_one_cell_can_be_awaited_in_the_next(nb: Notebook) -> None:
    nb.ok(
        "%%distributed\nimport asyncio\ntask = asyncio.ensure_future(asyncio.sleep(0.05, 'late'))"
    )
    assert nb.ok("%%distributed\nawait task").result == "'late'"


@pytest.mark.parametrize("code", ["input('name? ')", "import getpass; getpass.getpass()"])
def test_reading_the_keyboard_is_refused_clearly(nb: Notebook, code: str) -> None:
    ran = nb.run(f"%%distributed\n{code}")
    assert ran.ename == "StdinNotImplementedError"
    assert "input() does not work in a distributed cell" in ran.evalue
    assert "%push" in ran.evalue
    assert ran.seconds < SOON


def test_context_variable_set_in_one_cell_is_seen_in_the_next(nb: Notebook) -> None:
    nb.ok(
        "%%distributed\nimport contextvars\n"
        "level = contextvars.ContextVar('level')\nlevel.set(rank + 3);"
    )
    assert on_ranks(nb, "level.get()") == [3, 4, 5]
    nb.ok("%%distributed\nimport asyncio\nawait asyncio.sleep(0)\nlevel.set(9);")
    assert nb.ok("%%distributed\nlevel.get()").result == "9"


def test_help_on_a_rank_opens_the_pager_here(nb: Notebook) -> None:
    nb.ok("%%distributed\ndef documented():\n    'A text of the ranks.'")
    assert "A text of the ranks." in nb.ok("%%distributed\ndocumented?").pager


# -- interrupt -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import asyncio; await asyncio.sleep(60)",
        "if rank == 2: import time; time.sleep(60)",
    ],
)
def test_interrupt_ends_the_cell_on_all_ranks(nb: Notebook, body: str) -> None:
    pids = on_ranks(nb, PID)
    sent = nb.send(f"%%distributed\nkept = rank + 20\nprint('started', flush=True)\n{body}")
    nb.wait_for_output(sent, "started")
    nb.interrupt()
    ran = nb.finish(sent, timeout=SOON)
    assert not ran.ok
    assert ran.ename in ("KeyboardInterrupt", "CancelledError", "CellCancelled")
    assert "interrupted" in ran.traceback
    # Ranks that react to an interrupt are not restarted.
    assert on_ranks(nb, "kept") == [20, 21, 22]
    assert on_ranks(nb, PID) == pids
    assert on_ranks(nb, "mx.distributed.all_sum(mx.array(1)).item()") == [RANKS] * RANKS


def test_interrupt_ends_a_shell_command_on_all_ranks(nb: Notebook) -> None:
    pids = on_ranks(nb, PID)
    sent = nb.send("%%distributed\n!echo started; sleep 60")
    nb.wait_for_output(sent, "started")
    nb.interrupt()
    # Ending a command is no error in a local cell either.
    nb.finish(sent, timeout=SOON)
    assert on_ranks(nb, PID) == pids


def test_interrupt_between_cells_does_no_harm(nb: Notebook) -> None:
    nb.interrupt()
    assert on_ranks(nb, "rank") == [0, 1, 2]


# -- much output ---------------------------------------------------------------------------------

LINES = 1_000_000


def test_a_million_lines_end_and_are_cut(nb: Notebook, tmp_path: Path) -> None:
    ran = nb.ok(
        "%%distributed\n"
        "if rank == 0:\n"
        f"    for start in range(0, {LINES}, 1000):\n"
        "        print('\\n'.join(map(str, range(start, start + 1000))))"
    )
    text = ran.text()
    assert len(text) < MIB
    head, said, tail = re.split(r"\n\[([^\]]*)\]\n", text)
    shown = head.splitlines()
    assert shown == [str(i) for i in range(len(shown))]
    hidden = re.match(r"([\d,]+) more lines", said)
    assert hidden
    assert len(shown) + int(hidden[1].replace(",", "")) == LINES
    assert tail.splitlines()[-1] == str(LINES - 1)
    assert "%cluster output --save" in said

    file = tmp_path / "all.txt"
    nb.ok(f"%cluster output --save {file}")
    assert file.read_text() == "".join(f"{i}\n" for i in range(LINES))
    last = nb.ok("%cluster output --lines 2").text()
    assert last == f"{LINES - 2}\n{LINES - 1}\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_much_text_without_line_ends_is_cut(nb: Notebook, stream: str) -> None:
    ran = nb.ok(
        "%%distributed --targets 0\nimport sys\n"
        f"for i in range(400): print('x' * 5_000, end='', file=sys.{stream}, flush=True)\n"
        f"print('the end', end='', file=sys.{stream})"
    )
    text = ran.text() + ran.text("stderr")
    assert len(text) < MIB
    assert text.endswith("the end")


def test_limit_counts_bytes(nb: Notebook) -> None:
    ran = nb.ok("%%distributed --targets 0\nprint(('漢' * 249 + '\\n') * 3_000)")
    assert len(ran.text().encode()) < MIB


def test_long_line_is_shown_at_once(nb: Notebook) -> None:
    ran = nb.ok("%%distributed --targets 0\nprint('x' * 100_000)")
    assert ran.text() == "x" * 100_000 + "\n"
    assert ran.seconds < 3


def test_long_result_is_cut_and_can_be_pulled(nb: Notebook) -> None:
    ran = nb.ok("%%distributed\n'x' * 10_000_000")
    assert len(json.dumps([output.content for output in ran.outputs])) < MIB
    [pull] = re.findall(r"%pull Out\[\d+\] --targets 0", ran.result)
    assert nb.ok(f"value = get_ipython().run_line_magic(*'{pull[1:]}'.split(' ', 1))\n"
                 "value == 'x' * 10_000_000").result == "True"  # fmt: skip


# -- Tab and Shift-Tab ---------------------------------------------------------------------------

# A gibibyte if somebody evaluates or copies it.
LAZY = "lazy_array = mx.random.uniform(shape=(16384, 16384))"


def active_memory(nb: Notebook) -> int:
    return int(max(on_ranks(nb, "mx.get_active_memory()")))


def test_names_of_the_ranks_are_completed(nb: Notebook) -> None:
    nb.ok("%%distributed\nonly_on_ranks_1 = 1\nonly_on_ranks_2 = 2")
    code = "%%distributed --targets 0\nprint(1)\nonly_on_r"
    reply = nb.complete(code)
    assert reply["matches"] == ["only_on_ranks_1", "only_on_ranks_2"]
    assert code[reply["cursor_start"] : reply["cursor_end"]] == "only_on_r"
    assert nb.complete("only_on_r")["matches"] == []
    assert "only_on_ranks_1" in nb.complete("%distributed only_on_r")["matches"]
    assert "only_on_ranks_1" in nb.complete("%%rank 1\nonly_on_r")["matches"]


def test_attributes_are_completed_without_evaluating(nb: Notebook) -> None:
    nb.ok(f"%%distributed\n{LAZY}")
    code = "%%distributed\nlazy_array.sh"
    reply = nb.complete(code)
    assert reply["matches"] == [".shape"] or reply["matches"] == ["shape"]
    completed = code[: reply["cursor_start"]] + reply["matches"][0] + code[reply["cursor_end"] :]
    assert completed == "%%distributed\nlazy_array.shape"
    assert active_memory(nb) < MIB


@pytest.mark.parametrize(
    ("code", "matches"),
    [
        ("%%distributed --ta", ["--targets"]),
        ("%distributed --no", ["--noblock"]),
        ("%%rank 0 --ti", ["--timeout"]),
        ("%cluster st", ["stacks", "start", "status", "stop"]),
        ("%cluster start 2 --ba", ["--backend"]),
        ("%cluster output --s", ["--save"]),
        ("%pull x --max", ["--max-bytes"]),
        ("x = 1\n%variables --t", ["--targets"]),
        ("%cluster start 2 --backend m", ["mpi"]),
        (f"%cluster connect {NAME[:-1]}", [NAME]),
    ],
)
def test_options_verbs_and_values_are_completed(
    nb: Notebook, code: str, matches: list[str]
) -> None:
    reply = nb.complete(code)
    assert sorted(reply["matches"]) == matches
    assert code[reply["cursor_start"] : reply["cursor_end"]] == code.rsplit(maxsplit=1)[-1]


def test_names_of_the_ranks_are_completed_where_they_are_pulled(nb: Notebook) -> None:
    nb.ok("%%distributed\npulled_1 = 1\npulled_2 = {'a key': mx.zeros(3)}")
    for code, text, matches in [
        ("%pull pulled", "pulled", ["pulled_1", "pulled_2"]),
        ("x = 1\n%pull -t 0 rank pulled_1", "pulled_1", ["pulled_1"]),
        ("%gather pulled_", "pulled_", ["pulled_1", "pulled_2"]),
        ("%pull pulled_1.denom", ".denom", [".denominator"]),
        ("%pull no_such_na", "no_such_na", []),
    ]:
        reply = nb.complete(code)
        assert reply["matches"] == matches
        if matches:
            assert code[reply["cursor_start"] : reply["cursor_end"]] == text
    offered = nb.complete("%pull ")["matches"]
    assert {"pulled_1", "pulled_2"} <= set(offered)
    assert not {"print", "for", "In", "get_ipython", "_"} & set(offered)
    assert not [name for name in offered if name.startswith("%")]


def test_plain_cells_are_completed_as_ever(nb: Notebook) -> None:
    nb.ok("only_here_1 = 1")
    assert nb.complete("only_here")["matches"] == ["only_here_1"]
    assert "%%distributed" in nb.complete("%%distr")["matches"]


def test_help_and_completion_answer_while_a_cell_runs(nb: Notebook) -> None:
    nb.ok("%%distributed\nduring_a_cell = 1")
    nb.ok("%%distributed --noblock -o run\nprint('on', flush=True)\nwhile True: pass")
    try:
        wait_for_ranks(nb, "run", "on")
        began = time.monotonic()
        assert nb.complete("%%distributed\nduring_a")["matches"] == ["during_a_cell"]
        assert nb.inspect("%%distributed\nduring_a_cell")["found"]
        assert time.monotonic() - began < 2
        assert nb.ok("run.done").result == "False"
    finally:
        nb.ok("run.cancel()")


def test_inspect_shows_the_documentation_of_a_function_of_the_ranks(nb: Notebook) -> None:
    nb.ok(
        "%%distributed\ndef add(left, right=2):\n    'Adds on the ranks.'\n    return left + right"
    )
    code = "%%distributed\nx = add(1)"
    reply = nb.inspect(code, code.index("add") + 2)
    assert reply["found"]
    text = ANSI.sub("", reply["data"]["text/plain"])
    assert "Adds on the ranks." in text
    assert "add(left, right=2)" in text


def test_inspect_describes_an_array_without_evaluating_it(nb: Notebook) -> None:
    nb.ok(f"%%distributed\n{LAZY}")
    text = nb.inspect("%%distributed\nlazy_array")["data"]["text/plain"]
    assert "(16384, 16384)" in text.replace("[", "(").replace("]", ")")
    assert "float32" in text
    assert active_memory(nb) < MIB


def test_inspect_of_an_unknown_name_finds_nothing(nb: Notebook) -> None:
    assert not nb.inspect("%%distributed\nno_such_name_anywhere")["found"]


# -- variables -----------------------------------------------------------------------------------

VALUES = {
    "numpy float64": "np.linspace(0, 1, 7)",
    "numpy bool": "np.array([True, False])",
    "numpy complex": "np.array([1 + 2j])",
    "numpy view": "np.arange(24).reshape(4, 6)[::2, ::3]",
    "numpy transposed": "np.arange(6).reshape(2, 3).T",
    "numpy scalar": "np.float32(1.5)",
    "numpy without dimensions": "np.array(3, dtype='int8')",
    "numpy empty": "np.zeros((0, 3))",
    "numpy big endian": "np.arange(3, dtype='>i4')",
    "numpy objects": "np.array([{'a': 1}, None], dtype=object)",
    "bfloat16": "mx.array([1.5, -2.0, 3.25], dtype=mx.bfloat16)",
    "float16": "mx.ones((2, 3), dtype=mx.float16)",
    "mlx bool": "mx.array([True, False])",
    "mlx transposed": "mx.arange(6).reshape(2, 3).T",
    "mlx without dimensions": "mx.array(7)",
    "mlx empty": "mx.zeros((0, 2))",
    "mlx complex": "mx.array([1 + 2j])",
    "python values": "{'a': [1, 2.5, None, 'text'], 'b': (b'bytes', {3})}",
}


@pytest.mark.parametrize("what", VALUES)
def test_values_come_back_as_they_were_sent(nb: Notebook, what: str) -> None:
    nb.ok("import numpy as np, mlx.core as mx")
    nb.ok(f"sent = {VALUES[what]}\n%push sent")
    nb.ok("%pull sent --targets 2 --as back")
    nb.ok(
        "assert back is not sent and type(back) is type(sent), type(back)\n"
        "if hasattr(sent, 'dtype'):\n"
        "    assert (back.dtype, back.shape) == (sent.dtype, sent.shape), back\n"
        "    assert back.tolist() == sent.tolist(), back\n"
        "else:\n"
        "    assert back == sent, back"
    )
    assert on_ranks(nb, "repr(sent)") == [eval_repr(nb, "sent")] * RANKS


def eval_repr(nb: Notebook, expression: str) -> str:
    """The repr of a value in the notebook itself."""
    text: str = ast.literal_eval(nb.ok(f"repr({expression})").result)
    return text


def test_pulled_arrays_can_be_written(nb: Notebook) -> None:
    nb.ok("%%distributed\nimport numpy as np\npart = np.zeros(3) + rank")
    nb.ok("%pull part")
    assert nb.ok("part[1] += 1\n[p.tolist() for p in part]").result == (
        "[[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]"
    )


def test_pull_gives_a_value_per_rank_and_push_can_aim(nb: Notebook) -> None:
    nb.ok("aimed = 'x'\n%push aimed --targets 1")
    assert on_ranks(nb, "globals().get('aimed')") == [None, "x", None]
    nb.ok("%%distributed\nmine, square = rank, rank ** 2")
    nb.ok("%pull mine square")
    assert nb.ok("mine, square").result == "([0, 1, 2], [0, 1, 4])"
    nb.ok("%pull mine --targets 1")
    assert nb.ok("mine").result == "1"
    assert nb.ok("%pull mine+1").result == "[1, 2, 3]"


@pytest.mark.parametrize(
    ("make", "lengths"),
    [
        ("np.arange(14, dtype='int16').reshape(7, 2)", [3, 2, 2]),
        ("mx.arange(7).astype(mx.bfloat16)", [3, 2, 2]),
        ("list('abcdefgh')", [3, 3, 2]),
        ("np.arange(2)", [1, 1, 0]),
    ],
)
def test_scatter_splits_and_gather_joins(nb: Notebook, make: str, lengths: list[int]) -> None:
    nb.ok(f"import numpy as np, mlx.core as mx\nwhole = {make}\n%scatter whole")
    assert on_ranks(nb, "len(whole)") == lengths
    nb.ok("%gather whole --as joined")
    nb.ok(
        "assert type(joined) is type(whole)\n"
        "if isinstance(whole, list):\n    assert joined == whole\n"
        "else:\n    assert joined.dtype == whole.dtype and joined.tolist() == whole.tolist()"
    )


def test_variables_says_what_differs(nb: Notebook) -> None:
    nb.ok(
        "%%distributed\n"
        "v_same, v_differs = [1, 2], rank\n"
        "v_array, v_other = mx.ones(4), mx.ones(4) * rank\n"
        "v_shape = mx.ones(rank + 1)\n"
        "if rank != 1: v_some = 1"
    )
    ran = nb.ok("%variables")
    rows = {line.split()[0]: line for line in ran.result.splitlines() if line.strip()}
    verdicts = {
        "v_same": "same",
        "v_differs": "differs",
        "v_array": "same",
        "v_other": "differs",
        "v_shape": "differs",
        "v_some": "not on rank 1",
    }
    assert {
        name: rows[name].rstrip().endswith(end) for name, end in verdicts.items()
    } == dict.fromkeys(verdicts, True), ran.result
    assert "float32" in rows["v_array"]
    html = ran.all("execute_result")[0].content["data"]["text/html"]
    assert "<table" in html
    assert "not on rank 1" in html


def test_too_large_a_pull_is_refused_with_its_size(nb: Notebook) -> None:
    nb.ok("%%distributed\nbig = mx.zeros((1000, 1000))")
    ran = nb.run("%pull big --max-bytes 1000")
    check_usage(ran, "TransferError")
    sizes = re.findall(r"(\d+\.\d) (?:[kMG]i?B)", ran.evalue)
    assert sizes
    assert "0.0" not in sizes
    assert "--max-bytes" in ran.evalue
    assert not nb.run("big").ok
    nb.ok("%pull big --max-bytes 12000000")


def test_too_large_a_python_value_is_refused_too(nb: Notebook) -> None:
    nb.ok("%%distributed\nlong_list = list(range(100_000))")
    assert nb.run("%pull long_list --max-bytes 1000").ename == "TransferError"


def test_missing_names_are_transfer_errors_both_ways(nb: Notebook) -> None:
    ran = nb.run("%push no_such_name_here")
    check_usage(ran, "TransferError")
    assert "no_such_name_here" in ran.evalue
    ran = nb.run("%pull no_such_name_there")
    check_usage(ran, "TransferError")
    assert "no_such_name_there" in ran.evalue


def test_pull_of_a_name_that_a_rank_lacks_names_the_rank(nb: Notebook) -> None:
    nb.ok("%%distributed\nif rank != 1: lacking = 1")
    ran = nb.run("%pull lacking")
    assert ran.ename == "TransferError"
    assert "rank 1" in ran.evalue


def test_values_that_cannot_travel_are_transfer_errors(nb: Notebook) -> None:
    check_usage(nb.run("stuck = lambda: 1\n%push stuck"), "TransferError")
    ran = nb.run("def defined_here(): pass\n%push defined_here")
    check_usage(ran, "TransferError")
    assert "'defined_here' is a function defined in this notebook" in ran.evalue
    assert on_ranks(nb, "'defined_here' in globals()") == [False] * RANKS
    nb.ok("%%distributed\nclass OnlyThere: pass\nthing = OnlyThere()")
    ran = nb.run("%pull thing")
    check_usage(ran, "TransferError")
    assert "OnlyThere" in ran.evalue
    check_usage(nb.run("number = 5\n%scatter number"), "TransferError")


# -- documentation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "options"),
    [
        (
            "%%distributed?",
            ["--targets", "--noblock", "--out", "--local", "--group-outputs", "--timeout"],
        ),
        ("%%rank?", ["RANKS", "--noblock"]),
        ("%cluster?", ["start", "connect", "restart", "--backend", "--env", "--save", "--lines"]),
        ("%pull?", ["--targets", "--max-bytes", "--as"]),
        ("%push?", ["--targets"]),
        ("%scatter?", ["--targets"]),
        ("%gather?", ["--max-bytes"]),
        ("%variables?", ["--targets"]),
    ],
)
def test_question_mark_shows_the_options(nb: Notebook, line: str, options: list[str]) -> None:
    pager = nb.ok(line).pager
    assert [option for option in options if option not in pager] == []


# -- the cluster itself --------------------------------------------------------------------------
# These come last, and in this order: they end the ranks, and then the cluster.


def test_status_shows_idle_ranks(nb: Notebook) -> None:
    pids = on_ranks(nb, PID)
    ran = nb.ok("%cluster status")
    rows = ran.result.splitlines()[-RANKS:]
    assert [row.split()[:3] for row in rows] == [
        [str(r), "idle", str(pids[r])] for r in range(RANKS)
    ]
    assert "ring" in ran.text()
    assert "<table" in ran.all("execute_result")[0].content["data"]["text/html"]


@pytest.mark.parametrize(
    "line",
    ["while True: pass", "import time; time.sleep(60)", "import asyncio; await asyncio.sleep(60)"],
)
def test_status_shows_where_busy_ranks_are(nb: Notebook, line: str) -> None:
    nb.ok(f"%%distributed --noblock -o run\nprint('on', flush=True)\n{line}")
    try:
        wait_for_ranks(nb, "run", "on")
        rows = nb.ok("%cluster status").result.splitlines()[-RANKS:]
        assert [row.split()[1] for row in rows] == ["busy"] * RANKS
        assert all(f"line 3: `{line}`" in row for row in rows)
    finally:
        nb.ok("run.cancel()")


def test_list_shows_the_cluster(nb: Notebook) -> None:
    [row] = [r for r in nb.ok("%cluster list").result.splitlines() if NAME in r]
    assert row.split()[:3] == [NAME, str(RANKS), "ring"]
    assert "this notebook" in row


def test_second_start_is_refused(nb: Notebook) -> None:
    ran = nb.run("%cluster start 2")
    check_usage(ran)
    assert NAME in ran.evalue
    assert "%cluster stop" in ran.evalue


def test_loading_twice_is_harmless(nb: Notebook) -> None:
    nb.ok("%load_ext macluster")
    nb.ok("import macluster\nmacluster.load_ipython_extension(get_ipython())")
    assert nb.ok("%distributed size").result == str(RANKS)


def test_unloading_removes_the_magics_and_leaves_the_cluster(nb: Notebook) -> None:
    nb.ok("%%distributed\nsurvivor = rank")
    nb.ok("%unload_ext macluster")
    try:
        for source in (
            "%%distributed\n1",
            "%%rank 0\n1",
            "%distributed 1",
            "%cluster list",
            "%pull x",
        ):
            ran = nb.run(source)
            assert not ran.ok
            assert "not found" in ran.text("stderr")
        assert nb.complete("%cluster st")["matches"] != ["start", "status", "stop"]
    finally:
        nb.ok("%load_ext macluster")
        nb.ok(f"%cluster connect {NAME}")
    assert on_ranks(nb, "survivor") == [0, 1, 2]


def test_restart_gives_fresh_ranks(nb: Notebook) -> None:
    nb.ok("%%distributed\nforgotten = 1")
    pids = on_ranks(nb, PID)
    nb.ok("%cluster restart")
    assert on_ranks(nb, "'forgotten' in globals()") == [False] * RANKS
    assert not set(pids) & set(on_ranks(nb, PID))
    assert on_ranks(nb, "mx.distributed.all_sum(mx.array(rank)).item()") == [3] * RANKS


def test_stop_ends_the_cluster_and_cells_say_how_to_start_one(nb: Notebook) -> None:
    ran = nb.ok("%cluster stop")
    assert NAME in ran.text()
    assert NAME not in nb.ok("%cluster list").result
    for source in (
        "%%distributed\n1",
        "%distributed 1",
        "%cluster status",
        "%pull x",
        "%variables",
    ):
        ran = nb.run(source)
        check_usage(ran, "ClusterNotFound")
        assert "%cluster start 2" in ran.evalue
