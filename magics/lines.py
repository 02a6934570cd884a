"""Lines of progress below a cell, overwritten in place: one output each in the saved notebook."""

from __future__ import annotations

import time
from typing import Any


class Line:
    """One line of text that can be shown again with other words."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, text: str) -> None:
        from IPython.display import display

        data = {"text/plain": text}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


class Steps:
    """The step that something long is at, with the seconds since its first one began."""

    def __init__(self) -> None:
        self._line = Line()
        self._began: float | None = None

    def __call__(self, step: str) -> None:
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        self._line.show(f"{now - self._began:4.1f} s  {step}")


class WaitLine:
    """Says which ranks wait for which, for as long as they do."""

    def __init__(self) -> None:
        self._line = Line()
        self._last = ""

    def __call__(self, text: str) -> None:
        if text:
            self._last = text
            self._line.show(
                f"… {text}. Ctrl-C ends the cell; %cluster stacks elsewhere shows more."
            )
        elif self._last:
            self._line.show(f"[had waited: {self._last}]")
