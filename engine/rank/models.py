"""The models that a rank holds, so that a rank that was started anew can get its part back."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import attrs


def held(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """The names that are bound to a loaded model, and what `reload` needs to load it again.

    The paths are as they were given, so that each host finds its own. What comes from the hub is
    loaded again from the same commit.
    """
    load = sys.modules.get("macluster.engine.models.load")
    if load is None:
        return {"models": []}, ()
    return {
        "models": [
            {
                "name": name,
                "path": load.plain_path(value.source),
                "split": attrs.asdict(value.split),
                "adapter": load.plain_path(value.adapter),
                "commit": value.commit,
                "draft": value.draft and load.plain_path(value.draft.source),
                "draft_commit": value.draft and value.draft.commit,
            }
            for name, value in load.models_in(kernel.shell.user_ns).items()
        ]
    }, ()


def parts(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """What this rank holds of the model `content["model"]`: {"kind", "split", "whole", "parts"}.

    Of names and shapes only, so it can be asked while a cell runs. "parts" is None where no model
    has that name.
    """
    load: Any = sys.modules.get("macluster.engine.models.load")
    # The main thread may be about to bind another name.
    names = dict(kernel.shell.user_ns)
    model = load.models_in(names).get(content["model"]) if hasattr(load, "models_in") else None
    if model is None:
        return {"parts": None}, ()
    from ..models.shards import part_facts

    return {"kind": model.config["model_type"], "split": attrs.asdict(model.split),
            **part_facts(model)}, ()  # fmt: skip


def reload(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Load this rank's part of each of `content["models"]` again, without the other ranks."""
    from ..models.load import load_alone
    from ..models.splitting import read_split

    for model in content["models"]:
        loaded = load_alone(
            model["path"],
            read_split(model["split"]),
            model["adapter"],
            commit=model["commit"],
            draft=model["draft"],
            draft_commit=model["draft_commit"],
        )
        kernel.shell.push({model["name"]: loaded})
    return {}, ()
