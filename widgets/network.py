"""The picture of a topology: who is linked to whom, how fast, and how full each host is.

Everything is laid out here, as items of rectangles, paths and texts. `network.js` puts them on the
page and keeps them up to date, `static_svg` writes the same into the saved notebook. Both draw in
the colours of `network.css`.
"""

from __future__ import annotations

import html
import math
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from ..engine.topology.topology import KINDS, Kind, Link, Node, Topology
from ..engine.units import memory_text, rate_text, time_text
from .picture import number

# All lengths in pixels.
MARGIN = 14
LINE = 14.5  # of text
NARROWEST = 580  # the picture, for its legend
ROOMY = 8  # nodes at most that get a large glyph and texts of their own
TRACK = 20  # a ring of more nodes runs around a rectangle, not a circle
FRAMED = 16  # ranks at most of several hosts that get frames; more get bands
LABELLED = 15  # links at most that all get a text; of more, those that are slow
HAIR = 300  # links from which they are hairlines
MOST_MARKS = 24  # faulty links at most that get a text or a mark; the others get the colour alone
MOST_TEXTS = 4  # texts at hairlines
MOST_WARNINGS = 4  # of a saved picture; the page has them all

CSS = (Path(__file__).parent / "network.css").read_text(encoding="utf-8")

WORDS: dict[Kind, str] = {
    "rdma": "RDMA",
    "thunderbolt": "TB-TCP",
    "ethernet": "ETH",
    "wifi": "WIFI",
    "loopback": "LOOP",
    "unknown": "unknown kind",
}
IN_FULL: dict[Kind, str] = {
    "rdma": "RDMA over Thunderbolt",
    "thunderbolt": "TCP over Thunderbolt",
    "ethernet": "Ethernet",
    "wifi": "Wi-Fi",
    "loopback": "loopback, on one host",
    "unknown": "unknown",
}
SPEEDS = 5  # classes of speed, v0 the slowest
BADGES = {"jaccl": "rdma", "jaccl-ring": "rdma", "ring": "tcp", "mpi": "tcp", "nccl": "gpu"}
STATES = {
    "busy": "busy",
    "dead": "dead",
    "unknown": "state unknown",
}

# ["rect", class, x, y, width, height, radius], ["path", class, d, stroke width],
# ["circle", class, x, y, radius], ["text", class, x, y, anchor, words]
Part = list[Any]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Point = tuple[float, float]
Side = Literal["above", "below", "left", "right", "inside"]


@attrs.define
class Item:
    """A node or link, as it is drawn. `label` is the same in words.

    `over` is drawn above all links: marks and texts. `ends` are the ranks of a link; a node has
    none. `x` and `y` move the parts.
    """

    id: str
    label: str
    parts: list[Part]
    over: list[Part] = attrs.field(factory=list)
    ends: tuple[int, ...] = ()
    x: float = 0
    y: float = 0


@attrs.define
class Scene:
    """What is drawn: plain values, as the page gets them.

    `box` is x, y, width and height of the picture; `back` what lies behind the links: frames,
    missing cables, the legend. `label` is all of it in words.
    """

    title: str
    badge: dict[str, str]
    label: str
    box: tuple[float, float, float, float]
    back: list[Part]
    links: list[Item]
    nodes: list[Item]
    warnings: list[str]


def scene(
    topology: Topology,
    warnings: Sequence[str] = (),
    faulty: Collection[tuple[int, int]] = (),
) -> Scene:
    """Lay out the picture of a topology.

    Args:
        topology: what to draw.
        warnings: sentences about its shape, shown above the picture.
        faulty: the ranks at both ends of links that stand out.
    """
    bad = {(min(pair), max(pair)) for pair in faulty}
    layout = _Layout(topology)
    best = full_speeds(topology.links)
    nodes = [layout.node(each) for each in topology.nodes]
    links, back = _links(topology, layout, bad, best), list(layout.back)
    back += _ghosts(topology, layout)
    back += _summary(topology, layout)
    for item in links:
        layout.boxes += [text_box(each) for each in item.over if each[0] == "text"]
    box = _legend(topology, layout, bool(bad), best, back)
    return Scene(
        title=headline(topology),
        badge=_badge(topology),
        label=_label(topology, bad, warnings),
        box=box,
        back=[_rounded(each) for each in back],
        links=links,
        nodes=nodes,
        warnings=list(warnings),
    )


# -- in words --------------------------------------------------------------------------------------


def form(topology: Topology) -> str:
    """ "full mesh", "ring", "line", or "" for anything else."""
    size, links = topology.size, {(each.a, each.b) for each in topology.links}
    degrees = Counter(rank for pair in links for rank in pair)
    if size < 2 or not links:
        return ""
    if len(links) == size * (size - 1) // 2:
        return "full mesh" if size > 2 else ""
    joined = len(_walk(topology)) == size
    if joined and len(links) == size and set(degrees.values()) == {2}:
        return "ring"
    if joined and len(links) == size - 1 and max(degrees.values()) == 2:
        return "line"
    return ""


def headline(topology: Topology) -> str:
    """ "4 ranks on 2 hosts, full mesh of 6 links"."""
    hosts = len({each.host for each in topology.nodes})
    parts = [f"{_count(topology.size, 'rank')} on {_count(hosts, 'host')}"]
    found, links = form(topology), _count(len(topology.links), "link")
    if topology.size > 1:
        parts.append(f"{found} of {links}" if found else links)
    return ", ".join(parts)


