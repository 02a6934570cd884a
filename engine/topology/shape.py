"""The shape of a wiring: which backends it allows, and in words what is missing or slow."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal

import attrs
import numpy as np
import numpy.typing as npt

from ..measure.outliers import Outlier, standing_out
from ..measure.record import Pair
from ..plan.hosts import MESH_MOST
from ..units import rate_text, time_text
from .order import (
    EXACT,
    UNKNOWN,
    bandwidths,
    best_ring,
    cheapest_ring,
    has_ring,
    reach,
    ring_exists,
    steps,
)
from .topology import Kind, Link, Topology

Name = Literal["one", "mesh", "ring", "line", "star", "partial mesh", "parts"]

LISTED = 6  # things that a sentence names one by one
THUNDERBOLT_4, THUNDERBOLT_5 = 40e9, 80e9  # bits/s of one cable, one way
FAR_BELOW = 0.5  # of the negotiated rate; TCP over Thunderbolt reaches 55 %, RDMA 63 %
FEW_MISSING = 2  # cables that keep a wiring from being a mesh, if one was meant
MANY = 64  # ranks, of more the pairs without a link are not listed
LOPSIDED = 1.5  # one direction to the other
WORTH_A_CHANGE = 1.5  # how much faster another order must be

Pairs = Sequence[tuple[int, int]]
Graph = npt.NDArray[np.bool_]

WORDS: dict[Kind, str] = {
    "rdma": "RDMA", "thunderbolt": "Thunderbolt", "ethernet": "Ethernet", "wifi": "Wi-Fi",
    "loopback": "loopback", "unknown": "",
}  # fmt: skip


@attrs.frozen
class Shape:
    """The shape of the Thunderbolt cables where there are any, and of all links otherwise.

    `name` is "one" (rank), "mesh" (each linked to each), "ring" (some order of the ranks closes
    one), "line", "star" (all linked to one), "parts" (not connected) or "partial mesh" (none of
    these). Two or three ranks that are a mesh are a ring, too: see `ring`, which above 16 ranks is
    False also where a search found none. `backends` are those that the links allow, perhaps with
    the ranks in another order. `missing` are the pairs without a link that a mesh would need (of
    at most 64 ranks), `faulty` those whose link measured badly or is not what it should be, and
    `sentences` say everything that is wrong, and what to do. `cabled` is whether it is the shape of
    cables, `size` the number of ranks.
    """

    name: Name
    ring: bool
    backends: tuple[str, ...] = ()
    missing: tuple[tuple[int, int], ...] = ()
    faulty: tuple[tuple[int, int], ...] = ()
    sentences: tuple[str, ...] = ()
    cabled: bool = False
    size: int = 1

    @property
    def title(self) -> str:
        """ "a mesh and a ring", "a line", "one rank"."""
        if self.name == "one":
            return "one rank"
        if self.name == "parts":
            return "parts that no cable joins" if self.cabled else "parts that are not connected"
        also = " and a ring" if self.name == "mesh" and self.size <= 3 else ""
        return f"a {self.name}{also}{' of Thunderbolt cables' if self.cabled else ''}"

    def __str__(self) -> str:
        allowed = ", ".join(self.backends)
        head = f"{self.title[0].upper()}{self.title[1:]}"
        return f"{head}; the links allow {allowed}." if allowed else f"{head}."


def shape(topology: Topology) -> Shape:
    """The shape of a topology, and everything that is missing, slow or odd in it."""
    size = topology.size
    if size == 1:
        return Shape("one", True, _allowed(topology))
    cables = _cables(topology)
    pairs = combinations(range(size if size <= MANY else 0), 2)
    missing = tuple((a, b) for a, b in pairs if not cables[a, b])
    ring = has_ring(cables)
    faults = _faults(topology)
    parts = _parts(topology, cables)
    words = [
        *_silent(topology),
        *parts,
        *_no_cable(topology, cables, missing, ring),
        *_too_few(topology, cables, ring),
        *_too_many(topology),
        *_without_rdma(topology),
        *_slower_kinds(topology, faults, bool(parts)),
        *_told(topology, faults),
        *(_crossings(topology) or _order(topology)),
    ]
    return Shape(
        name=_name(cables, ring),
        ring=ring,
        backends=_allowed(topology),
        missing=missing,
        faulty=tuple(sorted((fault.link.a, fault.link.b) for fault in faults)),
        sentences=tuple(words),
        cabled=any(link.cabled for link in topology.links),
        size=size,
    )


# -- graphs ----------------------------------------------------------------------------------------


def _graph(topology: Topology, links: Iterable[Link]) -> Graph:
    graph = np.zeros((topology.size, topology.size), bool)
    for link in links:
        graph[link.a, link.b] = graph[link.b, link.a] = True
    return graph


def _hosts(topology: Topology) -> list[int]:
    """Of each rank, the first rank on its host."""
    first = list(range(topology.size))
    for link in sorted(topology.links, key=lambda link: (link.a, link.b)):
        if link.kind == "loopback":
            low, high = sorted((first[link.a], first[link.b]))
            first = [low if each == high else each for each in first] if low < high else first
    return first


def _cables(topology: Topology) -> Graph:
    """Who is linked by Thunderbolt, or runs on one host; without any cable, who is linked.

    A cable between two hosts links all their ranks.
    """
    if not any(link.cabled for link in topology.links):
        return _graph(topology, topology.links)

    def counts(link: Link) -> bool:
        # What joins a rank that could not be asked may be a cable.
        known = not (_is_silent(topology, link.a) or _is_silent(topology, link.b))
        return link.cabled or link.kind == "loopback" or not known

    return _shared(topology, _graph(topology, filter(counts, topology.links)))


def _shared(topology: Topology, graph: Graph) -> Graph:
    """The same, with what links two ranks linking all of their hosts' ranks."""
    hosts = np.array(_hosts(topology))
    if len(set(hosts.tolist())) == len(hosts):
        return graph
    on = hosts[:, None] == np.arange(len(hosts))  # rank, host
    between = (on.T.astype(np.int64) @ graph @ on) > 0
    shared: Graph = between[np.ix_(hosts, hosts)] | (hosts[:, None] == hosts)
    np.fill_diagonal(shared, False)
    return shared


