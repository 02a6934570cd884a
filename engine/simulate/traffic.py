"""What is sent, and how long it takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import kernel
from .network import Network

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Messages from which on it pays to wait 1 to 3 seconds for a compiler.
COMPILE_FROM = 100_000


@attrs.frozen(eq=False)
class Flow:
    """How traffic went. `seconds` until the last rank is done, `finished` the seconds of each rank,
    `busy` those in which each wire was in use, `messages` how many there were.
    """

    seconds: float
    finished: Floats
    busy: Floats
    messages: int


@attrs.frozen(eq=False, repr=False)
class Traffic:
    """Streams of messages between groups; what these are, see kernel.py.

    For each stream: the groups `source` and `target`, the wires `first` and `second` (-1: none),
    and the bytes of each of its messages. For each group: its `rank`, and the seconds that it
    computes before it sends.
    """

    network: Network
    steps: int
    lag: int
    source: Ints
    target: Ints
    first: Ints
    second: Ints
    size: Floats
    rank: Ints
    compute: Floats

    @property
    def messages(self) -> int:
        """How many messages are sent."""
        return self.steps * len(self.source)

    @property
    def shared(self) -> bool:
        """Whether several streams share a wire, so that it counts who is first."""
        used = np.concatenate([self.first, self.second[self.second >= 0]])
        return len(used) > 0 and bool(np.bincount(used).max() > 1)

    def run(self, *, ordered: bool | None = None, compiled: bool | None = None) -> Flow:
        """Let it flow.

        Args:
            ordered: whether to keep the order of events, which takes longer; None: where it counts.
            compiled: whether to compile first; None: for many messages.
        """
        net = self.network
        ordered = self.shared if ordered is None else ordered
        compiled = self.messages >= COMPILE_FROM if compiled is None else compiled
        leaving, coming = (
            np.argsort(self.source, kind="stable"),
            np.argsort(self.target, kind="stable"),
        )
        groups = np.arange(len(self.rank) + 1)
        hold_first = net.cost[self.first] + self.size / net.bandwidth[self.first]
        hold_second = np.zeros_like(hold_first)
        latency = net.latency[self.first].copy()
        two = self.second >= 0
        behind = self.second[two]
        hold_second[two] = net.cost[behind] + self.size[two] / net.bandwidth[behind]
        latency[two] += net.latency[behind]
        ready, _ = _function("events" if ordered else "stepwise", compiled)(
            self.steps,
            self.lag,
            np.searchsorted(self.source[leaving], groups),
            leaving,
            np.searchsorted(self.target[coming], groups),
            coming,
            self.target,
            self.first,
            self.second,
            hold_first,
            hold_second,
            latency,
            self.compute,
            len(net.bandwidth),
        )
        busy = np.bincount(self.first, hold_first, len(net.bandwidth))
        busy += np.bincount(behind, hold_second[two], len(net.bandwidth))
        finished = np.zeros(net.hosts)
        np.maximum.at(finished, self.rank, ready)
        return Flow(
            net.start + float(finished.max()),
            net.start + finished,
            (self.steps * busy).astype(float),
            self.messages,
        )


@functools.cache
def _function(name: str, compiled: bool) -> Callable[..., tuple[Floats, Floats]]:
    plain: Callable[..., tuple[Floats, Floats]] = getattr(kernel, name)
    if not compiled:
        return plain
    import numba

    made: Callable[..., tuple[Floats, Floats]] = numba.njit(nogil=True)(plain)
    return made


# -- programs --------------------------------------------------------------------------------------


def ring_all_sum(
    network: Network, size: float, *, directions: int = 1, cables: int | None = None
) -> Traffic:
    """A sum of `size` bytes: 2 (n - 1) steps, in each a part of 1/n to the next host.

    With two `directions`, half of it goes the other way round, and neither waits for the other.
    `cables` is how many of those side by side are used; None for all.
    """
    return _ring(network, 2 * (network.hosts - 1), size / network.hosts, directions, cables)


def ring_all_gather(
    network: Network, size: float, *, directions: int = 1, cables: int | None = None
) -> Traffic:
    """A gather of which the result has `size` bytes: n - 1 steps of a part of 1/n."""
    return _ring(network, network.hosts - 1, size / network.hosts, directions, cables)


def mesh_one_shot(network: Network, size: float, *, cables: int | None = None) -> Traffic:
    """A sum of `size` bytes: every host sends all of it to every other."""
    return _mesh(network, 1, size, cables)


def mesh_two_shot(network: Network, size: float, *, cables: int | None = None) -> Traffic:
    """A sum of `size` bytes by reduce-scatter and all-gather: a part of 1/n to every other, twice.

    A host begins with the second step when all of the first has reached it.
    """
    return _mesh(network, 2, size / network.hosts, cables)


def mesh_all_gather(network: Network, size: float, *, cables: int | None = None) -> Traffic:
    """A gather of which the result has `size` bytes: each host sends its part to every other."""
    return _mesh(network, 1, size / network.hosts, cables)


def sends(
    network: Network,
    pairs: Sequence[tuple[int, int]],
    size: float,
    *,
    count: int = 1,
    cables: int | None = None,
) -> Traffic:
    """`count` messages of `size` bytes without a break from one host to another, for each pair."""
    listed = np.asarray(pairs, np.int64).reshape(-1, 2)
    number = np.arange(len(listed))
    groups = np.concatenate([listed[:, 0], listed[:, 1]])
    return _traffic(
        network, count, 0, number, len(listed) + number, groups, listed, size, None, cables
    )


def send_receive(network: Network, size: float, *, cables: int | None = None) -> Traffic:
    """Every host sends `size` bytes to the next and receives as much from the one before.

    As macluster.measure does it with MLX, whose ring moves one message at a time: the hosts with
    even numbers send first, the others when they have received.
    """
    n = network.hosts
    ranks = np.arange(n)
    # Those that send first, those that send then, and all as they receive what comes then.
    order = np.concatenate([ranks[::2], ranks[1::2]])
    place = np.empty(n, np.int64)
    place[order] = ranks
    after = (order + 1) % n
    # Only odd hosts wait for what comes in; what reaches an even one ends in a group of its own.
    target = np.where(after % 2 == 1, place[after], n + after)
    compute = np.zeros(2 * n)
    compute[place[ranks[1::2]]] = network.start  # the second message is started, too
    return _traffic(
        network,
        1,
        0,
        ranks,
        target,
        np.concatenate([order, ranks]),
        np.stack([order, after], 1),
        size,
        compute,
        cables,
    )


def pipeline(
    network: Network,
    size: float,
    microbatches: int,
    compute: ArrayLike,
    *,
    cables: int | None = None,
) -> Traffic:
    """Microbatches that pass hosts 0, 1, ...: each one computes, then sends `size` bytes on.

    `compute` are the seconds of a host for one of them, one number for all hosts or one for each. A
    host computes the next one while the last is on its way.
    """
    ranks = np.arange(network.hosts)
    each = np.broadcast_to(np.asarray(compute, float), ranks.shape).copy()
    ways = np.stack([ranks[:-1], ranks[1:]], 1)
    return _traffic(
        network, microbatches, 0, ranks[:-1], ranks[1:], ranks, ways, size, each, cables
    )


def _ring(
    network: Network, steps: int, part: float, directions: int, cables: int | None
) -> Traffic:
    n = network.hosts
    # Between two hosts both ways round are the same cables, so one does for both.
    turns = (1, -1)[: 1 if n == 2 else directions]
    ranks = np.arange(n)
    ways = np.concatenate([np.stack([ranks, (ranks + turn) % n], 1) for turn in turns])
    offset = np.repeat(np.arange(len(turns)) * n, n)
    return _traffic(
        network,
        steps,
        1,
        offset + ways[:, 0],
        offset + ways[:, 1],
        np.tile(ranks, len(turns)),
        ways,
        part / len(turns),
        None,
        cables,
    )


def _mesh(network: Network, steps: int, size: float, cables: int | None) -> Traffic:
    n = network.hosts
    ranks = np.arange(n)
    # Each begins with the next host, so that no two send to one host at the same time.
    apart = np.arange(1, n)
    a = np.repeat(ranks, n - 1)
    b = (a + np.tile(apart, n)) % n
    return _traffic(network, steps, 1, a, b, ranks, np.stack([a, b], 1), size, None, cables)


def _traffic(
    network: Network,
    steps: int,
    lag: int,
    source: Any,
    target: Any,
    rank: Any,
    ways: Any,
    size: float,
    compute: Any,
    cables: int | None,
) -> Traffic:
    first, second = network.wires(ways[:, 0], ways[:, 1])
    used = min(cables or network.cables, network.cables)
    return Traffic(
        network,
        steps,
        lag,
        np.repeat(np.asarray(source, np.int64), used),
        np.repeat(np.asarray(target, np.int64), used),
        np.ascontiguousarray(first[:, :used]).ravel(),
        np.ascontiguousarray(second[:, :used]).ravel(),
        np.full(len(ways) * used, size / used),
        np.asarray(rank, np.int64),
        np.zeros(len(rank)) if compute is None else np.asarray(compute, float),
    )
