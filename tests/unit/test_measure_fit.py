"""The line through a curve, on curves of which the answer is known."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from macluster.engine.measure.fit import Fit, fit
from macluster.engine.units import size_label

SIZES = [4 << power for power in range(0, 27, 2)]  # 4 B to 256 MiB
LATENCY, BANDWIDTH = 31e-6, 6.2e9


def line(size: float) -> float:
    return LATENCY + size / BANDWIDTH


def noisy(
    curve: Callable[[float], float], noise: float, sizes: list[int] = SIZES, seed: int = 0
) -> tuple[list[float], list[list[float]]]:
    """Medians and samples around a curve."""
    random = np.random.default_rng(seed)
    samples = [
        (curve(size) * np.exp(noise * random.standard_normal(40))).tolist() for size in sizes
    ]
    return [float(np.median(each)) for each in samples], samples


def test_an_exact_line_is_found_exactly() -> None:
    found = fit(SIZES, [line(size) for size in SIZES])
    assert found is not None
    assert found.latency == pytest.approx(LATENCY, rel=1e-9)
    assert found.bandwidth == pytest.approx(BANDWIDTH, rel=1e-9)
    assert found.residual == pytest.approx(0, abs=1e-9)
    assert found.r2 == pytest.approx(1)
    assert found.sizes == len(SIZES)
    assert found.good
    assert found.half_size == pytest.approx(LATENCY * BANDWIDTH)
    assert found.time(1e6) == pytest.approx(line(1e6))


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_the_line_by_little_and_the_ranges_say_how_much(seed: int) -> None:
    medians, samples = noisy(line, 0.2, seed=seed)
    found = fit(SIZES, medians, samples)
    assert found is not None
    assert found.good
    assert found.latency == pytest.approx(LATENCY, rel=0.1)
    assert found.bandwidth == pytest.approx(BANDWIDTH, rel=0.1)
    assert found.latency_range[0] < found.latency < found.latency_range[1]
    assert found.bandwidth_range[0] < found.bandwidth < found.bandwidth_range[1]


def test_the_ranges_hold_the_truth_about_as_often_as_they_say() -> None:
    held = [0, 0]
    for seed in range(60):
        medians, samples = noisy(line, 0.2, seed=seed)
        found = fit(SIZES, medians, samples)
        assert found is not None
        held[0] += found.latency_range[0] <= LATENCY <= found.latency_range[1]
        held[1] += found.bandwidth_range[0] <= BANDWIDTH <= found.bandwidth_range[1]
    # 57 are expected, and a median of 40 is known a little less well than that.
    assert min(held) >= 50


def test_without_samples_the_sizes_are_resampled() -> None:
    medians, _ = noisy(line, 0.2)
    found = fit(SIZES, medians)
    assert found is not None
    assert found.latency_range[0] < LATENCY < found.latency_range[1]
    assert found == fit(SIZES, medians)
    assert found != fit(SIZES, medians, seed=1)


def test_sizes_that_were_not_measured_are_within_a_fifth() -> None:
    medians, samples = noisy(line, 0.1)
    found = fit(SIZES[::2], medians[::2], samples[::2])
    assert found is not None
    for size, median in zip(SIZES[1::2], medians[1::2], strict=True):
        assert found.time(size) == pytest.approx(median, rel=0.2)


def test_small_sizes_count_as_much_as_large_ones() -> None:
    """Least squares of seconds would not see the latency at all."""
    medians, samples = noisy(lambda size: 1e-6 + size / 1e9, 0.3, seed=3)
    found = fit(SIZES, medians, samples)
    assert found is not None
    assert found.latency == pytest.approx(1e-6, rel=0.2)


def test_one_disturbed_size_does_not_move_the_line() -> None:
    medians = [line(size) for size in SIZES]
    for place in (0, 5, 13):
        for factor in (0.2, 10):
            disturbed = [*medians]
            disturbed[place] *= factor
            found = fit(SIZES, disturbed)
            assert found is not None
            assert found.latency == pytest.approx(LATENCY, rel=0.03)
            assert found.bandwidth == pytest.approx(BANDWIDTH, rel=0.03)
            assert found.worst_size == SIZES[place]
            # Five times too short and ten times too long, which the other sizes do not hide.
            assert found.worst == pytest.approx(max(factor, 1 / factor) - 1, rel=0.05)
            assert not found.good
            assert found.far == (found.worst if place == 13 else pytest.approx(0, abs=0.03))


@pytest.mark.parametrize(
    "curve",
    [
        # Another protocol from 64 KiB on: a dearer start and more bandwidth.
        lambda size: 5e-6 + size / 3e8 if size <= 65536 else 1e-3 + size / 6e9,
        lambda size: 1e-5 + size / 5e8 if size <= 65536 else 2e-4 + size / 6e9,
        # No bandwidth at all: time grows with the root of the size.
        lambda size: 1e-4 + 1e-6 * size**0.5,
    ],
    ids=["dear start", "slow start", "root"],
)
def test_a_bend_is_no_line(curve: Callable[[float], float]) -> None:
    medians, samples = noisy(curve, 0.05)
    found = fit(SIZES, medians, samples)
    assert found is not None
    assert not found.good
    assert found.verdict.startswith("not a line: off by ")
    assert f"{100 * found.residual:.0f} % in the median" in found.verdict


def test_a_curve_that_bends_a_little_is_told_where() -> None:
    # A buffer that is full at 1 MB: two thirds of all sizes are far from there.
    medians, samples = noisy(lambda s: 3e-5 + s / (6e9 if s < 1e6 else 1.5e9), 0.05)
    found = fit(SIZES, medians, samples)
    assert found is not None
    assert found.worst > 0.5
    assert f"by {100 * found.worst:.0f} % at {size_label(found.worst_size)}" in found.verdict


@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("cut", [16 << 20, 64 << 20, 256 << 20])
def test_a_link_that_is_slower_at_the_largest_sizes_is_told(factor: float, cut: int) -> None:
    # r2 over eight decades hardly sees it: a cache that is too small, or a throttled link.
    curve = [line(size) if size < cut else LATENCY + size * factor / BANDWIDTH for size in SIZES]
    found = fit(SIZES, curve)
    assert found is not None
    ratios = [found.time(size) / each for size, each in zip(SIZES, curve, strict=True)][-3:]
    assert found.far == pytest.approx(max(max(each, 1 / each) for each in ratios) - 1)
    if cut > 16 << 20:
        assert not found.good
        assert found.verdict.startswith("not a line")
    else:
        # Where three sizes are slow the line follows them, or says where it does not hold.
        assert not found.good or "but is off by" in found.verdict


def test_a_bend_in_the_middle_is_told_from_a_quarter_on() -> None:
    for factor, told in ((1.2, False), (1.4, True), (1 / 1.2, False), (1 / 1.4, True)):
        found = fit(SIZES, [line(size) * (factor if size == 65536 else 1) for size in SIZES])
        assert found is not None
        assert found.good
        assert ("but is off by 40 % at 64 KiB" in found.verdict) is told


@pytest.mark.parametrize("bad", [0.0, -1e-6, math.nan, math.inf])
def test_a_time_that_is_none_makes_no_line(bad: float) -> None:
    curve = [line(size) for size in SIZES]
    assert fit(SIZES, [bad, *curve[1:]]) is None
    assert fit(SIZES, [bad] * len(SIZES)) is None
    assert fit(SIZES, curve, [[bad, each] for each in curve]) is None


def test_the_latency_is_not_negative() -> None:
    found = fit(SIZES, [size / BANDWIDTH for size in SIZES])
    assert found is not None
    assert found.latency == pytest.approx(0, abs=1e-12)
    # Time that grows faster than the size would cross zero.
    steep = fit([1000, 2000, 4000, 8000], [1e-6, 2.5e-6, 6e-6, 15e-6])
    assert steep is not None
    assert steep.latency == 0
    assert steep.bandwidth > 0


@pytest.mark.parametrize(
    ("sizes", "seconds"),
    [
        ([], []),
        ([4, 8], [1e-6, 2e-6]),
        ([4, 4, 8], [1e-6, 1e-6, 2e-6]),
        # Larger messages do not take longer.
        ([4, 8, 16], [3e-6, 2e-6, 1e-6]),
    ],
)
def test_no_line(sizes: list[int], seconds: list[float]) -> None:
    assert fit(sizes, seconds) is None


def test_the_verdict_in_words() -> None:
    good = Fit(31e-6, 6.2e9, 0.01, 0.9919, 14, worst=0.1, worst_size=64)
    assert good.verdict == (
        "latency 31.0 us, 6.20 GB/s, half of it at 188 KiB; the line explains 99.1 %"
    )
    slow = Fit(1.3e-3, 115e6, 0.01, 1.0, 14, worst=0.6, worst_size=65536, far=0.1)
    assert slow.verdict == (
        "latency 1.30 ms, 115 MB/s, half of it at 146 KiB; the line explains 100.0 %, "
        "but is off by 60 % at 64 KiB"
    )
    bad = Fit(31e-6, 6.2e9, 0.46, 0.9799, 14, worst=1.2, worst_size=65536)
    assert bad.verdict == (
        "not a line: off by 46 % in the median, by 120 % at 64 KiB; the line explains 97.9 %"
    )
