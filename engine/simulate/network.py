"""Hosts and the wires between them."""

from __future__ import annotations

import math
from typing import Literal

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError
from ..measure.fit import Fit
from ..plan.macs import Link

Shape = Literal["mesh", "ring", "switch"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@attrs.frozen(eq=False, repr=False)
class Network:
    """Hosts 0 to `hosts` - 1, and a wire for each direction of each cable.

    `shape` is "mesh" (cables between all pairs), "ring" (cables from each host to the next one, and
    from the last one to the first) or "switch" (one cable from each host to a switch, which all
    traffic of that host shares). `cables` is how many there are side by side.

    Of each wire: seconds of `latency`, bytes/s of `bandwidth` (0 where the cable is missing), and
    `cost`, the seconds that a message keeps it busy beside its bytes. `start` are the seconds of a
    collective before its first message.
    """

    hosts: int
    shape: Shape
    cables: int
    latency: Floats
    bandwidth: Floats
    cost: Floats
    start: float = 0.0

    @classmethod
    def alike(
        cls,
        shape: Shape,
        hosts: int,
        latency: float,
        bandwidth: float,
        *,
        cables: int = 1,
        cost: float = 0.0,
        start: float = 0.0,
    ) -> Network:
        """All cables the same. Times in seconds, bandwidth in bytes/s of one cable one way.

        Raises:
            UsageError: for less than two hosts, or several cables to a switch.
        """
        if hosts < 2 or cables < 1 or (shape == "switch" and cables > 1):
            raise UsageError(
                f"There is no {shape} of {hosts} hosts with {cables} cables.",
                why="it takes two hosts or more, and a switch has one cable to each of them",
                do='for example: Network.alike("mesh", 4, 7e-6, 6.3e9)',
            )
        wires = _wires(shape, hosts, cables)
        full = np.full(wires, bandwidth)
        late = np.full(wires, latency)
        if shape == "switch":
            late[hosts:] = 0.0  # the whole way counts once
        return cls(hosts, shape, cables, late, full, np.full(wires, cost), start)

    @classmethod
    def of_fit(
        cls, fit: Fit, ranks: int, shape: Shape = "mesh", *, cables: int = 1, cost: float = 0.0
    ) -> Network:
        """With cables as one was measured, between two ranks."""
        return cls.alike(shape, ranks, fit.latency, fit.bandwidth, cables=cables, cost=cost)

    @classmethod
    def of_link(cls, link: Link, hosts: int, shape: Shape, *, cables: int = 1) -> Network:
        """With a link of the planner: its first step takes longer than further ones."""
        start = link.latency - link.hop
        return cls.alike(shape, hosts, link.hop, link.bandwidth, cables=cables, start=start)

    def __repr__(self) -> str:
        count = f", {self.cables} cables side by side" if self.cables > 1 else ""
        return f"<Network: {self.hosts} hosts, {self.shape}{count}>"

    def wires(self, a: ArrayLike, b: ArrayLike) -> tuple[Ints, Ints]:
        """The wires from each host in `a` to that in `b`, in the order in which bytes pass them.

        Returns:
            The first wires, of shape (len(a), cables), and the second ones, -1 where there is none.

        Raises:
            UsageError: when there is no cable.
        """
        a, b = np.atleast_1d(a).astype(np.int64), np.atleast_1d(b).astype(np.int64)
        n = self.hosts
        if self.shape == "switch":
            first, second = a[:, None], (n + b)[:, None]
        else:
            if self.shape == "mesh":
                place = a * (n - 1) + b - (b > a)
            elif n == 2:
                place = a  # both ways round are the same cables
            else:
                apart = (b - a) % n
                far = np.flatnonzero((apart != 1) & (apart != n - 1))
                if len(far):
                    raise _no_cable(int(a[far[0]]), int(b[far[0]]), "not neighbours on the ring")
                place = 2 * a + (apart != 1)
            first = place[:, None] * self.cables + np.arange(self.cables)
            second = np.full_like(first, -1)
        gone = (self.bandwidth[first] == 0).any(1)
        gone |= ((second >= 0) & (self.bandwidth[second] == 0)).any(1)
        if gone.any():
            at = int(np.flatnonzero(gone)[0])
            raise _no_cable(int(a[at]), int(b[at]), "the cable was taken away")
        return first, second

    def has(self, a: int, b: int) -> bool:
        """Whether messages get from `a` to `b` without another host in between."""
        try:
            self.wires(a, b)
        except UsageError:
            return False
        return True

    def slow(
        self, a: int, b: int | None = None, *, latency: float = 0.0, bandwidth_factor: float = 1.0
    ) -> Network:
        """The same with bad cables between two hosts, in both directions.

        Args:
            a: a host.
            b: the other one; None for the cable from `a` to its switch.
            latency: seconds that each message takes longer there, 0 or more.
            bandwidth_factor: the part of the bandwidth that is left, more than 0 and at most 1.

        Raises:
            UsageError: when there is no such cable, or it would not be slower.
        """
        # Written so that NaN is refused.
        if not (0 < bandwidth_factor <= 1 and 0 <= latency < math.inf):
            raise UsageError(
                f"A slow cable cannot have {bandwidth_factor:g} x its bandwidth and {latency:g} s "
                "more of latency.",
                why="bandwidth_factor is the part that is left, more than 0 and at most 1; latency "
                "are the seconds that it takes longer, 0 or more",
                do="for example: slow(0, 2, latency=1e-4, bandwidth_factor=0.5)",
            )
        bad = self._between(a, b)
        late, left = self.latency.copy(), self.bandwidth.copy()
        late[bad] += latency
        left[bad] *= bandwidth_factor
        return attrs.evolve(self, latency=late, bandwidth=left)

    def without(self, a: int, b: int | None = None) -> Network:
        """The same without the cables between two hosts, or from `a` to its switch."""
        left = self.bandwidth.copy()
        left[self._between(a, b)] = 0.0
        return attrs.evolve(self, bandwidth=left)

    def _between(self, a: int, b: int | None) -> Ints:
        if (b is None) != (self.shape == "switch") or (a == b and b is not None):
            raise UsageError(
                f"There is no cable between hosts {a} and {b}.",
                why="on a switch each host has one cable, which leads to the switch"
                if self.shape == "switch"
                else f"in a {self.shape}, cables lead from one host to another",
                do=f"name the host: slow({a})"
                if self.shape == "switch"
                else "name two hosts: slow(0, 1)",
            )
        given: tuple[object, ...] = (a, b)
        for host in given:
            if host is None and host is not a:
                continue  # the switch
            if not (isinstance(host, (int, np.integer)) and 0 <= host < self.hosts):
                raise UsageError(
                    f"There is no host {host!r}.",
                    why=f"the hosts are 0 to {self.hosts - 1}",
                    do="name one of them",
                )
        if b is None:
            return np.array([a, self.hosts + a])
        return np.concatenate([self.wires(a, b)[0].ravel(), self.wires(b, a)[0].ravel()])


def _wires(shape: Shape, hosts: int, cables: int) -> int:
    """How many wires there are: see `Network.wires` for their order."""
    if shape == "mesh":
        return hosts * (hosts - 1) * cables
    return hosts * cables if hosts == 2 and shape == "ring" else 2 * hosts * cables


def _no_cable(a: int, b: int, why: str) -> UsageError:
    return UsageError(
        f"There is no cable between hosts {a} and {b}.",
        why=why,
        do="choose traffic that needs no such cable, or a network that has it",
    )
