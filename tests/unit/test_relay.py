"""What a notebook shows of the ranks' output, and what it leaves out."""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, cast

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from macluster.engine.cell import Cell, RankRun
from macluster.engine.units import bytes_text
from macluster.engine.world import World
from macluster.magics.distributed import DISTRIBUTED
from macluster.magics.relay import (
    FOLDED_BYTES,
    MAX_BYTES,
    MAX_LINES,
    TAIL_LINES,
    Budget,
    Relay,
    digest_of,
    groups_of_equal_output,
    plain_text,
    show_grouped,
    show_others,
    within_limit,
)

Output = tuple[str, dict[str, Any]]


def out(text: str) -> Output:
    return "stream", {"name": "stdout", "text": text}


def err(text: str) -> Output:
    return "stream", {"name": "stderr", "text": text}


def shown(text: str, kind: str = "display_data", **more: Any) -> Output:
    return kind, {"data": {"text/plain": text, **more}, "metadata": {}}


CLEAR: Output = ("clear_output", {"wait": False})


def run(rank: int, *messages: Output) -> RankRun:
    return RankRun(rank, "ok", list(messages))


def cell_of(*runs: RankRun) -> Cell:
    """An ended cell. Its world is not needed to look at its output."""
    cell = Cell(cast("World", None), "", [each.rank for each in runs])
    cell.runs = {each.rank: each for each in runs}
    return cell


def numbered_lines(count: int, start: int = 0) -> str:
    return "".join(f"line {i}\n" for i in range(start, start + count))


# Long lines must not take longer than their length says; these tests take milliseconds.
SOON = pytest.mark.timeout(3)

# -- the budget -----------------------------------------------------------------------------------


def admitted(budget: Budget, chunks: Iterable[str]) -> str:
    return "".join(budget.admit(chunk) for chunk in chunks)


def test_text_within_the_budget_is_shown_as_it_is() -> None:
    budget = Budget()
    text = numbered_lines(MAX_LINES)
    assert admitted(budget, text.splitlines(True)) == text
    assert budget.summary() == ""


def test_one_line_too_many_is_left_out_and_told() -> None:
    budget = Budget()
    text = numbered_lines(MAX_LINES)
    assert budget.admit(text) == text
    assert budget.admit("the last straw\n") == ""
    assert budget.summary() == (
        "\n[1 more lines (15 B) are not shown; %cluster output --save FILE writes all of them. "
        "The last ones:]\nthe last straw\n"
    )


@pytest.mark.parametrize("size", [1, 7, 1000, 10**6])
def test_too_many_lines_are_cut_at_the_same_line_whatever_the_chunks(size: int) -> None:
    budget = Budget()
    lines = numbered_lines(MAX_LINES + 1234).splitlines(True)
    chunks = ("".join(lines[i : i + size]) for i in range(0, len(lines), size))
    assert admitted(budget, chunks) == "".join(lines[:MAX_LINES])
    told, _, tail = budget.summary().partition(":]\n")
    hidden = len("".join(lines[MAX_LINES:]))
    assert told.startswith(f"\n[1,234 more lines ({bytes_text(hidden)}) are not shown;")
    assert tail == "".join(lines[-TAIL_LINES:])


def test_the_tail_is_no_longer_than_what_was_left_out() -> None:
    budget = Budget()
    budget.admit(numbered_lines(MAX_LINES + 3))
    assert budget.summary().endswith(":]\n" + numbered_lines(3, MAX_LINES))


@SOON
def test_one_endless_line_is_cut_at_the_byte_limit() -> None:
    budget = Budget()
    assert budget.admit("x" * (MAX_BYTES + 2**20)) == "x" * MAX_BYTES
    assert f"[0 more lines ({bytes_text(2**20)}) are not shown" in budget.summary()


