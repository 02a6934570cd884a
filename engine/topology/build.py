"""A topology out of what the hostfile says, what the hosts say, and what was measured."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, zip_longest

import attrs

from ..errors import UsageError
from ..hostfile import LOCAL_NAMES, Hostfile
from ..measure.record import Measurement
from ..measure.tables import by_ranks, plain_sockets
from .facts import Facts, Interface
from .topology import KINDS, Kind, Link, Node, Topology

Ports = tuple[str, str]


@attrs.frozen
class _Way:
    """One way between two ranks' hosts, in the terms of a Link."""

    kind: Kind
    ports: tuple[Ports, ...] = ()
    negotiated: float | None = None
    why: str = ""


def build(
    hostfile: Hostfile,
    backend: str,
    facts: Mapping[int, Facts | None],
    measured: Measurement | None = None,
    states: Mapping[int, str] | None = None,
) -> Topology:
    """The ranks of a hostfile and the links between them.

    A link is learnt, in this order of trust, from the RDMA devices in the hostfile, from what
    Thunderbolt names at the other end of a cable, and from addresses of one network. Ranks of one
    host are linked by loopback. A way that the `ring` backend or the measurement has used is a
    link, too, of kind "unknown". Where there are several ways, the link is the one that the
    addresses of a `ring` lead over, and otherwise the most trusted one.

    Args:
        hostfile: the hosts, one entry per rank.
        backend: the backend of the world.
        facts: what each rank's host says; None, or no entry, for a rank that does not answer.
        measured: what `measure` found between these ranks.
        states: the state of each rank, as in `Node.state`.

    Raises:
        UsageError: when `measured` is of another number of ranks, or simulated.
    """
    size = len(hostfile)
    if measured is not None and measured.simulated:
        raise UsageError(
            f"This was simulated, and not measured: {measured.simulated}.",
            why="these ranks exist, and figures of others say nothing of them",
            do="measure them: %measure",
        )
    if measured is not None and measured.size != size:
        raise UsageError(
            f"The measurement is of {measured.size} ranks, and the world has {size}.",
            why="it was taken in another world",
            do="measure this one: %measure",
        )
    known = [facts.get(rank) for rank in range(size)]
    local = [each.host for host, each in zip(hostfile.hosts, known, strict=True)
             if host.is_local and each is not None]  # fmt: skip
    nodes = tuple(
        _node(hostfile, rank, known[rank], (states or {}).get(rank, "unknown"), local)
        for rank in range(size)
    )
    links = []
    pairs = by_ranks(measured) if measured is not None else {}
    plain = plain_sockets(measured) if measured is not None else {}
    for a, b in combinations(range(size), 2):
        pair = pairs.get((a, b))
        ways = list(_ways(hostfile, a, b, known[a], known[b]))
        if not ways and (backend == "ring" and neighbours(a, b, size)):
            ways = [_Way("unknown", why="neighbours in the ring")]
        if not ways and pair is not None:
            ways = [_Way("unknown", why=f"bytes were sent there ({pair.via})")]
        if not ways:
            continue
        used = _used(hostfile, a, b, known[a], known[b]) if backend == "ring" else None
        way = next((each for each in ways if each.kind == used), ways[0])
        # There is one way of each kind.
        besides: list[Kind] = [each.kind for each in ways if each.kind != way.kind]
        links.append(
            Link(
                a, b, way.kind, way.ports, way.negotiated, pair, way.why, tuple(besides),
                plain.get((a, b)),
            )
        )  # fmt: skip
    return Topology(nodes, tuple(links), backend)


def neighbours(a: int, b: int, size: int) -> bool:
    """Whether two ranks are next to each other in the ring of all ranks."""
    return (a - b) % size in (1, size - 1)


def _node(
    hostfile: Hostfile, rank: int, facts: Facts | None, state: str, local: Sequence[str]
) -> Node:
    """`local` are the names that ranks give to the host which the hostfile calls localhost."""
    host = hostfile.hosts[rank]
    if facts is None:
        # A rank that has died leaves its host's name to the others.
        return Node(rank, local[0] if host.is_local and local else host.ssh, state=state)
    name = facts.host if host.is_local else host.ssh
    model = ", ".join(part for part in (facts.model, facts.chip) if part)
    return Node(
        rank, name, model, facts.memory, facts.used, facts.held, state, facts.free, facts.host
    )


def same_host(hostfile: Hostfile, a: int, b: int, at_a: Facts | None, at_b: Facts | None) -> bool:
    """Whether two ranks run on one host: as it says itself, else by their entries."""
    if at_a is not None and at_b is not None and at_a.machine and at_b.machine:
        # Containers of one machine share its boot, not its name.
        return (at_a.machine, at_a.host) == (at_b.machine, at_b.host)
    first, second = hostfile.hosts[a].ssh, hostfile.hosts[b].ssh
    return first == second or (first in LOCAL_NAMES and second in LOCAL_NAMES)


def _ways(
    hostfile: Hostfile, a: int, b: int, at_a: Facts | None, at_b: Facts | None
) -> Iterator[_Way]:
    """The ways between two ranks, the most trusted one first, one of each kind."""
    if same_host(hostfile, a, b, at_a, at_b):
        yield _Way("loopback", why="both ranks run on one host")
        return
    found = [_by_rdma(hostfile, a, b, at_a, at_b)]
    if at_a is not None and at_b is not None:
        found.append(_by_thunderbolt(at_a, at_b))
        found += _by_address(hostfile, a, b, at_a, at_b)
    seen: set[Kind] = set()
    for way in found:
        if way is not None and way.kind not in seen:
            seen.add(way.kind)
            yield way


