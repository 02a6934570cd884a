"""The order of the ranks in which a ring is fastest."""

from __future__ import annotations

import functools
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any, cast

import attrs
import numpy as np
import numpy.typing as npt

from ..measure.cost import RDMA
from ..measure.record import Pair
from .topology import Link, Topology

Matrix = npt.NDArray[np.float64]

EXACT = 16  # ranks, at most; every further one doubles the time
COMPILED = 15  # ranks from which compiling, 1 to 2 s, costs less than it saves
RESTARTS = 20  # of a search for a ring that need not exist
GUESSES = 200  # of the search that rules links out, before it gives up
SAME = 1e-9  # relative difference below which two orders are as good


@attrs.frozen
class RingOrder:
    """An order of the ranks for a ring: each sends to the next, and the last to the first.

    `order` is None when there is no ring, and begins with rank 0 otherwise. `slowest` are the
    bytes/s of its slowest link, `link` the ranks at its ends. With `exact` no order is better, or
    there is none at all; otherwise it is what a search found. `basis` says what the speeds are, and
    `why` how the order was found, or why there is none.
    """

    order: tuple[int, ...] | None
    slowest: float | None = None
    link: tuple[int, int] | None = None
    exact: bool = True
    basis: str = "as given"
    why: str = ""

    def __bool__(self) -> bool:
        return self.order is not None

    @property
    def is_rank_order(self) -> bool:
        """Whether it is 0, 1, 2 and so on: nothing has to be changed."""
        return self.order is not None and self.order == tuple(range(len(self.order)))


def best_ring(speeds: Matrix | Sequence[Sequence[float]] | Topology) -> RingOrder:
    """The ring whose slowest link is as fast as possible.

    A ring moves at the pace of its slowest link. Among rings with an equal slowest link the one
    with the smallest sum of 1 / bandwidth is taken, which is the time that a byte takes once
    around; the sum of the bandwidths would prefer one very fast link over several good ones. Where
    both are equal, the ranks stay in their order.

    Up to 16 ranks this is exact: the dynamic programme of Held and Karp (1962) over all subsets.
    For more it is a heuristic: a ring of links above a threshold, which is raised as long as one is
    found (by rotations: Posa 1976; then by ruling out links that no ring can have), then improved
    by exchanging two links (2-opt: Croes 1958).

    Args:
        speeds: bytes/s from rank a (row) to rank b (column), 0 or NaN where there is no link, or a
            topology. Of the two directions the slower one counts.

    Raises:
        ValueError: when the matrix is empty or not square, or a bandwidth is infinite or negative.
    """
    if isinstance(speeds, Topology):
        found, basis = bandwidths(speeds)
        ring = best_ring(found)
        known = ring.slowest if basis not in UNKNOWN else None
        return attrs.evolve(ring, slowest=known, basis=basis)
    rates = np.array(speeds, float)
    if rates.size == 0:
        raise ValueError("the matrix of bandwidths is empty: there are no ranks to put in order")
    if rates.ndim != 2 or rates.shape[0] != rates.shape[1]:
        raise ValueError(f"a matrix of bandwidths is square, not {rates.shape}")
    np.fill_diagonal(rates, 0.0)
    rates[np.isnan(rates)] = 0.0
    if odd := np.argwhere(np.isinf(rates) | (rates < 0)).tolist():
        a, b = odd[0]
        raise ValueError(
            f"the bandwidth from rank {a} to rank {b} is {rates[a, b]:g}, and a bandwidth is "
            "finite and not negative; 0 means that there is no link"
        )
    rates = np.minimum(rates, rates.T)
    size = len(rates)
    if size <= 1:
        return RingOrder(tuple(range(size)), why="one rank is a ring by itself")
    if why := impossible(rates > 0):
        return RingOrder(None, why=why)
    # Seconds for a byte: where there is no link, it never arrives.
    with np.errstate(divide="ignore"):
        cost = 1.0 / rates
    order, why = _exact(cost) if size <= EXACT else _searched(cost)
    if order is None:
        return RingOrder(None, exact=why == NO_ORDER, why=why)
    order = _tidy(order, cost)
    slowest = max(steps(order), key=lambda step: float(cost[step]))
    low, high = sorted(slowest)
    return RingOrder(order, float(rates[slowest]), (low, high), size <= EXACT, why=why)