def _is_silent(topology: Topology, rank: int) -> bool:
    return topology.nodes[rank].silent and not topology.simulated


def _name(graph: Graph, ring: bool) -> Name:
    size = len(graph)
    degrees = sorted(int(degree) for degree in graph.sum(axis=1))
    if len(reach(graph, 0)) < size:
        return "parts"
    if degrees[0] == size - 1:
        return "mesh"
    if ring:
        return "ring"
    if degrees[-1] <= 2:
        return "line"
    if degrees[-1] == size - 1 and degrees[-2] == 1:
        return "star"
    return "partial mesh"


def _allowed(topology: Topology) -> tuple[str, ...]:
    """The backends that the links allow."""
    size = topology.size
    rdma = _graph(topology, filter(_has_rdma, topology.links))
    linked = _graph(topology, topology.links)
    pairs = size * (size - 1)
    allowed = {
        "jaccl": 1 < size <= MESH_MOST and rdma.sum() == pairs,
        "jaccl-ring": size > 1 and has_ring(rdma),
        "ring": has_ring(linked),
        "mpi": linked.sum() == pairs,
    }
    return tuple(name for name, possible in allowed.items() if possible)


def _has_rdma(link: Link) -> bool:
    return "rdma" in (link.kind, *link.besides)


# -- words -----------------------------------------------------------------------------------------


def _listed(things: Sequence[str], what: str = "") -> str:
    """All of a few things, the first of many."""
    if len(things) > LISTED:
        more = f"{len(things) - LISTED + 1} more {what}".strip()
        return f"{', '.join(things[: LISTED - 1])} and {more}"
    return " and ".join(filter(None, [", ".join(things[:-1]), *things[-1:]]))


