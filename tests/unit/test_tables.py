"""Tables: the text as it is, in a terminal and in a notebook."""

import pytest

from macluster.engine.transfer import Variable
from macluster.magics import tables
from macluster.magics.tables import Table, size_text


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
    table = tables.variables(
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
    assert repr(tables.variables([])) == "no variables on the ranks yet"
