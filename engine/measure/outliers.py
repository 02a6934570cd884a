"""Which pairs of ranks stand out among the others."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import attrs

from ..units import number_text, rate_text, time_text
from .record import Pair

# A pair stands out with less of the median bandwidth, or more of the median latency, than this.
SLOW, LATE = 1 / 3, 3.0


@attrs.frozen
class Outlier:
    """A pair that stands out: by its latency, or by its bandwidth from rank `a` to rank `b`.

    `value` is its figure, in seconds or bytes/s, `usual` the median of the `count` pairs that it is
    compared with.
    """

    pair: Pair
    a: int
    b: int
    metric: Literal["latency", "bandwidth"]
    value: float
    usual: float
    count: int

    @property
    def words(self) -> str:
        """What stands out, and how far."""
        if self.metric == "bandwidth":
            part = f"{100 * self.value / self.usual:.0f} % of the median of {rate_text(self.usual)}"
            return f"rank {self.a} to rank {self.b}: {rate_text(self.value)}, {part}"
        times = f"{number_text(self.value / self.usual)} x the median of {time_text(self.usual)}"
        return f"ranks {self.a} and {self.b}: latency {time_text(self.value)}, {times}"


def standing_out(pairs: Iterable[Pair]) -> list[Outlier]:
    """Those with less than a third of the median bandwidth, or more than 3 x the median latency.

    The median is that of the same way (`Pair.via`): a plain socket is not compared with RDMA. Each
    direction counts by itself. A median of 0 has nothing that stands out. Bandwidths come before
    latencies.
    """
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.via].append(pair)
    found = []
    for group in groups.values():
        count = len(group)
        sent = [(pair, pair.a, pair.b, pair.forward.p50) for pair in group]
        sent += [(pair, pair.b, pair.a, pair.backward.p50) for pair in group]
        usual = statistics.median(rate for *_, rate in sent)
        found += [
            Outlier(pair, a, b, "bandwidth", rate, usual, count)
            for pair, a, b, rate in sent
            if rate < SLOW * usual
        ]
        usual = statistics.median(pair.latency.p50 for pair in group)
        found += [
            Outlier(pair, pair.a, pair.b, "latency", pair.latency.p50, usual, count)
            for pair in group
            if 0 < LATE * usual < pair.latency.p50
        ]
    return found
