"""The models that a rank holds, so that a rank that was started anew can get its part back."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any


def held(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """The names that are bound to a loaded model: [{"name", "path", "strategy"}]."""
    load = sys.modules.get("macluster.engine.models.load")
    if load is None:
        return {"models": []}, ()
    return {
        "models": [
            {"name": name, "path": str(value.path), "strategy": value.strategy}
            for name, value in kernel.shell.user_ns.items()
            if isinstance(value, load.LoadedModel) and not name.startswith("_")
        ]
    }, ()


def reload(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Load this rank's part of each of `content["models"]` again, without the other ranks."""
    from ..models.load import load_alone

    for model in content["models"]:
        kernel.shell.push({model["name"]: load_alone(model["path"], model["strategy"])})
    return {}, ()
