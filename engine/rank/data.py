"""Move values in and out of a rank's namespace."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from .. import codec
from ..errors import TransferError
from ..units import bytes_text


def push(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Bind `content["values"]`, a list of {"name", "spec", "buffers": count}, in the namespace."""
    names: dict[str, Any] = {}
    rest = list(buffers)
    for value in content["values"]:
        count = value["buffers"]
        names[value["name"]] = codec.decode(value["spec"], rest[:count])
        del rest[:count]
    kernel.shell.push(names)
    return {}, ()


def settle(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Evaluate the lazy arrays among `content["names"]` that this rank has."""
    for name in content["names"]:
        with contextlib.suppress(TransferError):
            value = _value(kernel, name)
            if codec.is_mlx_array(value):
                import mlx.core as mx

                mx.eval(value)
    return {}, ()


def measure(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Describe the value of each expression in `content["names"]`, before anything is copied."""
    return {"rows": [codec.describe(_value(kernel, name)) for name in content["names"]]}, ()


def pull(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Encode the value of each expression in `content["names"]`, `max_bytes` at most in all."""
    specs: list[dict[str, Any]] = []
    out: list[Any] = []
    for name in content["names"]:
        spec, parts = codec.encode(_value(kernel, name))
        size = sum(len(part) for part in [*out, *parts])
        if size > content["max_bytes"]:
            # Arrays were measured before; the size of other values is known only now.
            raise TransferError(
                f"{name} takes {bytes_text(size)} to send.",
                why=f"the limit is {bytes_text(content['max_bytes'])}",
                do="pull a part of it, or raise the limit with --max-bytes",
            )
        specs.append({"spec": spec, "buffers": len(parts)})
        out.extend(parts)
    return {"values": specs}, out


def _value(kernel: Any, expression: str) -> Any:
    try:
        return eval(expression, kernel.shell.user_global_ns, kernel.shell.user_ns)
    except NameError as error:
        raise TransferError(
            f"{error}.",
            why="no cell has bound it on this rank, or the rank was restarted since",
            do="%variables lists the names that the ranks have",
        ) from None
    except Exception as error:
        raise TransferError(
            f"{expression!r} cannot be evaluated: {type(error).__name__}: {error}",
            why="it is evaluated on each rank, in the rank's own namespace",
            do="bind the value to a name in a %%distributed cell and pull that name",
        ) from None
