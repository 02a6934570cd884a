"""Small tables: text in a terminal, HTML in a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence

import attrs
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from ..engine.transfer import Variable
from ..engine.units import bytes_text


@attrs.frozen(repr=False)
class Table:
    """Rows of text under a heading. Columns in `right` hold numbers."""

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[int] = ()
    empty: str = "nothing"

    def __repr__(self) -> str:
        if not self.rows:
            return self.empty
        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for index, name in enumerate(self.heading):
            table.add_column(name, justify="right" if index in self.right else "left")
        for row in self.rows:
            table.add_row(*row)
        out = io.StringIO()
        # Plain text also in a notebook, where rich would display HTML by itself.
        # And words as they are: rich would read "[red]" as an order.
        Console(
            file=out,
            width=110,
            force_jupyter=False,
            color_system=None,
            markup=False,
            emoji=False,
            highlight=False,
        ).print(table)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")

    def _repr_html_(self) -> str:
        if not self.rows:
            return f"<i>{html.escape(self.empty)}</i>"

        def line(cells: Sequence[str], tag: str) -> str:
            parts = [
                f'<{tag} style="text-align:{"right" if i in self.right else "left"}">'
                f"{html.escape(cell)}</{tag}>"
                for i, cell in enumerate(cells)
            ]
            return f"<tr>{''.join(parts)}</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        return f"<table><thead>{line(self.heading, 'th')}</thead><tbody>{body}</tbody></table>"


def size_text(count: int | None) -> str:
    """Bytes in words; empty when unknown."""
    return "" if count is None else bytes_text(count)


def variables(rows: Sequence[Variable]) -> Table:
    """The table of `%variables`."""
    cells = []
    for row in rows:
        sizes = set(row.bytes.values())
        if len(sizes) == 1:
            each = size_text(sizes.pop())
        else:
            each = "; ".join(f"{size_text(size)} on {rank}" for rank, size in row.bytes.items())
        cells.append((row.name, row.type, row.shape, row.dtype, each, row.verdict))
    heading = ("name", "type", "shape", "dtype", "per rank", "across ranks")
    return Table(heading, cells, right=(4,), empty="no variables on the ranks yet")
