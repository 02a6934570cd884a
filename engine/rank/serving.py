"""Ask rank 0 about the model that it serves, while it does."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any


def _front() -> Any:
    """The server of this process, while it lives."""
    loop = sys.modules.get("macluster.engine.serve.loop")
    front = None if loop is None else loop.here.front
    return front if front is not None and front.alive else None


def address() -> str:
    """Where this process serves a model, "" when it does not."""
    front = _front()
    return front.url if front is not None else ""


def status(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """{"serving": the figures of `Front.status`, or None when nothing is served}."""
    front = _front()
    return {"serving": front.status() if front is not None else None}, ()


def stop(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """End it, after the answers under way, or after `content["drain"]` seconds."""
    front = _front()
    if front is not None:
        front.stop(content["drain"])
    return {}, ()


def close(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """The ranks will not come back to it: tell its clients `content["why"]`."""
    front = _front()
    if front is not None:
        front.close(content["why"])
    return {}, ()


def key(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """What clients have to know from now on."""
    from ..serve import loop

    loop.here.key = content["key"]
    return {}, ()