# -- speeds of a topology --------------------------------------------------------------------------

NO_SPEEDS = "links alone: no speed is known"
ONE_HOST = "loopback alone: on one host, all orders are as good"
UNKNOWN = (NO_SPEEDS, ONE_HOST)
NO_ORDER = "no order of the ranks makes a ring"


def bandwidths(topology: Topology) -> tuple[Matrix, str]:
    """Bytes/s from rank to rank, 0 where there is no link, and in words what they are.

    Measured bandwidths where all links have one (loopback aside), else negotiated rates where all
    have one, else measured ones and, for the other links, the negotiated rate times the median part
    of it that was reached elsewhere. A link of which nothing is known counts as the slowest one;
    loopback as the fastest. Links of one host alone are all as fast.

    Bandwidths are those of one way (`Pair.via`) for all links, of that which most of them have: a
    plain socket and MLX's own messages differ on the same cable.
    """
    links = topology.links
    wires = [link for link in links if link.kind != "loopback"]
    via, measured = _alike(topology.backend, wires)
    basis, part = NO_SPEEDS, 0.0
    if links and not wires:
        basis = ONE_HOST
    elif wires and len(measured) == len(wires):
        basis = f"bandwidths measured via {via}"
    elif wires and all(link.negotiated for link in wires):
        basis, part, measured = "negotiated rates", 1.0, {}
    elif measured or any(link.negotiated for link in wires):
        rated = any(link.negotiated and (link.a, link.b) not in measured for link in wires)
        words = [f"bandwidths measured via {via}"] if via else []
        words += ["negotiated rates"] if rated else []
        basis = f"{', else '.join(words)}, where they are known"
        reached = [
            8 * measured[link.a, link.b].bandwidth / link.negotiated
            for link in wires if link.negotiated and (link.a, link.b) in measured
        ]  # fmt: skip
        part = statistics.median(reached) if reached else 1.0
    rates = np.zeros((topology.size, topology.size))
    known: dict[tuple[int, int], tuple[float, float]] = {}
    for link in links:
        if (pair := measured.get((link.a, link.b))) is not None:
            known[link.a, link.b] = (pair.forward.p50, pair.backward.p50)
        elif link.kind != "loopback" and link.negotiated and part:
            known[link.a, link.b] = (part * link.negotiated / 8, part * link.negotiated / 8)
    all_known = [rate for both in known.values() for rate in both] or [1.0]
    for link in links:
        unknown = max(all_known) if link.kind == "loopback" else min(all_known)
        there, back = known.get((link.a, link.b), (unknown, unknown))
        rates[link.a, link.b], rates[link.b, link.a] = there, back
    return rates, basis


def _alike(backend: str, links: Sequence[Link]) -> tuple[str, dict[tuple[int, int], Pair]]:
    """What was measured in the way that most links have, and that way; of two, MLX's own."""
    found: dict[str, dict[tuple[int, int], Pair]] = {}
    for link in links:
        for pair in (link.measured, link.plain):
            # RDMA and a plain socket may go over different wires.
            if pair is not None and not (pair.via == "tcp" and backend in RDMA):
                found.setdefault(pair.via, {})[link.a, link.b] = pair
    most = max(found, key=lambda via: (len(found[via]), via != "tcp"), default="")
    return most, found.get(most, {})


# -- whether there can be one ----------------------------------------------------------------------


