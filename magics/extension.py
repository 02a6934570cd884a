"""`%load_ext macluster`: register the magics, and undo it."""

from __future__ import annotations

from typing import Any

from .cluster import ClusterMagics
from .completion import Completion
from .distributed import DistributedMagics
from .model import ModelMagics
from .serve import ServeMagics
from .session import Session
from .variables import VariableMagics
from .wires import WireMagics

NAMES = {
    "cell": ("distributed", "rank", "chat"),
    "line": (
        *("cluster", "distributed", "gather", "measure", "model", "pull", "push", "scatter"),
        *("serve", "topology", "variables"),
    ),
}

_loaded: dict[int, Completion | None] = {}


def load(shell: Any) -> None:
    """Register the magics in an IPython shell. A second call does nothing."""
    if id(shell) in _loaded:
        return
    session = Session()
    for magics in (
        ClusterMagics,
        DistributedMagics,
        ModelMagics,
        ServeMagics,
        VariableMagics,
        WireMagics,
    ):
        shell.register_magics(magics(shell, session))
    kernel = getattr(shell, "kernel", None)
    _loaded[id(shell)] = Completion(kernel, session) if kernel is not None else None


def unload(shell: Any) -> None:
    """Take the magics away. A running cluster ends with the kernel."""
    completion = _loaded.pop(id(shell), None)
    if completion is not None:
        completion.remove()
    for kind, names in NAMES.items():
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)
