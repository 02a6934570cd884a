"""What has changed between two measurements, in figures that are known."""

from __future__ import annotations

from datetime import date

import attrs
import pytest

from macluster import UsageError
from macluster.engine.measure.compare import Changes, check_measured_on, compare
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
    [said] = found.sentences
    assert said == (
        "en4-en5 (ranks 0-1) lost 38 % of its bandwidth since Tuesday: 6.00 GB/s then, "
        "3.72 GB/s now."
    )
    assert [each.part for each in found.worse] == [pytest.approx(-0.38)]
    assert found.better == ()


def test_one_direction_alone_is_told_apart() -> None:
    [said] = changes(taken(pair(0, 1, back=3e9)), taken(pair(0, 1))).sentences
    assert said == (
        "en4-en5 (ranks 0-1), from rank 1 to rank 0, lost 50 % of its bandwidth since Tuesday: "
        "6.00 GB/s then, 3.00 GB/s now."
    )


def test_latency_and_collectives_count_too_and_links_come_first() -> None:
    now = taken(pair(1, 2, latency=90e-6), sum_time=60e-6)
    found = changes(now, taken(pair(1, 2)))
    link = "studio-1-studio-2 (ranks 1-2)"
    assert found.sentences == [
        f"Latency of {link} is 3.0 times as long since Tuesday: 30.0 us then, 90.0 us now.",
        "all_sum of 4 KiB is 1.5 times as long since Tuesday: 40.0 us then, 60.0 us now.",
    ]


def sums(*times: float, op: str = "all_sum", wrong: int = 0) -> Measurement:
    """A collective of 4 B, 16 B, 64 B and so on."""
    points = tuple(
        SweepPoint(4 << 2 * n, timing(time), 1.0, 1.0, wrong) for n, time in enumerate(times)
    )
    return attrs.evolve(taken(), sweeps=(Sweep(op, 3, points),))


def test_what_changed_most_comes_first_whether_it_is_a_time_or_a_bandwidth() -> None:
    # A third of the bandwidth is as far as three times the time, and further than twice.
    now = taken(pair(0, 1, 2e9, 2e9), pair(1, 2, latency=60e-6), sum_time=400e-6)
    said = changes(now, taken(pair(0, 1), pair(1, 2))).sentences
    assert [each.split()[0] for each in said] == ["en4-en5", "Latency", "all_sum"]


def test_many_sizes_of_a_collective_are_one_sentence() -> None:
    base = sums(1e-5, 2e-5, 4e-5, 8e-5, 16e-5)
    for times, where, much, figures in (
        ((1e-5, 2e-5, 9.6e-5, 19.2e-5, 38.4e-5),
         "from 64 B on", "2.4 times as long", "1 KiB 160 us then, 384 us"),
        ((1e-5, 2e-5, 6e-5, 16e-5, 38.4e-5),
         "from 64 B on", "up to 2.4 times as long", "1 KiB 160 us then, 384 us"),
        ((2.4e-5, 4.8e-5, 4e-5, 8e-5, 16e-5),
         "up to 16 B", "2.4 times as long", "16 B 20.0 us then, 48.0 us"),
        ((1e-5, 4.8e-5, 9.6e-5, 8e-5, 16e-5),
         "from 16 B to 64 B", "2.4 times as long", "64 B 40.0 us then, 96.0 us"),
        ((0.5e-5, 1e-5, 2e-5, 4e-5, 8e-5),
         "at all sizes", "50 % shorter", "1 KiB 160 us then, 80.0 us"),
    ):  # fmt: skip
        said = f"all_sum {where} is {much} since Tuesday: at {figures} now."
        found = changes(sums(*times), base)
        assert found.sentences == [said]
        assert len(found.changes) == 5


def test_a_size_that_did_not_change_parts_two_sentences() -> None:
    said = changes(sums(3e-5, 1e-5, 2e-5, 1e-5), sums(1e-5, 1e-5, 1e-5, 1e-5)).sentences
    assert [each[:14] for each in said] == ["all_sum of 4 B", "all_sum of 64 "]


def test_wrong_results_come_first_and_loudly() -> None:
    base = taken(pair(0, 1))
    now = attrs.evolve(taken(pair(0, 1, 2e9, 2e9)), sweeps=sums(4e-5, 4e-5, wrong=7).sweeps)
    found = changes(now, base)
    assert found.sentences[0] == (
        "WRONG RESULTS: all_sum of 4 B to 16 B gave 14 wrong results (new since Tuesday, 0 then)."
    )
    assert "lost 67 %" in found.sentences[1]
    assert repr(found).startswith("WRONG RESULTS")
    still = changes(now, attrs.evolve(base, sweeps=sums(4e-5, wrong=3).sweeps)).wrong
    assert still == ("WRONG RESULTS: all_sum of 4 B to 16 B gave 14 wrong results (3 then).",)
    unknown = changes(attrs.evolve(now, sweeps=sums(1e-5, op="barrier", wrong=2).sweeps), base)
    assert unknown.sentences[0] == (
        "WRONG RESULTS: barrier gave 2 wrong results (new since Tuesday, not measured then)."
    )
    assert changes(base, attrs.evolve(base, sweeps=sums(4e-5, wrong=3).sweeps)).wrong == ()