def _names(topology: Topology, ranks: Iterable[int]) -> str:
    return _listed([topology.name(rank) for rank in ranks])


def _host_name(topology: Topology, rank: int) -> str:
    """What to call the host of a rank: by its name where no other has the same."""
    hosts, name = _hosts(topology), topology.nodes[rank].host
    there = {hosts[node.rank] for node in topology.nodes if node.host == name}
    return name if name and len(there) == 1 else topology.name(rank)


def _pair(topology: Topology, link: Link) -> str:
    """ "studio-1 - studio-2 (en4 - en5)"."""
    ports = ", ".join(f"{a or '?'} - {b or '?'}" for a, b in link.ports if a or b)
    pair = f"{topology.name(link.a)} - {topology.name(link.b)}"
    return f"{pair} ({ports})" if ports else pair


def _per_cable(link: Link) -> float | None:
    """bits/s of one cable of a Thunderbolt link."""
    if link.kind not in ("rdma", "thunderbolt") or not link.negotiated:
        return None
    return link.negotiated / link.cables


def _all_old(topology: Topology) -> bool:
    """Whether no cable can be Thunderbolt 5: then nothing that RDMA needs is worth saying."""
    rates = [_per_cable(link) for link in topology.links if link.cabled]
    slow = [rate is not None and rate < THUNDERBOLT_5 for rate in rates]
    return bool(slow) and all(slow)


def _plugs(topology: Topology, pairs: Pairs) -> str:
    """Which cables to plug where to join these pairs, as far as the free sockets are known."""
    free = {node.rank: list(node.free or ()) for node in topology.nodes}
    if any(topology.nodes[rank].free is None for pair in pairs for rank in pair):
        return ""
    orders, full = [], []
    for a, b in pairs:
        if free[a] and free[b]:
            orders.append(
                f"{free[a].pop(0)} of {_host_name(topology, a)} to {free[b].pop(0)} of "
                f"{_host_name(topology, b)}"
            )
        else:
            full += [rank for rank in (a, b) if not free[rank]]
    words = f" Plug {_listed(orders, 'cables')}." if orders else ""
    if full:
        names = dict.fromkeys(_host_name(topology, rank) for rank in full)
        has = "has" if len(names) == 1 else "have"
        more = " more" if orders else ""
        words += f" {_listed(list(names))} {has} no{more} free Thunderbolt port."
    return words


def _silent(topology: Topology) -> list[str]:
    silent = [rank for rank in range(topology.size) if _is_silent(topology, rank)]
    if not silent:
        return []
    its = "its cables are" if len(silent) == 1 else "their cables are"
    words = (
        f"{_names(topology, silent)} did not answer, so {its} known only as far as the hostfile "
        "and the others tell: %cluster status says what happened."
    )
    return [words]


def _parts(topology: Topology, cables: Graph) -> list[str]:
    parts: list[list[int]] = []
    for rank in range(topology.size):
        if not any(rank in part for part in parts):
            parts.append(sorted(reach(cables, rank)))
    parts = [part for part in parts if not all(_is_silent(topology, rank) for rank in part)]
    if len(parts) <= 1:
        return []
    cabled = any(link.cabled for link in topology.links)
    texts = [f"[{_names(topology, part)}]" for part in parts]
    between = f"There is no {'cable' if cabled else 'known way'} between {_listed(texts, 'parts')}"
    if cabled and len(reach(_graph(topology, topology.links), 0)) == topology.size:
        return [f"{between}: they reach each other over the network only, at its pace."]
    words = (
        f"{between}: no backend can make one world of them. Join them with a cable, or give every "
        "host an address in one network."
    )
    return [words]


