"""A topology as a picture, and how often its page hears of it."""

from __future__ import annotations

import base64
import json
import random
import re
import threading
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest

from macluster.engine.errors import UsageError
from macluster.engine.measure.fit import Fit
from macluster.engine.measure.record import Pair, Point
from macluster.engine.measure.samples import Rate, Timing
from macluster.engine.topology.topology import Kind, Link, Node, Topology
from macluster.widgets import network
from macluster.widgets import topology as topology_widget
from macluster.widgets.network import (
    ATTRIBUTES,
    Box,
    Scene,
    form,
    full_speeds,
    headline,
    missing,
    scene,
    speed_class,
    static_svg,
    text_box,
)
from macluster.widgets.topology import GAP, Pace, TopologyView, figures

TIMEOUT = 60  # seconds
GB = 1 << 30


def timing(seconds: float, count: int = 1000) -> Timing:
    return Timing(
        seconds, 0.9 * seconds, 1.2 * seconds, 1.5 * seconds, seconds / 2, seconds / 20, count
    )


def pair(a: int, b: int, speed: float, late: float = 28e-6) -> Pair:
    fit = Fit(late, speed, 0.02, 0.999, 8)
    points = tuple(Point(4**n, timing(fit.time(4**n), 20)) for n in range(2, 14))
    there, back = (Rate(each * speed, 0.9 * each * speed, each * speed, 20) for each in (1, 1.1))
    return Pair(a, b, "jaccl", timing(late), there, back, None, points, fit)


def link(a: int, b: int, kind: Kind = "rdma", speed: float | None = 5.9e9, **more: Any) -> Link:
    a, b = sorted((a, b))
    given = {"ports": (("en4", "en5"),), "negotiated": 80e9, **more}
    return Link(a, b, kind, measured=pair(a, b, speed) if speed else None, **given)


def node(rank: int, **more: Any) -> Node:
    given = {"model": "Mac Studio, Apple M3 Ultra", "memory": 512 * GB, "used": 212 * GB,
             "state": "ok", **more}  # fmt: skip
    return Node(rank, given.pop("host", f"studio-{rank}"), **given)


def mesh(size: int, **more: Any) -> Topology:
    links = tuple(link(a, b, **more) for a in range(size) for b in range(a + 1, size))
    return Topology(tuple(node(rank) for rank in range(size)), links, "jaccl")


def ring(size: int) -> Topology:
    links = tuple(link(n, (n + 1) % size, speed=5e9 + n * 1e7) for n in range(size))
    return Topology(tuple(node(rank) for rank in range(size)), links, "jaccl-ring")


def local(size: int) -> Topology:
    nodes = tuple(node(rank, host="tower", model="Linux, AMD EPYC", held=rank * GB)
                  for rank in range(size))  # fmt: skip
    links = tuple(
        link(a, b, "loopback", 2e9, ports=(), negotiated=None)
        for a in range(size)
        for b in range(a + 1, size)
    )
    return Topology(nodes, links, "ring")


