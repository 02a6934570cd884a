"""A topology as tables and words."""

from __future__ import annotations

import html

from ..tables import Table, size_text
from ..units import memory_text, number_text
from .topology import Link, Topology

# Of more links, a table shows the slowest: so many has a full mesh of 12.
MOST_LINKS = 66


def gigabits_text(rate: float | None) -> str:
    """A negotiated rate in bits/s: "80 Gb/s"; "" when it is not known."""
    return "" if rate is None else f"{rate / 1e9:g} Gb/s"


def nodes_table(topology: Topology) -> Table:
    """The ranks of a topology."""
    rows = [
        (
            str(node.rank),
            node.host,
            node.model,
            "" if node.memory is None else memory_text(node.memory),
            "" if node.used is None else memory_text(node.used),
            size_text(node.held),
            node.state,
        )
        for node in topology.nodes
    ]
    heading = ("rank", "host", "model", "memory", "in use", "arrays", "state")
    return Table(heading, rows, right=(0, 3, 4, 5), unbroken=(0, 3, 4, 5, 6))


def links_table(topology: Topology) -> Table:
    """The links of a topology; of very many, the slowest ones.

    Latency is one way: the median, and the 99th percentile in brackets. Bandwidth is the median of
    each direction, and `of rate` that of the slower one in percent of what was negotiated.
    """
    links = _shown(topology)
    heading = ["from", "to", "kind", "ports", "negotiated"]
    if any(link.measured is not None for link in links):
        heading += ["latency us (p99)", "GB/s there", "back", "of rate"]
    rows = [_row(topology, link)[: len(heading)] for link in links]
    unbroken = tuple(each for each in range(len(heading)) if each not in (0, 1, 3))
    return Table(heading, rows, tuple(range(4, 9)), "no links are known", unbroken=unbroken)


def _shown(topology: Topology) -> list[Link]:
    """The links in the order of the ranks; of too many, those that carry least."""
    if len(topology.links) <= MOST_LINKS:
        return list(topology.links)

    def speed(link: Link) -> float:
        if link.measured is not None:
            return link.measured.bandwidth
        return (link.negotiated or float("inf")) / 8

    slowest = sorted(topology.links, key=speed)[:MOST_LINKS]
    return sorted(slowest, key=lambda link: (link.a, link.b))


def _row(topology: Topology, link: Link) -> tuple[str, ...]:
    ports = ", ".join(f"{a or '?'} - {b or '?'}" for a, b in link.ports)
    row = (
        *(f"{rank} {topology.nodes[rank].host}".strip() for rank in (link.a, link.b)),
        link.kind,
        ports,
        gigabits_text(link.negotiated),
    )
    pair, part = link.measured, link.part_of_rate
    if pair is None:
        return (*row, "", "", "", "")
    return (
        *row,
        f"{number_text(1e6 * pair.latency.p50)} ({number_text(1e6 * pair.latency.p99)})",
        number_text(pair.forward.p50 / 1e9),
        number_text(pair.backward.p50 / 1e9),
        "" if part is None else f"{100 * part:.0f} %",
    )


def _words(topology: Topology) -> tuple[list[str], list[str]]:
    """The lines above the tables, and those below."""
    ranks = f"{topology.size} rank{'s' if topology.size != 1 else ''}"
    above = [", ".join(filter(None, (topology.backend, ranks)))]
    if topology.simulated:
        above.append(f"simulated, nothing of it exists: {topology.simulated}")
    below = []
    if (rest := len(topology.links) - MOST_LINKS) > 0:
        below.append(f"The slowest are shown; {rest:,} more links are in .links.")
    if pairs := [link.measured for link in topology.links if link.measured is not None]:
        trips = _span([pair.latency.count for pair in pairs])
        transfers = _span([pair.forward.count for pair in pairs])
        vias = ", ".join(sorted({pair.via for pair in pairs}))
        below.append(
            f"Medians of {trips} round trips and of {transfers} transfers in each direction "
            f"({vias}); latency is one way."
        )
    found = topology.shape
    return above, [*below, str(found), *found.sentences]


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def as_text(topology: Topology) -> str:
    """A topology as text for a terminal."""
    above, below = _words(topology)
    tables = (nodes_table(topology).text(), links_table(topology).text())
    return "\n\n".join(["\n".join(above), *tables, "\n".join(below)])


def as_html(topology: Topology) -> str:
    """A topology as tables for a notebook."""
    above, below = (
        "".join(f"<p>{html.escape(line)}</p>" for line in lines) for lines in _words(topology)
    )
    nodes, links = nodes_table(topology), links_table(topology)
    return f"{above}{nodes._repr_html_()}{links._repr_html_()}{below}"