def _no_cable(topology: Topology, cables: Graph, missing: Pairs, ring: bool) -> list[str]:
    """What a mesh lacks, where it is one that was meant."""
    hosts = _hosts(topology)
    found = [
        (a, b)
        for a, b in missing
        if (hosts[a], hosts[b]) == (a, b)
        and not (_is_silent(topology, a) or _is_silent(topology, b))
    ]
    few = not topology.backend and len(found) <= FEW_MISSING
    # A simulated ring with more cables than that is what was left of a mesh.
    left = topology.simulated and bool(cables.sum() > 2 * topology.size)
    meant = topology.backend == "jaccl" or few or left
    cabled = any(link.cabled for link in topology.links)
    if not (found and meant and cabled) or topology.size > MESH_MOST or _all_old(topology):
        return []
    texts = [f"{_host_name(topology, a)} and {_host_name(topology, b)}" for a, b in found]
    then = _ring_instead(cables) if ring else "a ring of cables is not possible either"
    if len(found) > LISTED:
        count = len(set(hosts))
        head = (
            f"{len(found)} of {count * (count - 1) // 2} pairs have no cable, such as {texts[0]}, "
            f"or {texts[-1]} (.shape.missing has all of them)"
        )
    else:
        head = f"No cable between {', nor '.join(texts)}"
    # Without a ring that comes first: see below.
    plugs = _plugs(topology, found) if ring and len(found) <= LISTED else ""
    return [f"{head}: jaccl needs a full mesh; {then}.{plugs}"]


def _ring_instead(cables: Graph) -> str:
    """That there is a ring of the cables, and in which order of the ranks."""
    found = best_ring(cables.astype(float))
    if found.order is None or found.is_rank_order:
        return "a ring is possible"
    return f"a ring is possible in the order {', '.join(map(str, found.order))} of the ranks"


def _too_few(topology: Topology, cables: Graph, ring: bool) -> list[str]:
    """Which hosts keep the cables from being a ring, and what would close one."""
    # The cables of a rank that was not asked may be what is missing.
    if ring or any(_is_silent(topology, rank) for rank in range(topology.size)):
        return []
    hosts = sorted(set(_hosts(topology)))
    cables = cables[np.ix_(hosts, hosts)]
    if len(hosts) < 3:
        return []
    cabled = any(link.cabled for link in topology.links)
    what, a_ring = ("cable", "a ring of cables") if cabled else ("link", "a ring")
    degrees = cables.sum(axis=1)

    def names(degree: int) -> list[str]:
        return [
            _host_name(topology, host)
            for host, count in zip(hosts, degrees, strict=True)
            if count == degree
        ]

    words = []
    if alone := names(0):
        has = "has" if len(alone) == 1 else "have"
        words.append(f"{_listed(alone)} {has} no {what}: {a_ring} needs two.")
    if ends := names(1):
        hang, each = ("hangs", "") if len(ends) == 1 else ("hang", " each")
        words.append(f"{_listed(ends)} {hang} on one {what}{each}: {a_ring} needs two.")
    if not words and ring_exists(cables) is None:
        unsure = f"above {EXACT} ranks not all orders are tried, so there may be one"
        return [f"No ring of these {what}s was found; {unsure}."]
    if not words:
        words.append(f"No order of the ranks makes a ring of these {what}s.")
    new = [(hosts[a], hosts[b]) for a, b in closing(cables)]
    if new and cabled:
        texts = [f"{_host_name(topology, a)} and {_host_name(topology, b)}" for a, b in new]
        cables_are = "A cable" if len(new) == 1 else f"{len(new)} cables"
        close = "closes" if len(new) == 1 else "close"
        words[-1] += f" {cables_are} between {', and between '.join(texts)} {close} one."
        words[-1] += _plugs(topology, new)
    return words


def closing(links: Graph) -> list[tuple[int, int]]:
    """The fewest new links that make a ring possible; [] for more ranks than can be tried."""
    if len(links) > MESH_MOST:
        return []
    # A new link costs more than all that are there.
    ring = cheapest_ring(np.where(links, 1.0, 1.0 + len(links)))
    return sorted((min(step), max(step)) for step in steps(ring or ()) if not links[step])


def _too_many(topology: Topology) -> list[str]:
    rdma = list(filter(_has_rdma, topology.links))
    size = topology.size
    meant = topology.backend in ("", "jaccl")
    if not meant or size <= MESH_MOST or len(rdma) < size * (size - 1) / 2:
        return []
    return [f"jaccl joins at most {MESH_MOST} ranks, these are {size}: use --backend jaccl-ring."]


