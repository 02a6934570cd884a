"""The state as it is sent, and what has changed in it (RFC 7396, JSON merge patch)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

State = dict[str, Any]


def sendable(state: Mapping[str, Any]) -> State:
    """A copy that stays as it is, in values of JSON, without what changes at every message.

    When a rank was heard of last is of interest once it is silent.
    """
    copy: State = _copied(state)
    for cluster in copy.get("clusters", {}).values():
        for rank in cluster["ranks"].values():
            if rank["state"] != "silent":
                rank["heard"] = None
    return copy


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _copied(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(each) for each in value]
    # JSON has no NaN, and a browser reads nothing of a message with one.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What turns one into the other; empty when they are the same.

    A merge patch says null for "take it away", so to be null and not to be there are one thing.
    """
    patch: dict[str, Any] = {}
    for name in before.keys() - after.keys():
        if before[name] is not None:
            patch[name] = None
    for name, new in after.items():
        old = before.get(name)
        if isinstance(new, Mapping) and isinstance(old, Mapping):
            part = merge_patch(old, new)
            if part:
                patch[name] = part
        elif new != old:
            patch[name] = new
    return patch