@SOON
def test_bytes_add_up_over_messages_and_nothing_follows_the_cut() -> None:
    budget = Budget()
    chunk = "y" * (MAX_BYTES // 4 - 1) + "\n"
    assert admitted(budget, [chunk] * 4) == chunk * 4
    assert admitted(budget, [chunk] * 8 + ["end\n"]) == ""
    hidden = bytes_text(8 * len(chunk) + 4)
    assert f"[9 more lines ({hidden}) are not shown" in budget.summary()
    assert budget.summary().endswith("end\n")


@SOON
def test_the_limit_of_bytes_holds_for_text_that_is_not_ascii() -> None:
    budget = Budget()
    assert len(budget.admit("é" * MAX_BYTES).encode()) <= MAX_BYTES
    # Half of it, for each of these takes two bytes.
    assert f"({bytes_text(MAX_BYTES)})" in budget.summary()


def bars(count: int) -> list[str]:
    """The states of a progress bar, one after the other."""
    return [f"{i:6}/{count} " + "#" * 70 for i in range(count)]


@pytest.mark.parametrize("shape", ["\r{}", "{}\r"], ids=["tqdm", "return at the end"])
@pytest.mark.parametrize("together", [1, 50])
def test_a_progress_bar_does_not_use_up_the_budget(shape: str, together: int) -> None:
    updates = [shape.format(bar) for bar in bars(10_000)]
    chunks = ["".join(updates[i : i + together]) for i in range(0, len(updates), together)]
    budget = Budget()
    assert len("".join(updates)) > MAX_BYTES
    assert admitted(budget, chunks) == "".join(updates)
    assert admitted(budget, ["\ndone\n"]) == "\ndone\n"
    assert budget.summary() == ""


def test_a_windows_line_end_overwrites_nothing() -> None:
    budget = Budget()
    text = "windows\r\n" * (MAX_LINES + 1)
    assert budget.admit(text) == "windows\r\n" * MAX_LINES
    assert budget.summary().endswith(":]\nwindows\r\n")


@pytest.mark.parametrize("mark", ["\r", "\f", "\v", "\u2028", "\x1c"], ids=repr)
def test_only_a_newline_ends_a_line(mark: str) -> None:
    budget = Budget()
    line = f"half{mark}done\n"
    assert budget.admit(line * (MAX_LINES + 100)) == line * MAX_LINES
    assert "[100 more lines" in budget.summary()
    assert budget.summary().endswith(":]\n" + line * TAIL_LINES)


def test_clearing_the_output_gives_the_budget_back() -> None:
    budget = Budget()
    budget.admit(numbered_lines(MAX_LINES + 1))
    budget.reset()
    assert budget.summary() == ""
    text = numbered_lines(MAX_LINES)
    assert budget.admit(text) == text
    assert budget.summary() == ""


# -- relaying, outside of a notebook --------------------------------------------------------------


def message(output: Output) -> dict[str, Any]:
    kind, content = output
    return {"header": {"msg_type": kind}, "content": content}


def test_one_ranks_output_is_printed_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    show = Relay(object(), rank=1)
    for rank, output in [(0, out("no\n")), (1, out("a")), (1, err("b\n")), (1, out("\rc\n"))]:
        show(rank, message(output))
    show(1, message(shown("<Figure>")))
    show.finish()
    assert capsys.readouterr() == ("a\rc\n<Figure>\n", "b\n")


def test_the_result_is_shown_last_and_as_the_notebooks_own(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    show = Relay(shell, rank=0)
    show(1, message(shown("43", "execute_result")))
    show(0, message(shown("42", "execute_result")))
    show(0, message(shown("<Figure>")))
    show(0, message(out("late\n")))
    assert capsys.readouterr().out == ""
    show.finish()
    printed = capsys.readouterr().out
    assert re.search(r"42\s*<Figure>\s*late\n$", printed)
    result = shell.user_ns["_"]
    assert repr(result) == "42"
    assert result._repr_mimebundle_() == ({"text/plain": "42"}, {})


def test_a_cut_output_ends_with_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    show = Relay(object(), rank=0)
    text = numbered_lines(MAX_LINES + 50)
    show(0, message(out(text)))
    show.finish()
    lines = text.splitlines(True)
    printed = capsys.readouterr().out
    assert printed.startswith("".join(lines[:MAX_LINES]) + "\n[50 more lines")
    assert printed.endswith("".join(lines[-TAIL_LINES:]))


def test_clear_output_from_the_rank_gives_the_budget_back(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show = Relay(object(), rank=0)
    for output in (out(numbered_lines(MAX_LINES + 50)), CLEAR, out("after\n")):
        show(0, message(output))
    show.finish()
    assert capsys.readouterr().out == numbered_lines(MAX_LINES) + "after\n"


# -- long results and displays --------------------------------------------------------------------


@SOON
@pytest.mark.parametrize("letter", ["x", "漢"])
def test_a_long_result_is_cut_and_says_how_to_get_it(letter: str) -> None:
    text = letter * 10_000_000
    kind, content = shown(text, "execute_result")
    cut = within_limit(kind, {**content, "execution_count": 5}, 2)
    start, _, note = cut["data"]["text/plain"].rpartition("\n")
    assert MAX_BYTES - 4 < len(start.encode()) <= MAX_BYTES
    assert text.startswith(start)
    whole = bytes_text(len(text.encode()))
    assert note == f"[cut: {whole} in all; %pull Out[5] --targets 2 brings the value here]"
    # What the rank sent is kept whole, for `%cluster output`.
    assert content["data"]["text/plain"] == text


def test_a_text_at_the_limit_is_shown_as_it_is() -> None:
    kind, content = shown("x" * MAX_BYTES, **{"text/html": "y" * MAX_BYTES})
    assert within_limit(kind, content, 0) is content


@SOON
def test_long_html_is_left_out_because_half_of_it_is_worth_nothing() -> None:
    kind, content = shown("<Table>", **{"text/html": "<b>row</b>" * 10**6})
    assert within_limit(kind, content, 0)["data"] == {
        "text/plain": "<Table>\n[its HTML (10.0 MB) is not shown; bind the value to a name, and "
        "%pull NAME brings it here]"
    }


@SOON
@pytest.mark.parametrize("part", ["<svg>", "<script ", "data:a/b;", "data:", "<"])
def test_half_of_a_picture_takes_no_time_to_read(part: str) -> None:
    kind, content = shown("<Odd>", **{"text/html": part * 10**6})
    assert "<Odd>" in within_limit(kind, content, 0)["data"]["text/plain"]


PICTURE = "iVBO" * MAX_BYTES


@SOON
@pytest.mark.parametrize(
    "form",
    [
        {"image/png": PICTURE},
        {"image/svg+xml": f"<svg>{PICTURE}</svg>"},
        {"text/html": f'<img src="data:image/png;base64,{PICTURE}">'},
        {"text/html": f"<svg>{PICTURE}</svg>\n<SVG>{PICTURE}</SVG>"},
        {"text/html": f"<script>{PICTURE}</script><div></div>"},
        {"application/json": {"a": PICTURE}},
    ],
    ids=["png", "svg", "png in html", "svg in html", "program in html", "json"],
)
def test_pictures_are_never_cut(form: dict[str, Any]) -> None:
    kind, content = shown("<Figure>", **form)
    assert within_limit(kind, content, 0) is content
    kind, content = shown("x" * (MAX_BYTES + 1), **form)
    cut = within_limit(kind, content, 0)["data"]
    assert {mime: cut[mime] for mime in form} == form
    assert "cut: " in cut["text/plain"]


@SOON
@pytest.mark.parametrize("kind", ["display_data", "execute_result"])
def test_the_limit_holds_where_output_is_shown(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    long = shown("x" * 2 * MAX_BYTES, kind)
    show = Relay(shell, rank=0)
    show(0, message(long))
    show.finish()
    one = capsys.readouterr().out
    show_grouped(cell_of(run(0, long), run(1, long)), "engine")
    both = capsys.readouterr().out
    for printed, count in [(one, 1), (both, 2)]:
        assert printed.count("[cut: 1.0 MB in all; ") == count
        assert printed.count("x") == count * MAX_BYTES
    assert plain_text(run(0, long)).count("x") == 2 * MAX_BYTES


# -- equal outputs --------------------------------------------------------------------------------


def chunked(text: str, size: int) -> list[Output]:
    return [out(text[i : i + size]) for i in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_how_text_was_cut_into_messages_does_not_matter(size: int) -> None:
    text = "one\ntwo\nthree\n"
    ends = [shown("<Figure>"), err("late\n")]
    whole = run(0, out(text), *ends)
    assert digest_of(run(1, *chunked(text, size), *ends)) == digest_of(whole)


DIFFERENT: dict[str, list[Output]] = {
    "nothing": [],
    "a text": [out("ab")],
    "another text": [out("abc")],
    "the other stream": [err("ab")],
    "both streams": [out("a"), err("b")],
    "both streams, the other way": [err("b"), out("a")],
    "streams in turns": [out("a"), err("b"), out("c")],
    "streams in two blocks": [out("ac"), err("b")],
    "a display": [shown("ab")],
    "another display": [shown("abc")],
    "two displays": [shown("a"), shown("b")],
    "a display first": [shown("ab"), out("ab")],
    "a display last": [out("ab"), shown("ab")],
    "a display between": [out("a"), shown("ab"), out("b")],
    "a result": [shown("ab", "execute_result")],
    "an update": [shown("ab", "update_display_data")],
    "a picture": [shown("ab", **{"image/png": "iVBO"})],
    "another picture": [shown("ab", **{"image/png": "iVBP"})],
    "cleared": [out("ab"), CLEAR],
}


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(DIFFERENT, 2)])
def test_outputs_that_differ_are_told_apart(one: str, other: str) -> None:
    assert digest_of(run(0, *DIFFERENT[one])) != digest_of(run(1, *DIFFERENT[other]))


def test_the_same_widget_on_two_ranks_is_equal_output() -> None:
    mime = "application/vnd.jupyter.widget-view+json"
    views: list[dict[str, Any]] = [{mime: {"model_id": name}} for name in ("4f", "9c")]
    first, second = (shown("Bar()", **view) for view in views)
    assert digest_of(run(0, first)) == digest_of(run(1, second))


def test_the_process_number_in_a_cells_file_name_does_not_matter() -> None:
    first, second = (f"/tmp/ipykernel_{pid}/1.py:1: UserWarning" for pid in (17, 4242))
    assert digest_of(run(0, err(first))) == digest_of(run(1, err(second[:12]), err(second[12:])))


def test_ranks_with_equal_output_are_grouped_in_rank_order() -> None:
    runs = [
        run(1, out("b")),
        run(2, out("a\n")),
        run(3, out("b")),
        run(4),
        run(5, out("a"), out("\n")),
        run(6, out("b")),
    ]
    groups = groups_of_equal_output(runs)
    assert [[each.rank for each in group] for group in groups] == [[1, 3, 6], [2, 5], [4]]
    assert groups_of_equal_output([]) == []


# -- text -----------------------------------------------------------------------------------------


def test_displays_are_text_between_the_streams() -> None:
    mixed = run(0, out("a\n"), err("b\n"), shown("<Figure>"), out("c"), shown("42"))
    assert plain_text(mixed) == "a\nb\n<Figure>\nc42\n"
    assert plain_text(mixed, without_stderr=True) == "a\n<Figure>\nc42\n"


def test_cleared_output_is_gone_from_the_text() -> None:
    assert plain_text(run(0, out("a"), shown("b"), CLEAR, out("c"))) == "c"
    assert plain_text(run(0, out("a"), CLEAR)) == ""


def test_a_display_without_a_text_form_leaves_an_empty_line() -> None:
    assert plain_text(run(0, ("display_data", {"data": {"image/png": "iVBO"}}))) == "\n"


# -- the folded block -----------------------------------------------------------------------------


def folded(cell: Cell, shown_rank: int = 0) -> dict[str, str] | None:
    """The block that `show_others` displays: its text and its HTML."""
    with capture_output() as captured:
        show_others(cell, shown_rank)
    assert len(captured.outputs) <= 1
    return captured.outputs[0].data if captured.outputs else None


@pytest.mark.usefixtures("shell")
def test_nothing_is_shown_when_the_others_are_silent() -> None:
    assert folded(cell_of(run(0, out("a\n")), run(1), run(2))) is None
    assert folded(cell_of(run(0, out("a\n")))) is None


@pytest.mark.usefixtures("shell")
def test_ranks_that_print_what_the_shown_one_prints_take_one_line() -> None:
    block = folded(cell_of(*(run(rank, out("loss 0.5\n")) for rank in range(4))))
    assert block is not None
    assert block["text/plain"] == "[ranks 1-3: same output]"
    assert re.sub("<[^>]*>", "", block["text/html"]) == "ranks 1-3: same output"
    assert "<details>" not in block["text/html"]


@pytest.mark.usefixtures("shell")
def test_other_outputs_are_folded_and_merged() -> None:
    block = folded(
        cell_of(
            run(0, out("zero\n")),
            run(1, out("one\n")),
            run(2, out("even\n1 < 2\n")),
            run(3, out("one"), out("\n")),
            run(4, out("zero\n")),
            run(5),
        )
    )
    assert block is not None
    assert block["text/plain"] == (
        "[ranks 1, 3]\none\n[rank 2]\neven\n1 < 2\n[rank 4: same output]"
    )
    summaries = re.findall(
        r"<summary[^>]*>([^<]*)</summary><pre[^>]*>([^<]*)</pre>", block["text/html"]
    )
    assert summaries == [
        ("ranks 1, 3: 1 line", "one\n"),
        ("rank 2: 2 lines", "even\n1 &lt; 2\n"),
    ]


@pytest.mark.usefixtures("shell")
def test_the_shown_rank_need_not_be_the_first() -> None:
    block = folded(cell_of(run(1, out("a\n")), run(2, out("b\n"))), shown_rank=2)
    assert block is not None
    assert block["text/plain"] == "[rank 1]\na"


@pytest.mark.usefixtures("shell")
@pytest.mark.parametrize(
    ("text", "count"), [("a", "1 line"), ("a\nb", "2 lines"), ("a\nb\n", "2 lines")]
)
def test_lines_are_counted_with_and_without_a_last_newline(text: str, count: str) -> None:
    block = folded(cell_of(run(0, out("x")), run(1, out(text))))
    assert block is not None
    assert f"rank 1: {count}</summary>" in block["text/html"]


@pytest.mark.usefixtures("shell")
def test_colours_are_left_out_of_the_folded_text() -> None:
    block = folded(cell_of(run(0), run(1, out("\x1b[1;31mred\x1b[0m\n"))))
    assert block is not None
    assert ">red\n</pre>" in block["text/html"]
    assert block["text/plain"] == "[rank 1]\nred"


@pytest.mark.usefixtures("shell")
def test_a_long_folded_text_is_cut_and_says_where_all_of_it_is() -> None:
    block = folded(cell_of(run(0), run(1, out("x" * (FOLDED_BYTES + 1)))))
    assert block is not None
    assert block["text/plain"] == (
        "[rank 1]\n" + "x" * FOLDED_BYTES + "\n… cut; %cluster output --save FILE has all of it"
    )
    whole = folded(cell_of(run(0), run(1, out("x" * FOLDED_BYTES))))
    assert whole is not None
    assert "cut" not in whole["text/plain"]


@pytest.mark.usefixtures("shell")
def test_what_goes_to_stderr_is_never_folded_away() -> None:
    with capture_output() as captured:
        show_others(cell_of(run(0), run(1, err("careful\n")), run(2, err("careful\n"))), 0)
    assert captured.stderr.split() == ["[ranks", "1-2]", "careful"]
    assert captured.outputs == []


@pytest.mark.usefixtures("shell")
def test_stderr_that_the_shown_rank_printed_too_is_not_repeated() -> None:
    with capture_output() as captured:
        show_others(cell_of(run(0, err("careful\n")), run(1, err("careful\n"))), 0)
    assert captured.stderr == ""
    assert captured.outputs[0].data["text/plain"] == "[rank 1: same output]"


# -- every rank's output, grouped -----------------------------------------------------------------


def grouped(how: str, runs: Sequence[RankRun], capsys: pytest.CaptureFixture[str]) -> list[str]:
    show_grouped(cell_of(*runs), how)
    return capsys.readouterr().out.splitlines()


RUNS = [
    run(0, out("a0\n"), shown("fig0"), out("b0\n"), shown("r0", "execute_result")),
    run(1, out("a1\n"), out("b1\n"), shown("fig1"), shown("r1", "execute_result")),
]
ORDERS = {
    "engine": [
        *("[stdout:0]", "a0", "[output:0]", "fig0", "[stdout:0]", "b0", "[output:0]", "r0"),
        *("[stdout:1]", "a1", "b1", "[output:1]", "fig1", "[output:1]", "r1"),
    ],
    "type": [
        *("[stdout:0]", "a0", "b0", "[stdout:1]", "a1", "b1"),
        *("[output:0]", "fig0", "[output:1]", "fig1", "[output:0]", "r0", "[output:1]", "r1"),
    ],
    "order": [
        *("[stdout:0]", "a0", "[stdout:1]", "a1", "[output:0]", "fig0", "[stdout:1]", "b1"),
        *("[stdout:0]", "b0", "[output:1]", "fig1", "[output:0]", "r0", "[output:1]", "r1"),
    ],
}


@pytest.mark.usefixtures("shell")
@pytest.mark.parametrize("how", ORDERS)
@pytest.mark.parametrize("runs", [RUNS, RUNS[::-1]], ids=["in rank order", "in another order"])
def test_grouped_output_comes_in_the_order_asked_for(
    how: str, runs: list[RankRun], capsys: pytest.CaptureFixture[str]
) -> None:
    assert grouped(how, runs, capsys) == ORDERS[how]


@pytest.mark.parametrize("how", ORDERS)
def test_the_option_takes_every_order(how: str) -> None:
    assert DISTRIBUTED.read(f"--group-outputs {how}").group_outputs == how


def test_the_streams_keep_apart(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    show_grouped(cell_of(run(0, out("a\n"), err("b\n"), out("c\n"))), "engine")
    printed = capsys.readouterr()
    assert printed.out == "[stdout:0]\na\n[stdout:0]\nc\n"
    assert printed.err == "[stderr:0]\nb\n"


@pytest.mark.usefixtures("shell")
def test_each_heading_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run(0, out("no newline"), shown("fig0")), run(1, out("none here")), run(2, out("x"))]
    assert grouped("engine", runs, capsys) == [
        *("[stdout:0]", "no newline", "[output:0]", "fig0"),
        *("[stdout:1]", "none here", "[stdout:2]", "x"),
    ]


@pytest.mark.usefixtures("shell")
def test_a_cleared_output_does_not_disturb_the_grouping(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run(0, out("a\n"), CLEAR, out("b\n"))]
    assert grouped("type", runs, capsys) == ["[stdout:0]", "a", "b"]