def impossible(links: npt.NDArray[np.bool_]) -> str:
    """Why no ring can lead over these links, or "": then there may be one, or not."""
    size = len(links)
    if size <= 1:
        return ""
    reached = reach(links, 0)
    if len(reached) < size:
        cut = next(rank for rank in range(size) if rank not in reached)
        return f"there is no way from rank 0 to rank {cut}"
    degrees = links.sum(axis=1)
    if size > 2 and degrees.min() < 2:
        return f"rank {int(degrees.argmin())} has one link, and a ring needs two"
    for rank in range(size):
        rest = [other for other in range(size) if other != rank]
        if size > 2 and len(reach(links[np.ix_(rest, rest)], 0)) < size - 1:
            return f"every way between some ranks leads through rank {rank}"
    return ""


def reach(links: npt.NDArray[np.bool_], start: int) -> set[int]:
    """The ranks that can be reached from one, with itself."""
    reached, edge = {start}, [start]
    while edge:
        for other in np.flatnonzero(links[edge.pop()]):
            if int(other) not in reached:
                reached.add(int(other))
                edge.append(int(other))
    return reached


def has_ring(links: npt.NDArray[np.bool_]) -> bool:
    """Whether a ring over all ranks is found; up to 16 ranks, whether there is one."""
    return bool(ring_exists(links))


def ring_exists(links: npt.NDArray[np.bool_]) -> bool | None:
    """Whether there is a ring over all ranks; None, above 16 ranks, when a search cannot tell."""
    size = len(links)
    if size <= 1 or all(links[step] for step in steps(tuple(range(size)))):
        return True
    if impossible(links):
        return False
    if size > EXACT:
        ring, sure = _any_ring(links)
        return True if ring is not None else False if sure else None
    # For each set of ranks that a path from rank 0 visits, as bits: where it can end.
    near = [sum(1 << int(other) for other in np.flatnonzero(row)) for row in links]
    ends = [0] * (1 << size)
    ends[1] = 1
    for visited in range(1, 1 << size, 2):
        for rank in range(1, size):
            if visited >> rank & 1 and ends[visited ^ (1 << rank)] & near[rank]:
                ends[visited] |= 1 << rank
    return bool(ends[-1] & near[0])


# -- exact -----------------------------------------------------------------------------------------


def _exact(cost: Matrix) -> tuple[tuple[int, ...] | None, str]:
    order = cheapest_ring(cost, True)
    if order is None:
        return None, NO_ORDER
    limit = max(float(cost[step]) for step in steps(order))
    order = cheapest_ring(np.where(cost <= limit, cost, np.inf), False)
    return order, "the best of all orders"


def cheapest_ring(cost: Matrix, worst: bool = False) -> tuple[int, ...] | None:
    """The cheapest way from rank 0 through all others and back, None if there is none.

    The cost of a way is the sum of its steps, or that of its `worst` step. Infinite steps are not
    taken. Held and Karp (1962).
    """
    others = len(cost) - 1
    everyone = (1 << others) - 1
    # Over sets of visited ranks (but 0) and the last of them; and the one before that.
    best = np.full((everyone + 1, others), np.inf)
    before = np.zeros((everyone + 1, others), np.int64)
    for rank in range(others):
        best[1 << rank, rank] = cost[0, rank + 1]
    fill = _compiled() if len(cost) >= COMPILED else _fill
    fill(cost, worst, best, before)
    back = cost[1:, 0]
    total = np.maximum(best[everyone], back) if worst else best[everyone] + back
    end, visited = int(total.argmin()), everyone
    if not np.isfinite(total[end]):
        return None
    order = []
    while visited:
        order.append(end + 1)
        end, visited = int(before[visited, end]), visited ^ 1 << end
    return (0, *order[::-1])


@functools.cache
def _compiled() -> Callable[[Matrix, bool, Matrix, npt.NDArray[np.int64]], None]:
    from numba import njit

    return cast("Callable[[Matrix, bool, Matrix, npt.NDArray[np.int64]], None]", njit(_fill))


def _fill(cost: Matrix, worst: bool, best: Matrix, before: npt.NDArray[np.int64]) -> None:
    # Nothing but loops and numbers: what numpy does elsewhere takes long to compile.
    others = best.shape[1]
    for visited in range(1, best.shape[0]):
        for last in range(others):
            here = best[visited, last]
            if here == np.inf:
                continue
            for rank in range(others):
                if visited >> rank & 1:
                    continue
                step = cost[last + 1, rank + 1]
                total = (here if here > step else step) if worst else here + step
                then = visited | 1 << rank
                if total < best[then, rank]:
                    best[then, rank] = total
                    before[then, rank] = last


