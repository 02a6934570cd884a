"""The order of the ranks in which a ring is fastest, against all orders that there are."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys

import attrs
import numpy as np
import numpy.typing as npt
import pytest

from macluster.engine.measure.record import Pair
from macluster.engine.measure.samples import Rate, Timing
from macluster.engine.topology import order
from macluster.engine.topology.order import NO_SPEEDS, ONE_HOST, bandwidths, best_ring, has_ring
from macluster.engine.topology.topology import Link, Node, Topology

Matrix = npt.NDArray[np.float64]


def links_of(ranks: tuple[int, ...]) -> list[tuple[int, int]]:
    count = len(ranks) if len(ranks) > 2 else len(ranks) - 1
    return [(ranks[at], ranks[(at + 1) % len(ranks)]) for at in range(count)]


def merit(speeds: Matrix, ranks: tuple[int, ...]) -> tuple[float, float]:
    """The slowest link, and minus the time of a byte around: more is better. 0 without a ring."""
    rates = [min(speeds[a, b], speeds[b, a]) for a, b in links_of(ranks)]
    if min(rates) <= 0:
        return 0.0, 0.0
    return float(min(rates)), -float(sum(1 / rate for rate in rates))


def best_of_all(speeds: Matrix) -> tuple[float, float]:
    """By trying all orders."""
    rest = itertools.permutations(range(1, len(speeds)))
    return max(merit(speeds, (0, *ranks)) for ranks in rest)


def random_speeds(size: int, seed: int, missing: float = 0.0) -> Matrix:
    rng = np.random.default_rng(seed)
    speeds = rng.choice([1.0, 2.0, 3.0, 5.5, 6.3], (size, size)) * rng.uniform(0.99, 1.0)
    gone = rng.random((size, size)) < missing
    speeds[gone | gone.T] = 0.0
    return speeds


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("size", range(2, 8))
def test_no_order_is_better(size: int, missing: float) -> None:
    rings = 0
    for seed in range(12):
        speeds = random_speeds(size, seed, missing)
        found, wanted = best_ring(speeds), best_of_all(speeds)
        graph = np.minimum(speeds, speeds.T) > 0
        np.fill_diagonal(graph, False)
        assert has_ring(graph) == bool(found) == (wanted[0] > 0)
        if found.order is None:
            assert found.why
            assert found.exact
            continue
        rings += 1
        assert sorted(found.order) == list(range(size))
        assert merit(speeds, found.order) == pytest.approx(wanted)
        assert found.slowest == pytest.approx(wanted[0])
        assert found.link is not None
        assert min(speeds[found.link], speeds[found.link[::-1]]) == found.slowest
        assert found.order[0] == 0
        assert size < 3 or found.order[1] < found.order[-1] or found.is_rank_order
    assert rings or missing


def test_the_compiled_kernel_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [random_speeds(7, seed, 0.3 * (seed % 2)) for seed in range(10)]
    plain = [best_ring(speeds) for speeds in cases]
    monkeypatch.setattr(order, "COMPILED", 2)
    assert [best_ring(speeds) for speeds in cases] == plain
    assert any(plain)


def test_sixteen_ranks_find_the_ring_that_was_hidden() -> None:
    rng = np.random.default_rng(3)
    speeds = rng.uniform(1.0, 2.0, (16, 16))
    hidden = (0, *(int(rank) for rank in rng.permutation(np.arange(1, 16))))
    for a, b in links_of(hidden):
        speeds[a, b] = speeds[b, a] = 5.0
    found = best_ring(speeds)
    assert found.exact
    assert found.order in (hidden, (0, *hidden[:0:-1]))
    assert found.slowest == 5.0


def test_numba_is_imported_for_large_rings_only() -> None:
    code = (
        "import sys; from macluster.engine.topology.order import best_ring\n"
        "best_ring([[0, 1, 2], [1, 0, 3], [2, 3, 0]]); print('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_slower_direction_counts() -> None:
    speeds = np.full((4, 4), 4.0)
    speeds[1, 2] = 0.5
    found = best_ring(speeds)
    assert found.slowest == 4.0
    assert found.order == (0, 1, 3, 2)


def test_equal_links_keep_the_ranks_in_order() -> None:
    for size in (1, 2, 3, 8, 13, 20):
        found = best_ring(np.full((size, size), 0.1))
        assert found.is_rank_order
        assert found.slowest == (0.1 if size > 1 else None)


@pytest.mark.parametrize("size", [17, 24, 40])
def test_many_ranks_are_searched_and_it_says_so(size: int) -> None:
    rng = np.random.default_rng(size)
    hidden = tuple(int(rank) for rank in rng.permutation(size))
    speeds = np.zeros((size, size))
    for a, b in links_of(hidden):
        speeds[a, b] = speeds[b, a] = rng.uniform(2, 3)
    # With nothing else there is one ring only.
    alone = best_ring(speeds)
    assert alone.slowest == pytest.approx(merit(speeds, hidden)[0])
    assert not alone.exact
    assert "not all orders" in alone.why
    # Among slower links it is still the best.
    slow = rng.uniform(0.1, 1.0, (size, size))
    crowd = np.where(speeds > 0, speeds, np.minimum(slow, slow.T))
    found = best_ring(crowd)
    assert found.order is not None
    assert sorted(found.order) == list(range(size))
    assert found.slowest == pytest.approx(alone.slowest)


def test_the_search_comes_close_to_what_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(5):
        speeds = np.random.default_rng(seed).uniform(1, 9, (12, 12))
        exact = best_ring(speeds)
        with monkeypatch.context() as patch:
            patch.setattr(order, "EXACT", 8)
            found = best_ring(speeds)
        assert found.slowest is not None
        assert exact.slowest is not None
        assert 0.8 * exact.slowest <= found.slowest <= exact.slowest


def graph(size: int, *pairs: tuple[int, int]) -> Matrix:
    speeds = np.zeros((size, size))
    for a, b in pairs:
        speeds[a, b] = speeds[b, a] = 1.0
    return speeds


PETERSEN = [
    *((i, (i + 1) % 5) for i in range(5)),
    *((i, i + 5) for i in range(5)),
    *((i + 5, (i + 2) % 5 + 5) for i in range(5)),
]


@pytest.mark.parametrize(
    ("speeds", "why"),
    [
        (graph(2), "no way from rank 0 to rank 1"),
        (graph(4, (0, 1), (2, 3)), "no way from rank 0 to rank 2"),
        (graph(3, (0, 1), (1, 2)), "rank 0 has one link, and a ring needs two"),
        (graph(5, (0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 2)), "leads through rank 2"),
        (graph(10, *PETERSEN), "no order of the ranks makes a ring"),
        (graph(20, *((a, b) for a in range(9) for b in range(9, 20))), "there may be one"),
    ],
)
def test_where_there_is_no_ring_it_says_why(speeds: Matrix, why: str) -> None:
    found = best_ring(speeds)
    assert found.order is None
    assert not found
    assert why in found.why
    assert found.exact == (len(speeds) <= 16)
    assert not has_ring(speeds > 0)


def test_what_is_no_number_is_no_link() -> None:
    speeds = np.full((3, 3), np.nan)
    speeds[0, 1] = speeds[1, 0] = 1.0
    assert not best_ring(speeds)


@pytest.mark.parametrize(
    ("speeds", "words"),
    [
        ([[1.0, 2.0]], "square, not (1, 2)"),
        ([], "is empty: there are no ranks"),
        ([[0.0, np.inf], [1.0, 0.0]], "from rank 0 to rank 1 is inf"),
        ([[0.0, 1.0], [-1.0, 0.0]], "from rank 1 to rank 0 is -1"),
    ],
)
def test_what_are_no_bandwidths_is_refused(speeds: list[list[float]], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        best_ring(speeds)


def test_what_a_rank_says_of_itself_does_not_count() -> None:
    assert best_ring([[np.inf, 1.0], [1.0, -1.0]]).slowest == 1.0


@pytest.mark.parametrize("size", [24, 40, 64])
def test_of_many_ranks_the_only_ring_is_found(size: int) -> None:
    pairs = [(a, b) for a in range(size) for b in range(a + 1, min(size, a + 3))]
    found = best_ring(graph(size, *pairs))
    assert found.order == (*range(0, size, 2), *range(size - 1, 0, -2)) or found.order == (
        0, *range(1, size, 2), *range(size - 2, 0, -2)
    )  # fmt: skip


def test_ruling_out_agrees_with_what_is_exact() -> None:
    rings = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        size = int(rng.integers(5, 10))
        links = rng.random((size, size)) < rng.choice([0.2, 0.3, 0.4])
        links |= links.T
        np.fill_diagonal(links, False)
        ring, sure = order._ruled_out(links)
        assert sure
        assert (ring is not None) == has_ring(links)
        if ring is not None:
            rings += 1
            assert sorted(ring) == list(range(size))
            assert all(links[step] for step in links_of(ring))
    assert 20 < rings < 130


# -- speeds of a topology --------------------------------------------------------------------------


def pair(a: int, b: int, there: float, back: float) -> Pair:
    return Pair(a, b, "tcp", Timing.of([1e-5]), Rate.of(1, [1 / there]), Rate.of(1, [1 / back]))


def topology(size: int, *links: Link) -> Topology:
    return Topology(tuple(Node(rank, f"mac-{rank}") for rank in range(size)), links, "ring")


def test_speeds_are_measured_or_negotiated_and_it_says_which() -> None:
    first = Link(0, 1, "rdma", negotiated=80e9, measured=pair(0, 1, 6e9, 5e9))
    second = Link(1, 2, "rdma", negotiated=40e9)
    rates, basis = bandwidths(topology(3, first))
    assert basis == "bandwidths measured via tcp"
    assert (rates[0, 1], rates[1, 0], rates[1, 2]) == (6e9, 5e9, 0)
    rates, basis = bandwidths(topology(3, first, second))
    assert basis == "negotiated rates"
    assert (rates[0, 1], rates[2, 1]) == (10e9, 5e9)
    third = Link(0, 2, "ethernet")
    rates, basis = bandwidths(topology(3, first, second, third))
    assert basis == "bandwidths measured via tcp, else negotiated rates, where they are known"
    assert (rates[0, 1], rates[1, 2]) == (6e9, pytest.approx(0.5 * 40e9 / 8))
    assert rates[0, 2] == rates[1, 2]  # of what nothing is known counts as the slowest
    rates, basis = bandwidths(topology(3, Link(0, 1, "loopback"), Link(1, 2, "unknown")))
    assert basis == NO_SPEEDS
    assert rates[0, 1] == rates[1, 2] > 0


SLOW = float(1 << 30)  # of which 1 / (1 / SLOW) is the same


def ways(own: float, plain: float, size: int = 6, backend: str = "ring") -> Topology:
    """A link between all ranks: MLX's own bytes/s between neighbours, plain sockets everywhere."""
    links = []
    for a, b in itertools.combinations(range(size), 2):
        socket = pair(a, b, plain, plain)
        near = b - a in (1, size - 1)
        both = (attrs.evolve(pair(a, b, own, own), via=backend), socket) if near else (socket, None)
        links.append(Link(a, b, "thunderbolt", measured=both[0], plain=both[1]))
    some = tuple(Node(rank, f"mac-{rank}", memory=1, state="ok") for rank in range(size))
    return Topology(some, tuple(links), backend)


