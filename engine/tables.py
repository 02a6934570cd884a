"""Small tables: text in a terminal, HTML in a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Literal

import attrs

from .units import bytes_text

WIDTH = 110  # characters; the saved text must not depend on somebody's window


@attrs.frozen(repr=False)
class Table:
    """Rows of text under a heading, the same text everywhere.

    `title` is a line above, `last` a row of sums below. Columns in `right` hold numbers, and no
    line is broken within those in `unbroken`. Without rows, all that is shown is `empty`.
    """

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[int] = ()
    empty: str = "nothing"
    title: str = ""
    last: Sequence[str] = ()
    unbroken: Sequence[int] = ()

    def __repr__(self) -> str:
        return self.text()

    def text(self, width: int = WIDTH) -> str:
        """The table in at most `width` columns, without colours."""
        if not self.rows:
            return self.empty
        # Late: who only makes a table, such as a rank, has no use for it.
        from rich import box
        from rich.console import Console
        from rich.table import Table as RichTable

        table = RichTable(
            title=self.title or None,
            title_justify="left",
            title_style="",
            box=box.SIMPLE,
            pad_edge=False,
            show_footer=bool(self.last),
        )
        for index, name in enumerate(self.heading):
            table.add_column(
                name,
                self.last[index] if self.last else "",
                justify=self._side(index),
                no_wrap=index in self.unbroken,
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*row)
        out = io.StringIO()
        # Plain text also in a notebook, where rich would display HTML by itself.
        # And words as they are: rich would read "[red]" as an order.
        Console(
            file=out,
            width=width,
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
            # Words to the left; a notebook's own style puts everything to the right.
            parts = [
                f'<{tag} style="text-align:{self._side(i)}">{html.escape(cell)}</{tag}>'
                for i, cell in enumerate(cells)
            ]
            return f"<tr>{''.join(parts)}</tr>"

        title = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        body = "".join(line(row, "td") for row in self.rows)
        foot = f"<tfoot>{line(self.last, 'th')}</tfoot>" if self.last else ""
        return (
            f"<table>{title}<thead>{line(self.heading, 'th')}</thead>"
            f"<tbody>{body}</tbody>{foot}</table>"
        )

    def _side(self, index: int) -> Literal["left", "right"]:
        return "right" if index in self.right else "left"


def size_text(count: int | None) -> str:
    """Bytes in words; empty when unknown."""
    return "" if count is None else bytes_text(count)