def _without_rdma(topology: Topology) -> list[str]:
    """Thunderbolt 5 that is used without RDMA."""
    links = [
        link
        for link in topology.links
        if (_per_cable(link) or 0) >= THUNDERBOLT_5 and not _has_rdma(link)
    ]
    if not links or topology.simulated:
        return []
    pairs, several = _links(topology, links)
    verb = "are" if several else "is"
    words = (
        f"{pairs} {verb} Thunderbolt 5, but the hostfile names no RDMA devices there: jaccl and "
        "jaccl-ring need them. `rdma_ctl status` on both Macs says whether RDMA is enabled; "
        "mlx.distributed_config --over thunderbolt --backend jaccl writes them into a hostfile."
    )
    return [words]


def _links(topology: Topology, links: Sequence[Link]) -> tuple[str, bool]:
    """The links by name, each cable once, and whether there are several."""
    hosts = _hosts(topology)
    each = {_cable(hosts, link): link for link in reversed(links)}
    names = [_pair(topology, link) for link in reversed(each.values())]
    return _listed(names, "links"), len(names) > 1


def _cable(hosts: Sequence[int], link: Link) -> tuple[int, int]:
    """The hosts at both ends: what their ranks share."""
    a, b = sorted((hosts[link.a], hosts[link.b]))
    return a, b


# -- what is wrong with a link ---------------------------------------------------------------------


@attrs.frozen
class _Fault:
    """Everything that is wrong with one link.

    `cabling` says that the cable is an old one ("at 40 Gb/s, ..."), or another way in use than the
    cable, and `advice` what to do about that; `carries` and `takes` are what is odd in its
    bandwidth and its latency.
    """

    link: Link
    cabling: str = ""
    advice: str = ""
    carries: str = ""
    takes: str = ""


def _faults(topology: Topology) -> list[_Fault]:
    outliers = _outliers(topology)
    found = []
    for link in topology.links:
        cabling, advice = _old_cable(topology, link) or _idle_cable(link) or ("", "")
        carries, takes = _odd(link, outliers.get((link.a, link.b), {}))
        if cabling or carries or takes:
            found.append(_Fault(link, cabling, advice, carries, takes))
    return found


def _old_cable(topology: Topology, link: Link) -> tuple[str, str] | None:
    """Thunderbolt 4 among 5, or where RDMA is to run; simulated Macs have what was asked for."""
    rate = _per_cable(link)
    if rate is None or rate > THUNDERBOLT_4 or topology.simulated:
        return None
    best = max(_per_cable(each) or 0.0 for each in topology.links)
    if best < THUNDERBOLT_5 and link.kind != "rdma":
        return None
    others = f", where others have {best / 1e9:g}" if best >= THUNDERBOLT_5 else ""
    cabling = f"at {rate / 1e9:g} Gb/s{others}: that is Thunderbolt 4"
    if topology.backend in ("ring", "mpi"):
        return cabling, "If both Macs have Thunderbolt 5, use a Thunderbolt 5 cable."
    return f"{cabling}, and jaccl needs Thunderbolt 5", (
        "Use a Thunderbolt 5 cable; if one of the two Macs has no Thunderbolt 5, use --backend "
        "ring."
    )


def _idle_cable(link: Link) -> tuple[str, str] | None:
    """Ethernet or Wi-Fi is in use, and Thunderbolt lies idle."""
    if link.kind not in ("ethernet", "wifi") or not link.cabled:
        return None
    cabling = (
        f"{WORDS[link.kind]}, though a Thunderbolt cable joins the two: the addresses in the "
        "hostfile lead that way"
    )
    return cabling, "mlx.distributed_config --over thunderbolt writes one that uses the cable."


def _sort(link: Link) -> tuple[str, str]:
    """What can be compared: a plain socket is not with RDMA, nor Ethernet with Thunderbolt."""
    return link.kind, link.measured.via if link.measured is not None else ""


