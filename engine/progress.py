"""How far something is, on one line that is written over."""

from __future__ import annotations

import time

DATA = "\x1e"  # what a rank prints behind it is no text to show: ASCII's record separator
WIDTH = 78  # of the line, so that a shorter text covers a longer one


class Progress:
    """Prints what is being done and how long it will take, unless it is not `shown`.

    Of the ranks, rank 0 shows it. `\\r` goes back to the start of the line, in a terminal and in a
    notebook, where only the last text is saved.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def at(self, text: str, part: float) -> None:
        """`part`, from 0 to 1, of all is done."""
        left = self.seconds / part * (1 - part) if part > 0 else None
        self._print(text if left is None else f"{text}, {left:.0f} s left", end="")

    def done(self, text: str) -> None:
        """All is done."""
        self._print(text, end="\n")

    def _print(self, text: str, end: str) -> None:
        if self._shown:
            print(f"\r{text.ljust(WIDTH)}", end=end, flush=True)