def test_links_are_compared_by_one_way_of_sending() -> None:
    # MLX's ring is slower than a plain socket here, on every cable.
    mixed = ways(SLOW, 4 * SLOW)
    rates, basis = bandwidths(mixed)
    assert basis == "bandwidths measured via tcp"
    assert set(rates[rates > 0]) == {4 * SLOW}
    assert mixed.best_ring.is_rank_order
    assert mixed.shape.sentences == ()
    # Of two ways that all links have, MLX's own.
    rates, basis = bandwidths(ways(SLOW, 4 * SLOW, size=3))
    assert (basis, set(rates[rates > 0])) == ("bandwidths measured via ring", {SLOW})
    # A plain socket says nothing of RDMA.
    rates, basis = bandwidths(ways(SLOW, 4 * SLOW, backend="jaccl-ring"))
    assert basis == "bandwidths measured via jaccl-ring, where they are known"
    assert set(rates[rates > 0]) == {SLOW}


def test_ranks_of_one_host_have_no_better_order() -> None:
    alone = ways(1e9, 3e9)
    links = [attrs.evolve(each, kind="loopback") for each in alone.links]
    links[0] = attrs.evolve(links[0], measured=pair(0, 1, 1e6, 1e6), plain=None)
    found = attrs.evolve(alone, links=tuple(links))
    assert found.best_ring.is_rank_order
    assert (found.best_ring.basis, found.best_ring.slowest) == (ONE_HOST, None)
    assert found.shape.sentences == ()


def test_a_topology_has_a_best_ring() -> None:
    links = [
        Link(a, b, "rdma", measured=pair(a, b, *((1e9,) * 2 if (a, b) == (0, 1) else (6e9,) * 2)))
        for a, b in itertools.combinations(range(4), 2)
    ]
    found = topology(4, *links).best_ring
    assert (found.order, found.slowest) == ((0, 2, 1, 3), pytest.approx(6e9))
    assert found.basis == "bandwidths measured via tcp"
    unknown = topology(2, Link(0, 1, "unknown")).best_ring
    assert (unknown.order, unknown.slowest, unknown.basis) == ((0, 1), None, NO_SPEEDS)
