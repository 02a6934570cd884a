"""What has changed between two measurements, in figures that are known."""

from __future__ import annotations

from datetime import date

import attrs
import pytest

from macluster import UsageError
from macluster.engine.measure.compare import Changes, compare
from macluster.engine.measure.record import (
    MeasuredRank,
    Measurement,
    Pair,
    Sweep,
    SweepPoint,
)
from macluster.engine.measure.samples import Rate, Timing

TUESDAY = "2026-10-06T14:05:00+00:00"
FRIDAY = date(2026, 10, 9)


def timing(p50: float, spread: float = 0.02) -> Timing:
    return Timing(p50, p50 * (1 - spread), p50 * (1 + spread), 1.1 * p50, 0.9 * p50, 0.0, 100)


def rate(p50: float, spread: float = 0.02) -> Rate:
    return Rate(p50, p50 * (1 - spread), p50 * (1 + spread), 7)


def pair(a: int, b: int, there: float = 6e9, back: float = 6e9, latency: float = 30e-6) -> Pair:
    return Pair(a, b, "jaccl", timing(latency), rate(there), rate(back))


def taken(*pairs: Pair, when: str = TUESDAY, sum_time: float = 40e-6) -> Measurement:
    point = SweepPoint(4096, timing(sum_time), 1e8, 2e8, 0)
    hosts = tuple(MeasuredRank(f"studio-{n}") for n in range(3))
    return Measurement("jaccl", hosts, pairs, (Sweep("all_sum", 3, (point,)),), when)


def changes(now: Measurement, before: Measurement) -> Changes:
    return compare(now, before, names={(0, 1): "en4-en5"}, today=FRIDAY)


def test_a_link_that_lost_bandwidth_is_named_with_the_day_and_both_figures() -> None:
    found = changes(taken(pair(0, 1, 3.72e9, 3.8e9)), taken(pair(0, 1)))
    assert found.sentences == [
        "en4-en5 lost 38 % of its bandwidth since Tuesday: 6.00 GB/s then, 3.72 GB/s now."
    ]
    assert [each.part for each in found.worse] == [pytest.approx(-0.38)]
    assert found.better == ()


def test_one_direction_alone_is_told_apart() -> None:
    [said] = changes(taken(pair(0, 1, back=3e9)), taken(pair(0, 1))).sentences
    assert said == (
        "en4-en5, from rank 1 to rank 0, lost 50 % of its bandwidth since Tuesday: "
        "6.00 GB/s then, 3.00 GB/s now."
    )


def test_latency_and_collectives_count_too_and_the_worst_comes_first() -> None:
    now = taken(pair(1, 2, latency=90e-6), sum_time=60e-6)
    found = changes(now, taken(pair(1, 2)))
    link = "studio-1-studio-2 (ranks 1-2)"
    assert found.sentences == [
        f"Latency of {link} is 3.0 times as long since Tuesday: 30.0 us then, 90.0 us now.",
        "all_sum of 4 KiB is 1.5 times as long since Tuesday: 40.0 us then, 60.0 us now.",
    ]


def test_what_is_better_is_said_after_what_is_worse() -> None:
    now = taken(pair(0, 1, 9e9, 9e9), pair(1, 2, 3e9, 3e9))
    said = changes(now, taken(pair(0, 1), pair(1, 2))).sentences
    assert ["lost 50 %" in said[0], "gained 50 %" in said[1]] == [True, True]


@pytest.mark.parametrize(
    "now",
    [
        pair(0, 1, 5e9, 5e9),  # less than a fifth
        attrs.evolve(pair(0, 1), forward=rate(3e9, 0.97)),  # far apart, but all over the place
    ],
)
def test_noise_is_no_change(now: Pair) -> None:
    found = changes(taken(now), taken(pair(0, 1)))
    assert found.sentences == ["Nothing has changed since Tuesday: 4 figures are what they were."]
    assert len(found.changes) == 4


def test_a_link_that_is_gone_is_said() -> None:
    found = changes(taken(), taken(pair(0, 1)))
    assert found.sentences == ["en4-en5 was measured since Tuesday, and is not now."]


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("2026-10-09T09:30:00+00:00", "since today, 09:30"),
        ("2026-10-08T09:30:00+00:00", "since yesterday"),
        ("2026-10-03T09:30:00+00:00", "since Saturday"),
        ("2026-10-02T09:30:00+00:00", "since 2026-10-02"),
    ],
)
def test_when_the_baseline_was_taken(when: str, said: str) -> None:
    assert changes(taken(pair(0, 1)), taken(pair(0, 1), when=when)).since == said


def test_other_ranks_backends_hosts_and_simulations_are_refused() -> None:
    base = taken(pair(0, 1))
    for other, said in (
        (attrs.evolve(base, ranks=base.ranks[:2]), "ranks"),
        (attrs.evolve(base, backend="ring"), "backends"),
        (attrs.evolve(base, ranks=(MeasuredRank("mini"), *base.ranks[1:])), "hosts"),
        (attrs.evolve(base, simulated="4 x M3 Ultra"), "simulation"),
    ):
        with pytest.raises(UsageError, match=said):
            compare(base, other)