def _by_rdma(
    hostfile: Hostfile, a: int, b: int, at_a: Facts | None, at_b: Facts | None
) -> _Way | None:
    """The cables whose RDMA devices the hostfile names at both ends."""
    there, back = _devices(hostfile, a, b), _devices(hostfile, b, a)
    if not there or not back:
        return None
    ports = tuple(
        (first.removeprefix("rdma_"), second.removeprefix("rdma_"))
        for first, second in zip_longest(there, back, fillvalue="")
    )
    why = f"the hostfile names {', '.join(there)} and {', '.join(back)}"
    return _Way("rdma", ports, _sum_of_rates(ports, at_a, at_b), why)


def _devices(hostfile: Hostfile, a: int, b: int) -> tuple[str, ...]:
    """The RDMA devices of rank a that lead to rank b."""
    row = hostfile.hosts[a].rdma
    entry = row[b] if row else None
    return (entry,) if isinstance(entry, str) else entry or ()


def _sum_of_rates(ports: tuple[Ports, ...], at_a: Facts | None, at_b: Facts | None) -> float | None:
    """bits/s of several cables; None when that of one is not known at either end."""
    total = 0.0
    for names in ports:
        ends = [
            facts.interface(name) if facts is not None else None
            for facts, name in zip((at_a, at_b), names, strict=True)
        ]
        rates = [each.rate for each in ends if each is not None and each.rate]
        if not rates:
            return None
        total += min(rates)
    return total


def _by_thunderbolt(at_a: Facts, at_b: Facts) -> _Way | None:
    """The cables of which Thunderbolt names the other end."""
    ports, rates = [], []
    for here in at_a.sockets or ():
        for there in at_b.sockets or ():
            if (there.domain and there.domain in here.peers) or (
                here.domain and here.domain in there.peers
            ):
                ports.append((at_a.port_of(here), at_b.port_of(there)))
                rates.append(min(filter(None, (here.rate, there.rate)), default=None))
    if not ports:
        return None
    known = [rate for rate in rates if rate is not None]
    total = sum(known) if len(known) == len(rates) else None
    return _Way("thunderbolt", tuple(ports), total, "Thunderbolt names the Mac at the other end")


# -- addresses -------------------------------------------------------------------------------------


@attrs.frozen
class _Route:
    """Two interfaces with addresses of one network."""

    first: Interface
    second: Interface
    network: ipaddress.IPv4Network
    used: int  # by a ring: how many of its ends have an address of the hostfile

    @property
    def kind(self) -> Kind:
        # The worse of the two: what is Wi-Fi at one end is Wi-Fi.
        return KINDS[max(KINDS.index(self.first.kind), KINDS.index(self.second.kind))]


def _routes(hostfile: Hostfile, a: int, b: int, at_a: Facts, at_b: Facts) -> list[_Route]:
    """The routes between two hosts, those that a ring uses first."""
    size = len(hostfile)
    # A rank of a ring connects to the next one, at the address in the hostfile.
    to_b = set(hostfile.hosts[b].ips) if (a + 1) % size == b else set()
    to_a = set(hostfile.hosts[a].ips) if (b + 1) % size == a else set()
    routes = []
    for first, mine in _addresses(at_a):
        for second, theirs in _addresses(at_b):
            # Equal addresses belong to networks inside of each host, such as a container's.
            if mine.network != theirs.network or mine.ip == theirs.ip:
                continue
            used = (str(theirs.ip) in to_b) + (str(mine.ip) in to_a)
            # Every interface without a better address has one of 169.254: that joins nothing.
            if mine.network.prefixlen < 32 and (used or not mine.ip.is_link_local):
                routes.append(_Route(first, second, mine.network, used))
    # The order of the interfaces decides the rest: the sort is stable.
    return sorted(routes, key=lambda route: (-route.used, KINDS.index(route.kind)))


def _addresses(facts: Facts) -> Iterator[tuple[Interface, ipaddress.IPv4Interface]]:
    for interface in facts.interfaces:
        if interface.kind != "loopback":
            for text in interface.addresses:
                yield interface, ipaddress.IPv4Interface(text)


def _used(
    hostfile: Hostfile, a: int, b: int, at_a: Facts | None, at_b: Facts | None
) -> Kind | None:
    """The kind of the way that a ring uses between two ranks, None when that is not known."""
    if at_a is None or at_b is None:
        return None
    routes = _routes(hostfile, a, b, at_a, at_b)
    return next((route.kind for route in routes if route.used), None)


def _by_address(hostfile: Hostfile, a: int, b: int, at_a: Facts, at_b: Facts) -> list[_Way]:
    """The ways over a common network, best kind first."""
    routes = _routes(hostfile, a, b, at_a, at_b)
    ways = []
    for kind in KINDS:
        # Each network is a cable of its own; within one, every interface sees every other.
        chosen: dict[ipaddress.IPv4Network, _Route] = {}
        for route in routes:
            if route.kind == kind:
                chosen.setdefault(route.network, route)
        if chosen:
            networks = ", ".join(str(network) for network in chosen)
            rates = [_rate(route) for route in chosen.values()]
            known = [rate for rate in rates if rate is not None]
            ways.append(
                _Way(
                    kind,
                    tuple((route.first.name, route.second.name) for route in chosen.values()),
                    sum(known) if len(known) == len(rates) else None,
                    f"both have an address in {networks}",
                )
            )
    return ways


def _rate(route: _Route) -> float | None:
    """bits/s of the slower end, as far as it is known."""
    ends = (route.first, route.second)
    if any(end.kind == route.kind and end.rate is None for end in ends) and (
        route.first.kind != route.second.kind
    ):
        return None  # a cable at one end says nothing of the Wi-Fi at the other
    return min((end.rate for end in ends if end.rate), default=None)
