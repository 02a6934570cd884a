"""One turn of a conversation on the ranks, told to the notebook line by line."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Iterator
from typing import Any, cast

import attrs

from ..engine.models.chat import Chat
from ..engine.models.load import LoadedModel

PACE = 0.05  # seconds between two pieces of text
MARK = "\x1emacluster-turn "  # a line that begins so is for the widget; others are no text of ours


def say(chat: Chat, text: str, options: dict[str, Any]) -> None:
    """Say something, as `chat.say` does. Every rank must call it; rank 0 tells how it goes.

    Told are the `model` in words, `history` (what was said before), `text` (a piece of the answer)
    and `figures` (those of an Answer). Raises what `Chat.stream` raises, after the figures of what
    came until then.
    """
    tell = _tell if chat.loaded.rank == 0 else _keep_quiet
    tell("model", described(chat.loaded))
    tell("history", history(chat))
    before, shown, pending = chat.last, 0.0, ""  # the first token at once
    try:
        # Closed before the figures are told: an interrupt may land between two tokens.
        answer = cast("Generator[Any]", chat.stream(text, **options))
        with contextlib.closing(answer) as parts:
            for part in parts:
                pending += part.text
                if time.monotonic() - shown >= PACE:
                    tell("text", pending)
                    shown, pending = time.monotonic(), ""
    finally:
        tell("text", pending)
        # A turn that failed before its first token has left no figures of its own.
        if chat.last is not None and chat.last is not before:
            tell("figures", attrs.asdict(chat.last))


def history(chat: Chat) -> list[list[str]]:
    """[role, text] of what was said, without the system prompt."""
    return [
        [message["role"], str(message["content"])]
        for message in chat.messages
        if message["role"] != "system"
    ]


def described(model: LoadedModel) -> str:
    return repr(model).strip("<>")


def look(chat: Any, model: Any) -> dict[str, Any]:
    """What a widget shows before the first turn; empty where there is no such model."""
    if not isinstance(model, LoadedModel):
        return {}
    facts: dict[str, Any] = {"model": described(model)}
    if isinstance(chat, Chat) and chat.loaded is model:
        facts |= {"system": chat.system, "history": history(chat)}
    return facts


def _tell(kind: str, value: Any) -> None:
    if value != "":
        print(f"{MARK}{json.dumps([kind, value])}", flush=True)


def _keep_quiet(kind: str, value: Any) -> None:
    """What the other ranks have to say."""


class Reader:
    """Puts the lines together, however the output was cut into messages."""

    def __init__(self) -> None:
        self._open = ""

    def take(self, text: str) -> Iterator[tuple[str, Any]]:
        """What the lines tell that `text` completes."""
        *lines, self._open = (self._open + text).split("\n")
        for line in lines:
            # Something else may have been printed on the same line before.
            _, mark, told = line.partition(MARK)
            if mark:
                kind, value = json.loads(told)
                yield kind, value