def _count(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _badge(topology: Topology) -> dict[str, str]:
    if topology.simulated:
        return {"words": f"{topology.backend} simulated".strip(), "kind": "simulated"}
    return {"words": topology.backend, "kind": BADGES.get(topology.backend, "other")}


def link_words(link: Link, faulty: bool = False) -> str:
    """ "rank 0 to rank 1, RDMA, 5.90 GB/s, 28.0 us"."""
    parts = [f"rank {link.a} to rank {link.b}", WORDS[link.kind]]
    if link.measured is None:
        parts.append("not measured")
    else:
        parts += [rate_text(link.measured.bandwidth), time_text(link.measured.latency.p50)]
    return ", ".join(parts + ["faulty"] * faulty)


def node_words(node: Node) -> str:
    """ "rank 0, studio-1, Mac Studio, Apple M3 Ultra, 212 of 512 GB in use, ok"."""
    parts = [f"rank {node.rank}", node.host, node.model, memory_words(node), f"state {node.state}"]
    return ", ".join(part for part in parts if part)


def memory_words(node: Node) -> str:
    """ "212 of 512 GB", "512 GB", or "" when it is not known."""
    if not node.memory:
        return ""
    whole = memory_text(node.memory)
    used = "" if node.used is None else memory_text(node.used).removesuffix(" GB")
    return f"{used} of {whole}" if used else whole


def _label(topology: Topology, bad: set[tuple[int, int]], warnings: Sequence[str]) -> str:
    backend = f", backend {topology.backend}" if topology.backend else ""
    simulated = f", simulated: {topology.simulated}" if topology.simulated else ""
    sentences = [f"Topology: {headline(topology)}{backend}{simulated}."]
    for kind in KINDS:
        links = [each for each in topology.links if each.kind == kind]
        speeds = [each.measured.bandwidth for each in links if each.measured]
        if not links:
            continue
        figures = "not measured"
        if speeds:
            low, high = rate_text(min(speeds)), rate_text(max(speeds))
            figures = low if low == high else f"{low} to {high}"
        sentences.append(f"{WORDS[kind]}: {_count(len(links), 'link')}, {figures}.")
    wrong = [each for each in topology.nodes if each.state in ("dead", "busy")]
    sentences += [f"Rank {each.rank} is {each.state}." for each in wrong[:8]]
    sentences += [f"The link of ranks {a} and {b} is faulty." for a, b in sorted(bad)[:8]]
    return " ".join([*sentences, *_few(warnings)])


def _few(warnings: Sequence[str]) -> list[str]:
    more = len(warnings) - MOST_WARNINGS
    return [*warnings[:MOST_WARNINGS], *([f"And {more} more."] if more > 0 else [])]


# -- the speed of a link ---------------------------------------------------------------------------


def full_speeds(links: Iterable[Link]) -> dict[Kind, float]:
    """Bytes/s that count as full speed, by kind: the fastest measured, at least half of the rate.

    Without the second, links that are all slow would look fast beside one another.
    """
    found: dict[Kind, float] = {}
    for link in links:
        if link.measured is not None:
            half = (link.negotiated or 0) / 8 / 2
            found[link.kind] = max(found.get(link.kind, 0), link.measured.bandwidth, half)
    return found


def speed_class(link: Link, best: dict[Kind, float]) -> str:
    """ "v0" (the slowest) to "v4", or "none" when it was not measured."""
    if link.measured is None:
        return "none"
    part = link.measured.bandwidth / max(best[link.kind], 1e-9)
    return f"v{min(SPEEDS - 1, max(0, math.ceil(part * SPEEDS - 1e-9) - 1))}"


def slowest(topology: Topology) -> Link | None:
    """The link with the least measured bandwidth."""
    measured = [each for each in topology.links if each.measured is not None]
    return min(measured, key=_bandwidth, default=None)


def _bandwidth(link: Link) -> float:
    return link.measured.bandwidth if link.measured else math.inf


# -- text ------------------------------------------------------------------------------------------

SIZES = {"small": 10.5, "title": 14.0}


def text_width(words: str, size: float = 12) -> float:
    """About the width of a line of text; for wide fonts such as DejaVu Sans, so never too small."""
    narrow, wide = set("iIjl.,:;'|!()[]tf- ·"), set("mwMW@%—…")
    parts = (0.38 if c in narrow else 0.9 if c in wide else 0.66 for c in words)
    return size * sum(parts)


def text_box(part: Part) -> Box:
    """What a text covers."""
    _, kind, x, y, anchor, words = part
    size = next((SIZES[name] for name in kind.split() if name in SIZES), 12.0)
    width = text_width(words, size)
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return (left, y - size * 0.85, left + width, y + size * 0.3)


def cut(words: str, most: int = 20) -> str:
    """At most so many letters; what is left out is the middle, as ends tell hosts apart."""
    if len(words) <= most:
        return words
    first = most // 2
    return f"{words[:first]}…{words[len(words) - (most - 1 - first) :]}"


def short_hosts(hosts: Iterable[str]) -> dict[str, str]:
    """Each host without the domain, where all have the same one."""
    names = dict.fromkeys(hosts)
    ends = {name.partition(".")[2] for name in names}
    shared = len(ends) == 1 and any(end and not end[-1].isdigit() for end in ends)
    return {name: name.partition(".")[0] if shared else name for name in names}


def _meet(one: Box, two: Box, gap: float = 0) -> bool:
    return (
        one[0] < two[2] + gap
        and two[0] < one[2] + gap
        and one[1] < two[3] + gap
        and two[1] < one[3] + gap
    )


# -- the layout ------------------------------------------------------------------------------------


@attrs.define
class Place:
    """Where a node is: the middle of its glyph, the glyph's size, and the side of its texts."""

    x: float
    y: float
    width: float
    height: float
    side: Side
    full: bool  # with all its texts
    out: Point = (0.0, 1.0)  # away from the middle of the picture

    def box(self, gap: float = 0) -> Box:
        w, h = self.width / 2 + gap, self.height / 2 + gap
        return (self.x - w, self.y - h, self.x + w, self.y + h)

    def edge(self, to: Point, gap: float) -> Point:
        """Where a line from the middle to a point leaves the glyph."""
        dx, dy = to[0] - self.x, to[1] - self.y
        w, h = self.width / 2 + gap, self.height / 2 + gap
        part = min(w / abs(dx) if dx else math.inf, h / abs(dy) if dy else math.inf, 1.0)
        return (self.x + part * dx, self.y + part * dy)


def _walk(topology: Topology) -> list[int]:
    """The ranks along the links: from the end of a line, or around a ring from its first rank."""
    near: dict[int, list[int]] = {each.rank: [] for each in topology.nodes}
    for link in topology.links:
        near[link.a].append(link.b)
        near[link.b].append(link.a)
    if not near:
        return []
    ends = [rank for rank, others in near.items() if len(set(others)) == 1]
    path = [min(ends, default=min(near))]
    seen = set(path)
    while True:
        following = [rank for rank in sorted(near[path[-1]]) if rank not in seen]
        if not following:
            return path
        path.append(following[0])
        seen.add(following[0])


def _side(dx: float, dy: float) -> Side:
    if abs(dy) < 0.45:
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


class _Layout:
    """Where everything is. `boxes` is what is taken: glyphs and texts, for whatever comes later."""

    def __init__(self, topology: Topology) -> None:
        self.places: dict[int, Place] = {}
        self.back: list[Part] = []
        self.boxes: list[Box] = []
        self.form = form(topology)
        self.alone = False  # all ranks on one host: its name stands at the frame
        hosts: dict[str, list[Node]] = {}
        for node in topology.nodes:
            hosts.setdefault(node.host or f"rank {node.rank}", []).append(node)
        self.hosts = hosts
        self.names = short_hosts(node.host for node in topology.nodes)
        largest = max((len(each) for each in hosts.values()), default=0)
        self.size = topology.size
        self.alone = len(hosts) == 1 and self.size > 1
        self.roomy = self.size <= ROOMY and (largest == 1 or self.alone)
        if largest > 1 and len(hosts) > 1 and self.size <= FRAMED:
            self._framed()
        else:
            order = [rank for each in hosts.values() for rank in (node.rank for node in each)]
            if self.form in ("ring", "line"):
                order = _walk(topology)
            self._flat(order)
            if largest > 1:
                self._bands(order, topology)
        for place in self.places.values():
            self.boxes.append(place.box(3))

    # One rank on each host, or all on one, or too many for frames.
    def _flat(self, order: Sequence[int]) -> None:
        n = len(order)
        if self.roomy:
            wide, high = (62.0, 42.0) if not self.alone else (54.0, 38.0)
        else:
            wide, high = (36.0, 28.0) if n <= 16 else (27.0, 21.0) if n <= 36 else (19.0, 16.0)
        places: list[tuple[float, float, float, float]] = []  # x, y and the way out
        if n == 1:
            places = [(0, 0, 0, 1)]
        elif n == 2:
            places = [(-170, 0, 0, 1), (170, 0, 0, 1)]
        elif n > TRACK and self.form == "ring":
            places = _track(n, 48 if n <= 36 else 32)
        else:
            across = {3: 165.0, 4: 215.0}.get(n, 240.0)
            down = {3: 140.0, 4: 165.0}.get(n, 205.0)
            if not self.roomy:
                # As far apart as the glyphs and their numbers need.
                across = down = max(180.0, n * (wide + 9) / (2 * math.pi))
            first = -90 - (180 / n if n % 2 == 0 and self.roomy else 0)
            for index in range(n):
                angle = math.radians(first + 360 * index / n)
                dx, dy = math.cos(angle), math.sin(angle)
                places.append((across * dx, down * dy, dx, dy))
        for rank, (x, y, dx, dy) in zip(order, places, strict=True):
            self.places[rank] = Place(x, y, wide, high, _side(dx, dy), self.roomy, (dx, dy))

    # Several hosts with several ranks each: a frame for each host.
    def _framed(self) -> None:
        hosts = list(self.hosts.items())
        n = len(hosts)
        radii = {1: 0.0, 2: 34.0, 3: 36.0, 4: 42.0}
        most = max(radii.get(len(each), 13.0 * len(each)) for _, each in hosts)
        half = most + 32
        # Frames that are neighbours on the circle must not touch, nor their names.
        around = (half * 1.2 + 30) / math.sin(math.pi / n) if n > 2 else half + 100
        for index, (host, nodes) in enumerate(hosts):
            first = -90 - (180 / n if n % 2 == 0 else 0)
            angle = math.radians(180 * (index + 1) if n == 2 else first + 360 * index / n)
            x, y = around * math.cos(angle), around * (0.9 if n > 4 else 1) * math.sin(angle)
            self._frame(host, nodes, x, y, radii, half)

    def _frame(
        self,
        host: str,
        nodes: Sequence[Node],
        x: float,
        y: float,
        radii: dict[int, float],
        half: float,
    ) -> None:
        k = len(nodes)
        radius = radii.get(k, 13.0 * k)
        turn = -90.0 - (180 / k if k % 2 == 0 else 0)
        beside = abs(x) > abs(y) + 1
        if k == 2:
            # Across the way to the other hosts: no link may run through one of them.
            turn = 90.0 if beside else 180.0
        for index, node in enumerate(nodes):
            angle = math.radians(turn + 360 * index / k)
            dx, dy = math.cos(angle), math.sin(angle)
            out = (dx, dy) if k > 1 else (0.0, 1.0)
            if k == 2:
                out = (math.copysign(1.0, x), 0.0) if beside else (0.0, math.copysign(1.0, y))
            at = (x + radius * dx, y + radius * dy)
            self.places[node.rank] = Place(*at, 34, 26, _side(*out), False, out)
        top, bottom = y - half, y + half
        self.back.append(["rect", "frame", x - half, top, 2 * half, bottom - top, 12])
        lines = [("strong", cut(self.names.get(host, host), 24)), ("small", _chip(nodes[0])),
                 ("small", memory_words(nodes[0]))]  # fmt: skip
        shown = [(kind, words) for kind, words in lines if words]
        line = top - 8 - LINE * (len(shown) - 1) if y < -1 else bottom + 17
        for kind, words in shown:
            part = ["text", kind, x, line, "middle", words]
            self.back.append(part)
            self.boxes.append(text_box(part))
            line += LINE
        self.boxes += [(x - half, top, x - half + 1, bottom), (x + half - 1, top, x + half, bottom)]

    def _bands(self, order: Sequence[int], topology: Topology) -> None:
        """The frame of one host around all, or a band behind the ranks of each host."""
        if self.alone:
            self.alone_frame(topology.nodes[0])
            return
        hosts = {node.rank: node.host for node in topology.nodes}
        runs: list[list[int]] = []
        for rank in order:
            if runs and hosts[runs[-1][-1]] == hosts[rank]:
                runs[-1].append(rank)
            else:
                runs.append([rank])
        for run in runs:
            at = [self.places[rank] for rank in run]
            points = "L".join(f"{number(each.x)} {number(each.y)}" for each in at)
            width = max(at[0].width, at[0].height) + 14
            self.back.append(["path", "band", f"M{points}h.1", width])
            middle, (dx, dy) = at[len(at) // 2], at[len(at) // 2].out
            if len(runs) <= 24:
                # Beyond the numbers of the ranks.
                words = cut(self.names[hosts[run[0]]], 14)
                far = abs(dx) * (middle.width / 2 + 18 + text_width(words, 10.5) / 2)
                far += abs(dy) * (middle.height / 2 + 18) + 9
                at_label = (middle.x + far * dx, middle.y + far * dy + 3.5)
                label: Part = ["text", "strong small", *at_label, "middle", words]
                self.back.append(label)
                self.boxes.append(text_box(label))

    def alone_frame(self, node: Node) -> None:
        boxes = [box for place in self.places.values() for box in self._around(place)]
        left, top = min(b[0] for b in boxes) - 22, min(b[1] for b in boxes) - 16
        right, bottom = max(b[2] for b in boxes) + 22, max(b[3] for b in boxes) + 14
        host = cut(self.names[node.host], 40)
        words = ", ".join(part for part in (host, _chip(node), memory_words(node)) if part)
        label: Part = ["text", "strong", (left + right) / 2, top - 9, "middle", words]
        self.back += [["rect", "frame", left, top, right - left, bottom - top, 14], label]
        self.boxes += [text_box(label), (left, top, left + 1, bottom), (right - 1, top, right, top)]

    def _around(self, place: Place) -> list[Box]:
        rows = 2 if place.full else 1
        wide = 30 if place.full else 12
        found = place.box(6)
        high = rows * LINE + 4
        x = place.x
        above: Box = (x - wide, found[1] - high, x + wide, found[1])
        below: Box = (x - wide, found[3], x + wide, found[3] + high)
        left: Box = (found[0] - 2 * wide, place.y, found[0], place.y)
        right: Box = (found[2], place.y, found[2] + 2 * wide, place.y)
        at = {"above": above, "below": below, "left": left, "right": right}
        return [found, at.get(place.side, found)]

    # -- nodes -------------------------------------------------------------------------------------

    def node(self, node: Node) -> Item:
        """A host: its glyph, filled by its memory from below, and its texts."""
        place = self.places[node.rank]
        parts = _glyph(node, place)
        texts = self._texts(node, place)
        for part in texts:
            box = text_box(part)
            self.boxes.append(
                (box[0] + place.x, box[1] + place.y, box[2] + place.x, box[3] + place.y)
            )
        boxes = [(-place.width / 2, -place.height / 2, place.width / 2, place.height / 2)]
        if place.full:
            boxes += [text_box(part) for part in texts]
        left, top = min(b[0] for b in boxes) - 5, min(b[1] for b in boxes) - 5
        right, bottom = max(b[2] for b in boxes) + 5, max(b[3] for b in boxes) + 5
        hit: Part = ["rect", "hit", left, top, right - left, bottom - top, 8]
        return Item(
            id=str(node.rank),
            label=node_words(node),
            parts=[_rounded(each) for each in (hit, *parts, *texts)],
            x=round(place.x, 1),
            y=round(place.y, 1),
        )

    def _texts(self, node: Node, place: Place) -> list[Part]:
        first = f"rank {node.rank}" if place.full else str(node.rank)
        if place.full and node.state not in ("ok", "unknown"):
            first += f" · {node.state}"
        lines = [("strong" if place.full else "small", first)]
        if place.full and not self.alone:
            lines += [("", cut(self.names[node.host])), ("small", _chip(node))]
        if place.full:
            # The memory of a host that all share stands once, at its frame.
            memory = memory_words(node) if not self.alone else _held(node)
            lines.append(("small", memory))
        if node.state == "dead":
            lines[0] = (f"{lines[0][0]} alarm", lines[0][1])
        lines = [(kind, words) for kind, words in lines if words]
        w, h = place.width / 2, place.height / 2
        gap = 8 if place.full else 4
        if not place.full:
            # Outwards, just as far as the number and the glyph do not touch.
            dx, dy = place.out
            far = abs(dx) * (w + text_width(lines[0][1], 10.5) / 2) + abs(dy) * (h + 5) + 3
            x, y, anchor = far * dx, far * dy + 3.5, "middle"
        elif place.side == "above":
            x, y, anchor = 0.0, -h - gap - LINE * (len(lines) - 1) - 2, "middle"
        elif place.side == "below":
            x, y, anchor = 0.0, h + gap + 9, "middle"
        else:
            x = -w - gap if place.side == "left" else w + gap
            y, anchor = 4 - LINE * (len(lines) - 1) / 2, "end" if place.side == "left" else "start"
        return [
            ["text", kind, x, y + LINE * index, anchor, words]
            for index, (kind, words) in enumerate(lines)
        ]


def _held(node: Node) -> str:
    return "" if node.held is None else f"{node.held / 1e9:.1f} GB held"


def _chip(node: Node) -> str:
    """ "M3 Ultra" of "Mac Studio, Apple M3 Ultra"."""
    return cut(node.model.rpartition(", ")[2].removeprefix("Apple "), 22)


def _track(n: int, pitch: float) -> list[tuple[float, float, float, float]]:
    """Places around a rectangle with round corners, clockwise from its upper left."""
    radius, wide = 56.0, 600.0 if n > 36 else 560.0
    curves = 2 * math.pi * radius
    high = max(2 * radius + 60, (n * pitch - curves - 2 * (wide - 2 * radius)) / 2 + 2 * radius)
    flat, tall, bend = wide - 2 * radius, high - 2 * radius, curves / 4
    length = 2 * (flat + tall) + curves
    sides = [
        (flat, (-flat / 2, -high / 2), 0), (tall, (wide / 2, -tall / 2), 90),
        (flat, (flat / 2, high / 2), 180), (tall, (-wide / 2, tall / 2), 270),
    ]  # fmt: skip
    found = []
    for index in range(n):
        # Half a step in, which leaves both ends of a side alike.
        at = (index + 0.5) * length / n
        for side, (x, y), turn in sides:
            along = math.radians(turn)
            cos, sin = math.cos(along), math.sin(along)
            if at <= side:
                found.append((x + at * cos, y + at * sin, sin, -cos))
                break
            at -= side
            if at <= bend:
                # The corner's middle lies inwards of the end of the side.
                cx, cy = x + side * cos - radius * sin, y + side * sin + radius * cos
                angle = along + at / radius - math.pi / 2
                dx, dy = math.cos(angle), math.sin(angle)
                found.append((cx + radius * dx, cy + radius * dy, dx, dy))
                break
            at -= bend
    return found


# -- glyphs ----------------------------------------------------------------------------------------


def _shape(model: str) -> str:
    known = {"studio": "studio", "mini": "mini", "macbook": "laptop"}
    return next((shape for name, shape in known.items() if name in model.lower()), "box")


def _glyph(node: Node, place: Place) -> list[Part]:
    """The host's shape around the middle (0, 0), and what its memory holds."""
    shape = _shape(node.model)
    w, h = place.width, place.height
    top, bottom, radius = -h / 2, h / 2, h / 5
    if shape == "mini":
        top, radius = -h / 2 + h * 0.22, h / 6
    elif shape == "laptop":
        bottom, radius = h / 2 - h * 0.14, h / 12
        w *= 0.86
    elif shape == "box":
        radius = h / 12
    inset = 3 if place.full else 2
    dead = " dead" if node.state == "dead" else ""
    parts: list[Part] = [["rect", f"body{dead}", -w / 2, top, w, bottom - top, radius]]
    room, inner = bottom - top - 2 * inset, max(radius - inset, 1)
    if node.memory and not dead:
        used = max(node.used or 0, node.held or 0)
        for kind, count in (("used", used), ("held", node.held or 0)):
            high = room * min(1.0, count / node.memory)
            # At least a line, which also keeps the element on the page from frame to frame.
            if kind == "used" or place.full:
                level = max(high, 0.5) if count else 0.0
                r = min(inner, level / 2)
                box = [-w / 2 + inset, bottom - inset - level, w - 2 * inset, level, r]
                parts.append(["rect", kind, *box])
    if shape == "laptop":
        foot, deep = place.width / 2, h * 0.14
        d = f"M{number(-foot)} {number(bottom + 1)}h{number(2 * foot)}"
        d += f"l{number(-deep)} {number(deep - 1)}h{number(2 * (deep - foot))}z"
        parts.append(["path", f"foot{dead}", d])
    elif shape == "studio" and place.full:
        for x in (8, 13):
            parts.append(["rect", "port", -w / 2 + x, bottom - 12, 2, 5.5, 1])
        parts.append(["circle", "port", w / 2 - 10, bottom - 9, 1.5])
    elif shape == "mini" and place.full:
        parts.append(["circle", "port", w / 2 - 10, bottom - 8, 1.5])
    parts += _mark(node.state, w / 2 - 1, top + 1, place.full)
    return parts


def _mark(state: str, x: float, y: float, full: bool) -> list[Part]:
    """The state as a shape: a disc, a diamond, a cross, a ring."""
    r = 4.5 if full else 4.0
    if state == "ok":
        # Of many, only those that need a look are marked.
        return [["circle", "mark ok", x, y, r]] if full else []
    if state == "busy":
        r += 1
        d = f"M{number(x)} {number(y - r)}l{number(r)} {number(r)}l{number(-r)} {number(r)}"
        return [["path", "mark busy", f"{d}l{number(-r)} {number(-r)}z"]]
    if state == "dead":
        r += 0.5
        left, top = number(x - r), number(y - r)
        d = f"M{left} {top}l{2 * r:g} {2 * r:g}m0 {-2 * r:g}l{-2 * r:g} {2 * r:g}"
        return [["path", "mark under", d], ["path", "mark cross", d]]
    return [["circle", "mark ask", x, y, r]]


# -- links -----------------------------------------------------------------------------------------


def _links(
    topology: Topology, layout: _Layout, bad: set[tuple[int, int]], best: dict[Kind, float]
) -> list[Item]:
    count = len(topology.links)
    base = 3.0 if count <= 12 else 2.2 if count <= 40 else 1.4 if count <= HAIR else 0.6
    hair = " hair" if count > HAIR else ""
    if layout.form == "ring":
        base = max(base, 2.6)
    together = Counter((link.a, link.b) for link in topology.links)
    seen: Counter[tuple[int, int]] = Counter()
    items, lines = [], []
    for link in topology.links:
        pair = (link.a, link.b)
        one, two = layout.places[link.a], layout.places[link.b]
        index = seen[pair]
        seen[pair] += 1
        # Routes between the same two ranks run side by side.
        aside = 9.0 * (index - (together[pair] - 1) / 2)
        gap = 4 if layout.roomy else 2
        start, end = one.edge((two.x, two.y), gap), two.edge((one.x, one.y), gap)
        if aside:
            length = math.dist(start, end) or 1.0
            dx, dy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
            start = (start[0] - dy * aside, start[1] + dx * aside)
            end = (end[0] - dy * aside, end[1] + dx * aside)
        lines.append((start, end))
        faulty = pair in bad
        width = base + (1.4 if base > 1 else 0.2) * (min(link.cables, 4) - 1)
        d = f"M{number(start[0])} {number(start[1])}L{number(end[0])} {number(end[1])}"
        speed = "fault" if faulty else speed_class(link, best) + hair
        kind = f"line {link.kind} {speed}"
        parts: list[Part] = [["path", kind, d, max(width, 2.0) if faulty else width]]
        if not hair:
            parts.insert(0, ["path", "hit", d, 13])
        items.append(
            Item(
                id=f"{link.a}-{link.b}" + (f"-{index}" if index else ""),
                label=link_words(link, faulty),
                parts=parts,
                ends=pair,
            )
        )
    _link_labels(topology.links, items, lines, layout, bad, best)
    return items


def _link_labels(
    links: Sequence[Link],
    items: Sequence[Item],
    lines: Sequence[tuple[Point, Point]],
    layout: _Layout,
    bad: set[tuple[int, int]],
    best: dict[Kind, float],
) -> None:
    """Texts at the links, where there is room: first at those that are faulty."""
    slow_first = sorted(range(len(links)), key=lambda index: _bandwidth(links[index]))
    faulty = {i for i in slow_first if (links[i].a, links[i].b) in bad}
    if len(faulty) > MOST_MARKS:
        faulty = set([i for i in slow_first if i in faulty][:MOST_MARKS])
    wanted = set(faulty)
    speeds = {_bandwidth(link) for link in links}
    least = min(range(len(links)), key=lambda index: _bandwidth(links[index]), default=0)
    if layout.roomy or (len(layout.hosts) <= 4 and len(links) <= 12):
        wanted |= set(range(len(links)))
    if not best:
        wanted &= faulty  # the legend says that nothing was measured
    elif len(links) > LABELLED:
        # The colours say enough of those that are as they should be.
        slow = {i for i in wanted if speed_class(links[i], best) in ("v0", "v1", "v2")}
        wanted &= faulty | slow | {least}
    few = len(links) > LABELLED
    order = sorted(wanted, key=lambda i: (i not in faulty, -math.dist(*lines[i]), i))
    if len(links) > HAIR:
        # To look for room among so many lines takes long.
        order = [i for i in slow_first if i in wanted][:MOST_TEXTS]
    for rows in (2, 1):
        found: dict[int, list[Part]] = {}
        taken: list[Box] = list(layout.boxes)
        for index in order:
            word = "slowest " if rows == 2 and few and index == least and len(speeds) > 1 else ""
            parts = _place_label(
                links[index], lines, index, taken, index in faulty, rows, word, few
            )
            if parts:
                found[index] = parts
        if len(found) == len(order):
            break
    for index in faulty - set(found):
        x, y = _along(*lines[index], 0.5)
        if math.dist(*lines[index]) < 40:
            # No room between the two: towards the middle of the picture.
            part = 17 / (math.hypot(x, y) or 1)
            x, y = x - x * part, y - y * part
        found[index] = _fault_mark(x, y)
    for index, parts in found.items():
        items[index].over = [_rounded(part) for part in parts]


def _place_label(
    link: Link,
    lines: Sequence[tuple[Point, Point]],
    index: int,
    taken: list[Box],
    faulty: bool,
    rows: int,
    word: str,
    few: bool,
) -> list[Part]:
    pair = link.measured
    first = word + rate_text(pair.bandwidth) if pair else "not measured"
    second = WORDS[link.kind] + (f" · {time_text(pair.latency.p50)}" if pair else "")
    texts = [(first, "strong" if pair else "small"), (second, "small")][:rows]
    mark = 20 if faulty else 0
    width = 8 + mark + max(text_width(words, 12 if k == "strong" else 10.5) for words, k in texts)
    height = 5 + 13.5 * rows
    best: tuple[float, Point] | None = None
    for t in (0.5, 0.43, 0.57, 0.36, 0.64, 0.3, 0.7, 0.25, 0.75):
        x, y = _along(*lines[index], t)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if any(_meet(box, other, 2) for other in taken):
            continue
        crossed = sum(_cuts(line, box) for k, line in enumerate(lines) if k != index)
        cost = crossed + abs(t - 0.5)
        if (crossed <= 1 or faulty or few) and (best is None or cost < best[0]):
            best = (cost, (x, y))
    if best is None:
        return []
    x, y = best[1]
    taken.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    parts: list[Part] = [["rect", "under", x - width / 2, y - height / 2, width, height, 4]]
    if faulty:
        parts += _fault_mark(x - width / 2 + 12, y)
    top = y - height / 2 + 12.5
    for row, (words, kind) in enumerate(texts):
        kind = f"{kind} alarm" if faulty else kind
        parts.append(["text", kind, x + mark / 2, top + 13.5 * row, "middle", words])
    return parts


def _fault_mark(x: float, y: float) -> list[Part]:
    corner = f"M{number(x)} {number(y - 8)}l8.5 15h-17z"
    return [
        ["path", "warn", corner],
        ["path", "bang", f"M{number(x)} {number(y - 2.5)}v4.2m0 2.6v.2"],
    ]


def _along(start: Point, end: Point, part: float) -> Point:
    return (start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1]))