def _measured(topology: Topology) -> list[tuple[Link, Pair]]:
    """The links between hosts that were measured."""
    return [
        (link, link.measured)
        for link in topology.links
        if link.measured is not None and link.kind != "loopback"
    ]


def _outliers(topology: Topology) -> dict[tuple[int, int], dict[str, Outlier]]:
    """The pairs that stand out among links of their sort: by "bandwidth", by "latency"."""
    sorts: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for link, pair in _measured(topology):
        sorts[_sort(link)].append(attrs.evolve(pair, a=link.a, b=link.b))
    found: dict[tuple[int, int], dict[str, Outlier]] = defaultdict(dict)
    for pairs in sorts.values():
        # One alone would be compared with itself: its two directions.
        for each in standing_out(pairs) if len(pairs) > 1 else ():
            found[each.pair.a, each.pair.b][each.metric] = each
    return found


def _is_below(link: Link) -> bool:
    """Whether it carries far less than was negotiated, which Wi-Fi always does."""
    part = link.part_of_rate
    return part is not None and part < FAR_BELOW and link.kind != "wifi"


def _odd(link: Link, outliers: Mapping[str, Outlier]) -> tuple[str, str]:
    """What is odd in the bandwidth of a link and in its latency, or ""."""
    pair = link.measured
    if pair is None or link.kind == "loopback":
        return "", ""
    there, back = pair.forward.p50, pair.backward.p50
    lopsided = max(there, back) > LOPSIDED * min(there, back)
    slow, late = outliers.get("bandwidth"), outliers.get("latency")
    carries = takes = ""
    such = f"{WORDS[link.kind]} links".strip()
    if lopsided or slow or _is_below(link):
        carries = f"carries {rate_text(pair.bandwidth)}"
        if lopsided:
            carries = f"carries {rate_text(there)} there and {rate_text(back)} back"
        if _is_below(link):
            part, rate = link.part_of_rate or 0.0, link.negotiated or 0.0
            its = f"its {link.cables} cables have" if link.cables > 1 else "it has"
            carries += f", {100 * part:.0f} % of the {rate / 1e9:g} Gb/s that {its} negotiated"
        if slow:
            usual = rate_text(slow.usual)
            carries += f", where the median of {slow.count} {such} is {usual}"
    if late:
        of = "their median" if slow else f"the median of {late.count} {such}"
        takes = f"takes {time_text(late.value)} one way, where {of} is {time_text(late.usual)}"
    return carries, takes


def _advice(link: Link, host: str = "") -> str:
    """What to do about a link that measured badly, or about most of a host's."""
    if link.kind == "wifi":
        return f"{'They are' if host else 'It is'} Wi-Fi: a cable would be faster."
    busy = f"See whether {host or 'one of the two'} is busy"
    if link.kind in ("rdma", "thunderbolt"):
        cable = "other cables and sockets" if host else "another cable or socket"
        return f"{busy}, then try {cable} there, and measure again."
    if link.kind == "ethernet":
        return f"{busy}, then try another cable and port of the switch, and measure again."
    between = "it and the others" if host else "them"
    return f"{busy} and what lies between {between}, and measure again."


def _said(topology: Topology, fault: _Fault) -> str:
    """Everything about one link."""
    link = fault.link
    verb = "uses" if fault.cabling and link.kind in ("ethernet", "wifi") else "runs"
    words = f"{_pair(topology, link)} "
    odd = "; it ".join(filter(None, (fault.carries, fault.takes)))
    if not fault.cabling:
        return f"{words}{odd}. {_advice(link)}"
    besides = f"; it {odd}" if odd else ""
    return f"{words}{verb} {fault.cabling}{besides}. {fault.advice}"


