"""What a ring and a mesh ought to take, beside what the simulator's messages take."""

from __future__ import annotations

import functools

import attrs
import pytest

from macluster.engine.measure.fit import Fit
from macluster.engine.measure.predict import expected
from macluster.engine.measure.record import MeasuredRank, Measurement, Pair
from macluster.engine.measure.samples import Rate, Timing
from macluster.engine.simulate.simulation import Simulation, simulate
from macluster.engine.topology.topology import Kind, Link, Node, Topology

TIME = Timing(12e-6, 12e-6, 12e-6, 12e-6, 12e-6, 0.0, 9)
SPEED = Rate(1e9, 1e9, 1e9, 7)
GOOD = Fit(10e-6, 5e9, 0.02, 0.999, 9)
SLOWER = Fit(20e-6, 4e9, 0.02, 0.999, 9)
SHARED = (
    "Each rank has one wire for all traffic: a mesh would be faster at every size, by little for "
    "large sums."
)
SIZES = (4, 1 << 10, 1 << 20, 1 << 26)


def steady(text: str) -> Simulation:
    """Hosts whose links always take the same time."""
    made = simulate(text)
    return attrs.evolve(made, link=attrs.evolve(made.link, spread=(1.0, 1.0)))


@functools.cache
def measured(text: str) -> tuple[Measurement, Topology]:
    made = steady(text)
    return made.measure(), made.topology()


@pytest.mark.parametrize(
    "text",
    [
        "3 x M3 Ultra, mesh",
        "4 x M3 Ultra, mesh",
        "4 x M3 Ultra, mesh, 2 cables",
        "4 x M3 Ultra, jaccl-ring, 3 cables",
        "7 x M3 Ultra, jaccl-ring",
        "4 x M3 Ultra, ring",
        "4 x M3 Ultra, 10gbe",
        "4",
    ],
)
def test_what_runs_takes_as_long_as_expected(text: str) -> None:
    found, topology = measured(text)
    due = expected(found, topology)
    assert due is not None
    assert len(due.sizes) == 14
    mine = due.mesh if found.backend == "jaccl" else due.ring
    for size, seconds in zip(due.sizes, mine, strict=True):
        assert seconds == pytest.approx(simulate(text).time("all_sum", size), rel=0.02)


@pytest.mark.parametrize(
    ("runs", "other"),
    [
        ("4 x M3 Ultra, mesh", "4 x M3 Ultra, jaccl-ring"),
        ("3 x M3 Ultra, mesh, 2 cables", "3 x M3 Ultra, jaccl-ring, 2 cables"),
        ("4 x M3 Ultra, jaccl-ring, 3 cables", "4 x M3 Ultra, mesh, 2 cables"),
    ],
)
def test_the_other_shape_would_take_as_long_as_expected(runs: str, other: str) -> None:
    found, topology = measured(runs)
    due = expected(found, topology)
    assert due is not None
    theirs = due.ring if found.backend == "jaccl" else due.mesh
    for size, seconds in zip(due.sizes, theirs, strict=True):
        assert seconds == pytest.approx(simulate(other).time("all_sum", size), rel=0.02)


def test_it_crosses_where_the_two_shapes_cross() -> None:
    # Four ports in the ring: enough for a mesh with one cable, which has three.
    ring, mesh = simulate("4 x M3 Ultra, jaccl-ring, 2 cables"), simulate("4 x M3 Ultra, mesh")
    due = expected(*measured("4 x M3 Ultra, jaccl-ring, 2 cables"))
    assert due is not None
    assert due.crossing is not None
    for factor, before in ((0.97, True), (1.03, False), (100, False)):
        size = factor * due.crossing
        assert (mesh.time("all_sum", size) < ring.time("all_sum", size)) is before
    assert due.words == (
        "From 1.35 MiB on, the ring is faster than a mesh with 1 cable to each of the others "
        "would be."
    )
    assert (due.ring_cables, due.mesh_cables, due.shared) == (2, 1, False)


def test_a_ring_may_be_ahead_where_the_mesh_uses_one_cable_of_many() -> None:
    due = expected(*measured("3 x M3 Ultra, mesh, 3 cables"))
    assert due is not None
    assert due.crossing is None
    assert due.words.startswith("From ")
    assert due.words.endswith(
        " to 512 KiB, a ring with 3 cables to each neighbour would be faster."
    )
    ring, mesh = (
        simulate(f"3 x M3 Ultra, {shape}, 3 cables") for shape in ("jaccl-ring", "mesh")
    )  # fmt: skip
    ahead = [
        ring.time("all_sum", size) < mesh.time("all_sum", size)
        for size in (64 << 10, 500_000, 530_000, 64 << 20)
    ]
    assert ahead == [False, True, False, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3 x M3 Ultra, mesh", "With as many cables in all, a mesh is faster at every size."),
        (
            "4 x M3 Ultra, mesh",
            "The mesh is faster at every size than a ring with 1 cable to each neighbour would be.",
        ),
        (
            "4 x M3 Ultra, jaccl-ring, 3 cables",
            "With as many cables in all, a mesh would be faster at every size.",
        ),
        (
            "4 x M3 Ultra, ring",
            "A mesh with 1 cable to each of the others would be faster at every size.",
        ),
        (
            "4 x M3 Ultra, 10gbe",
            SHARED,
        ),
    ],
)
def test_the_words_say_which_is_faster(text: str, words: str) -> None:
    due = expected(*measured(text))
    assert due is not None
    assert due.words == words
    assert due.crossing is None
    assert all(mesh < ring for mesh, ring in zip(due.mesh, due.ring, strict=True))