def test_bandwidth_while_all_pairs_send_counts() -> None:
    then = attrs.evolve(pair(0, 1), crowded=rate(5e9))
    now = attrs.evolve(then, crowded=rate(0.5e9))
    [said] = changes(taken(now), taken(then)).sentences
    assert said == (
        "en4-en5 (ranks 0-1) lost 90 % of its bandwidth while all pairs send since Tuesday: "
        "5.00 GB/s then, 500 MB/s now."
    )
    assert len(changes(taken(pair(0, 1)), taken(then)).changes) == 4
    # One sentence where the link is as slow when it is alone.
    slower = attrs.evolve(pair(0, 1, 2e9, 2e9), crowded=rate(2e9))
    found = changes(taken(slower), taken(then))
    [said] = found.sentences
    assert "lost 67 % of its bandwidth since Tuesday" in said
    assert len(found.worse) == 2


def test_collectives_and_sizes_that_are_gone_are_said() -> None:
    base = sums(1e-5, 2e-5, 3e-5)
    assert changes(attrs.evolve(base, sweeps=()), base).sentences == [
        "all_sum was measured then, and is not now."
    ]
    assert changes(sums(1e-5), base).missing == (
        "all_sum of 2 sizes was measured then, and is not now.",
    )
    assert changes(sums(1e-5, 2e-5), base).missing == (
        "all_sum of 64 B was measured then, and is not now.",
    )


def test_a_figure_of_0_is_no_change() -> None:
    for now, then in ((pair(0, 1), pair(0, 1, 0.0, 0.0, 0.0)), (pair(0, 1, 0.0), pair(0, 1))):
        found = changes(taken(now), taken(then))
        assert found.worse == found.better == ()
        assert len(found.changes) == 4


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
    assert found.sentences == ["en4-en5 (ranks 0-1) was measured then, and is not now."]


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
    now = taken(pair(0, 1), when="2026-10-09T18:00:00+00:00")
    assert changes(now, taken(pair(0, 1), when=when)).since == said


@pytest.mark.parametrize(("then", "now"), [("", FRIDAY), ("yesterday", None), (TUESDAY, None)])
def test_a_day_that_nobody_knows(then: str, now: date | None) -> None:
    """Neither an empty date nor a wrong one is a reason to compare nothing."""
    found = compare(taken(pair(0, 1), when=""), taken(pair(0, 1), when=then), today=now)
    assert found.since == ("since 2026-10-06" if then == TUESDAY else "since then")


def test_a_page_shows_no_markup_of_others() -> None:
    base = taken(pair(1, 2))
    evil = attrs.evolve(base, ranks=tuple(MeasuredRank(f"<b>{n}") for n in range(3)))
    found = changes(attrs.evolve(evil, pairs=(pair(1, 2, 1e9, 1e9),)), evil)
    assert "&lt;b&gt;1" in found._repr_html_()
    assert "<b>" not in found._repr_html_()


def test_other_ranks_backends_hosts_and_simulations_are_refused() -> None:
    base = taken(pair(0, 1))
    for other, said in (
        (attrs.evolve(base, ranks=base.ranks[:2]), "other ranks: 2 there, 3 here"),
        (attrs.evolve(base, backend="ring"), "other backends: ring there, jaccl here"),
        (
            attrs.evolve(base, ranks=(MeasuredRank("mini"), *base.ranks[1:])),
            "other hosts: mini, studio-1, studio-2 there, studio-0, studio-1, studio-2 here",
        ),
        (attrs.evolve(base, simulated="4 x M3 Ultra"), "simulated, and not measured: 4 x M3 Ultra"),
    ):
        with pytest.raises(UsageError, match=said):
            compare(base, other)
    # It is not the baseline that is to blame.
    with pytest.raises(UsageError, match="Simulated hosts have no baseline: 4 x M3 Ultra"):
        compare(attrs.evolve(base, simulated="4 x M3 Ultra"), base)


def test_a_host_that_is_not_known_is_no_other_one_and_local_is_no_name() -> None:
    base = taken(pair(0, 1))
    check_measured_on(base, "jaccl", ["studio-0.local", "", "studio-2"])
    with pytest.raises(UsageError, match="studio-0, studio-1, mini here"):
        check_measured_on(base, "jaccl", ["studio-0.local", "", "mini"])


@pytest.mark.parametrize("zone", ["+00:00", ""])
def test_a_baseline_that_is_newer_is_refused(zone: str) -> None:
    base = taken(pair(0, 1))
    newer = taken(pair(0, 1), when=f"2026-10-09T18:00:00{zone}")
    with pytest.raises(UsageError, match="The baseline is the newer") as caught:
        compare(base, newer)
    assert "--load NEWER --against OLDER" in caught.value.do
    assert compare(newer, base).since == "since Tuesday"


def test_where_nothing_was_measured_nothing_is_called_unchanged() -> None:
    empty = attrs.evolve(taken(), sweeps=())
    assert changes(empty, empty).sentences == [
        "Nothing can be compared: the two measurements have no figure in common."
    ]
