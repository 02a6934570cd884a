"""Collectives of all ranks at many sizes, with every result checked.

The figures are those of nccl-tests; docs/measuring.md says how each is defined.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from ..models.agree import exchange
from .cost import bus_factor
from .fit import fit
from .record import LEAST, Sweep, SweepPoint
from .samples import Timing

SIZES = tuple(LEAST << power for power in range(0, 27, 2))  # 4 B to 256 MiB
BURST = 16  # operations one after another, for small sizes
BURST_BYTES = 1 << 22  # of all results of a burst, which are kept until they are checked
WARM_UP = 2  # more operations whose time does not count, where they do not take long
COUNT = (4, 64)  # operations that count in a pass, at least and at most
BUDGET = 0.1  # seconds for one size in a pass
PASSES = 3  # over all sizes but the largest, so that a busy moment does not hit one of them alone
ONCE = 1 << 22  # bytes from which once is enough: these take long
LONGEST = 1.0  # seconds that one operation may take; larger sizes are left out
# Pattern, input, result, what it should be, and what MLX holds meanwhile.
COPIES = 6


@attrs.define
class Operation:
    """One collective of `size` bytes as nccl-tests counts them, with other content each time."""

    op: str
    size: int
    group: Any
    turns: int = 0  # so many were run
    wrong: int = 0  # so many results were not what they should be

    def burst(self, count: int) -> list[float]:
        """Run so many, one after another, and check what they gave; seconds of each."""
        turns = range(self.turns, self.turns + count)
        self.turns += count
        inputs = [self._input(turn) for turn in turns]
        seconds, results = [], []
        for each in inputs:
            began = time.perf_counter()
            results.append(self._run(each))
            seconds.append(time.perf_counter() - began)
        self.wrong += sum(
            not self._right(result, turn) for result, turn in zip(results, turns, strict=True)
        )
        return seconds

    @property
    def rank(self) -> int:
        return int(self.group.rank())

    @property
    def ranks(self) -> int:
        return int(self.group.size())

    @functools.cached_property
    def _pattern(self) -> Any:
        """Whole numbers so small that all sums of them are exact in float32."""
        import mlx.core as mx

        part = self.ranks if self.op == "all_gather" else 1
        count = 1 if self.op == "barrier" else max(1, self.size // part // 4)
        pattern = (mx.arange(count) % 1024).astype(mx.float32)
        mx.eval(pattern)
        return pattern

    def _of(self, rank: int, turn: int) -> Any:
        """What a rank puts in."""
        return self._pattern + (rank + 1 + turn % 1000)

    def _input(self, turn: int) -> Any:
        import mlx.core as mx

        made = self._of(self.rank, turn)
        mx.eval(made)
        return made

    def _run(self, value: Any) -> Any:
        import mlx.core as mx

        if self.op == "sendrecv":
            return self._sendrecv(value)
        function = mx.distributed.all_gather if self.op == "all_gather" else mx.distributed.all_sum
        result = function(value, group=self.group)
        mx.eval(result)
        return result

    def _sendrecv(self, value: Any) -> Any:
        """Send to the next rank and receive from the one before."""
        import mlx.core as mx

        after, before = (self.rank + 1) % self.ranks, (self.rank - 1) % self.ranks
        # MLX's ring does one thing at a time: when all sent first, none would receive.
        if self.rank % 2 == 0:
            mx.eval(mx.distributed.send(value, after, group=self.group))
        result = mx.distributed.recv(value.shape, value.dtype, before, group=self.group)
        mx.eval(result)
        if self.rank % 2 == 1:
            mx.eval(mx.distributed.send(value, after, group=self.group))
        return result

    def _right(self, result: Any, turn: int) -> bool:
        import mlx.core as mx

        if self.op == "all_gather":
            due = mx.concatenate([self._of(rank, turn) for rank in range(self.ranks)])
        elif self.op == "sendrecv":
            due = self._of((self.rank - 1) % self.ranks, turn)
        else:
            added = sum(rank + 1 + turn % 1000 for rank in range(self.ranks))
            due = self.ranks * self._pattern + added
        return bool(mx.array_equal(result, due).item())


def order(op: str, most: int, ranks: int) -> list[int]:
    """The sizes of a sweep as they are measured, none larger than `most` bytes.

    Each rank puts the same number of 4-byte numbers into an all_gather, so its sizes are multiples
    of 4 x `ranks`, the next smaller ones.
    """
    if op == "barrier":
        return [SIZES[0]] * PASSES
    unit = 4 * ranks if op == "all_gather" else 4
    sizes = [size // unit * unit for size in SIZES if unit <= size <= most]
    small = [size for size in sizes if size <= ONCE]
    return small * PASSES + [size for size in sizes if size > ONCE]


def one_size(op: str, size: int, group: Any) -> Iterator[tuple[list[float], int] | None]:
    """Time one collective at one size. A collective; every rank must run it to its end.

    Yields None after each burst, and at the end this rank's seconds and how many of all results
    were wrong. Each burst begins with a barrier, and the first operation of many does not count: it
    contains what the ranks were apart.
    """
    import mlx.core as mx

    made = Operation(op, size, group)
    # One number for all ranks: they must run the same operations.
    slowest = max(exchange(min(made.burst(1))))
    yield None
    if slowest < LONGEST / 4:
        slowest = max(exchange(min(made.burst(WARM_UP))))
        yield None
    count = int(min(COUNT[1], max(COUNT[0], BUDGET / slowest)))
    if COUNT[0] * slowest > 2 * LONGEST:
        count = 3
    burst = min(BURST, count, max(1, BURST_BYTES // max(size, 1)))
    apart = 1 if burst > 1 else 0  # beside a large one, what they were apart is nothing
    seconds: list[float] = []
    while len(seconds) < count:
        mx.eval(mx.distributed.all_sum(mx.array(1), group=group))
        seconds += made.burst(apart + burst)[apart:]
        yield None
    yield seconds, made.wrong


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