def _told(topology: Topology, faults: Sequence[_Fault]) -> list[str]:
    """The faults in words: each link once, those of one cable or one host together."""
    hosts = _hosts(topology)
    cabling: dict[str, list[_Fault]] = defaultdict(list)
    odd: dict[tuple[int, int], _Fault] = {}
    for fault in faults:
        if fault.cabling and not (fault.carries or fault.takes):
            cabling[fault.cabling].append(fault)
            continue
        cable = _cable(hosts, fault.link)
        if cable not in odd or _merit(fault) < _merit(odd[cable]):
            odd[cable] = fault  # the worst of several ranks on one cable
    words = []
    for alike in cabling.values():
        names, several = _links(topology, [fault.link for fault in alike])
        verb = "use" if alike[0].link.kind in ("ethernet", "wifi") else "run"
        text = alike[0].cabling.replace("the two:", "them:") if several else alike[0].cabling
        words.append(f"{names} {verb if several else verb + 's'} {text}. {alike[0].advice}")
    return [*words, *_of_hosts(topology, odd)]


def _merit(fault: _Fault) -> tuple[bool, float]:
    pair = fault.link.measured
    return not fault.carries, pair.bandwidth if pair is not None else 0.0


def _of_hosts(topology: Topology, odd: dict[tuple[int, int], _Fault]) -> list[str]:
    """Links that measured badly: one sentence for a host with most of its links among them."""
    hosts = _hosts(topology)
    cables = {_cable(hosts, link): link for link, _ in _measured(topology)}
    left, words = dict(odd), []
    if len(odd) > 2 and 2 * len(odd) > len(cables) and not set.intersection(*map(set, odd)):
        return [_together(topology, list(odd.values()), len(cables))]
    while left:

        def bad(host: int) -> list[tuple[int, int]]:
            return [cable for cable in left if host in cable]

        host = max(set(hosts), key=lambda each: (len(bad(each)), -each))
        count = sum(host in cable for cable in cables)
        if len(bad(host)) < 2 or 2 * len(bad(host)) <= count:
            break
        words.append(_together(topology, [left.pop(cable) for cable in bad(host)], count, host))
    each = [_said(topology, fault) for fault in left.values()]
    return [*words, *_shortened(each)]


def _together(
    topology: Topology, faults: Sequence[_Fault], count: int, host: int | None = None
) -> str:
    """Many bad links in one sentence, those of a host or those of all."""
    hosts = _hosts(topology)
    links = [fault.link for fault in faults]
    of, name = "", ""
    if host is not None:
        name = _host_name(topology, host)
        ends = [port[hosts[link.b] == host] for link in links for port in link.ports]
        ports = _listed(list(dict.fromkeys(filter(None, ends))), "ports")
        of = f" of {name}{f' ({ports})' if ports else ''}"
    some = f"{len(faults)} of {count}" if len(faults) < count else "Both" if count == 2 else "All"
    plural = f"{some} {count} links" if some == "All" else f"{some} links"
    bad = {(link.a, link.b) for link in links}
    sorts = {_sort(link) for link in links}
    others = [
        pair
        for link, pair in _measured(topology)
        if (link.a, link.b) not in bad and _sort(link) in sorts
    ]
    pairs = [link.measured for link in links if link.measured is not None]
    odd = []
    if any(fault.carries for fault in faults):
        slowest = min(pair.bandwidth for pair in pairs)
        odd.append(f"the slowest carries {rate_text(slowest)}")
        if others:
            usual = statistics.median(pair.bandwidth for pair in others)
            odd[-1] += f" (median of the others: {rate_text(usual)})"
    if any(fault.takes for fault in faults):
        latest = max(pair.latency.p50 for pair in pairs)
        odd.append(f"the latest takes {time_text(latest)} one way")
        if others:
            usual = statistics.median(pair.latency.p50 for pair in others)
            odd[-1] += f" (median of the others: {time_text(usual)})"
    if host is None:
        advice = "See what the hosts are busy with, and measure again; then look at the cables."
    else:
        advice = _advice(links[0], name)
    return f"{plural}{of} measured badly: {', and '.join(odd)}. {advice}"


