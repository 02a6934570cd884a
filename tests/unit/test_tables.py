"""Tables: the text as it is, in a terminal and in a notebook."""

import pytest

from macluster.engine.tables import WIDTH, Table, size_text
from macluster.engine.transfer import Variable
from macluster.magics import variables


def test_a_table_has_a_heading_and_a_line_for_each_row() -> None:
    table = Table(("rank", "state"), [("0", "idle"), ("10", "busy")], right=(0,))
    heading, rule, *rows = repr(table).splitlines()
    assert heading.split() == ["rank", "state"]
    assert not any(map(str.isalnum, rule))
    assert [row.split() for row in rows] == [["0", "idle"], ["10", "busy"]]
    # Numbers end in one column, under the end of their heading.
    ends = [
        line.index(word) + len(word)
        for line, word in [(heading, "rank"), *zip(rows, "00", strict=True)]
    ]
    assert len(set(ends)) == 1


def test_a_table_without_rows_says_so() -> None:
    table = Table(("name",), [], empty="no <clusters> run")
    assert repr(table) == "no <clusters> run"
    assert table._repr_html_() == "<i>no &lt;clusters&gt; run</i>"


def test_html_cells_are_escaped_and_numbers_stand_right() -> None:
    table = Table(("a&b", "n"), [("<x>", "1")], right=(1,))
    assert table._repr_html_() == (
        '<table><thead><tr><th style="text-align:left">a&amp;b</th>'
        '<th style="text-align:right">n</th></tr></thead>'
        '<tbody><tr><td style="text-align:left">&lt;x&gt;</td>'
        '<td style="text-align:right">1</td></tr></tbody></table>'
    )


def test_a_table_may_have_a_title_and_a_row_of_sums() -> None:
    table = Table(
        ("a", "n"), [("x", "1"), ("y", "20")], right=(1,), title="<t> [red]", last=("sum", "21")
    )
    title, _, heading, rule, *rows, second_rule, last = repr(table).splitlines()
    assert title == "<t> [red]"
    assert [line.split() for line in (heading, *rows, last)] == [
        ["a", "n"],
        ["x", "1"],
        ["y", "20"],
        ["sum", "21"],
    ]
    assert rule == second_rule
    page = table._repr_html_()
    assert page.startswith("<table><caption>&lt;t&gt; [red]</caption><thead>")
    assert page.endswith(
        '</tbody><tfoot><tr><th style="text-align:left">sum</th>'
        '<th style="text-align:right">21</th></tr></tfoot></table>'
    )


def test_a_long_text_is_broken_and_not_cut() -> None:
    long, number = "x" * 300, "12 345 678"
    table = Table(("text", "n"), [(long, number)], right=(1,), unbroken=(1,))
    for width in (WIDTH, 40):
        text = table.text(width)
        assert max(map(len, text.splitlines())) <= width
        assert text.count("x") == 300 + len("te") - 1
        assert number in text


@pytest.mark.parametrize(
    "text", ["x[i] = y[0]", "list[int]", "[red]", "see [/tmp/log]", ":warning:", "\\[a]"]
)
def test_text_is_shown_as_it_is(text: str) -> None:
    """Cells hold types, source lines and last words of ranks; none of it is markup."""
    table = Table(("at", text), [("here", text)])
    heading, _, row = (line for line in repr(table).splitlines() if line)
    assert heading.split(maxsplit=1)[1] == text
    assert row.split(maxsplit=1)[1] == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, ""),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1536, "1.5 kB"),
        (3_100_000, "3.1 MB"),
        (5 * 10**9, "5.0 GB"),
        (512 * 10**9, "512.0 GB"),
        (999_999, "1.0 MB"),
    ],
)
def test_sizes_are_told_in_the_unit_that_fits(count: int | None, text: str) -> None:
    assert size_text(count) == text


def test_variables_show_one_size_or_each_ranks_own() -> None:
    table = variables.table(
        [
            Variable("w", "mx.array", "(2, 3)", "float32", {0: 24, 1: 24}, "same"),
            Variable("x", "mx.array", "(2,) on rank 0", "float32", {0: 8, 1: 2048}, "differs"),
            Variable("y", "list", "", "", {0: None}, "not on rank 1"),
        ]
    )
    assert [list(row) for row in table.rows] == [
        ["w", "mx.array", "(2, 3)", "float32", "24 B", "same"],
        ["x", "mx.array", "(2,) on rank 0", "float32", "8 B on 0; 2.0 kB on 1", "differs"],
        ["y", "list", "", "", "", "not on rank 1"],
    ]
    assert repr(variables.table([])) == "no variables on the ranks yet"
