"""The streams behind `print` on a rank."""

from __future__ import annotations

from typing import Any

from ipykernel.iostream import OutStream


class RankStream(OutStream):
    """An OutStream whose `flush` costs nothing when nothing was written.

    ipykernel's flush waits for another thread each time, and every request flushes four times.
    """

    _written = False

    def write(self, string: str) -> Any:
        self._written = True
        return super().write(string)

    def flush(self) -> None:
        if self._written:
            self._written = False
            super().flush()  # type: ignore[no-untyped-call]