def several(hosts: int, ranks: int) -> Topology:
    """Hosts with several ranks each, all linked to all."""
    size = hosts * ranks
    nodes = tuple(node(n, host=f"host-{n // ranks}", model="NVIDIA H100") for n in range(size))
    links = tuple(
        link(a, b, "loopback" if a // ranks == b // ranks else "ethernet", 2.9e9)
        for a in range(size)
        for b in range(a + 1, size)
    )
    return Topology(nodes, links, "nccl")


SIZES = {
    "none": lambda: Topology((), ()),
    "one": lambda: mesh(1),
    "two": lambda: mesh(2),
    "mesh of 3": lambda: mesh(3),
    "mesh of 4": lambda: mesh(4),
    "mesh of 5": lambda: mesh(5),
    "mesh of 7": lambda: mesh(7),
    "mesh of 8": lambda: mesh(8),
    "ring of 5": lambda: ring(5),
    "ring of 8": lambda: ring(8),
    "ring of 16": lambda: ring(16),
    "ring of 32": lambda: ring(32),
    "ring of 64": lambda: ring(64),
    "mesh of 64": lambda: mesh(64),
    "2 on one host": lambda: local(2),
    "8 on one host": lambda: local(8),
    "12 on one host": lambda: local(12),
    "2 hosts of 4": lambda: several(2, 4),
    "4 hosts of 2": lambda: several(4, 2),
    "8 hosts of 2": lambda: several(8, 2),
    "2 hosts of 8": lambda: several(2, 8),
    "16 hosts of 4": lambda: several(16, 4),
}


def texts(drawn: Scene) -> list[tuple[str, str, Box]]:
    """(class, words, box) of every text of the picture."""
    found = [(part, 0.0, 0.0) for part in drawn.back]
    found += [(part, 0.0, 0.0) for item in drawn.links for part in item.over]
    found += [(part, item.x, item.y) for item in drawn.nodes for part in item.parts]
    boxes = []
    for part, x, y in found:
        if part[0] == "text":
            box = text_box(part)
            moved = (box[0] + x, box[1] + y, box[2] + x, box[3] + y)
            boxes.append((part[1], part[5], moved))
    return boxes


def words(drawn: Scene) -> str:
    return "\n".join(text for _, text, _ in texts(drawn))


def glyphs(drawn: Scene) -> list[Box]:
    found = []
    for item in drawn.nodes:
        body = next(part for part in item.parts if part[1].startswith("body"))
        _, _, x, y, width, height, _ = body
        found.append((item.x + x, item.y + y, item.x + x + width, item.y + y + height))
    return found


def meet(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def of(drawn: Scene, pair: str) -> network.Item:
    return next(item for item in drawn.links if item.id == pair)


def line(item: network.Item) -> list[Any]:
    return next(part for part in item.parts if "line" in part[1])


# -- the layout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_nothing_lies_outside_and_no_text_on_a_glyph_or_another(name: str) -> None:
    drawn = scene(SIZES[name]())
    x, y, width, height = drawn.box
    boxes, shapes = texts(drawn), glyphs(drawn)
    for _, text, box in boxes:
        assert x <= box[0] <= box[2] <= x + width, text
        assert y <= box[1] <= box[3] <= y + height, text
        assert not any(meet(box, shape) for shape in shapes), text
    for index, (_, text, box) in enumerate(boxes):
        over = [other for _, other, each in boxes[:index] if meet(box, each)]
        assert over == [], text
    for index, shape in enumerate(shapes):
        assert not any(meet(shape, other) for other in shapes[:index])
    # Everything that is drawn can be drawn.
    items = [*drawn.links, *drawn.nodes]
    parts = [*drawn.back, *(part for item in items for part in [*item.parts, *item.over])]
    assert all(len(part) - 2 >= len(ATTRIBUTES[part[0]]) - 1 for part in parts)
    assert json.loads(json.dumps(attrs.asdict(drawn)))["title"] == drawn.title


def test_every_rank_is_named_whatever_the_size() -> None:
    for size in (2, 8, 16, 64):
        shown = {text for _, text, _ in texts(scene(ring(size) if size > 2 else mesh(size)))}
        names = {f"rank {n}" if size <= 8 else str(n) for n in range(size)}
        assert names <= shown


def test_a_ring_is_drawn_in_the_order_of_its_links() -> None:
    order = [0, 3, 6, 1, 4, 7, 2, 5]
    links = tuple(link(a, b) for a, b in zip(order, [*order[1:], 0], strict=True))
    drawn = scene(Topology(mesh(8).nodes, links))
    at = {int(item.id): (item.x, item.y) for item in drawn.nodes}
    # No link is longer than to a neighbour on the circle.
    lengths = [
        ((at[a][0] - at[b][0]) ** 2 + (at[a][1] - at[b][1]) ** 2) ** 0.5
        for a, b in (item.ends for item in drawn.links)
    ]
    assert max(lengths) < 240


def test_the_form_of_the_links_is_named() -> None:
    assert form(mesh(4)) == "full mesh"
    assert form(ring(5)) == "ring"
    assert form(mesh(2)) == form(mesh(1)) == form(Topology((), ())) == ""
    chain = Topology(mesh(4).nodes, ring(4).links[:-1])
    assert form(chain) == "line"
    # Two rings of three are not a ring.
    pairs = ((0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5))
    apart = Topology(mesh(6).nodes, tuple(link(a, b) for a, b in pairs))
    assert form(apart) == ""
    assert headline(mesh(4)) == "4 ranks on 4 hosts, full mesh of 6 links"
    assert headline(mesh(2)) == "2 ranks on 2 hosts, 1 link"
    assert headline(local(2)) == "2 ranks on 1 host, 1 link"


def test_ranks_of_one_host_stand_in_one_frame() -> None:
    drawn = scene(several(2, 4))
    frames = [part for part in drawn.back if part[1] == "frame"]
    assert len(frames) == 2
    for rank, box in enumerate(glyphs(drawn)):
        _, _, x, y, width, height, _ = frames[rank // 4]
        assert x < box[0] < box[2] < x + width
        assert y < box[1] < box[3] < y + height
    assert {"host-0", "host-1"} <= set(words(drawn).split("\n"))
    [frame] = [part for part in scene(local(4)).back if part[1] == "frame"]
    assert "tower, AMD EPYC, 212 of 512 GB" in words(scene(local(4)))
    assert frame[4] > 300
    bands = [part for part in scene(several(16, 4)).back if part[1] == "band"]
    assert len(bands) == 16
    assert "host-15" in words(scene(several(16, 4)))


# -- links -----------------------------------------------------------------------------------------


def test_a_link_is_coloured_by_its_part_of_the_fastest_of_its_kind() -> None:
    links = [
        link(0, 1, speed=6e9),
        link(0, 2, speed=5.9e9),
        link(0, 3, speed=3e9),
        link(1, 2, speed=0.5e9),
        link(1, 3, "ethernet", 1.1e9, negotiated=10e9),
        link(2, 3, "wifi", None),
    ]
    best = full_speeds(links)
    assert best == {"rdma": 6e9, "ethernet": 1.1e9}
    found = [speed_class(each, best) for each in links]
    assert found == ["v4", "v4", "v2", "v0", "v4", "none"]
    # Slow beside what was negotiated: no link looks fast for lack of a better one.
    alone = [link(0, 1, speed=0.5e9)]
    assert full_speeds(alone) == {"rdma": 5e9}
    assert speed_class(alone[0], full_speeds(alone)) == "v0"


def test_a_link_says_its_kind_speed_and_latency_where_there_is_room() -> None:
    drawn = scene(mesh(4))
    assert words(drawn).count("5.90 GB/s\nRDMA · 28.0 us") == 6
    assert of(drawn, "0-1").label == "rank 0 to rank 1, RDMA, 5.90 GB/s, 28.0 us"
    # Of many, only those that need a look; the others are in the panel.
    links = mesh(8).links
    slow = attrs.evolve(mesh(8), links=(link(0, 1, speed=1e9), *links[1:]))
    assert words(scene(slow)).count("GB/s") == 2
    assert "1.00 GB/s" in words(scene(slow))
    apart = attrs.evolve(mesh(8), links=(*links[:3], link(0, 4, speed=1e9), *links[4:]))
    assert "slowest 1.00 GB/s\nRDMA · 28.0 us" in words(scene(apart))
    assert "GB/s" in words(scene(ring(64)))
    assert not any(item.over for item in scene(ring(64)).links)


def test_the_kind_and_the_number_of_cables_are_seen() -> None:
    two = link(0, 1, ports=(("en3", "en4"), ("en5", "en6")))
    links = (two, link(0, 2, "thunderbolt"), link(1, 2, "ethernet"))
    drawn = scene(Topology(mesh(3).nodes, links))
    classes = [line(item)[1].split()[1] for item in drawn.links]
    assert classes == ["rdma", "thunderbolt", "ethernet"]
    assert line(drawn.links[0])[3] > line(drawn.links[1])[3]
    for word in ("RDMA", "TB-TCP", "ETH"):
        assert word in words(drawn).split("\n")


def test_a_faulty_link_has_a_mark_and_a_dead_rank_a_word() -> None:
    topology = attrs.evolve(mesh(8), nodes=(node(0, state="dead"), *mesh(8).nodes[1:]))
    drawn = scene(topology, ["Ranks 2 and 5 are slow."], {(5, 2)})
    bad = of(drawn, "2-5")
    assert "fault" in line(bad)[1]
    assert [part[1] for part in bad.over].count("warn") == 1
    assert bad.label.endswith(", faulty")
    assert sum("fault" in line(item)[1] for item in drawn.links) == 1
    assert "rank 0 · dead" in words(drawn)
    assert any(part[1] == "mark cross" for part in drawn.nodes[0].parts)
    assert "faulty" in words(drawn)
    assert "dead" in words(drawn).split("\n")
    assert drawn.label.endswith(
        "Rank 0 is dead. The link of ranks 2 and 5 is faulty. Ranks 2 and 5 are slow."
    )
    # In a ring of 64 there is no room for words, but for the mark.
    small = of(scene(ring(64), faulty={(3, 4)}), "3-4")
    assert [part[1] for part in small.over] == ["warn", "bang"]
    assert scene(mesh(4), faulty={(7, 9)}).links == scene(mesh(4)).links


def test_what_was_not_measured_is_said() -> None:
    drawn = scene(mesh(4, speed=None))
    assert all("none" in line(item)[1] for item in drawn.links)
    assert "RDMA, not measured" in words(drawn)
    assert drawn.links[0].label == "rank 0 to rank 1, RDMA, not measured"
    some = attrs.evolve(mesh(4), links=(link(0, 1, speed=None), *mesh(4).links[1:]))
    assert "5.90 GB/s; grey: not measured" in words(scene(some))


def test_the_cable_that_a_mesh_or_ring_lacks_is_shown() -> None:
    lacking = attrs.evolve(mesh(4), links=mesh(4).links[1:])
    assert missing(lacking) == [(0, 1)]
    assert any(part[1] == "ghost" for part in scene(lacking).back)
    assert "a cable that is not there" in words(scene(lacking))
    assert missing(Topology(mesh(5).nodes, ring(5).links[:-1])) == [(0, 4)]
    # A ring lacks nothing, two ranks and loopback need no cable.
    for whole in (mesh(4), ring(8), mesh(2), local(4), mesh(1)):
        assert missing(whole) == []
    ethernet = tuple(link(each.a, each.b, "ethernet") for each in lacking.links)
    assert missing(attrs.evolve(lacking, links=ethernet)) == []


def test_two_routes_between_the_same_ranks_are_two_items() -> None:
    both = Topology(mesh(2).nodes, (link(0, 1), link(0, 1, "ethernet", 1e9)))
    drawn = scene(both)
    assert [item.id for item in drawn.links] == ["0-1", "0-1-1"]
    assert line(drawn.links[0])[2] != line(drawn.links[1])[2]
    assert {"link-0-1", "link-0-1-1"} <= set(figures(both))


# -- hosts -----------------------------------------------------------------------------------------


def test_a_glyph_is_filled_by_the_memory_in_use() -> None:
    def level(kind: str, **more: Any) -> float:
        [item] = scene(Topology((node(0, **more),), ())).nodes
        return sum(part[5] for part in item.parts if part[1] == kind)

    full = level("used", used=512 * GB)
    assert level("used", used=256 * GB) == pytest.approx(full / 2, abs=0.1)
    assert level("held", held=128 * GB) == pytest.approx(full / 4, abs=0.1)
    assert level("used", used=900 * GB) == full
    assert level("used", memory=None) == level("used", used=0) == 0
    assert level("used", state="dead") == 0


@pytest.mark.parametrize("state", ["ok", "busy", "dead", "unknown"])
def test_states_differ_in_their_shape(state: str) -> None:
    [item] = scene(Topology((node(0, state=state),), ())).nodes
    marks = [part[:2] for part in item.parts if part[1].startswith("mark")]
    assert marks == {
        "ok": [["circle", "mark ok"]],
        "busy": [["path", "mark busy"]],
        "dead": [["path", "mark under"], ["path", "mark cross"]],
        "unknown": [["circle", "mark ask"]],
    }[state]  # fmt: skip
    assert f"state {state}" in item.label


def test_the_badge_names_the_backend() -> None:
    assert scene(mesh(2)).badge == {"words": "jaccl", "kind": "rdma"}
    assert scene(local(2)).badge == {"words": "ring", "kind": "tcp"}
    simulated = attrs.evolve(mesh(2), simulated="2 x M3 Ultra")
    assert scene(simulated).badge == {"words": "jaccl simulated", "kind": "simulated"}
    assert "simulated: 2 x M3 Ultra" in scene(simulated).label


# -- the panel -------------------------------------------------------------------------------------


def test_the_panel_has_every_figure_of_a_link() -> None:
    found = figures(mesh(2), [(1, 0)])["link-0-1"]
    rows = dict(found["rows"])
    assert rows["Kind"] == "RDMA over Thunderbolt"
    assert rows["Ports"] == "en4 – en5"
    assert rows["Negotiated"] == "80 Gb/s"
    assert rows["0 → 1"] == "5.90 GB/s (5.31-5.90 GB/s, n = 20)"
    assert rows["1 → 0"] == "6.49 GB/s (5.84-6.49 GB/s, n = 20)"
    assert rows["Of the rate"] == "59 %, the slower direction"
    assert rows["Latency"] == "28.0 us median, n = 1,000"
    assert rows["p99, jitter"] == "42.0 us, 1.40 us"
    assert "All at once" not in rows
    assert found["under"] == "faulty · studio-0 – studio-1"
    curve = found["curve"]
    assert curve["points"][0] == [16, 2.8e-05, 2.52e-05, 3.36e-05]
    assert curve["roof"] == 10e9
    assert curve["half"] == pytest.approx(28e-6 * 5.9e9)
    assert curve["good"]
    assert "curve" not in figures(mesh(2, speed=None))["link-0-1"]


def test_the_panel_speaks_of_all_and_of_a_host() -> None:
    found = figures(ring(8))
    assert ["RDMA", "8 links, median 5.04 GB/s"] in found["all"]["rows"]
    assert ["Slowest", "5.00 GB/s, 0 – 1"] in found["all"]["rows"]
    rows = dict(found["node-3"]["rows"])
    assert rows["Memory"] == "212 of 512 GB in use (41 %)"
    assert rows["Fastest"] == "5.03 GB/s, to rank 4"
    assert rows["Slowest"] == "5.02 GB/s, to rank 2"
    assert set(found) == {"all", *(f"node-{n}" for n in range(8)),
                          *(f"link-{each.a}-{each.b}" for each in ring(8).links)}  # fmt: skip


# -- in the saved notebook -------------------------------------------------------------------------


def kept(topology: Topology, **more: Any) -> dict[str, Any]:
    bundle = TopologyView(topology, **more)._repr_mimebundle_()
    assert bundle is not None
    return bundle[0]


def test_the_saved_notebook_has_a_picture_and_a_table() -> None:
    topology = mesh(4)
    data = kept(topology, warnings=["It is <b>slow</b>."], faulty=[(0, 1)])
    assert data["text/plain"] == repr(topology)
    found = re.search(
        r'<img alt="([^"]+)" .* src="data:image/svg\+xml;base64,([^"]+)"', data["text/html"]
    )
    assert found is not None
    assert found[1].startswith("Topology: 4 ranks on 4 hosts, full mesh of 6 links, backend jaccl.")
    assert "The link of ranks 0 and 1 is faulty." in found[1]
    assert "<table>" in data["text/html"]
    picture = base64.b64decode(found[2]).decode()
    root = ET.fromstring(picture)
    shown = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"4 ranks on 4 hosts, full mesh of 6 links", "It is <b>slow</b>.", "jaccl"} <= set(shown)
    # What is used is defined, and the colours have values of their own.
    used = set(re.findall(r'href="#(\w+)"', picture))
    assert used <= set(re.findall(r'id="(\w+)"', picture))
    assert "svg { --v0: #" in picture
    assert "data-jp" not in picture


def varied(size: int, links: Callable[[int], Topology]) -> Topology:
    """No two links and no two hosts alike."""
    spread, found = random.Random(size), links(size)
    return Topology(
        tuple(
            node(n, used=spread.randrange(512) * GB, held=spread.randrange(64) * GB)
            for n in range(size)
        ),
        tuple(link(each.a, each.b, speed=spread.uniform(1e9, 6e9)) for each in found.links),
        "jaccl",
    )


@pytest.mark.parametrize(("size", "links"), [(8, mesh), (16, mesh), (64, mesh), (64, ring)])
def test_the_saved_picture_and_table_are_small(size: int, links: Callable[[int], Topology]) -> None:
    topology = varied(size, links)
    assert len(kept(topology)["text/html"]) < 40_000
    # Every rank is still named.
    root = ET.fromstring(static_svg(scene(topology)))
    shown = {each.strip() for each in root.itertext()}
    assert {f"rank {n}" if size <= 8 else str(n) for n in range(size)} <= shown


@pytest.mark.parametrize("size", [2, 3, 5, 8, 25])
def test_hairlines_in_one_stroke_are_the_same_links(size: int) -> None:
    spread = random.Random(size)
    pairs = [(a, b) for a in range(size) for b in range(a + 1, size) if spread.random() < 0.7]
    pairs += pairs[:3]  # two routes
    trails = network._trails(pairs)
    steps = [tuple(sorted(step)) for trail in trails for step in pairwise(trail)]
    assert sorted(steps) == sorted(pairs)
    degrees = Counter(rank for pair in pairs for rank in pair)
    odd = sum(count % 2 for count in degrees.values())
    # As few as can be (Euler), but for what a greedy walk leaves aside.
    assert len(trails) <= odd / 2 + size


def test_many_glyphs_in_one_element_are_the_same_shapes() -> None:
    nodes = (node(0, state="dead"), node(1, state="unknown"), node(2, state="busy"),
             *(node(n, model="MacBook Pro, Apple M4 Max") for n in range(3, 20)))  # fmt: skip
    root = ET.fromstring(static_svg(scene(Topology(nodes, ring(20).links), faulty=[(4, 5)])))
    name = "{http://www.w3.org/2000/svg}"
    drawn = {each.attrib.get("class"): each.attrib["d"] for each in root.iter(f"{name}path")}
    assert drawn["body"].count("z") == 19
    assert drawn["body dead"].count("z") == 1
    assert drawn["foot"].count("z") == 17
    assert drawn["mark ask"].count("a") == 2
    assert drawn["mark busy"].count("M") == drawn["mark cross"].count("M") == 1
    # One in the picture, and one in the legend.
    warns = [p for p in root.iter(f"{name}path") if p.attrib.get("class") == "warn"]
    assert len(warns) == 2


def test_many_faults_have_the_colour_and_few_a_mark() -> None:
    topology = mesh(32)
    drawn = scene(topology, faulty={(each.a, each.b) for each in topology.links})
    marked = [item for item in drawn.links if item.over]
    assert len(marked) == network.MOST_MARKS
    assert sum("fault" in line(item)[1] for item in drawn.links) == len(topology.links)


def test_many_warnings_are_counted() -> None:
    warnings = [f"This is wrong with link {n}." for n in range(9)]
    page = kept(mesh(4), warnings=warnings)["text/html"]
    assert "link 3. And 5 more." in page
    assert "link 4" not in page
    encoded = page.split("base64,")[1].split('"')[0]
    assert "And 5 more." in base64.b64decode(encoded).decode()
    assert "more." not in kept(mesh(4), warnings=warnings[:4])["text/html"].split("<table")[0]


def test_control_characters_do_not_break_a_picture() -> None:
    nodes = (node(0, host="a\x00\x1b[31m\x08\ud800<b"), node(1))
    drawn = scene(Topology(nodes, mesh(2).links), ["bell\x07"])
    words = " ".join(ET.fromstring(static_svg(drawn)).itertext())
    assert "a[31m<b" in words
    assert "bell" in words


def test_hosts_are_told_apart_by_short_names() -> None:
    def names(*hosts: str) -> list[str]:
        nodes = tuple(node(n, host=host) for n, host in enumerate(hosts))
        shown = [part for item in scene(Topology(nodes, ())).nodes for part in item.parts]
        return [part[5] for part in shown if part[0] == "text" and part[1] == ""]

    assert names("a.example.org", "b.example.org") == ["a", "b"]
    assert names("a.example.org", "b.example.com") == ["a.example.org", "b.example.com"]
    assert names("a.example.org", "b") == ["a.example.org", "b"]
    # These have no domain.
    assert names("10.0.0.1", "11.0.0.1") == ["10.0.0.1", "11.0.0.1"]
    long = [f"mac-studio-in-the-basement-{n}.local" for n in (1, 2)]
    assert names(*long) == ["mac-studio…asement-1", "mac-studio…asement-2"]
    assert [len(network.cut("x" * 30, most)) for most in (20, 14, 7)] == [20, 14, 7]


# -- the pace --------------------------------------------------------------------------------------


class FakeTime:
    """A clock, and timers that ring when it is moved past them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[FakeTimer] = []

    def clock(self) -> float:
        return self.now

    def timer(self, seconds: float, call: Callable[[], None]) -> FakeTimer:
        return FakeTimer(self, self.now + seconds, call)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds
        for timer in [each for each in self.timers if each.at <= self.now + 1e-9]:
            self.timers.remove(timer)
            timer.call()


@attrs.define
class FakeTimer:
    time: FakeTime
    at: float
    call: Callable[[], None]

    def start(self) -> None:
        self.time.timers.append(self)


def test_the_newest_of_many_values_is_sent_four_times_a_second() -> None:
    time, sent = FakeTime(), []
    pace = Pace(lambda value: sent.append((time.now, value)), GAP, time.clock, time.timer)
    pace.begin(0)
    for step in range(1, 1001):
        pace.offer(step)
        time.pass_by(0.01)
    time.pass_by(GAP)
    assert len(sent) <= 10 * 4 + 1
    assert sent[0] == (0, 1)
    assert sent[-1][1] == 1000
    assert all(later[0] - sooner[0] >= GAP - 1e-9 for sooner, later in pairwise(sent))
    assert time.timers == []


def test_nothing_is_sent_when_nothing_has_changed() -> None:
    time, sent = FakeTime(), []
    pace = Pace(sent.append, GAP, time.clock, time.timer)
    pace.begin("a")
    for _ in range(5):
        pace.offer("a")
        time.pass_by(1)
    assert sent == []
    pace.offer("b")
    pace.offer("b")
    assert time.timers == []
    # There and back again within a gap is no change.
    pace.offer("c")
    pace.offer("b")
    time.pass_by(1)
    assert sent == ["b"]


class Counted(TopologyView):
    """A view whose messages are kept in `told`, at a time of its own."""

    def __init__(self, topology: Topology) -> None:
        self.told: list[dict[str, Any]] = []
        super().__init__(topology)
        self.time = FakeTime()
        self._pace = Pace(self._show, GAP, self.time.clock, self.time.timer)
        self._pace.begin(self._seen)
        self.told.clear()

    def _send(self, msg: Any, buffers: Any = None) -> None:
        self.told.append(msg["state"])


@pytest.fixture
def view() -> Counted:
    return Counted(mesh(2))


def busy(count: int) -> Topology:
    return attrs.evolve(mesh(2), nodes=(node(0, used=count * GB), node(1)))


def test_an_update_is_one_message_with_what_differs(view: Counted) -> None:
    view.update(mesh(2))
    assert view.told == []
    view.update(busy(1))
    [state] = view.told
    # Of the links, of which there may be thousands, nothing has changed.
    assert set(state) == {"scene", "figures"}
    assert view.topology == busy(1)
    for count in range(2, 100):
        view.update(busy(count))
    assert len(view.told) == 1
    view.time.pass_by(GAP)
    assert len(view.told) == 2
    assert view.topology == busy(99)
    view.time.pass_by(GAP)
    view.update(busy(99), warnings=["slow"], faulty=[(1, 0)])
    assert view.told[2]["scene"]["warnings"] == ["slow"]
    assert set(view.told[2]) == {"scene", "link_figures"}
    assert view.link_figures["link-0-1"]["faulty"]
    view.time.pass_by(GAP)
    # Both stay until they are taken back.
    view.update(busy(98))
    assert view.scene["warnings"] == ["slow"]
    assert "fault" in json.dumps(view.scene["links"])
    view.time.pass_by(GAP)
    view.update(busy(98), warnings=(), faulty=())
    assert view.scene["warnings"] == []
    assert "fault" not in json.dumps(view.scene["links"])


def test_a_large_mesh_that_is_live_is_not_laid_out_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, after = (varied(64, mesh) for _ in range(2))
    view = Counted(before)
    calls: list[str] = []

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, **k: (calls.append(name), function(*a, **k))[1]
        )

    counted(network, "_place_label")
    counted(topology_widget, "link_figures")
    # As the ranks give it: other records, equal links.
    nodes = tuple(attrs.evolve(each, used=GB) for each in after.nodes)
    view.update(attrs.evolve(after, nodes=nodes))
    [state] = view.told
    assert set(state) == {"scene", "figures"}
    # Looking for room among 2,016 links is what takes long.
    assert 0 < len(calls) <= 2 * network.MOST_TEXTS
    assert set(calls) == {"_place_label"}


# -- live ------------------------------------------------------------------------------------------


class Source:
    """Gives a topology each time that it is let; counts."""

    def __init__(self) -> None:
        self.count = 0
        self.error: Exception | None = None
        self.asked = threading.Semaphore(0)

    def __call__(self) -> Topology:
        self.count += 1
        self.asked.release()
        if self.error is not None:
            raise self.error
        return busy(self.count)

    def wait(self, times: int = 1) -> None:
        for _ in range(times):
            assert self.asked.acquire(timeout=TIMEOUT)


def test_it_is_live_while_a_page_shows_it() -> None:
    view, source = TopologyView(mesh(2)), Source()
    view.live(source, period=0.001)
    assert view.wait(0)
    assert source.count == 0
    view._on_page(None, {"do": "open", "page": "one"}, [])
    source.wait(3)
    view._on_page(None, {"do": "open", "page": "two"}, [])
    view._on_page(None, {"do": "close", "page": "one"}, [])
    source.wait(3)
    assert not view.wait(0)
    view._on_page(None, {"do": "close", "page": "two"}, [])
    assert view.wait(TIMEOUT)
    count = source.count
    assert view.topology.nodes[0].used in (count * GB, (count - 1) * GB)
    # It begins again with the next page, and ends with stop.
    view._on_page(None, {"do": "open", "page": "three"}, [])
    while source.count < count + 2:
        source.wait()
    view.stop()
    assert view.wait(TIMEOUT)
    # Junk from a page does nothing.
    for junk in ({}, {"do": "open"}, {"do": "open", "page": 3}, {"page": "x"}):
        view._on_page(None, junk, [])
    assert view.wait(0)
    with pytest.raises(UsageError, match="a period of 0 s cannot be"):
        view.live(source, period=0)


def test_what_the_source_raises_is_shown_until_it_succeeds(view: Counted) -> None:
    source = Source()
    source.error = OSError("no route to host")
    stopped = threading.Event()

    def once() -> Topology:
        stopped.set()
        return source()

    # One round in this thread: the thread of `live` does the same.
    view._source = once
    view._work(RoundsLeft(stopped))
    assert view.status == "Not up to date: OSError: no route to host"
    assert view.topology == mesh(2)
    view.time.pass_by(GAP)
    source.error = UsageError("There is no cluster.", why="it was stopped", do="%cluster start")
    view._work(RoundsLeft(stopped))
    assert view.status.startswith("Not up to date: There is no cluster.\n  Why: it was stopped")
    view.time.pass_by(GAP)
    source.error = None
    view._work(RoundsLeft(stopped))
    assert view.status == ""
    assert view.topology == busy(3)


class RoundsLeft(threading.Event):
    """Stops after one round."""

    def __init__(self, done: threading.Event) -> None:
        super().__init__()
        self._done = done
        done.clear()

    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        return True


def test_the_page_gets_the_renderer_and_its_colours() -> None:
    code = str(TopologyView._esm)
    for name in ("dom.js", "network.js", "topology.js"):
        assert (Path(network.__file__).parent / name).read_text() in code
    assert json.dumps(network.CSS) in code
    # It travels with every view.
    assert len(code) < 40_000
