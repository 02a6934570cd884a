"""The shape of a wiring: which backends it allows, and in words what is missing or slow."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Literal

import attrs
import numpy as np
import numpy.typing as npt

from ..measure.record import Pair
from ..units import rate_text, time_text
from .order import NO_SPEEDS, bandwidths, best_ring, cheapest_ring, has_ring, reach, steps
from .topology import Link, Topology

Name = Literal["one", "mesh", "ring", "line", "star", "partial mesh", "parts"]

MESH_MOST = 8  # MESH_MAX_PEERS of MLX
LISTED = 6  # things that a sentence names one by one
THUNDERBOLT_4, THUNDERBOLT_5 = 40e9, 80e9  # bits/s of one cable, one way
FAR_BELOW = 0.5  # of the negotiated rate; TCP over Thunderbolt reaches 55 %, RDMA 63 %
SLOW = 1 / 3  # of the median of its peers
LOPSIDED = 1.5  # one direction to the other
WORTH_A_CHANGE = 1.5  # how much faster another order must be

Pairs = Sequence[tuple[int, int]]
Faults = list[tuple[Link, str]]  # what is wrong with which link, and what to do


@attrs.frozen
class Shape:
    """The shape of the Thunderbolt cables where there are any, and of all links otherwise.

    `name` is "one" (rank), "mesh" (each linked to each), "ring" (some order of the ranks closes
    one), "line", "star" (all linked to one), "parts" (not connected) or "partial mesh" (none of
    these). Two or three ranks that are a mesh are a ring, too: see `ring`. `backends` are those
    that the links allow, perhaps with the ranks in another order. `missing` are the pairs without a
    link that a mesh would need, `faulty` those whose link is slow or of the wrong kind, and
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
    name = _name(cables)
    missing = tuple((a, b) for a, b in combinations(range(size), 2) if not cables[a, b])
    ring = has_ring(cables)
    looks = (_old_cables, _not_by_cable, _far_below, _slow, _late, _lopsided)
    found = [look(topology) for look in looks]
    words = [
        *_silent(topology),
        *_parts(topology, cables),
        *_no_cable(topology, missing, ring),
        *_too_few(topology, cables, ring),
        *_too_many(topology),
        *_without_rdma(topology),
        *(said for faults in found for said in _shortened([words for _, words in faults])),
        *_order(topology),
    ]
    return Shape(
        name=name,
        ring=ring,
        backends=_allowed(topology),
        missing=missing,
        faulty=tuple(sorted({(link.a, link.b) for faults in found for link, _ in faults})),
        sentences=tuple(words),
        cabled=any(link.cabled for link in topology.links),
        size=size,
    )


# -- graphs ----------------------------------------------------------------------------------------


def _graph(topology: Topology, links: Iterable[Link]) -> npt.NDArray[np.bool_]:
    graph = np.zeros((topology.size, topology.size), bool)
    for link in links:
        graph[link.a, link.b] = graph[link.b, link.a] = True
    return graph


def _cables(topology: Topology) -> npt.NDArray[np.bool_]:
    """Who is linked by Thunderbolt, or runs on one host; without any cable, who is linked."""
    if not any(link.cabled for link in topology.links):
        return _graph(topology, topology.links)

    def counts(link: Link) -> bool:
        # What joins a rank that could not be asked may be a cable.
        known = not (_is_silent(topology, link.a) or _is_silent(topology, link.b))
        return link.cabled or link.kind == "loopback" or not known

    return _graph(topology, filter(counts, topology.links))


def _is_silent(topology: Topology, rank: int) -> bool:
    return topology.nodes[rank].silent and not topology.simulated


def _name(graph: npt.NDArray[np.bool_]) -> Name:
    size = len(graph)
    degrees = sorted(int(degree) for degree in graph.sum(axis=1))
    if len(reach(graph, 0)) < size:
        return "parts"
    if degrees[0] == size - 1:
        return "mesh"
    if has_ring(graph):
        return "ring"
    if degrees[-1] <= 2:
        return "line"
    if degrees[-1] == size - 1 and degrees[-2] == 1:
        return "star"
    return "partial mesh"


def _allowed(topology: Topology) -> tuple[str, ...]:
    """The backends that the links allow; the one that runs is one of them."""
    size = topology.size
    rdma = _graph(topology, (x for x in topology.links if "rdma" in (x.kind, *x.besides)))
    linked = _graph(topology, topology.links)
    pairs = size * (size - 1)
    allowed = {
        "jaccl": 1 < size <= MESH_MOST and rdma.sum() == pairs,
        "jaccl-ring": size > 1 and has_ring(rdma),
        "ring": has_ring(linked),
        "mpi": linked.sum() == pairs,
    }
    allowed |= {topology.backend: True} if topology.backend else {}
    return tuple(name for name, possible in allowed.items() if possible)


# -- words -----------------------------------------------------------------------------------------


