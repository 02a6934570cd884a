"""The line through a curve: time = latency + bytes / bandwidth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from ..units import rate_text, size_label, time_text

Floats = NDArray[np.float64]

RESAMPLED = 1000  # lines of which the ranges are made
ROUNDS = 60  # of weighting at most; a line that bends takes about twenty
MUCH = 0.25  # a good line that is off by so much somewhere says where
LARGEST = 3  # sizes that a good line must not be off by so much at: bandwidth is read there
HUBER = 1.345  # times the usual distance: 95 % as good as least squares where all is well


@attrs.frozen
class Fit:
    """Seconds of `n` bytes: latency + n / bandwidth (Hockney 1994; alpha and beta elsewhere).

    `latency` in seconds, `bandwidth` in bytes/s. How far the line is off at a size is
    exp(|log(fitted / measured)|) - 1, so twice as long and half as long are both 1. `residual` is
    the median of that over the sizes, `worst` the largest, at `worst_size` bytes, and `far` the
    largest of the three largest sizes. `r2` is the part of the variance of log(time) that the line
    explains. `latency_range` and `bandwidth_range` hold 95 % of the lines through resampled
    measurements.
    """

    latency: float
    bandwidth: float
    residual: float
    r2: float
    sizes: int
    latency_range: tuple[float, float] = (0.0, 0.0)
    bandwidth_range: tuple[float, float] = (0.0, 0.0)
    worst: float = 0.0
    worst_size: float = 0.0
    far: float = 0.0

    def time(self, size: float) -> float:
        """Seconds of `size` bytes."""
        return self.latency + size / self.bandwidth

    @property
    def half_size(self) -> float:
        """n1/2: the bytes at which half of the bandwidth is reached."""
        return self.latency * self.bandwidth

    @property
    def good(self) -> bool:
        """Whether the line describes what was measured.

        That is: r2 of .98 or more, a residual below 20 %, and less than 25 % off at each of the
        three largest sizes, over which r2 alone would pass.
        """
        return self.r2 >= 0.98 and self.residual < 0.2 and self.far < MUCH

    @property
    def verdict(self) -> str:
        """The line in words, or how far off it is."""
        # Down, not to the nearest: 97.99 are not the 98 that are asked for.
        explained = f"the line explains {math.floor(1000 * max(self.r2, 0.0)) / 10:.1f} %"
        worst = f"by {100 * self.worst:.0f} % at {size_label(self.worst_size)}"
        if not self.good:
            off = f"off by {100 * self.residual:.0f} % in the median, {worst}"
            return f"not a line: {off}; {explained}"
        words = (
            f"latency {time_text(self.latency)}, {rate_text(self.bandwidth)}, half of it at "
            f"{size_label(self.half_size)}; {explained}"
        )
        return words if self.worst < MUCH else f"{words}, but is off {worst}"


def fit(
    sizes: Sequence[float],
    seconds: Sequence[float],
    samples: Sequence[Sequence[float]] | None = None,
    *,
    seed: int = 0,
) -> Fit | None:
    """The line through what messages of these sizes took.

    The distance of a point is that of the logarithms, so that 4 bytes count as much as 256 MiB, and
    twice as long as much as half as long. Points far off the others count less (Huber 1964). The
    latency is not negative.

    Args:
        sizes: bytes, each once.
        seconds: the median of each size.
        samples: all measurements of each size. The ranges are those of lines through medians of
            resampled ones (Efron 1979). Without them it is the sizes that are resampled.
        seed: of the resampling.

    Returns:
        None for fewer than three sizes, when larger messages do not take longer, or when a time is
        not above 0 or not finite.
    """
    measured = np.asarray(seconds, float)
    bytes_sent = np.asarray(sizes, float)
    times = [measured, *(np.asarray(each, float) for each in samples or ())]
    if len(set(sizes)) < 3 or not all(((each > 0) & (each < np.inf)).all() for each in times):
        return None
    # Numbers around 1 keep the sums of squares exact.
    scale = float(bytes_sent.max())
    lines = _lines(bytes_sent / scale, measured[None], 1e-10)
    latency, slope = (float(each[0]) for each in lines)
    if slope <= 0:
        return None
    fitted = latency + slope * bytes_sent / scale
    off = np.expm1(np.abs(np.log(fitted / measured)))
    logs = np.log(measured)
    spread = float(((logs - logs.mean()) ** 2).sum())
    lost = float(((np.log(fitted) - logs) ** 2).sum())
    ranges = _ranges(bytes_sent / scale, measured, samples, np.random.default_rng(seed))
    if ranges is None:
        return None
    low, high = (float(each) for each in ranges[1])
    worst = int(off.argmax())
    return Fit(
        latency=latency,
        bandwidth=scale / slope,
        residual=float(np.median(off)),
        r2=1 - lost / spread if spread > 0 else 0.0,
        sizes=len(measured),
        latency_range=(float(ranges[0][0]), float(ranges[0][1])),
        bandwidth_range=(scale / high, scale / low),
        worst=float(off[worst]),
        worst_size=float(bytes_sent[worst]),
        far=float(off[np.argsort(bytes_sent)[-LARGEST:]].max()),
    )


def _lines(sizes: Floats, seconds: Floats, exact: float) -> tuple[Floats, Floats]:
    """Latency and slope of a line through each row of `seconds`, by weighting again and again.

    Each round is weighted least squares; its weights make the sum of squares that of logarithms.
    It ends when no line moves by a part of more than `exact`.
    """
    weights = 1 / seconds**2
    latency = slope = np.zeros(len(seconds))
    before: Any = None
    for _ in range(ROUNDS):
        total = weights.sum(1)
        of_size = (weights * sizes).sum(1)
        of_square = (weights * sizes**2).sum(1)
        of_time = (weights * seconds).sum(1)
        of_both = (weights * sizes * seconds).sum(1)
        level = total * of_square - of_size**2
        # One size alone, in a resampling, has no slope.
        slope = (total * of_both - of_size * of_time) / np.where(level > 0, level, np.inf)
        latency = (of_time - slope * of_size) / total
        slope = np.where(latency < 0, of_both / of_square, np.maximum(slope, 0.0))
        latency = np.where(latency < 0, 0.0, (of_time - slope * of_size) / total)
        fitted = latency[:, None] + slope[:, None] * sizes
        if before is not None and np.allclose(fitted, before, rtol=exact, atol=0):
            break
        before = fitted
        off = np.log(fitted / seconds)
        usual = 1.4826 * np.median(np.abs(off), axis=1, keepdims=True)
        far = np.maximum(np.abs(off), 1e-12)
        # log(f / t) / f is the slope of the squared logarithm; this weight makes it (f - t) x w.
        weights = np.where(far < 1e-6, 1.0, off / -np.expm1(-np.where(far < 1e-6, 1.0, off)))
        weights *= np.minimum(1.0, HUBER * np.maximum(usual, 1e-9) / far) / fitted**2
    return latency, slope


def _ranges(
    sizes: Floats,
    seconds: Floats,
    samples: Sequence[Sequence[float]] | None,
    random: np.random.Generator,
) -> tuple[Floats, Floats] | None:
    """The middle 95 % of latencies and slopes; None when no resampled line rises."""
    if samples is None:
        picked = random.integers(len(sizes), size=(RESAMPLED, len(sizes)))
        counts = np.stack([np.bincount(row, minlength=len(sizes)) for row in picked])
        distinct = (counts > 0).sum(1) >= 3
        picked = picked[distinct]
        lines = _lines(sizes[picked], seconds[picked], 1e-3)
    else:
        medians = np.stack([_resampled_medians(each, random) for each in samples], axis=1)
        lines = _lines(sizes, medians, 1e-3)
    rising = lines[1] > 0
    if not rising.any():
        return None
    low, high = 2.5, 97.5
    return (
        np.percentile(lines[0][rising], (low, high)),
        np.percentile(lines[1][rising], (low, high)),
    )


def _resampled_medians(samples: Sequence[float], random: np.random.Generator) -> Floats:
    """The medians of `RESAMPLED` resamplings."""
    ordered = np.sort(np.asarray(samples, float))
    count = len(ordered)
    # The k-th of n uniform numbers in order is beta distributed, so a median takes one or two draws
    # and not n: 2 ms for 14 sizes of 40. All draws take numpy 19 ms and numba 26, and 200 for 14 of
    # 400, besides 3 s to compile: numba does not pay here.
    lower = random.beta((count + 1) // 2, count // 2 + 1, RESAMPLED)
    upper = lower
    if count % 2 == 0:
        upper = lower + (1 - lower) * random.beta(1, count // 2, RESAMPLED)
    places = [np.minimum((each * count).astype(int), count - 1) for each in (lower, upper)]
    return (ordered[places[0]] + ordered[places[1]]) / 2  # type: ignore[no-any-return]