def _slower_kinds(topology: Topology, faults: Sequence[_Fault], apart: bool) -> list[str]:
    """Links that a ring uses and that are slower than the others by their kind."""
    size = topology.size
    if topology.backend == "jaccl":
        return []
    links = topology.links
    if topology.backend in ("ring", "jaccl-ring"):
        near = {tuple(sorted(step)) for step in steps(tuple(range(size)))}
        links = tuple(link for link in links if (link.a, link.b) in near)
    named = {(fault.link.a, fault.link.b) for fault in faults}
    words = []
    slow = [link for link in links if not link.cabled and (link.a, link.b) not in named]
    if wifi := [link for link in slow if link.kind == "wifi"]:
        names, several = _links(topology, wifi)
        words.append(f"{names} {'are' if several else 'is'} Wi-Fi: a cable would be faster.")
    fast = [link for link in links if link.kind in ("rdma", "thunderbolt")]
    ethernet = [link for link in slow if link.kind == "ethernet"]
    if not (fast and ethernet) or apart or topology.backend not in ("ring", "jaccl-ring"):
        return words
    names, several = _links(topology, ethernet)
    here, there = (_slowest(group) for group in (ethernet, fast))
    if here is not None and there is not None and here >= there:
        return words
    verb = "are" if several else "is"
    carries = ""
    if here is not None and there is not None:
        carries = f", here {rate_text(here)}, where those have {rate_text(there)}"
    words.append(
        f"{names} {verb} Ethernet, and other links are Thunderbolt: a ring moves at the pace of "
        f"its slowest link{carries}."
    )
    return words


def _slowest(links: Sequence[Link]) -> float | None:
    """Bytes/s that were measured, None unless they were on all of the links."""
    found = [link.measured.bandwidth for link in links if link.measured is not None]
    return min(found) if len(found) == len(links) else None


# -- the order of the ranks ------------------------------------------------------------------------


def _crossings(topology: Topology) -> list[str]:
    """Ranks of one host that are not side by side: the ring crosses between hosts too often."""
    hosts = _hosts(topology)
    count = len(set(hosts))
    if topology.backend not in ("ring", "jaccl-ring") or not 1 < count < topology.size:
        return []

    def crossed(order: Sequence[int]) -> list[tuple[int, int]]:
        return [(a, b) for a, b in steps(order) if hosts[a] != hosts[b]]

    order = sorted(range(topology.size), key=lambda rank: (hosts[rank], rank))
    linked = _shared(topology, _graph(topology, topology.links))
    now, then = len(crossed(range(topology.size))), len(crossed(order))
    if then >= now or not all(linked[step] for step in crossed(order)):
        return []
    words = (
        f"The ring crosses from one host to another {now} times, where {then} are enough: put the "
        f"ranks of a host side by side in the hostfile, in the order {', '.join(map(str, order))}."
    )
    return [words]


def _order(topology: Topology) -> list[str]:
    """Another order of the ranks that would make the ring much faster."""
    size = topology.size
    if topology.backend not in ("ring", "jaccl-ring") or size < 4:
        return []
    rates, basis = bandwidths(topology)
    rates = np.minimum(rates, rates.T)
    if basis in UNKNOWN:
        return []
    now = min(float(rates[rank, (rank + 1) % size]) for rank in range(size))
    # No ring is faster than the second fastest link of any rank: most need no search.
    most = min(float(np.sort(row)[-2]) for row in rates)
    if now <= 0 or most <= WORTH_A_CHANGE * now:
        return []
    best = best_ring(rates)
    if best.order is None or best.slowest is None or best.slowest <= WORTH_A_CHANGE * now:
        return []
    words = (
        f"In the order {', '.join(map(str, best.order))} of the ranks the slowest link of the ring "
        f"would have {rate_text(best.slowest)}, now it has {rate_text(now)} ({basis}): write the "
        "hosts into the hostfile in that order."
    )
    return [words]


def _shortened(words: list[str]) -> list[str]:
    """A few sentences of one sort; the rest is counted."""
    if len(words) <= LISTED:
        return words
    return [*words[: LISTED - 1], f"The same is true of {len(words) - LISTED + 1} more links."]