# -- by search -------------------------------------------------------------------------------------


def _searched(cost: Matrix) -> tuple[tuple[int, ...] | None, str]:
    order, sure = _any_ring(np.isfinite(cost))
    if order is None:
        return None, NO_ORDER if sure else (
            f"a search found no ring; above {EXACT} ranks not all orders are tried, so there may "
            "be one"
        )
    limits = np.unique(cost[np.isfinite(cost)])
    low, high = 0, int(np.searchsorted(limits, max(cost[step] for step in steps(order))))
    while low < high:
        middle = (low + high) // 2
        links = cost <= limits[middle]
        found = None if impossible(links) else _any_ring(links)[0]
        if found is None:
            low = middle + 1
        else:
            order = found
            high = int(np.searchsorted(limits, max(cost[step] for step in steps(order))))
    order = _two_opt(order, np.where(cost <= limits[high], cost, np.inf))
    return order, f"found by a search: above {EXACT} ranks not all orders are tried"


def _any_ring(links: npt.NDArray[np.bool_]) -> tuple[tuple[int, ...] | None, bool]:
    """A ring over these links or None, and whether that is certain.

    Rotations find one where there are many, ruling out links where there are few.
    """
    ring = _rotated(links)
    return (ring, True) if ring is not None else _ruled_out(links)


class _Choice:
    """The links that a ring may have and those that it must have, as far as they follow."""

    def __init__(self, may: list[set[int]], must: list[set[int]], ends: list[int]) -> None:
        self.may = may
        self.must = must
        self.ends = ends  # of the path that a rank ends, the other end
        self.count = sum(map(len, must)) // 2

    def copy(self) -> _Choice:
        return _Choice([set(each) for each in self.may], [set(each) for each in self.must],
                       list(self.ends))  # fmt: skip

    def settle(self, ranks: list[int]) -> bool:
        """Draw all conclusions for these ranks; False when no ring is left."""
        while ranks:
            rank = ranks.pop()
            may, must = self.may[rank], self.must[rank]
            if len(may) < 2:
                return False
            if len(must) == 2:
                for other in may - must:
                    self.drop(rank, other, ranks)
            elif len(may) == 2:
                for other in may - must:
                    if not self.take(rank, other, ranks):
                        return False
        return True

    def drop(self, a: int, b: int, ranks: list[int]) -> None:
        self.may[a].discard(b)
        self.may[b].discard(a)
        ranks += [a, b]

    def take(self, a: int, b: int, ranks: list[int]) -> bool:
        """The ring has this link; False when that is not possible."""
        if len(self.must[a]) == 2 or len(self.must[b]) == 2:
            return False
        size = len(self.may)
        first, last = self.ends[a], self.ends[b]
        if first == b and self.count < size - 1:
            return False  # it would close before all ranks are on it
        self.must[a].add(b)
        self.must[b].add(a)
        self.count += 1
        ranks += [a, b]
        self.ends[first], self.ends[last] = last, first
        if self.count < size - 1 and last not in self.must[first]:
            self.drop(first, last, ranks)
        return True


