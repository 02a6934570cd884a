"""What a rank's namespace holds, and whether the ranks hold the same."""

from __future__ import annotations

import hashlib
import pickle
import types
from collections.abc import Mapping, Sequence
from typing import Any

from .. import codec

SEEDED = ("group", "rank", "size", "mx", "rprint", "macluster")
UNINTERESTING = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
MAX_HASH_BYTES = 256 * 2**20
MAX_PICKLE_BYTES = 2**20


def table(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """One row per name that a cell has bound: name, type, shape, dtype, bytes."""
    shell = kernel.shell
    rows = [
        {"name": name, **codec.describe(value)}
        for name, value in sorted(shell.user_ns.items())
        if not name.startswith("_")
        and name not in SEEDED
        and name not in shell.user_ns_hidden
        and not isinstance(value, UNINTERESTING)
    ]
    return {"rows": rows}, ()


def digests(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """A digest for each of `content["names"]`, or None where the value is not compared.

    The client asks for the same names in the same order on all ranks, because reading a lazy array
    may run a collective.
    """
    return {"digests": [_digest(kernel.shell.user_ns.get(n)) for n in content["names"]]}, ()


def _digest(value: Any) -> str | None:
    if codec.is_mlx_array(value) or codec.is_numpy_array(value):
        if value.nbytes > MAX_HASH_BYTES:
            return None
        spec, parts = codec.encode(value)
        return _hash(repr(sorted(spec.items())).encode(), *parts)
    if not _plain(value, depth=3):
        return None
    payload = pickle.dumps(value)
    return _hash(payload) if len(payload) <= MAX_PICKLE_BYTES else None


def _plain(value: Any, depth: int) -> bool:
    """True when equal values have equal pickles: numbers, texts, and short lists of them."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return True
    if depth == 0 or not isinstance(value, (list, tuple, dict)) or len(value) > 10_000:
        return False
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return all(_plain(part, depth - 1) for part in parts)


def _hash(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
