"""Values on the wire: numpy and MLX arrays as raw buffers, everything else pickled.

A pickled value carries its SHA-256 in the message's signed content and is only unpickled after the
digest agrees, because the signature of a message does not cover its buffers.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

from .errors import TransferError

# MLX types that neither numpy nor the buffer protocol knows travel as these.
_CARRIER = {"bfloat16": "uint16"}


def is_mlx_array(value: object) -> bool:
    """True for an `mx.array`; does not import MLX."""
    core = sys.modules.get("mlx.core")
    return core is not None and isinstance(value, core.array)


def is_numpy_array(value: Any) -> bool:
    """True for a `numpy.ndarray` of plain values; does not import numpy."""
    numpy = sys.modules.get("numpy")
    # Subclasses carry more than their buffer, such as a mask; they are pickled.
    if numpy is None or type(value) is not numpy.ndarray:
        return False
    return not value.dtype.hasobject and value.dtype.names is None


def describe(value: object) -> dict[str, Any]:
    """{"type", "shape", "dtype", "bytes"} of a value, without evaluating or copying it.

    `shape` and `dtype` are None unless it is an array; `bytes` is the array's size, or None.
    """
    row: dict[str, Any] = {"type": type(value).__name__, "shape": None, "dtype": None}
    row["bytes"] = None
    if is_mlx_array(value) or is_numpy_array(value):
        row["type"] = "mx.array" if is_mlx_array(value) else "ndarray"
        row["shape"] = list(value.shape)  # type: ignore[attr-defined]
        row["dtype"] = str(value.dtype).removeprefix("mlx.core.")  # type: ignore[attr-defined]
        row["bytes"] = int(value.nbytes)  # type: ignore[attr-defined]
    elif isinstance(value, str):
        row["bytes"] = len(value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, (bytes, bytearray, memoryview)):
        row["bytes"] = memoryview(value).nbytes
    return row


def encode(value: Any) -> tuple[dict[str, Any], list[Any]]:
    """The JSON description and the buffers of a value. Raises TransferError."""
    if is_numpy_array(value):
        import numpy as np

        data = np.ascontiguousarray(value)
        spec = {"kind": "numpy", "dtype": data.dtype.str, "shape": list(value.shape)}
        return spec, [data.reshape(-1).view(np.uint8).data if data.size else b""]
    if is_mlx_array(value):
        return _encode_mlx(value)
    try:
        payload = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise TransferError(
            f"A {type(value).__name__} cannot be sent: {error}",
            why="it holds something that only exists in its own process, such as an open file, "
            "a lock or a lambda",
            do="send arrays and plain values, and build the object where it is used",
        ) from None
    return {"kind": "pickle", "sha256": hashlib.sha256(payload).hexdigest()}, [payload]


def decode(spec: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """The value that `encode` described. Raises TransferError when it was altered on the way."""
    if spec["kind"] == "numpy":
        return _numpy(spec["dtype"], spec["shape"], buffers[0])
    if spec["kind"] == "mlx":
        return _decode_mlx(spec, buffers[0])
    payload = bytes(buffers[0])
    if hashlib.sha256(payload).hexdigest() != spec["sha256"]:
        raise TransferError(
            "A value arrived altered and was not unpickled.",
            why="its SHA-256 differs from the one in the signed message",
            do="send it again; if it happens again, something between the processes changes data",
        )
    try:
        return pickle.loads(payload)
    except (AttributeError, ImportError) as error:
        raise TransferError(
            f"A value cannot be rebuilt where it arrived: {error}",
            why="only the names of its functions and classes travel, and one of them cannot be "
            "imported there",
            do="send arrays and plain values, or keep such classes in a module that is installed "
            "on every host",
        ) from None


def defined_in_main(value: Any, buffers: Sequence[Any]) -> Any:
    """The first function or class of `__main__` in a pickled `value`; None when there is none.

    Only its name is in the `buffers` of `encode`, and in another process that names nothing, or
    something else.
    """
    if not any(b"__main__" in buffer for buffer in buffers):
        return None
    finder = _MainFinder(io.BytesIO(), protocol=pickle.HIGHEST_PROTOCOL)
    finder.dump(value)
    return finder.found


class _MainFinder(pickle.Pickler):
    """Finds the first function or class that it pickles as a name in `__main__`."""

    found: Any = None

    def reducer_override(self, obj: Any) -> Any:
        # A function behind functools.cache is neither; it keeps what it wraps in its `__dict__`.
        named = isinstance(obj, (type, FunctionType)) or "__wrapped__" in getattr(
            obj, "__dict__", ()
        )
        if named and self.found is None and obj.__module__ == "__main__":
            self.found = obj
        return NotImplemented


def _numpy(dtype: str, shape: Sequence[int], buffer: memoryview) -> Any:
    import numpy as np

    # A copy: the message's memory is read-only, and a user's array should not be.
    return np.frombuffer(buffer, dtype=np.dtype(dtype)).reshape(tuple(shape)).copy()


def _encode_mlx(value: Any) -> tuple[dict[str, Any], list[Any]]:
    import mlx.core as mx
    import numpy as np

    name = str(value.dtype).removeprefix("mlx.core.")
    spec = {"kind": "mlx", "dtype": name, "shape": list(value.shape)}
    carrier = _CARRIER.get(name)
    plain = value if carrier is None else value.view(getattr(mx, carrier))
    data = np.ascontiguousarray(np.array(plain, copy=False))
    return spec, [data.reshape(-1).view(np.uint8).data if data.size else b""]


def _decode_mlx(spec: Mapping[str, Any], buffer: memoryview) -> Any:
    import mlx.core as mx
    import numpy as np

    carrier = _CARRIER.get(spec["dtype"])
    data = _numpy(np.dtype(carrier or spec["dtype"]).str, [-1], buffer)
    dtype = mx.bool_ if spec["dtype"] == "bool" else getattr(mx, spec["dtype"])
    # Without its type, mx.array would narrow a float64.
    typed = mx.array(data).view(dtype) if carrier else mx.array(data, dtype=dtype)
    return typed.reshape(spec["shape"])
