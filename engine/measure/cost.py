"""What a collective costs, by formula: how many messages follow each other, and their bytes.

The terms are those of Hockney: a message of n bytes takes latency + n / bandwidth. Rings and trees
in these terms: Thakur, Rabenseifner, Gropp 2005, "Optimization of Collective Communication
Operations in MPICH". Which algorithm runs when is read in MLX 0.32.4 (jaccl's mesh_impl.h and
ring_impl.h). What adds up the numbers takes no time here.
"""

from __future__ import annotations

import attrs

from .fit import Fit

SMALL = 32 * 1024  # bytes; a mesh of more than two ranks shares larger sums out (mlx 0.32.4)
MULTI_WIRE = 512 * 1024  # bytes; jaccl's mesh splits larger messages over all cables of a pair
RING_CABLES = 4  # RING_MAX_CONNS of jaccl, to each neighbour
RDMA = ("jaccl", "jaccl-ring")  # backends


@attrs.frozen
class Steps:
    """What the last rank waits for: `count` messages, each after the one before, and the `sent`
    bytes that pass through one cable in one direction.
    """

    count: int
    sent: float

    def time(self, latency: float, bandwidth: float, *, hop: float | None = None) -> float:
        """Seconds, of a first message of `latency` seconds, and further ones of `hop` seconds.

        Args:
            latency: seconds.
            bandwidth: bytes/s of one cable in one direction.
            hop: seconds; None where each message takes as long as the first.
        """
        if self.count == 0:
            return 0.0
        further = latency if hop is None else hop
        return latency + (self.count - 1) * further + self.sent / bandwidth


# -- the algorithms --------------------------------------------------------------------------------
# `put` are the bytes that each rank puts in: those of the array for a sum, and a part of 1/ranks of
# the result for a gather.


def ring_all_sum(put: float, ranks: int, *, directions: int = 1, cables: int = 1) -> Steps:
    """A sum on a ring: 2 (n - 1) steps of a part of 1/n (Thakur et al. 2005, 4.5).

    With two `directions` each half of the bytes goes one way round. Between two ranks both ways are
    the same cable.
    """
    count = 2 * (ranks - 1)
    return Steps(count, count * (put / ranks) / _ways(ranks, directions) / cables)


def ring_all_gather(put: float, ranks: int, *, directions: int = 1, cables: int = 1) -> Steps:
    """A gather on a ring: n - 1 steps of what one rank puts in (Thakur et al. 2005, 4.1)."""
    count = ranks - 1
    return Steps(count, float(count * put) / _ways(ranks, directions) / cables)


def mesh_one_shot(put: float, ranks: int, *, cables: int = 1, shared: bool = False) -> Steps:
    """A sum or a gather in one step: every rank sends all it has to all others at once.

    With a cable to each of the others that is `put` bytes a cable; `shared` is for ranks with one
    cable for all traffic (Ethernet), through which n - 1 copies go. jaccl does this for sums of up
    to 32 KiB, between two ranks, and for gathers.
    """
    if ranks == 1:
        return Steps(0, 0.0)
    return Steps(1, float(put) * (ranks - 1 if shared else 1) / cables)


def mesh_two_shot(put: float, ranks: int, *, cables: int = 1, shared: bool = False) -> Steps:
    """A sum by reduce-scatter and all-gather: two steps of a part of 1/n to each of the others.

    jaccl does this above 32 KiB between more than two ranks (mlx#3901). `shared` as above.
    """
    if ranks == 1:
        return Steps(0, 0.0)
    return Steps(2, 2 * put / ranks * (ranks - 1 if shared else 1) / cables)


def send(put: float, *, cables: int = 1) -> Steps:
    """One message from one rank to another."""
    return Steps(1, float(put) / cables)


def steps(
    op: str,
    put: float,
    ranks: int,
    shape: str,
    *,
    directions: int = 1,
    cables: int = 1,
    shared: bool = False,
) -> Steps:
    """The steps that MLX takes for a collective, over one cable in one direction.

    Args:
        op: "send", "all_gather", or a sum under any other name.
        put: bytes that each rank puts in.
        ranks: how many take part.
        shape: "mesh" or "ring".
        directions: of a ring: 2 when each half of the bytes goes one way round.
        cables: that are used side by side.
        shared: of a mesh: each rank has one cable for all traffic.
    """
    if op == "send":
        return send(put, cables=cables)
    if shape == "ring":
        ring = ring_all_gather if op == "all_gather" else ring_all_sum
        return ring(put, ranks, directions=directions, cables=cables)
    if ranks > 2 and put > SMALL and op != "all_gather":
        return mesh_two_shot(put, ranks, cables=cables, shared=shared)
    return mesh_one_shot(put, ranks, cables=cables, shared=shared)


