"""Arrays that were left over when a world was given up.

MLX computes lazily: an array may still have to run a collective of a world that is gone. MLX does
not keep the sockets open for it, and crashes or writes into whatever has the same descriptor. So
every such array is computed before the world is dropped, while its sockets give NaN.
"""

from __future__ import annotations

import gc
import io
import types
from collections.abc import Iterable, Mapping
from typing import Any

COLLECTIVE_NODES = ("AllReduce", "AllGather", "ReduceScatter", "Send", "Recv")
MAX_OBJECTS = 2_000_000
MAX_BYTES = 2**28  # of arrays that are looked at for each name
# Nothing that a cell has made is behind these, or only by way of its namespace.
CLOSED = (types.ModuleType, type, str, bytes, int, float, complex, types.CodeType)


def settle(namespace: Mapping[str, Any]) -> list[str]:
    """Compute what is pending and reachable from `namespace`. The names it is bound to directly."""
    import mlx.core as mx

    arrays = [value for value in _reachable(namespace) if isinstance(value, mx.array)]
    if not arrays or not _pending(arrays):
        return []
    pending = [value for value in arrays if _pending([value])]
    ids = {id(value) for value in pending}
    names = [name for name, value in namespace.items() if id(value) in ids]
    for value in pending:
        mx.eval(value)
    return [name for name in names if not name.startswith("_")]


def spoiled(kernel: Any) -> list[str]:
    """The names that lead to an array with NaN, after a cell was ended; [] when none was.

    Whether the cell was computing them cannot be told: arrays are changed in place, too. Only
    small arrays are looked at, of which every model has some.
    """
    ended = kernel.macluster.interrupted is not None
    kernel.macluster.interrupted = None
    if not ended:
        return []
    return [
        name
        for name, value in kernel.shell.user_ns.items()
        if not name.startswith("_") and _has_nan(_reachable({name: value}))
    ]


def _has_nan(values: Iterable[Any]) -> bool:
    import mlx.core as mx

    left = MAX_BYTES
    for value in values:
        if (
            isinstance(value, mx.array)
            and mx.issubdtype(value.dtype, mx.inexact)
            and value.nbytes <= min(left, MAX_BYTES // 16)
            and not _graph([value])
        ):
            left -= value.nbytes
            if mx.isnan(value).any().item():
                return True
    return False


def _pending(arrays: Iterable[Any]) -> bool:
    """True when computing one of `arrays` would run a collective."""
    graph = _graph(arrays)
    return any(node in graph for node in COLLECTIVE_NODES)


def _graph(arrays: Iterable[Any]) -> str:
    """The operations that are left to compute, "" when everything is there."""
    import mlx.core as mx

    text = io.StringIO()
    mx.export_to_dot(text, *arrays)
    # Operations are the nodes that are drawn as rectangles.
    return "\n".join(line for line in text.getvalue().splitlines() if "rectangle" in line)


def _reachable(namespace: Mapping[str, Any]) -> list[Any]:
    """The objects that the values of `namespace` lead to."""
    found: list[Any] = []
    seen = {id(namespace)}
    queue = list(namespace.values())
    while queue and len(found) < MAX_OBJECTS:
        value = queue.pop()
        if id(value) in seen or isinstance(value, CLOSED):
            continue
        seen.add(id(value))
        found.append(value)
        if isinstance(value, types.FunctionType):
            # Not its globals, which are a module's or the namespace itself.
            queue += [value.__closure__, value.__defaults__, value.__kwdefaults__]
        else:
            queue += gc.get_referents(value)
    return found