def _cuts(line: tuple[Point, Point], box: Box) -> bool:
    """Whether a line runs through a box (Liang and Barsky 1984)."""
    (x, y), (x2, y2) = line
    low, high = 0.0, 1.0
    for p, q in (
        (x - x2, x - box[0]), (x2 - x, box[2] - x), (y - y2, y - box[1]), (y2 - y, box[3] - y),
    ):  # fmt: skip
        if p == 0:
            if q < 0:
                return False
        elif p < 0:
            low = max(low, q / p)
        else:
            high = min(high, q / p)
    return low < high


def missing(topology: Topology) -> list[tuple[int, int]]:
    """The cables that a mesh or ring of cables lacks, where it lacks only one or two."""
    size = topology.size
    hosts = {each.host for each in topology.nodes}
    cables = all(each.kind in ("rdma", "thunderbolt") for each in topology.links)
    if not 3 <= size <= ROOMY or len(hosts) < size or not cables or not topology.links:
        return []
    ranks = sorted(each.rank for each in topology.nodes)
    there = {(each.a, each.b) for each in topology.links}
    lacking = [(a, b) for a in ranks for b in ranks if a < b and (a, b) not in there]
    if form(topology) == "line":
        path = _walk(topology)
        return [(min(path[0], path[-1]), max(path[0], path[-1]))]
    return lacking if len(lacking) <= max(1, size // 4) else []


def _ghosts(topology: Topology, layout: _Layout) -> list[Part]:
    parts: list[Part] = []
    for a, b in missing(topology):
        one, two = layout.places[a], layout.places[b]
        start, end = one.edge((two.x, two.y), 4), two.edge((one.x, one.y), 4)
        d = f"M{number(start[0])} {number(start[1])}L{number(end[0])} {number(end[1])}"
        parts.append(["path", "ghost", d, 2])
    return parts


def _summary(topology: Topology, layout: _Layout) -> list[Part]:
    """The figures of a ring, in the room that it leaves."""
    speeds = [each.measured.bandwidth for each in topology.links if each.measured]
    least = slowest(topology)
    if layout.form != "ring" or topology.size < 5 or least is None:
        return []
    words = [
        ("title", f"ring of {topology.size}"),
        ("", f"slowest {rate_text(_bandwidth(least))}, ranks {least.a} and {least.b}"),
        ("small", f"median {rate_text(statistics.median(speeds))}"),
    ]
    return [
        ["text", kind, 0, 20 * row - 14, "middle", text] for row, (kind, text) in enumerate(words)
    ]


# -- the legend ------------------------------------------------------------------------------------


def _legend(
    topology: Topology, layout: _Layout, faulty: bool, best: dict[Kind, float], back: list[Part]
) -> tuple[float, float, float, float]:
    """Explain what is there, below the picture. Returns the box of all."""
    boxes = [*layout.boxes, *(_part_box(part) for part in back)] or [(0.0, 0.0, 0.0, 0.0)]
    left, right = min(b[0] for b in boxes), max(b[2] for b in boxes)
    if right - left < NARROWEST:
        middle = (left + right) / 2
        left, right = middle - NARROWEST / 2, middle + NARROWEST / 2
    top, bottom = min(b[1] for b in boxes), max(b[3] for b in boxes)
    entries = [_kind_entry(kind, topology, best) for kind in KINDS]
    entries += _node_entries(topology, layout)
    if missing(topology):
        entries.append(([["path", "ghost", "M0 0h26", 2]], 32, "a cable that is not there"))
    if faulty:
        entries.append((_fault_mark(9, 0), 24, "faulty"))
    x, y = left, bottom + 30
    rows: list[list[Part]] = [[]]
    ends: list[float] = []
    for entry in entries:
        if entry is None:
            continue
        parts, wide, words = entry
        width = wide + text_width(words, 10.5)
        if x > left and x + width > right:
            ends.append(x - 24)
            rows.append([])
            x = left
        rows[-1] += [_moved(part, x, y + 22 * (len(rows) - 1)) for part in parts]
        label: Part = ["text", "small", x + wide, y + 22 * (len(rows) - 1) + 4, "start", words]
        rows[-1].append(label)
        x += width + 24
    ends.append(x - 24)
    for row, end in zip(rows, ends, strict=True):
        # Centred, as the picture is.
        back += [_moved(part, (right - max(end, left)) / 2, 0) for part in row]
    last = y + 22 * (len(rows) - 1) + 12 if any(rows) else bottom
    x, y = left - MARGIN, top - MARGIN
    box = (x, y, right + MARGIN - x, last + MARGIN - y)
    return (round(box[0], 1), round(box[1], 1), round(box[2], 1), round(box[3], 1))


Entry = tuple[list[Part], float, str]  # the sample, its width, and what it means


def _kind_entry(kind: Kind, topology: Topology, best: dict[Kind, float]) -> Entry | None:
    links = [each for each in topology.links if each.kind == kind]
    if not links:
        return None
    measured = kind in best
    sample = f"line {kind} {f'v{SPEEDS - 1}' if measured else 'none'}"
    parts: list[Part] = [["path", sample, "M0 0h28", 3]]
    name = WORDS[kind]
    at = 35 + text_width(name, 10.5) + 8
    parts.append(["text", "small", 35, 4, "start", name])
    if not measured:
        return parts[:1], 35, f"{name}, not measured"
    parts.append(["text", "small", at, 4, "start", "0"])
    at += 12
    for step in range(SPEEDS):
        parts.append(["rect", f"v{step}", at + 15 * step, -4, 15, 8, 0])
    at += 15 * SPEEDS + 5
    rest = "" if all(each.measured for each in links) else "; grey: not measured"
    return parts, at, f"{rate_text(best[kind])}{rest}"


def _node_entries(topology: Topology, layout: _Layout) -> Iterable[Entry]:
    if any(node.memory and node.used is not None for node in topology.nodes):
        parts: list[Part] = [["rect", "body", 0, -7, 18, 14, 3], ["rect", "used", 2, -1, 14, 6, 1]]
        held = layout.roomy and any(node.held for node in topology.nodes)
        if held:
            parts.append(["rect", "held", 2, 2, 14, 3, 1])
        yield parts, 24, "memory in use" + (", dark: by the rank" if held else "")
    present = {node.state for node in topology.nodes}
    if present == {"unknown"}:
        return  # of no rank is it known: the panel says so
    for state, words in STATES.items():
        if state in present:
            yield _mark(state, 6, 0, layout.roomy), 17, words


def _part_box(part: Part) -> Box:
    if part[0] == "text":
        return text_box(part)
    if part[0] == "rect":
        return (part[2], part[3], part[2] + part[4], part[3] + part[5])
    return (0, 0, 0, 0)


def _moved(part: Part, dx: float, dy: float) -> Part:
    """A sample of the legend, in its place."""
    if part[0] == "path":
        head, mark, rest = part[2][1:].partition(next(c for c in part[2][1:] if c.isalpha()))
        x, y = (float(each) for each in head.split())
        return [*part[:2], f"M{number(x + dx)} {number(y + dy)}{mark}{rest}", *part[3:]]
    return [*part[:2], part[2] + dx, part[3] + dy, *part[4:]]


def _rounded(part: Part) -> Part:
    """Numbers as short as they are seen: a scene travels to the page, and into the notebook."""
    short = [(int(v) if v == int(v) else round(v, 1)) if isinstance(v, float) else v for v in part]
    return [0 if v == 0 and isinstance(v, int | float) else v for v in short]


# -- a file ----------------------------------------------------------------------------------------

ATTRIBUTES = {
    "rect": ("x", "y", "width", "height", "rx"),
    "path": ("d", "stroke-width"),
    "circle": ("cx", "cy", "r"),
    "text": ("x", "y", "text-anchor"),
}
COARSE = 4  # pixels between the places that hairlines may end at
HEAD = 34  # for the title and the warnings' first line


def static_svg(drawn: Scene) -> str:
    """The picture as a file of its own, in light colours: it cannot know those of the page."""
    x, y, width, height = drawn.box
    few = _few(drawn.warnings)
    lines = [line for each in few for line in _wrapped(each, width - 2 * MARGIN)]
    head = HEAD + 17 * len(lines) + (6 if lines else 0)
    parts = [_element(part) for part in drawn.back]
    # Links that look the same are one path, which makes the file a third as long.
    alike: dict[tuple[str, float], list[str]] = {}
    hairs: dict[tuple[str, float], list[tuple[int, ...]]] = {}
    for item in drawn.links:
        for tag, kind, d, *rest in item.parts:
            if tag == "path" and len(drawn.links) > HAIR:
                hairs.setdefault((kind, rest[0]), []).append(item.ends)
            elif tag == "path" and kind != "hit":
                alike.setdefault((kind, rest[0]), []).append(d)
    parts += [_element(["path", kind, "".join(d), w]) for (kind, w), d in alike.items()]
    if hairs:
        # Their ends are under the glyphs: from about the middle to the middle, in one stroke while
        # that goes on, and in coarse steps, which are short to write.
        ends_at = {int(i.id): f"{i.x / COARSE:.0f} {i.y / COARSE:.0f}" for i in drawn.nodes}
        parts.append(f'<g transform="scale({COARSE})">')
        for (kind, w), ends in hairs.items():
            d = "".join("M" + " ".join(ends_at[rank] for rank in trail) for trail in _trails(ends))
            parts.append(_element(["path", kind, d, round(w / COARSE, 2)]))
        parts.append("</g>")
    over = [part for item in drawn.links for part in item.over]
    if len(drawn.nodes) > FRAMED:
        # Glyphs are small, and do not overlap: the like of all of them in one element.
        parts += _merged(over)
        parts += _merged([_moved(p, i.x, i.y) for i in drawn.nodes for p in i.parts])
    else:
        parts += [_element(part) for part in over]
        for item in drawn.nodes:
            inner = "".join(_element(part) for part in item.parts)
            place = f"{number(item.x)} {number(item.y)}"
            parts.append(f'<g transform="translate({place})">{inner}</g>')
    words = [_element(["text", "strong", x + MARGIN, y - head + 22, "start", drawn.title])]
    if drawn.badge["words"]:
        at = x + MARGIN + text_width(drawn.title, 12.6) + 10
        wide = text_width(drawn.badge["words"], 10.5) + 14
        kind = f"badge {drawn.badge['kind']}"
        words.append(_element(["rect", kind, at, y - head + 9, wide, 18, 9]))
        middle = at + wide / 2
        badge = ["text", "small", middle, y - head + 22, "middle", drawn.badge["words"]]
        words.append(_element(badge))
    for row, line in enumerate(lines):
        alarm = ["text", "alarm", x + MARGIN, y - head + 42 + 17 * row, "start", line]
        words.append(_element(alarm))
    size = f"{number(width)} {number(height + head)}"
    body = _shared("".join([*words, *parts]))
    return printable(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="macluster-network" '
        f'viewBox="{number(x)} {number(y - head)} {size}" width="{number(width)}" '
        f'height="{number(height + head)}">'
        f"<style>{_short_css()}</style>"
        f'<rect class="paper" x="{number(x)}" y="{number(y - head)}" width="100%" height="100%" '
        f'rx="6"/>{body}</svg>'
    )


def _merged(parts: Sequence[Part]) -> list[str]:
    """Parts by their class, in one path or group for each; rectangles without round corners."""
    paths: dict[str, str] = {"under": ""}  # the paper below texts comes first
    words: dict[str, str] = {}
    for tag, kind, *rest in parts:
        if kind == "hit":
            continue
        if tag == "rect":
            x, y, w, h = (number(each) for each in rest[:4])
            paths[kind] = paths.get(kind, "") + f"M{x} {y}h{w}v{h}h-{w}z"
        elif tag == "circle":
            x, y, r, across = (number(each) for each in (rest[0] - rest[2], *rest[1:], 2 * rest[2]))
            ends = f"a{r} {r} 0 1 0 {across} 0a{r} {r} 0 1 0 -{across} 0z"
            paths[kind] = paths.get(kind, "") + f"M{x} {y}{ends}"
        elif tag == "path":
            paths[kind] = paths.get(kind, "") + rest[0]
        else:
            place = f'x="{number(rest[0])}" y="{number(rest[1])}"'
            text = f"<tspan {place}>{html.escape(rest[3])}</tspan>"
            words[kind] = words.get(kind, "") + text
    return [f'<path class="{kind}" d="{d}"/>' for kind, d in paths.items() if d] + [
        f'<text class="{kind}" text-anchor="middle">{each}</text>' for kind, each in words.items()
    ]


def _short_css() -> str:
    rules = re.sub(r"\s*\n\s*", " ", re.sub(r"/\*.*?\*/", "", CSS, flags=re.DOTALL))
    # What a pointer or a key does is of no use in a file, and nothing else is there to be spared.
    away = ("[", ":", ".here", ".on", ".hit")
    kept = [r for r in rules.split("}") if not any(w in r.partition("{")[0] for w in away)]
    return (
        "}".join(kept).replace(".macluster-network {", "svg {").replace(".macluster-network ", "")
    )


def _trails(pairs: Iterable[tuple[int, ...]]) -> list[list[int]]:
    """Walks along pairs of ranks that use each pair once, so that most ranks are written once."""
    near: dict[int, dict[int, int]] = {}
    for a, b in pairs:
        for one, two in ((a, b), (b, a)):
            near.setdefault(one, {}).setdefault(two, 0)
            near[one][two] += 1
    # From the ends of walks first: ranks with an odd number of links.
    found = []
    for first in sorted(near, key=lambda rank: sum(near[rank].values()) % 2 == 0):
        while near[first]:
            trail = [first]
            while near[trail[-1]]:
                here, there = trail[-1], next(iter(near[trail[-1]]))
                for one, two in ((here, there), (there, here)):
                    near[one][two] -= 1
                    if not near[one][two]:
                        del near[one][two]
                trail.append(there)
            found.append(trail)
    return found


def printable(svg: str) -> str:
    """Without the characters that XML cannot hold, and for which nothing at all would be drawn."""
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", "", svg)


def _wrapped(words: str, width: float) -> list[str]:
    return textwrap.wrap(words, max(20, int(width / 7.2)))


def _element(part: Part) -> str:
    tag, kind, *values = part
    if kind == "hit":
        return ""
    words = html.escape(values.pop()) if tag == "text" else None
    pairs = zip(ATTRIBUTES[tag], values, strict=False)
    given = "".join(
        f' {name}="{number(value) if isinstance(value, float) else value}"'
        for name, value in pairs
        if value not in (0, "start")
    )
    named = f' class="{kind}"' if kind else ""
    return f"<{tag}{named}{given}/>" if words is None else f"<{tag}{named}{given}>{words}</{tag}>"


def _shared(body: str) -> str:
    """Shapes that come again and again, such as the glyph of a host, written once."""
    counts = Counter(re.findall(r"<(?:rect|circle|path) [^>]*/>", body))
    often = [shape for shape, count in counts.items() if count > 3]
    defined = []
    for index, shape in enumerate(often):
        body = body.replace(shape, f'<use href="#s{index}"/>')
        defined.append(shape.replace(" ", f' id="s{index}" ', 1))
    return f"<defs>{''.join(defined)}</defs>{body}" if defined else body
