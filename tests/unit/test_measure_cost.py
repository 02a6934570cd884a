"""The formulas of collectives, with numbers that can be checked by hand."""

import pytest

from macluster.engine.measure import cost
from macluster.engine.measure.cost import Steps, bus_factor, crossover
from macluster.engine.measure.fit import Fit

LATENCY, BANDWIDTH = 10e-6, 1e9
LINE = Fit(LATENCY, BANDWIDTH, 0.0, 1.0, 14)


def test_time_is_a_first_step_further_ones_and_the_bytes() -> None:
    assert Steps(1, 1e6).time(LATENCY, BANDWIDTH) == pytest.approx(1010e-6)
    assert Steps(4, 1e6).time(LATENCY, BANDWIDTH) == pytest.approx(1040e-6)
    assert Steps(4, 1e6).time(LATENCY, BANDWIDTH, hop=1e-6) == pytest.approx(1013e-6)
    assert Steps(0, 0.0).time(LATENCY, BANDWIDTH) == 0


@pytest.mark.parametrize(
    ("found", "count", "sent"),
    [
        (cost.ring_all_sum(1000, 4), 6, 1500),
        (cost.ring_all_sum(1000, 4, directions=2, cables=3), 6, 250),
        # Both ways to the only other one are the same cable.
        (cost.ring_all_sum(1000, 2, directions=2), 2, 1000),
        (cost.ring_all_gather(1000, 4), 3, 3000),
        (cost.ring_all_gather(1000, 4, directions=2), 3, 1500),
        (cost.mesh_one_shot(1000, 4), 1, 1000),
        (cost.mesh_one_shot(1000, 4, shared=True), 1, 3000),
        (cost.mesh_one_shot(1000, 4, cables=2), 1, 500),
        (cost.mesh_two_shot(1000, 4), 2, 500),
        (cost.mesh_two_shot(1000, 4, shared=True), 2, 1500),
        (cost.send(1000, cables=2), 1, 500),
        (cost.mesh_one_shot(1000, 1), 0, 0),
        (cost.mesh_two_shot(1000, 1), 0, 0),
        (cost.ring_all_sum(1000, 1), 0, 0),
    ],
)
def test_the_steps_of_each_algorithm(found: Steps, count: int, sent: float) -> None:
    assert (found.count, found.sent) == (count, sent)


@pytest.mark.parametrize(
    ("op", "put", "ranks", "shape", "expected"),
    [
        ("all_sum", 20_000, 4, "mesh", Steps(1, 20_000)),
        ("all_sum", 32 * 1024, 4, "mesh", Steps(1, 32 * 1024)),
        ("all_sum", 100_000, 4, "mesh", Steps(2, 50_000)),
        ("all_max", 100_000, 4, "mesh", Steps(2, 50_000)),
        ("all_sum", 100_000, 2, "mesh", Steps(1, 100_000)),
        ("all_gather", 100_000, 4, "mesh", Steps(1, 100_000)),
        ("all_sum", 20_000, 4, "ring", Steps(6, 30_000)),
        ("all_gather", 20_000, 4, "ring", Steps(3, 60_000)),
        ("send", 20_000, 4, "ring", Steps(1, 20_000)),
    ],
)
def test_the_algorithm_that_mlx_takes(
    op: str, put: int, ranks: int, shape: str, expected: Steps
) -> None:
    assert cost.steps(op, put, ranks, shape) == expected


def test_the_steps_know_cables_directions_and_a_shared_wire() -> None:
    assert cost.steps("all_sum", 1000, 4, "ring", directions=2, cables=3) == Steps(6, 250)
    assert cost.steps("all_gather", 1000, 4, "ring", directions=2) == Steps(3, 1500)
    assert cost.steps("all_sum", 100_000, 4, "mesh", cables=2) == Steps(2, 25_000)
    assert cost.steps("all_sum", 100_000, 4, "mesh", shared=True) == Steps(2, 150_000)
    assert cost.steps("all_sum", 1000, 4, "mesh", shared=True) == Steps(1, 3000)
    assert cost.steps("send", 1000, 4, "ring", cables=2) == Steps(1, 500)


def test_a_pipeline_fills_then_keeps_the_pace_of_its_slower_part() -> None:
    # GPipe's m + s - 1 slots, when the wire takes no time.
    assert cost.pipeline(4, 8, 1e-3, 0, 0.0, BANDWIDTH) == pytest.approx(11e-3)
    # 1 ms on the wire and 2 ms of computing: first 3 x 2 + 2 x 1.01, then 2 each.
    assert cost.pipeline(3, 5, 2e-3, 1e6, LATENCY, BANDWIDTH) == pytest.approx(16.02e-3)
    # 1 ms on the wire and 0.1 of computing: the wire sets the pace.
    assert cost.pipeline(3, 5, 1e-4, 1e6, LATENCY, BANDWIDTH) == pytest.approx(6.32e-3)
    assert cost.pipeline(1, 5, 1e-4, 1e6, LATENCY, BANDWIDTH) == pytest.approx(5e-4)


def test_bus_factors_are_those_of_nccl_tests() -> None:
    assert bus_factor("all_sum", 4) == 1.5
    assert bus_factor("all_gather", 4) == 0.75
    assert bus_factor("sendrecv", 4) == 1
    assert bus_factor("barrier", 4) == 0


def times(size: float, ring_cables: int) -> tuple[float, float]:
    """Of a ring and of a mesh of four, by their formulas."""
    ring = cost.ring_all_sum(size, 4, directions=2, cables=ring_cables)
    mesh = cost.mesh_two_shot(size, 4) if size > cost.SMALL else cost.mesh_one_shot(size, 4)
    return ring.time(LATENCY, BANDWIDTH), mesh.time(LATENCY, BANDWIDTH)


def test_a_ring_overtakes_a_mesh_with_more_cables() -> None:
    # Three free ports: a cable to each of three others, or one and a half to each side.
    assert crossover(LINE, 4) is None
    size = crossover(LINE, 4, ring_cables=3)
    assert size is not None
    for factor in (0.5, 0.99):
        ring, mesh = times(factor * size, 3)
        assert ring > mesh
    for factor in (1.01, 2, 1000):
        ring, mesh = times(factor * size, 3)
        assert ring < mesh


def test_with_as_many_cables_a_ring_is_never_faster() -> None:
    # 2 x 3 cables in the ring, 3 x 2 in the mesh: the same bandwidth, but more steps.
    assert crossover(LINE, 4, ring_cables=3, mesh_cables=2) is None


def test_a_ring_may_overtake_where_the_mesh_changes_its_algorithm() -> None:
    quick = Fit(1e-7, BANDWIDTH, 0.0, 1.0, 14)
    size = crossover(quick, 4, ring_cables=4)
    assert size is not None
    assert 0 < size < cost.SMALL
    ring = cost.ring_all_sum(size, 4, directions=2, cables=4).time(quick.latency, BANDWIDTH)
    mesh = cost.mesh_one_shot(size, 4).time(quick.latency, BANDWIDTH)
    assert ring == pytest.approx(mesh)


def test_on_one_shared_network_a_ring_never_wins_for_good() -> None:
    assert crossover(LINE, 4, shared=True) is None
    assert crossover(LINE, 4, ring_cables=3, shared=True) is None


def test_two_ranks_and_one() -> None:
    assert crossover(LINE, 2) is None
    # a + n / B on one cable, 2 a + n / (2 B) on two.
    assert crossover(LINE, 2, ring_cables=2) == pytest.approx(2 * LATENCY * BANDWIDTH)
    assert crossover(LINE, 1) is None
