"""Move values between the notebook and the ranks, and compare what the ranks hold."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from . import codec
from .client import Reply
from .errors import TransferError
from .hostfile import describe_ranks
from .units import bytes_text
from .world import World

# A pull of more than this is refused unless it is asked for: the values pass through the
# controller and end in the notebook's memory.
MAX_PULL_BYTES = 10**9


def push(world: World, values: Mapping[str, Any], ranks: Sequence[int] | None = None) -> None:
    """Bind each name to its value on `ranks` (all by default). Raises TransferError."""
    content, buffers = _packed(values)
    world.call("data.push", content, ranks=ranks, buffers=buffers)


def pull(
    world: World,
    names: Sequence[str],
    ranks: Sequence[int] | None = None,
    *,
    max_bytes: int = MAX_PULL_BYTES,
) -> list[list[Any]]:
    """The values of `names` (any expressions) on each of `ranks`: one list per rank.

    Sizes are asked for first; raises TransferError when they exceed `max_bytes` in all.
    """
    chosen = world.ranks if ranks is None else list(ranks)
    if len(chosen) < len(world.ranks):
        # Reading a lazy array may run a collective, which needs all ranks and not only these.
        world.call("data.settle", {"names": list(names)})
    measured = world.call("data.measure", {"names": list(names)}, ranks=chosen)
    sizes = {
        (rank, name): row["bytes"] or 0
        for rank, reply in zip(chosen, measured, strict=True)
        for name, row in zip(names, reply.content["rows"], strict=True)
    }
    total = sum(sizes.values())
    if total > max_bytes:
        (rank, name), most = max(sizes.items(), key=lambda item: item[1])
        raise TransferError(
            f"{bytes_text(total)} would be pulled into this notebook.",
            why=f"{name} is {bytes_text(most)} on rank {rank}, and the limit is "
            f"{bytes_text(max_bytes)}",
            do="pull a part of it (%pull x[:10]) or one rank's (--targets 0), or raise the limit "
            "with --max-bytes",
        )
    content = {"names": list(names), "max_bytes": max_bytes}
    return [_unpacked(reply) for reply in world.call("data.pull", content, ranks=chosen)]


def scatter(world: World, name: str, value: Any, ranks: Sequence[int] | None = None) -> list[int]:
    """Split `value` along its first axis, bind a part to `name` on each rank; return the lengths.

    Lengths differ by at most one; the first ranks get the longer parts. Raises TransferError when
    `value` has no length.
    """
    chosen = world.ranks if ranks is None else list(ranks)
    try:
        length, _ = len(value), value[0:0]
    except (TypeError, KeyError):
        raise TransferError(
            f"{name!r} cannot be scattered: a {type(value).__name__} has no parts in an order.",
            why="scatter splits an array or a list along its first axis",
            do="use %push to send the whole value to every rank",
        ) from None
    share, longer = divmod(length, len(chosen))
    lengths = [share + (i < longer) for i in range(len(chosen))]
    bounds = [0, *itertools.accumulate(lengths)]
    for rank, start, end in zip(chosen, bounds, bounds[1:], strict=False):
        push(world, {name: value[start:end]}, [rank])
    return lengths


def gather(world: World, name: str, ranks: Sequence[int] | None = None, *,
           max_bytes: int = MAX_PULL_BYTES) -> Any:  # fmt: skip
    """The parts of `name` on all ranks, joined along the first axis.

    Arrays are concatenated, lists and tuples joined; anything else comes as a list of values.
    """
    parts = [values[0] for values in pull(world, [name], ranks, max_bytes=max_bytes)]
    if all(codec.is_mlx_array(part) and part.ndim for part in parts):
        import mlx.core as mx

        return mx.concatenate(parts)
    if all(codec.is_numpy_array(part) and part.ndim for part in parts):
        import numpy as np

        return np.concatenate(parts)
    if all(isinstance(part, list) for part in parts):
        return list(itertools.chain(*parts))
    return parts


def _packed(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    rows, buffers = [], []
    for name, value in values.items():
        spec, parts = codec.encode(value)
        if spec["kind"] == "pickle":
            _refuse_main(name, value, codec.defined_in_main(value, parts))
        rows.append({"name": name, "spec": spec, "buffers": len(parts)})
        buffers.extend(parts)
    return {"values": rows}, buffers


def _refuse_main(name: str, value: Any, found: Any) -> None:
    """Raise TransferError when `found`, which is in `value`, exists in this notebook only."""
    if found is None:
        return
    kind = "class" if isinstance(found, type) else "function"
    if found is value:
        what, here = f"{name!r} is a {kind} defined in this notebook.", "it"
        do = "define it in a %%distributed cell; with --local, that defines it here, too"
    else:
        holds = "is an instance of" if type(value) is found else "holds"
        here = found.__qualname__
        what = f"{name!r} {holds} {here}, a {kind} defined in this notebook."
        do = (
            f"define {here} in a %%distributed cell and make the object there, or send arrays and "
            "plain values"
        )
    raise TransferError(
        what, why=f"only its name would travel, and a rank cannot import {here} from here", do=do
    )


def _unpacked(reply: Reply) -> list[Any]:
    rest = list(reply.buffers)
    values = []
    for entry in reply.content["values"]:
        values.append(codec.decode(entry["spec"], rest[: entry["buffers"]]))
        del rest[: entry["buffers"]]
    return values


@attrs.frozen
class Variable:
    """One name in the ranks' namespaces. `bytes` maps ranks to sizes; None where unknown.

    `verdict` is "same", "differs" or "" when the values were not compared.
    """

    name: str
    type: str
    shape: str
    dtype: str
    bytes: dict[int, int | None]
    verdict: str


def variables(world: World, ranks: Sequence[int] | None = None) -> list[Variable]:
    """What the ranks' namespaces hold, and which names differ between ranks.

    Values are hashed on the ranks, and only where type, shape and dtype agree everywhere: reading
    a lazy array may run a collective, which all ranks have to join.
    """
    chosen = world.ranks if ranks is None else list(ranks)
    tables = [
        {row["name"]: row for row in reply.content["rows"]}
        for reply in world.call("variables.list", ranks=chosen)
    ]
    names = sorted(set().union(*tables))
    kinds = {
        name: {
            (row["type"], repr(row["shape"]), row["dtype"])
            for row in (table.get(name) for table in tables)
            if row is not None
        }
        for name in names
    }
    everywhere = [n for n in names if len(kinds[n]) == 1 and all(n in table for table in tables)]
    compared = everywhere if len(chosen) == len(world.ranks) else []
    digests: dict[str, set[str | None]] = {name: set() for name in compared}
    if compared:
        for reply in world.call("variables.hash", {"names": compared}, ranks=chosen):
            for name, digest in zip(compared, reply.content["digests"], strict=True):
                digests[name].add(digest)
    return [_variable(name, chosen, tables, digests.get(name)) for name in names]


def _variable(
    name: str,
    ranks: Sequence[int],
    tables: Sequence[Mapping[str, Mapping[str, Any]]],
    digests: set[str | None] | None,
) -> Variable:
    rows = {rank: table[name] for rank, table in zip(ranks, tables, strict=True) if name in table}

    def merged(key: str) -> str:
        seen: dict[str, list[int]] = {}
        for rank, row in rows.items():
            value = row[key]
            text = "" if value is None else str(tuple(value) if isinstance(value, list) else value)
            seen.setdefault(text, []).append(rank)
        if len(seen) == 1:
            return next(iter(seen))
        return "; ".join(f"{text} on {describe_ranks(where)}" for text, where in seen.items())

    missing = [rank for rank in ranks if rank not in rows]
    if missing:
        verdict = f"not on {describe_ranks(missing)}"
    elif digests is None:
        same = len({(row["type"], str(row["shape"]), row["dtype"]) for row in rows.values()}) == 1
        verdict = "" if same else "differs"
    elif None in digests:
        verdict = ""
    else:
        verdict = "same" if len(digests) == 1 else "differs"
    sizes = {rank: row["bytes"] for rank, row in rows.items()}
    return Variable(name, merged("type"), merged("shape"), merged("dtype"), sizes, verdict)
