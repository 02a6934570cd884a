"""What many measurements of one quantity come to."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np


@attrs.frozen
class Timing:
    """Seconds of `count` equal operations.

    `p50` is the median; `p5`, `p95` and `p99` are the other percentiles. `jitter` is the mean
    difference between one operation and the next, without its sign (RFC 3393 calls the difference
    the delay variation); 0 for a single operation.
    """

    p50: float
    p5: float
    p95: float
    p99: float
    least: float
    jitter: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Of one operation or more, in the order in which they ran."""
        values = np.asarray(seconds, float)
        p5, p50, p95, p99 = (float(each) for each in np.percentile(values, (5, 50, 95, 99)))
        jitter = float(np.abs(np.diff(values)).mean()) if len(values) > 1 else 0.0
        return cls(p50, p5, p95, p99, float(values.min()), jitter, len(values))


@attrs.frozen
class Rate:
    """Bytes a second of `count` equal transfers: the median, and the 5th and 95th percentile."""

    p50: float
    p5: float
    p95: float
    count: int

    @classmethod
    def of(cls, size: int, seconds: Sequence[float]) -> Rate:
        """Of transfers of `size` bytes each, one or more."""
        values = size / np.asarray(seconds, float)
        p5, p50, p95 = (float(each) for each in np.percentile(values, (5, 50, 95)))
        return cls(p50, p5, p95, len(values))