def _ruled_out(links: npt.NDArray[np.bool_]) -> tuple[tuple[int, ...] | None, bool]:
    """A ring or None, and whether that is certain: by ruling out links that no ring can have.

    A rank with two links left needs both, one that has both needs no other, and none may close a
    part of a ring. Where nothing follows, a link is guessed, and given up when it leads nowhere.
    """
    size = len(links)
    near = [{int(other) for other in np.flatnonzero(row)} for row in links]
    choice = _Choice(near, [set() for _ in near], list(range(size)))
    open_choices = [choice] if choice.settle(list(range(size))) else []
    for _ in range(GUESSES):
        if not open_choices:
            return None, True
        now = open_choices[-1]
        if now.count == size:
            return _walked(now.must), True
        # A path grows at its end; there, where the fewest links are left.
        undecided = [rank for rank in range(size) if len(now.must[rank]) < 2]
        rank = min(undecided, key=lambda each: (not now.must[each], len(now.may[each])))
        other = min(now.may[rank] - now.must[rank], key=lambda each: (len(now.may[each]), each))
        with_it, ranks = now.copy(), list[int]()
        now.drop(rank, other, ranks)
        if not now.settle(ranks):
            open_choices.pop()
        ranks = []
        if with_it.take(rank, other, ranks) and with_it.settle(ranks):
            open_choices.append(with_it)
    return None, not open_choices


def _walked(must: list[set[int]]) -> tuple[int, ...]:
    order = [0]
    while len(order) < len(must):
        following = must[order[-1]] - {order[-2]} if len(order) > 1 else must[0]
        order.append(min(following))
    return tuple(order)


def _rotated(links: npt.NDArray[np.bool_]) -> tuple[int, ...] | None:
    """A ring over these links, or None when none is found.

    A path grows at its end; where it cannot, a part of it is turned round, which gives it another.
    """
    size = len(links)
    near = [[int(other) for other in np.flatnonzero(row)] for row in links]
    for start in range(RESTARTS):
        # The same every time; what is random here keeps a turn from being undone at once.
        chance = random.Random(start)
        path = [start % size]
        on_path = set(path)
        for _ in range(20 * size):
            end = path[-1]
            if len(path) == size and path[0] in near[end]:
                return tuple(path)
            fresh = [other for other in near[end] if other not in on_path]
            if fresh:
                # Those with few ways left first: they are hard to reach later.
                following = min(
                    fresh,
                    key=lambda other: (
                        sum(each not in on_path for each in near[other]),
                        chance.random(),
                    ),
                )
                path.append(following)
                on_path.add(following)
                continue
            turns = [other for other in near[end] if other != path[-2]] if len(path) > 1 else []
            if not turns:
                path.reverse()
                continue
            at = path.index(chance.choice(turns)) + 1
            path[at:] = path[at:][::-1]
            if chance.random() < 0.1:
                path.reverse()  # and grow at the other end
    return None


def _two_opt(order: tuple[int, ...], cost: Matrix) -> tuple[int, ...]:
    """Exchange two links for two better ones as long as there are any."""
    path = list(order)
    size = len(path)
    better = True
    while better:
        better = False
        for i in range(size - 1):
            for j in range(i + 2, size - (i == 0)):
                a, b, c, d = path[i], path[i + 1], path[j], path[(j + 1) % size]
                now, then = cost[a, b] + cost[c, d], cost[a, c] + cost[b, d]
                if then < now * (1 - SAME):
                    path[i + 1 : j + 1] = path[i + 1 : j + 1][::-1]
                    better = True
    return tuple(path)


# -- orders ----------------------------------------------------------------------------------------


def steps(order: Sequence[int]) -> list[tuple[int, int]]:
    """The links of a ring; two ranks have one."""
    count = len(order) if len(order) > 2 else len(order) - 1
    return [(order[at], order[(at + 1) % len(order)]) for at in range(count)]


def _ints(order: Any) -> tuple[int, ...]:
    return tuple(int(rank) for rank in order)


def _tidy(order: tuple[int, ...], cost: Matrix) -> tuple[int, ...]:
    """The same ring from rank 0 on, towards the lower neighbour; rank order if that is as good."""
    plain = tuple(range(len(order)))

    def merit(ranks: tuple[int, ...]) -> tuple[float, float]:
        costs = [float(cost[step]) for step in steps(ranks)]
        return max(costs), sum(costs)

    if all(
        ours <= theirs * (1 + SAME) for ours, theirs in zip(merit(plain), merit(order), strict=True)
    ):
        return plain
    at = order.index(0)
    turned = order[at:] + order[:at]
    return turned if turned[1] < turned[-1] else (0, *turned[:0:-1])
