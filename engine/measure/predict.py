"""What a sum ought to take on a ring and on a mesh, from the links that were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np

from ..units import size_label
from .cost import MULTI_WIRE, RDMA, RING_CABLES, SMALL, Steps, steps
from .fit import Fit
from .record import Measurement, Pair

if TYPE_CHECKING:
    from ..topology.topology import Topology

OWN = ("rdma", "thunderbolt")  # kinds of links of which each has cables of its own
SHARED = ("ethernet", "wifi", "loopback")  # all traffic of a rank goes through one wire
GRID = np.geomspace(1, 1 << 36, 400)  # bytes at which the two curves are compared


@attrs.frozen
class Expected:
    """Seconds of an all_sum of each of `sizes` bytes, on a ring and on a mesh.

    The shape that runs has the cables that are there, the other one is made of the same ports:
    `ring_cables` to each neighbour, `mesh_cables` to each of the others. With `shared`, each rank
    has one wire for all traffic instead.

    `crossing` is the size in bytes from which on the ring is faster, None when it is not for good,
    and `words` say that. `link` is the line of the slowest link, `hop` the seconds of each step
    after the first.
    """

    sizes: tuple[int, ...]
    ring: tuple[float, ...]
    mesh: tuple[float, ...]
    crossing: float | None
    link: Fit
    hop: float
    words: str
    ring_cables: int = 1
    mesh_cables: int = 1
    shared: bool = False


def expected(
    found: Measurement, topology: Topology | None = None, sizes: Sequence[int] | None = None
) -> Expected | None:
    """By the formulas of `cost`, from the slowest link: a collective waits for it.

    A link counts with its line, or, where that is no good one, with its median latency and
    bandwidth. MLX's own send and recv count before plain sockets. A measured latency contains what
    starts an operation, so the steps after the first take less: how much is read from the measured
    sums that are short beside the latency.

    Args:
        found: a measurement with pairs.
        topology: says what the links are made of, and how many cables they have. Without it, links
            of jaccl have one cable each, and with other backends each rank has one wire.
        sizes: bytes; None for those of the measured sums.

    Returns:
        None for less than three ranks, where both shapes are the same, and when no pair was
        measured.
    """
    sweep = found.sweep("all_sum")
    if sizes is None:
        sizes = [] if sweep is None else [point.size for point in sweep.points]
    pairs = [(each, line) for each in found.pairs if (line := _line(each)) is not None]
    pairs = [each for each in pairs if each[0].via != "tcp"] or pairs
    if found.size < 3 or not pairs:
        return None
    largest = max(sizes, default=1 << 20)
    slowest, link = max(pairs, key=lambda each: each[1].time(largest))
    if topology is not None and topology.size != found.size:
        topology = None
    shapes = _shapes(found, topology, slowest)
    # A plain socket uses one cable; MLX's messages all that there are.
    cables = 1 if shapes.shared or slowest.via == "tcp" else shapes.in_use
    bandwidth = link.bandwidth / cables
    hop = _hop(found, shapes, link.latency, bandwidth)

    def seconds(shape: Callable[[float], Steps], size: float) -> float:
        return shape(size).time(link.latency, bandwidth, hop=hop)

    def ahead(size: float) -> bool:
        # Equal but for rounding is not ahead.
        return seconds(shapes.ring, size) < (1 - 1e-9) * seconds(shapes.mesh, size)

    spans = _spans(ahead)
    return Expected(
        sizes=tuple(sizes),
        ring=tuple(seconds(shapes.ring, size) for size in sizes),
        mesh=tuple(seconds(shapes.mesh, size) for size in sizes),
        crossing=spans[-1][0] if spans and spans[-1][1] is None else None,
        link=link,
        hop=hop,
        words=_words(shapes, spans),
        ring_cables=shapes.ring_cables,
        mesh_cables=shapes.mesh_cables,
        shared=shapes.shared,
    )


def _line(pair: Pair) -> Fit | None:
    if pair.fit is not None and pair.fit.good:
        return pair.fit
    if not pair.bandwidth > 0:
        return None
    # Two figures: a line goes through both of them.
    return Fit(pair.latency.p50, pair.bandwidth, 0.0, 1.0, 2)


@attrs.frozen
class _Shapes:
    """A ring and a mesh of the same ports, and which algorithm MLX takes on them."""

    ranks: int
    backend: str
    shared: bool
    ring_cables: int
    mesh_cables: int

    @property
    def meshed(self) -> bool:
        """Whether it is the mesh that runs."""
        return self.backend == "jaccl"

    @property
    def in_use(self) -> int:
        """The cables between two ranks as they are."""
        return self.mesh_cables if self.meshed else self.ring_cables

    def ring(self, size: float) -> Steps:
        """MLX's TCP ring goes one way round; jaccl's both, for more than 32 KiB."""
        rdma = self.backend in RDMA and not self.shared
        large = size > SMALL
        return steps(
            "all_sum", size, self.ranks, "ring",
            directions=2 if rdma and large else 1,
            cables=self.ring_cables if large or not rdma else 1,
        )  # fmt: skip

    def mesh(self, size: float) -> Steps:
        cables = self.mesh_cables if size >= MULTI_WIRE else 1
        return steps("all_sum", size, self.ranks, "mesh", cables=cables, shared=self.shared)


def _shapes(found: Measurement, topology: Topology | None, slowest: Pair) -> _Shapes:
    n = found.size
    link = None if topology is None else topology.link(slowest.a, slowest.b)
    shared = found.backend not in RDMA
    if link is not None and link.kind in (*OWN, *SHARED):
        shared = link.kind in SHARED
    # Ranks of one host share its cables.
    if topology is not None and any(each.kind == "loopback" for each in topology.links):
        shared = True
    if shared:
        return _Shapes(n, found.backend, True, 1, 1)
    cables = 1 if link is None else link.cables
    if found.backend == "jaccl":
        ring = min(RING_CABLES, max(1, (n - 1) * cables // 2))
        return _Shapes(n, found.backend, False, ring, cables)
    return _Shapes(n, found.backend, False, cables, max(1, 2 * cables // (n - 1)))


def _hop(found: Measurement, shapes: _Shapes, latency: float, bandwidth: float) -> float:
    """Seconds of a step after the first: the median over the sums that are mostly latency."""
    sweep = found.sweep("all_sum")
    seen = []
    for point in () if sweep is None else sweep.points:
        made = (shapes.mesh if shapes.meshed else shapes.ring)(point.size)
        wire = made.sent / bandwidth
        if made.count > 1 and wire <= latency:
            seen.append((point.time.p50 - latency - wire) / (made.count - 1))
    return min(latency, max(0.0, float(np.median(seen)))) if seen else latency


def _spans(ahead: Callable[[float], bool]) -> list[tuple[float, float | None]]:
    """From which size to which one it is true, None for no end."""
    spans: list[tuple[float, float | None]] = []
    begun: float | None = None
    before = float(GRID[0])
    for size in map(float, GRID):
        if ahead(size) is (begun is None):
            edge = _edge(ahead, before, size)
            if begun is None:
                begun = edge
            else:
                spans.append((begun, edge))
                begun = None
        before = size
    return spans if begun is None else [*spans, (begun, None)]


def _edge(ahead: Callable[[float], bool], low: float, high: float) -> float:
    """Where between two sizes it changes."""
    there = ahead(high)
    while high - low > 1e-6 * high and ahead(low) is not there:
        middle = (low + high) / 2
        low, high = (low, middle) if ahead(middle) is there else (middle, high)
    return high


def _words(shapes: _Shapes, spans: Sequence[tuple[float, float | None]]) -> str:
    ring, mesh = "a ring", "a mesh"
    if not shapes.shared:
        ring += f" with {_cables(shapes.ring_cables)} to each neighbour"
        mesh += f" with {_cables(shapes.mesh_cables)} to each of the others"
    head = "Each rank has one wire for all traffic: " if shapes.shared else ""
    if spans:
        ends = [
            f"from {size_label(low)} on" if high is None
            else f"from {size_label(low)} to {size_label(high)}"
            for low, high in spans
        ]  # fmt: skip
        winner = f"{ring} would be" if shapes.meshed else "the ring is"
        other = "" if shapes.meshed else f" than {mesh} would be"
        said = f"{' and '.join(ends)}, {winner} faster{other}."
    elif shapes.shared:
        said = "a mesh would be faster at every size, by little for large sums."
    elif 2 * shapes.ring_cables == (shapes.ranks - 1) * shapes.mesh_cables:
        be = "is" if shapes.meshed else "would be"
        said = f"with as many cables in all, a mesh {be} faster at every size."
    elif shapes.meshed:
        said = f"the mesh is faster at every size than {ring} would be."
    else:
        said = f"{mesh} would be faster at every size."
    return head + (said if head else said[0].upper() + said[1:])


def _cables(count: int) -> str:
    return f"{count} cable{'s' if count != 1 else ''}"