# -- which link decides ----------------------------------------------------------------------------


def found(
    *pairs: tuple[int, int, str, Fit | None], ranks: int = 4, backend: str = "jaccl"
) -> Measurement:
    made = tuple(Pair(a, b, via, TIME, SPEED, SPEED, fit=line) for a, b, via, line in pairs)
    return Measurement(backend, tuple(MeasuredRank(f"m{n}") for n in range(ranks)), made)


def wires(kind: Kind, ranks: int = 4) -> Topology:
    pairs = [(a, b) for a in range(ranks) for b in range(a + 1, ranks)]
    links = tuple(Link(a, b, kind, (("en3", "en3"), ("en4", "en4"))) for a, b in pairs)
    return Topology(tuple(Node(n, f"m{n}") for n in range(ranks)), links)


def test_the_slowest_link_decides() -> None:
    due = expected(found((0, 1, "jaccl", GOOD), (1, 2, "jaccl", SLOWER)), sizes=SIZES)
    assert due is not None
    assert due.link == SLOWER
    # Nothing says that further steps are shorter.
    assert due.hop == SLOWER.latency
    # One step of 4 bytes; two of a quarter of 64 MiB each.
    assert due.mesh[0] == pytest.approx(20e-6 + 4 / 4e9)
    assert due.mesh[-1] == pytest.approx(40e-6 + (1 << 25) / 4e9)


@pytest.mark.parametrize("line", [None, attrs.evolve(GOOD, r2=0.9), attrs.evolve(GOOD, far=0.5)])
def test_a_slow_link_decides_without_a_good_line_too(line: Fit | None) -> None:
    due = expected(found((0, 1, "jaccl", GOOD), (1, 2, "jaccl", line)), sizes=SIZES)
    assert due is not None
    assert (due.link.latency, due.link.bandwidth) == (12e-6, 1e9)


def test_plain_sockets_count_only_where_mlx_was_not_measured() -> None:
    both = expected(found((0, 1, "jaccl", GOOD), (0, 1, "tcp", SLOWER)), sizes=SIZES)
    alone = expected(found((0, 1, "tcp", SLOWER)), sizes=SIZES)
    assert both is not None
    assert alone is not None
    assert (both.link, alone.link) == (GOOD, SLOWER)


@pytest.mark.parametrize(
    ("backend", "kind", "shared", "cables"),
    [
        ("jaccl", "rdma", False, (3, 2)),
        ("jaccl", "unknown", False, (3, 2)),
        ("jaccl-ring", "rdma", False, (2, 1)),
        ("ring", "thunderbolt", False, (2, 1)),
        ("ring", "ethernet", True, (1, 1)),
        ("ring", "wifi", True, (1, 1)),
        ("ring", "loopback", True, (1, 1)),
        ("ring", "unknown", True, (1, 1)),
        ("mpi", "unknown", True, (1, 1)),
    ],
)
def test_the_kind_of_the_link_says_who_shares_a_wire(
    backend: str, kind: Kind, shared: bool, cables: tuple[int, int]
) -> None:
    due = expected(found((0, 1, backend, GOOD), backend=backend), wires(kind), SIZES)
    assert due is not None
    assert (due.shared, (due.ring_cables, due.mesh_cables)) == (shared, cables)


def test_without_a_topology_or_with_another_one_the_backend_says_it() -> None:
    for topology in (None, wires("rdma", 5)):
        mesh = expected(found((0, 1, "jaccl", GOOD)), topology, SIZES)
        ring = expected(found((0, 1, "ring", GOOD), backend="ring"), topology, SIZES)
        assert mesh is not None
        assert ring is not None
        assert (mesh.shared, mesh.mesh_cables, ring.shared) == (False, 1, True)


def test_nothing_is_expected_of_two_ranks_or_without_a_pair() -> None:
    assert expected(found((0, 1, "jaccl", GOOD), ranks=2), sizes=SIZES) is None
    assert expected(found(), sizes=SIZES) is None
    still = attrs.evolve(found((0, 1, "jaccl", None)).pairs[0], forward=Rate(0.0, 0.0, 0.0, 7))
    assert expected(attrs.evolve(found(), pairs=(still,)), sizes=SIZES) is None
