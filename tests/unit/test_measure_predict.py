"""What a ring and a mesh ought to take, from lines that are known."""

from __future__ import annotations

import attrs

from macluster.engine.measure.cost import mesh_one_shot, mesh_two_shot, ring_all_sum
from macluster.engine.measure.fit import Fit
from macluster.engine.measure.predict import expected
from macluster.engine.measure.record import MeasuredRank, Measurement, Pair
from macluster.engine.measure.samples import Rate, Timing

TIME = Timing(1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 0.0, 9)
SPEED = Rate(1e9, 1e9, 1e9, 7)
GOOD = Fit(10e-6, 5e9, 0.02, 0.999, 9)
SLOWER = Fit(20e-6, 4e9, 0.02, 0.999, 9)
SIZES = (4, 1 << 10, 1 << 20, 1 << 26)


def found(*pairs: tuple[int, int, str, Fit | None], ranks: int = 4) -> Measurement:
    made = tuple(Pair(a, b, via, TIME, SPEED, SPEED, fit=line) for a, b, via, line in pairs)
    return Measurement("jaccl", tuple(MeasuredRank(f"m{n}") for n in range(ranks)), made)


def test_the_slowest_link_decides_and_the_formulas_are_those_of_cost() -> None:
    due = expected(found((0, 1, "jaccl", GOOD), (1, 2, "jaccl", SLOWER)), SIZES)
    assert due is not None
    assert due.link == SLOWER
    line = SLOWER.latency, SLOWER.bandwidth
    assert due.ring == tuple(ring_all_sum(size, 4).time(*line) for size in SIZES)
    small, large = mesh_one_shot(4, 4).time(*line), mesh_two_shot(1 << 26, 4).time(*line)
    assert (due.mesh[0], due.mesh[-1]) == (small, large)


def test_plain_sockets_count_only_where_mlx_was_not_measured() -> None:
    both = expected(found((0, 1, "jaccl", GOOD), (0, 1, "tcp", SLOWER)), SIZES)
    alone = expected(found((0, 1, "tcp", SLOWER)), SIZES)
    assert both is not None
    assert alone is not None
    assert (both.link, alone.link) == (GOOD, SLOWER)


def test_nothing_is_expected_of_two_ranks_or_from_a_bad_line() -> None:
    bad = attrs.evolve(GOOD, r2=0.9)
    assert expected(found((0, 1, "jaccl", GOOD), ranks=2), SIZES) is None
    assert expected(found((0, 1, "jaccl", bad)), SIZES) is None
    assert expected(found((0, 1, "jaccl", None)), SIZES) is None
