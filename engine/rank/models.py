"""The models that a rank holds, so that a rank that was started anew can get its part back."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import attrs


def held(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """The names that are bound to a loaded model: [{"name", "path", "split", "adapter"}]."""
    load = sys.modules.get("macluster.engine.models.load")
    if load is None:
        return {"models": []}, ()
    return {
        "models": [
            {
                "name": name,
                "path": str(value.path),
                "split": attrs.asdict(value.split),
                "adapter": None if value.adapter is None else str(value.adapter),
            }
            for name, value in kernel.shell.user_ns.items()
            if isinstance(value, load.LoadedModel) and not name.startswith("_")
        ]
    }, ()


def reload(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Load this rank's part of each of `content["models"]` again, without the other ranks."""
    from ..models.load import load_alone
    from ..models.splitting import Split

    for model in content["models"]:
        split = Split(**{**model["split"], "layers": _tuple(model["split"]["layers"])})
        kernel.shell.push({model["name"]: load_alone(model["path"], split, model["adapter"])})
    return {}, ()


def _tuple(layers: list[int] | None) -> tuple[int, ...] | None:
    return None if layers is None else tuple(layers)