def _listed(things: Sequence[str], what: str = "") -> str:
    """All of a few things, the first of many."""
    if len(things) > LISTED:
        more = f"{len(things) - LISTED + 1} more {what}".strip()
        return f"{', '.join(things[: LISTED - 1])} and {more}"
    return " and ".join(filter(None, [", ".join(things[:-1]), *things[-1:]]))


def _names(topology: Topology, ranks: Iterable[int]) -> str:
    return _listed([topology.name(rank) for rank in ranks])


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
                f"{free[a].pop(0)} of {topology.name(a)} to {free[b].pop(0)} of {topology.name(b)}"
            )
        else:
            full += [rank for rank in (a, b) if not free[rank]]
    words = f" Plug {_listed(orders, 'cables')}." if orders else ""
    if full:
        names = dict.fromkeys(topology.name(rank) for rank in full)
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


def _parts(topology: Topology, cables: npt.NDArray[np.bool_]) -> list[str]:
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


def _no_cable(topology: Topology, missing: Pairs, ring: bool) -> list[str]:
    """What a mesh lacks, where there are cables that could be part of one."""
    size = topology.size
    found = [(a, b) for a, b in missing if not (_is_silent(topology, a) or _is_silent(topology, b))]
    cabled = any(link.cabled for link in topology.links)
    if not found or not cabled or size > MESH_MOST or _all_old(topology):
        return []
    texts = [f"{topology.name(a)} and {topology.name(b)}" for a, b in found]
    then = "a ring is possible" if ring else "a ring is not possible either"
    if len(found) > LISTED:
        head = (
            f"{len(found)} of {size * (size - 1) // 2} pairs have no cable, such as {texts[0]}, "
            f"or {texts[-1]} (.shape.missing has all of them)"
        )
    else:
        head = f"No cable between {', nor '.join(texts)}"
    # Without a ring that comes first: see below.
    plugs = _plugs(topology, found) if ring and len(found) <= LISTED else ""
    return [f"{head}: jaccl needs a full mesh; {then}.{plugs}"]


def _too_few(topology: Topology, cables: npt.NDArray[np.bool_], ring: bool) -> list[str]:
    """Who keeps the cables from being a ring, and what would close one."""
    size = topology.size
    # The cables of a rank that was not asked may be what is missing.
    if ring or size < 3 or any(_is_silent(topology, rank) for rank in range(size)):
        return []
    what = "cable" if any(link.cabled for link in topology.links) else "link"
    degrees = cables.sum(axis=1)
    words = []
    if alone := [rank for rank in range(size) if degrees[rank] == 0]:
        has = "has" if len(alone) == 1 else "have"
        words.append(f"{_names(topology, alone)} {has} no {what}: a ring needs two.")
    if ends := [rank for rank in range(size) if degrees[rank] == 1]:
        hang, each = ("hangs", "") if len(ends) == 1 else ("hang", " each")
        words.append(f"{_names(topology, ends)} {hang} on one {what}{each}: a ring needs two.")
    if not words:
        words.append(f"No order of the ranks makes a ring of these {what}s.")
    new = closing(cables)
    if new and what == "cable":
        texts = [f"{topology.name(a)} and {topology.name(b)}" for a, b in new]
        cables_are = "A cable" if len(new) == 1 else f"{len(new)} cables"
        close = "closes" if len(new) == 1 else "close"
        words[-1] += f" {cables_are} between {', and between '.join(texts)} {close} one."
        words[-1] += _plugs(topology, new)
    return words


