"""Source code for the ranks: expressions that bind no name of ours there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def ours(module: str, name: str) -> str:
    """One of our functions, by its module below `macluster`."""
    return f"__import__('macluster.{module}', fromlist=['{name}']).{name}"


def held(model: str) -> str:
    """The model that a name is bound to; raises ModelError on the ranks when there is none."""
    return f"{ours('engine.models.load', 'held')}(globals(), {model!r})"


def conversation(chat: str, model: str, how: Mapping[str, Any]) -> str:
    """Bind `chat` to the conversation of that name, or to a new one with the model."""
    begin = ours("engine.models.chat", "conversation")
    return f"{chat} = {begin}(globals().get({chat!r}), {held(model)}, **{dict(how)!r})"