def pipeline(
    stages: int, microbatches: int, compute: float, size: float, latency: float, bandwidth: float
) -> float:
    """Seconds of `microbatches` that pass equal stages, one rank each.

    The first one is computed `stages` times and sent `stages` - 1 times; from then on one comes out
    whenever the slower of computing and sending is done. Without the wire these are the
    (m + s - 1) slots of GPipe (Huang et al. 2019, section 2.3).

    Args:
        compute: seconds that a stage computes on a microbatch.
        size: bytes that go from one stage to the next.
        latency: seconds of a message; the next one may leave in that time.
        bandwidth: bytes/s.
    """
    wire = size / bandwidth
    first = stages * compute + (stages - 1) * (latency + wire)
    pace = max(compute, wire) if stages > 1 else compute
    return first + (microbatches - 1) * pace


def _ways(ranks: int, directions: int) -> int:
    return 1 if ranks == 2 else directions


# -- what follows from them ------------------------------------------------------------------------


def bus_factor(op: str, ranks: int) -> float:
    """busbw / algbw of nccl-tests (doc/PERFORMANCE.md): what of the bytes has to cross a link.

    Sizes are those of nccl-tests, too: of the array for all_sum and sendrecv, of the whole result
    for all_gather. A barrier carries nothing: 0.
    """
    factors = {
        "all_sum": 2 * (ranks - 1) / ranks,
        "all_gather": (ranks - 1) / ranks,
        "sendrecv": 1.0,
        "barrier": 0.0,
    }
    return factors[op]


def crossover(
    fit: Fit,
    ranks: int,
    *,
    ring_cables: int = 1,
    mesh_cables: int = 1,
    directions: int = 2,
    shared: bool = False,
) -> float | None:
    """The size of a sum in bytes from which on a ring is faster than a mesh; None when it never is.

    A ring with both directions in use and a mesh both send 2 (n - 1) / n of the bytes from each
    rank, the ring over 2 x `ring_cables` and the mesh over (n - 1) x `mesh_cables`. So the ring
    wins for large sums only with more cables in all: the ports that a mesh needs for the others
    carry more cables to each neighbour in a ring. With as many cables it has the same bandwidth,
    and more steps.

    `shared` is for ranks that have one cable each for all traffic (Ethernet), whatever the other
    arguments say. Shared out, a sum sends as much there as a ring does in fewer steps, so the ring
    never wins for good; in one shot it sends n/2 times as much, which MLX does up to 32 KiB only.

    Args:
        fit: of one cable between two ranks.
        ranks: two or more.
        ring_cables: to each of both neighbours.
        mesh_cables: to each of the others.
        directions: 2 for MLX's ring; 1 when bytes go one way round.
        shared: one cable for all traffic of a rank.
    """
    if ranks < 2:
        return None
    if shared:
        # Both directions of a ring leave through that one cable.
        ring_cables = mesh_cables = directions = 1

    ring = ring_all_sum(1, ranks, directions=directions, cables=ring_cables)
    if ranks == 2:
        return _overtakes(fit, ring, mesh_one_shot(1, ranks, cables=mesh_cables, shared=shared))
    large = _overtakes(fit, ring, mesh_two_shot(1, ranks, cables=mesh_cables, shared=shared))
    if large is None or large > SMALL:
        return large
    small = _overtakes(fit, ring, mesh_one_shot(1, ranks, cables=mesh_cables, shared=shared))
    return float(SMALL) if small is None else min(small, float(SMALL))


def _overtakes(fit: Fit, ring: Steps, mesh: Steps) -> float | None:
    """Where the ring's line crosses that of the mesh, both given for one byte."""
    gained = mesh.sent - ring.sent
    # Equal but for rounding is no gain.
    if gained <= 1e-9 * mesh.sent:
        return None
    return (ring.count - mesh.count) * fit.latency * fit.bandwidth / gained