def closing(links: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """The fewest new links that make a ring possible; [] for more ranks than can be tried."""
    if len(links) > MESH_MOST:
        return []
    # A new link costs more than all that are there.
    ring = cheapest_ring(np.where(links, 1.0, 1.0 + len(links)))
    return sorted((min(step), max(step)) for step in steps(ring or ()) if not links[step])


def _too_many(topology: Topology) -> list[str]:
    rdma = [link for link in topology.links if "rdma" in (link.kind, *link.besides)]
    size = topology.size
    if size <= MESH_MOST or len(rdma) < size * (size - 1) / 2:
        return []
    return [f"jaccl joins at most {MESH_MOST} ranks, these are {size}: use --backend jaccl-ring."]


def _old_cables(topology: Topology) -> Faults:
    """Thunderbolt 4 among 5, or where RDMA is to run."""
    rates = {link: _per_cable(link) for link in topology.links}
    new = [rate for rate in rates.values() if rate is not None and rate >= THUNDERBOLT_5]
    found: Faults = []
    for link, rate in rates.items():
        if rate is None or rate > THUNDERBOLT_4 or not (new or link.kind == "rdma"):
            continue
        others = f", where others have {max(new) / 1e9:g}" if new else ""
        words = (
            f"{_pair(topology, link)} runs at {rate / 1e9:g} Gb/s{others}: that is Thunderbolt 4, "
            "and jaccl needs Thunderbolt 5. Use a Thunderbolt 5 cable; if one of the two Macs has "
            "no Thunderbolt 5, use --backend ring."
        )
        found.append((link, words))
    return found


def _without_rdma(topology: Topology) -> list[str]:
    """Thunderbolt 5 that is used without RDMA."""
    links = [
        link
        for link in topology.links
        if (_per_cable(link) or 0) >= THUNDERBOLT_5 and "rdma" not in (link.kind, *link.besides)
    ]
    if not links or topology.simulated:
        return []
    pairs = _listed([_pair(topology, link) for link in links], "links")
    verb = "is" if len(links) == 1 else "are"
    words = (
        f"{pairs} {verb} Thunderbolt 5, but the hostfile names no RDMA devices there: jaccl and "
        "jaccl-ring need them. `rdma_ctl status` on both Macs says whether RDMA is enabled; "
        "mlx.distributed_config --over thunderbolt --backend jaccl writes them into a hostfile."
    )
    return [words]


def _not_by_cable(topology: Topology) -> Faults:
    """Ethernet or Wi-Fi is in use, and Thunderbolt lies idle."""
    links = [link for link in topology.links if link.kind in ("ethernet", "wifi") and link.cabled]
    found: Faults = []
    for link in links:
        kind = "Wi-Fi" if link.kind == "wifi" else "Ethernet"
        words = (
            f"{_pair(topology, link)} uses {kind}, though a Thunderbolt cable joins the two: the "
            "addresses in the hostfile lead that way. mlx.distributed_config --over thunderbolt "
            "writes one that uses the cable."
        )
        found.append((link, words))
    return found


def _far_below(topology: Topology) -> Faults:
    found: Faults = []
    for link in topology.links:
        part = link.part_of_rate
        if part is None or part >= FAR_BELOW or link.measured is None or not link.negotiated:
            continue
        words = (
            f"{_pair(topology, link)} carries {rate_text(link.measured.bandwidth)}, "
            f"{100 * part:.0f} % of the {link.negotiated / 1e9:g} Gb/s that it has negotiated: "
            "see what else uses it, try another cable or socket, and measure again."
        )
        found.append((link, words))
    return found


def _peers(topology: Topology) -> list[list[tuple[Link, Pair]]]:
    """Links that can be compared: a plain socket is not with RDMA, and loopback is no cable."""
    groups: dict[str, list[tuple[Link, Pair]]] = defaultdict(list)
    for link in topology.links:
        if link.measured is not None and link.kind != "loopback":
            groups[link.measured.via].append((link, link.measured))
    return list(groups.values())


def _of_kind(link: Link) -> str:
    return "" if link.kind == "unknown" else f", {link.kind},"


def _slow(topology: Topology) -> Faults:
    """Links with less than a third of the median of their peers."""
    found: Faults = []
    for links in _peers(topology):
        usual = statistics.median(pair.bandwidth for _, pair in links)
        for link, pair in links:
            if pair.bandwidth < SLOW * usual:
                words = (
                    f"{_pair(topology, link)}{_of_kind(link)} is the slow one: "
                    f"{rate_text(pair.bandwidth)}, where the median of {len(links)} links is "
                    f"{rate_text(usual)}. Try another cable or socket there, and measure again."
                )
                found.append((link, words))
    return found


def _late(topology: Topology) -> Faults:
    """Links with more than three times the median latency of their peers."""
    found: Faults = []
    for links in _peers(topology):
        usual = statistics.median(pair.latency.p50 for _, pair in links)
        for link, pair in links:
            if pair.latency.p50 > usual / SLOW:
                words = (
                    f"{_pair(topology, link)}{_of_kind(link)} is the late one: "
                    f"{time_text(pair.latency.p50)} one way, where the median of {len(links)} "
                    f"links is {time_text(usual)}. See what lies between the two (a switch, Wi-Fi, "
                    "a sleeping port), and measure again."
                )
                found.append((link, words))
    return found


def _lopsided(topology: Topology) -> Faults:
    found: Faults = []
    for link in topology.links:
        if link.measured is None or link.kind == "loopback":
            continue
        there, back = link.measured.forward.p50, link.measured.backward.p50
        if max(there, back) > LOPSIDED * min(there, back):
            words = (
                f"{_pair(topology, link)} carries {rate_text(there)} there and {rate_text(back)} "
                "back, which should be alike: see whether one of the two is busy, and measure "
                "again; then try another cable."
            )
            found.append((link, words))
    return found


def _order(topology: Topology) -> list[str]:
    """Another order of the ranks that would make the ring much faster."""
    size = topology.size
    if topology.backend not in ("ring", "jaccl-ring") or size < 4:
        return []
    rates, basis = bandwidths(topology)
    rates = np.minimum(rates, rates.T)
    if basis == NO_SPEEDS:
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
