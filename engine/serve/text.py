"""Tokens become text: piece by piece, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Writer:
    """Makes text of the tokens of one answer, and sees where a stop string begins.

    Text that may be the beginning of a stop string is held back until that is known. A string is
    found wherever it stands, however it was cut into tokens.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._decoder = tokenizer.detokenizer
        self._stop = stop
        self._held = ""
        self.stopped = False

    def add(self, tokens: Sequence[int]) -> str:
        """The text that is certain now. After a stop string there is none."""
        for token in tokens:
            self._decoder.add_token(token)
        return self._emit(self._decoder.last_segment)

    def finish(self) -> str:
        """The rest of it, when there are no more tokens."""
        self._decoder.finalize()
        text = self._emit(self._decoder.last_segment)
        rest, self._held = self._held, ""
        return text if self.stopped else text + rest

    def _emit(self, segment: str) -> str:
        if self.stopped:
            return ""
        text = self._held + segment
        found = [at for at in (text.find(each) for each in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, each) for each in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
