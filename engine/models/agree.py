"""Agreement of the ranks: what each of them says, and a failure of one that reaches all."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import ModelError
from ..hostfile import describe_ranks

Result = TypeVar("Result")


def exchange(value: Any) -> list[Any]:
    """Send `value` (of JSON types) to all ranks, and return everybody's in the order of ranks.

    A collective. It goes on the calling thread's default communication stream, after everything
    that a generation left under way: collectives on two streams mix their data.
    """
    import mlx.core as mx
    import numpy as np

    if "mlx_lm.generate" in sys.modules:
        mx.synchronize(sys.modules["mlx_lm.generate"].generation_stream)
    data = json.dumps(value).encode()
    lengths = mx.distributed.all_gather(mx.array([len(data)]))
    longest = int(np.array(lengths).max())
    # JSON allows spaces at its end, so the padding needs no length beside it.
    row = mx.array(np.frombuffer(data.ljust(longest), np.uint8))[None]
    rows = np.array(mx.distributed.all_gather(row))
    return [json.loads(row.tobytes()) for row in rows]


def together(step: Callable[[], Result]) -> Result:
    """Run `step`, which must not contain a collective, and return its result when all succeeded.

    Raises ModelError on every rank when it failed on one of them.
    """
    results, error = _attempt(step)
    reports = exchange(error and {"what": error.what, "why": error.why, "do": error.do})
    failed = {rank: report for rank, report in enumerate(reports) if report is not None}
    if not failed:
        return results[0]
    first = next(iter(failed.values()))
    if len(failed) == len(reports) and all(report == first for report in failed.values()):
        raise error or ModelError(**first)
    same = [rank for rank, report in failed.items() if report == first]
    what = f"{describe_ranks(same).capitalize()}: {first['what']}"
    raise ModelError(what, why=first["why"], do=first["do"]) from error


def by_one(step: Callable[[], Any], rank: int) -> Any:
    """Run `step`, whose result is of JSON types, on rank 0, and return its result on all ranks.

    For what all must decide alike, and would not if each looked for itself. `rank` is this rank.
    Raises ModelError on every rank when it failed.
    """
    results, error = _attempt(step) if rank == 0 else ([], None)
    failure = error and {"what": error.what, "why": error.why, "do": error.do}
    found, failed = exchange([results, failure])[0]
    if failed is not None:
        raise error or ModelError(**failed)
    return found[0]


def _attempt(step: Callable[[], Result]) -> tuple[list[Result], ModelError | None]:
    """The result in a list, or the error."""
    try:
        return [step()], None
    except ModelError as caught:
        return [], caught
    except Exception as caught:
        error = ModelError(
            f"{type(caught).__name__}: {caught}",
            why="an error that macluster does not know",
            do="run the same lines in a plain cell, without a cluster, to see where it comes from",
        )
        error.__cause__ = caught
        return [], error
