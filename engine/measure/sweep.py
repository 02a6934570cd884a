"""Collectives of all ranks at many sizes, with every result checked.

The figures are those of nccl-tests; docs/measuring.md says how each is defined.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from ..models.agree import exchange
from .cost import bus_factor
from .fit import fit
from .record import Sweep, SweepPoint
from .samples import Timing

SIZES = tuple(4 << power for power in range(0, 27, 2))  # 4 B to 256 MiB
BURST = 16  # operations one after another, for small sizes
BURST_BYTES = 1 << 22  # of all results of a burst, which are kept until they are checked
WARM_UP = 2  # more operations that do not count, where they do not take long
COUNT = (4, 64)  # operations that count in a pass, at least and at most
BUDGET = 0.1  # seconds for one size in a pass
PASSES = 3  # over all sizes but the largest, so that a busy moment does not hit one of them alone
ONCE = 1 << 22  # bytes from which once is enough: these take long
LONGEST = 1.0  # seconds that one operation may take; larger sizes are left out
# The result, what goes in, what comes out and what it should be, and as much again for the links.
COPIES = 6


@attrs.frozen
class Operation:
    """One collective of `size` bytes as nccl-tests counts them.

    `run()` starts and evaluates it, `right(result)` says whether that is what it should be.
    """

    run: Callable[[int], Any]
    right: Callable[[Any, int], bool]


def operation(op: str, size: int, group: Any) -> Operation:
    """Prepare a collective. What goes in differs between one run and the next."""
    import mlx.core as mx

    rank, ranks = group.rank(), group.size()
    count = max(1, size // 4)
    if op == "barrier":
        one = mx.array(1)
        mx.eval(one)
        return Operation(
            lambda turn: _evaluated(mx.distributed.all_sum(one, group=group)),
            lambda result, turn: bool(result.item() == ranks),
        )
    if op == "all_sum":
        # Whole numbers below 2**24: their sum is exact in float32.
        pattern = (mx.arange(count) % 1024).astype(mx.float32)
        inputs = [pattern + (rank + 1 + turn) for turn in (0, 1)]
        totals = [ranks * pattern + sum(r + 1 + turn for r in range(ranks)) for turn in (0, 1)]
        mx.eval(inputs, totals)
        return Operation(
            lambda turn: _evaluated(mx.distributed.all_sum(inputs[turn], group=group)),
            lambda result, turn: bool(mx.array_equal(result, totals[turn]).item()),
        )
    if op == "all_gather":
        # `size` is that of the result: each rank puts in a part of it.
        part = max(1, count // ranks)
        pattern = (mx.arange(part) % 1024).astype(mx.float32)
        inputs = [pattern + (rank + 1 + turn) for turn in (0, 1)]
        wholes = [
            mx.concatenate([pattern + (r + 1 + turn) for r in range(ranks)]) for turn in (0, 1)
        ]
        mx.eval(inputs, wholes)
        return Operation(
            lambda turn: _evaluated(mx.distributed.all_gather(inputs[turn], group=group)),
            lambda result, turn: bool(mx.array_equal(result, wholes[turn]).item()),
        )
    return _sendrecv(count, group)


def _sendrecv(count: int, group: Any) -> Operation:
    """Each rank sends to the next one and receives from the one before."""
    import mlx.core as mx

    rank, ranks = group.rank(), group.size()
    pattern = (mx.arange(count) % 1024).astype(mx.float32)
    after, before = (rank + 1) % ranks, (rank - 1) % ranks
    inputs = [pattern + (rank + 1 + turn) for turn in (0, 1)]
    due = [pattern + (before + 1 + turn) for turn in (0, 1)]
    mx.eval(inputs, due)

    def send(turn: int) -> None:
        mx.eval(mx.distributed.send(inputs[turn], after, group=group))

    def run(turn: int) -> Any:
        # MLX's ring sends one thing at a time: when all sent first, none would receive.
        if rank % 2 == 0:
            send(turn)
        result = mx.distributed.recv((count,), mx.float32, before, group=group)
        mx.eval(result)
        if rank % 2 == 1:
            send(turn)
        return result

    return Operation(run, lambda result, turn: bool(mx.array_equal(result, due[turn]).item()))


def _evaluated(result: Any) -> Any:
    import mlx.core as mx

    mx.eval(result)
    return result


def order(op: str, most: int) -> list[int]:
    """The sizes of a sweep as they are measured, none larger than `most` bytes."""
    if op == "barrier":
        return [SIZES[0]] * PASSES
    small = [size for size in SIZES if size <= min(most, ONCE)]
    return small * PASSES + [size for size in SIZES if ONCE < size <= most]


def one_size(op: str, size: int, group: Any) -> Iterator[tuple[list[float], int] | None]:
    """Time one collective at one size. A collective; every rank must run it to its end.

    Yields None after each burst, and at the end this rank's seconds and how many results were
    wrong. Each burst begins with a barrier, and the first operation of many does not count: it
    contains what the ranks were apart.
    """
    import mlx.core as mx

    made = operation(op, size, group)
    # One number for all ranks: they must run the same operations.
    slowest = max(exchange(_quickest(made, 1)))
    yield None
    if slowest < LONGEST / 4:
        slowest = max(exchange(_quickest(made, WARM_UP)))
        yield None
    count = int(min(COUNT[1], max(COUNT[0], BUDGET / slowest)))
    if COUNT[0] * slowest > 2 * LONGEST:
        count = 3
    burst = min(BURST, count, max(1, BURST_BYTES // max(size, 1)))
    apart = 1 if burst > 1 else 0  # beside a large one, what they were apart is nothing
    seconds: list[float] = []
    wrong = 0
    while len(seconds) < count:
        mx.eval(mx.distributed.all_sum(mx.array(1), group=group))
        results = []
        times = []
        for turn in range(apart + burst):
            start = time.perf_counter()
            result = made.run(turn % 2)
            times.append(time.perf_counter() - start)
            results.append(result)
        seconds += times[apart:]
        wrong += sum(not made.right(result, turn % 2) for turn, result in enumerate(results))
        del results, result
        yield None
    yield seconds, wrong


def _quickest(made: Operation, count: int) -> float:
    """Seconds of the quickest of some operations on this rank."""
    seconds = []
    for turn in range(count):
        began = time.perf_counter()
        made.run(turn % 2)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def as_sweep(
    op: str, ranks: int, found: Sequence[tuple[int, Sequence[Sequence[float]], Sequence[int]]]
) -> Sweep:
    """The record of one collective, from sizes with each rank's seconds and wrong results.

    An operation took as long as on its slowest rank.
    """
    factor = bus_factor(op, ranks)
    points = []
    samples = []
    for size, seconds, wrong in found:
        slowest = [max(each) for each in zip(*seconds, strict=True)]
        timing = Timing.of(slowest)
        algbw = 0.0 if op == "barrier" else size / timing.p50
        points.append(SweepPoint(size, timing, algbw, factor * algbw, sum(wrong)))
        samples.append(slowest)
    line = fit(
        [point.size for point in points], [point.time.p50 for point in points], samples=samples
    )
    return Sweep(op, ranks, tuple(points), line)
