"""What the wiring is, what it allows, and in words what is missing or slow."""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import pytest

from macluster.engine.errors import UsageError
from macluster.engine.measure.fit import Fit
from macluster.engine.measure.record import Pair, Point
from macluster.engine.measure.samples import Rate, Timing
from macluster.engine.topology.reading import read_topology
from macluster.engine.topology.shape import closing, shape
from macluster.engine.topology.tables import MOST_LINKS, links_table
from macluster.engine.topology.topology import Kind, Link, Node, Topology

Pairs = Sequence[tuple[int, int]]


def pair(a: int, b: int, there: float, back: float | None = None, via: str = "jaccl") -> Pair:
    latency = Timing.of([30e-6] * 9 + [50e-6])
    return Pair(a, b, via, latency, Rate.of(1, [1 / there] * 5), Rate.of(1, [1 / (back or there)]))


def link(a: int, b: int, kind: Kind = "rdma", rate: float | None = 80e9, **other: Any) -> Link:
    a, b = sorted((a, b))
    ports = ((f"en{a}", f"en{b}"),) if kind != "loopback" else ()
    return Link(a, b, kind, ports, rate, **other)


def nodes(size: int, free: Sequence[str] | None = None, prefix: str = "studio") -> tuple[Node, ...]:
    given = tuple(free) if free is not None else None
    return tuple(
        Node(rank, f"{prefix}-{rank + 1}", "Mac Studio", 2**39, 2**30, 10, "ok", given)
        for rank in range(size)
    )


def wired(
    size: int, pairs: Pairs, kind: Kind = "rdma", backend: str = "", **options: Any
) -> Topology:
    return Topology(
        nodes(size, options.pop("free", None)),
        tuple(link(a, b, kind, **options) for a, b in sorted(map(sorted, pairs))),
        backend,
    )


def ring(size: int) -> Pairs:
    return [(rank, (rank + 1) % size) for rank in range(size)]


def mesh(size: int) -> Pairs:
    return list(itertools.combinations(range(size), 2))


def measured(*speeds: tuple[int, int, float], size: int = 0, **options: Any) -> Topology:
    """Links with their measured bytes/s."""
    count = size or 1 + max(b for _, b, _ in speeds)
    return Topology(
        nodes(count),
        tuple(link(a, b, measured=pair(a, b, rate), **options) for a, b, rate in speeds),
    )


# -- names and backends ----------------------------------------------------------------------------

TWO_TRIANGLES = [(0, 1), (1, 2), (0, 2), (2, 3), (3, 4), (2, 4)]


@pytest.mark.parametrize(
    ("size", "pairs", "name", "closes", "backends"),
    [
        (1, [], "one", True, ("ring", "mpi")),
        (2, [(0, 1)], "mesh", True, ("jaccl", "jaccl-ring", "ring", "mpi")),
        (2, [], "parts", False, ()),
        (3, mesh(3), "mesh", True, ("jaccl", "jaccl-ring", "ring", "mpi")),
        (4, ring(4), "ring", True, ("jaccl-ring", "ring")),
        (4, [(0, 2), (2, 1), (1, 3), (3, 0)], "ring", True, ("jaccl-ring", "ring")),
        (4, [*ring(4), (0, 2)], "ring", True, ("jaccl-ring", "ring")),
        (4, mesh(4), "mesh", True, ("jaccl", "jaccl-ring", "ring", "mpi")),
        (3, [(0, 1), (1, 2)], "line", False, ()),
        (4, [(0, 1), (1, 2), (2, 3)], "line", False, ()),
        (4, [(1, 0), (1, 2), (1, 3)], "star", False, ()),
        (4, [(0, 1), (2, 3)], "parts", False, ()),
        (5, TWO_TRIANGLES, "partial mesh", False, ()),
        (9, mesh(9), "mesh", True, ("jaccl-ring", "ring", "mpi")),
    ],
)
def test_a_wiring_has_a_name_and_allows_backends(
    size: int, pairs: Pairs, name: str, closes: bool, backends: tuple[str, ...]
) -> None:
    found = wired(size, pairs).shape
    assert (found.name, found.ring, found.backends) == (name, closes, backends)
    assert len(found.missing) == size * (size - 1) // 2 - len(pairs)
    # TCP has the same shapes, and no RDMA.
    plain = wired(size, pairs, "ethernet", rate=1e9).shape
    assert (plain.name, plain.ring) == (name, closes)
    assert plain.backends == tuple(each for each in backends if "jaccl" not in each)


def test_two_ranks_are_a_mesh_and_a_ring() -> None:
    assert wired(2, [(0, 1)], "loopback", rate=None).shape.title == "a mesh and a ring"
    assert str(wired(2, [(0, 1)]).shape) == (
        "A mesh and a ring of Thunderbolt cables; the links allow jaccl, jaccl-ring, ring, mpi."
    )
    assert wired(4, mesh(4)).shape.title == "a mesh of Thunderbolt cables"
    assert wired(1, []).shape.title == "one rank"
    assert wired(2, []).shape.title == "parts that are not connected"


def test_what_is_right_needs_no_words() -> None:
    speeds = [(a, b, 6e9) for a, b in mesh(4)]
    for topology in (
        wired(1, []),
        wired(2, [(0, 1)], "loopback", rate=None),
        wired(3, mesh(3), "ethernet", "ring", rate=1e9),
        wired(4, mesh(4), free=[]),
        measured(*speeds),
        wired(8, mesh(8)),
        wired(3, mesh(3), "thunderbolt", "ring", rate=40e9),
    ):
        assert topology.shape.sentences == ()


def test_the_cables_count_where_there_are_any() -> None:
    links = [link(a, b) for a, b in ring(4)]
    links += [link(a, b, "ethernet", 1e9) for a, b in [(0, 2), (1, 3)]]
    found = shape(Topology(nodes(4), tuple(links), "ring"))
    assert (found.name, found.missing) == ("ring", ((0, 2), (1, 3)))
    assert found.backends == ("jaccl-ring", "ring", "mpi")
    # A cable that lies idle is one, too.
    idle = wired(2, [(0, 1)], "ethernet", rate=1e9, besides=("rdma",))
    assert idle.shape.backends == ("jaccl", "jaccl-ring", "ring", "mpi")


# -- what is missing -------------------------------------------------------------------------------


def test_a_missing_cable_is_named_with_what_is_possible() -> None:
    assert wired(4, [*ring(4), (0, 2)]).shape.sentences == (
        "No cable between studio-2 and studio-4: jaccl needs a full mesh; a ring is possible.",
    )
    [words] = wired(4, ring(4)).shape.sentences
    assert words == (
        "No cable between studio-1 and studio-3, nor studio-2 and studio-4: jaccl needs a full "
        "mesh; a ring is possible."
    )


def test_where_ports_are_free_it_says_what_to_plug() -> None:
    [words] = wired(4, ring(4), free=["en8", "en9"]).shape.sentences
    assert words.endswith(
        " a ring is possible. Plug en8 of studio-1 to en8 of studio-3 and en8 of studio-2 to en8 "
        "of studio-4."
    )
    some = [attrs.evolve(node, free=("en8",) * (node.rank < 3)) for node in nodes(4)]
    links = tuple(link(a, b) for a, b in sorted(map(sorted, ring(4))))
    [words] = shape(Topology(tuple(some), links)).sentences
    assert words.endswith(
        "Plug en8 of studio-1 to en8 of studio-3. studio-4 has no more free Thunderbolt port."
    )
    # Of one host it is not known.
    some[1] = attrs.evolve(some[1], free=None)
    [words] = shape(Topology(tuple(some), links)).sentences
    assert "Plug" not in words


def test_many_missing_cables_are_counted() -> None:
    [words] = wired(8, ring(8)).shape.sentences
    assert words.startswith("20 of 28 pairs have no cable, such as studio-1 and studio-3, or ")
    assert len(words) < 250
    # No mesh can be that large.
    assert wired(12, ring(12)).shape.sentences == ()


def test_a_line_lacks_one_cable() -> None:
    mesh_words, ring_words = wired(4, [(0, 1), (1, 2), (2, 3)], free=["en7"]).shape.sentences
    assert mesh_words.endswith("jaccl needs a full mesh; a ring is not possible either.")
    assert ring_words == (
        "studio-1 and studio-4 hang on one cable each: a ring needs two. A cable between studio-1 "
        "and studio-4 closes one. Plug en7 of studio-1 to en7 of studio-4."
    )


def test_one_that_hangs_on_one_cable_is_named() -> None:
    tail = wired(4, [(0, 1), (1, 2), (0, 2), (2, 3)])
    assert any(
        words.startswith("studio-4 hangs on one cable: a ring needs two. A cable between ")
        for words in tail.shape.sentences
    )
    alone = wired(4, [(0, 1), (1, 2), (0, 2)])
    assert any(
        words.startswith("studio-4 has no cable: a ring needs two. 2 cables between ")
        for words in alone.shape.sentences
    )


@pytest.mark.parametrize(
    ("size", "pairs", "count"),
    [
        (4, [(0, 1), (1, 2), (2, 3)], 1),
        (4, [(0, 1), (2, 3)], 2),
        (5, [(0, 1), (0, 2), (0, 3), (0, 4)], 3),
        (5, TWO_TRIANGLES, 1),
        (4, [], 4),
        (4, ring(4), 0),
    ],
)
def test_what_closes_a_ring_is_the_least_that_does(size: int, pairs: Pairs, count: int) -> None:
    topology = wired(size, pairs)
    graph = np.zeros((size, size), bool)
    for a, b in pairs:
        graph[a, b] = graph[b, a] = True
    new = closing(graph)
    assert len(new) == count
    more = tuple(link(a, b) for a, b in new)
    assert shape(attrs.evolve(topology, links=(*topology.links, *more))).ring


def test_two_triangles_are_no_ring_though_each_has_two_cables() -> None:
    words = wired(5, TWO_TRIANGLES).shape.sentences[-1]
    assert words.startswith("No order of the ranks makes a ring of these cables. A cable between ")


def test_parts_are_listed() -> None:
    cables = [link(0, 1), link(2, 3)]
    first = shape(Topology(nodes(4), tuple(cables))).sentences[0]
    assert first == (
        "There is no cable between [studio-1 and studio-2] and [studio-3 and studio-4]: no backend "
        "can make one world of them. Join them with a cable, or give every host an address in one "
        "network."
    )
    cables.append(link(1, 2, "wifi", None))
    first = shape(Topology(nodes(4), tuple(cables))).sentences[0]
    assert first.endswith("they reach each other over the network only, at its pace.")


def test_a_rank_that_does_not_answer_is_not_blamed_for_its_cables() -> None:
    known = nodes(3)
    dead = (*known[:2], Node(2, "studio-3", state="dead"))
    links = (link(0, 1), Link(0, 2, "unknown"), Link(1, 2, "unknown"))
    [words] = shape(Topology(dead, links, "ring")).sentences
    assert words.startswith("studio-3 did not answer, so its cables are known only as far as ")
    [words] = shape(Topology(dead, links[:1], "jaccl")).sentences
    assert words.startswith("studio-3 did not answer")
    # Nobody can be asked of what does not exist.
    ideal = Topology(tuple(Node(rank, f"m-{rank}") for rank in range(3)), links[:1], "", "3 Macs")
    assert not any("did not answer" in words for words in shape(ideal).sentences)


# -- what is slow or odd ---------------------------------------------------------------------------


def one(topology: Topology, start: str) -> str:
    """The one sentence that begins so."""
    [found] = [words for words in topology.shape.sentences if words.startswith(start)]
    return found


def test_a_thunderbolt_4_link_among_5_is_named() -> None:
    links = [link(a, b, rate=40e9 if (a, b) == (1, 2) else 80e9) for a, b in mesh(3)]
    words = one(Topology(nodes(3), tuple(links)), "studio-2 - studio-3 (en1 - en2) runs at 40 Gb/s")
    assert ", where others have 80: that is Thunderbolt 4, and jaccl needs" in words
    assert "Use a Thunderbolt 5 cable" in words
    # Two cables of 40 are no link of 80.
    two = Link(0, 1, "rdma", (("en1", "en2"), ("en3", "en4")), 80e9)
    assert one(Topology(nodes(2), (two,)), "studio-1 - studio-2 (en1 - en2, en3 - en4) runs at 40")


def test_thunderbolt_5_without_rdma_is_named() -> None:
    words = one(wired(2, [(0, 1)], "thunderbolt", "ring"), "studio-1 - studio-2 (en0 - en1) is ")
    assert "names no RDMA devices" in words
    assert "`rdma_ctl status`" in words
    assert wired(2, [(0, 1)], "thunderbolt", "ring", rate=None).shape.sentences == ()


@pytest.mark.parametrize(("kind", "called"), [("wifi", "Wi-Fi"), ("ethernet", "Ethernet")])
def test_a_cable_that_lies_idle_is_named(kind: Kind, called: str) -> None:
    idle = wired(2, [(0, 1)], kind, "ring", rate=None, besides=("rdma", "thunderbolt"))
    [words] = idle.shape.sentences
    assert words.startswith(f"studio-1 - studio-2 (en0 - en1) uses {called}, though a Thunderbolt ")
    assert "mlx.distributed_config --over thunderbolt" in words


def test_a_link_far_below_its_rate_is_named() -> None:
    words = one(measured((0, 1, 4.9e9)), "studio-1 - studio-2 (en0 - en1) carries 4.90 GB/s, 49 %")
    assert "of the 80 Gb/s" in words
    assert measured((0, 1, 5.1e9)).shape.sentences == ()
    assert measured((0, 1, 1e6), rate=None).shape.sentences == ()


def test_a_link_much_slower_than_its_peers_is_named_with_its_ports() -> None:
    speeds = [(a, b, 1.9e9 if (a, b) == (1, 3) else 6e9) for a, b in mesh(4)]
    words = one(measured(*speeds, rate=None), "studio-2 - studio-4 (en1 - en3), rdma, is the slow")
    assert "1.90 GB/s, where the median of 6 links is 6.00 GB/s." in words
    speeds = [(a, b, 2.1e9 if (a, b) == (1, 3) else 6e9) for a, b in mesh(4)]
    assert measured(*speeds, rate=None).shape.sentences == ()


def test_only_what_is_alike_is_compared() -> None:
    links = [
        link(0, 1, "loopback", None, measured=pair(0, 1, 20e9)),
        link(2, 3, "loopback", None, measured=pair(2, 3, 20e9)),
        link(0, 2, "ethernet", None, measured=pair(0, 2, 1e9)),
        link(1, 3, "ethernet", None, measured=pair(1, 3, 0.2e9, via="tcp")),
    ]
    words = shape(Topology(nodes(4), tuple(links))).sentences
    assert not any("slow one" in each for each in words)


def test_two_directions_that_differ_are_named() -> None:
    odd = wired(2, [(0, 1)], rate=None, measured=pair(0, 1, 6e9, 3.9e9))
    words = one(odd, "studio-1 - studio-2 (en0 - en1) carries 6.00 GB/s there and 3.90 GB/s back")
    assert "measure again" in words
    even = wired(2, [(0, 1)], rate=None, measured=pair(0, 1, 6e9, 4.1e9))
    assert even.shape.sentences == ()


def test_an_order_that_is_much_faster_is_named() -> None:
    links = [
        link(a, b, "ethernet" if (a, b) == (0, 1) else "thunderbolt", 1e9 if b == 1 else 40e9)
        for a, b in mesh(4)
    ]
    topology = Topology(nodes(4), tuple(links), "ring")
    assert one(topology, "In the order 0, 2, 1, 3 of the ranks") == (
        "In the order 0, 2, 1, 3 of the ranks the slowest link of the ring would have 5.00 GB/s, "
        "now it has 125 MB/s (negotiated rates): write the hosts into the hostfile in that order."
    )
    assert not any(
        "order" in each for each in attrs.evolve(topology, backend="mpi").shape.sentences
    )


def test_all_that_is_wrong_is_said_and_many_alike_are_counted() -> None:
    odd = {(0, 1): 1e9, (2, 3): 40e9}
    links = [link(a, b, rate=odd.get((a, b), 80e9)) for a, b in ring(4)[:3]]
    links[0] = attrs.evolve(links[0], measured=pair(0, 1, 0.01e9, 0.02e9))
    words = shape(Topology(nodes(4), tuple(links), "jaccl-ring")).sentences
    starts = [
        "No cable between",
        "studio-1 and studio-4 hang on one",
        "studio-1 - studio-2 (en0 - ",
    ]
    assert all(any(each.startswith(start) for each in words) for start in starts)
    assert sum("runs at" in each for each in words) == 2
    assert sum("carries" in each for each in words) == 2
    many = measured(*((a, b, 1e9) for a, b in mesh(8)))
    assert [each for each in many.shape.sentences if "carries" in each][5:] == []
    assert many.shape.sentences[-1] == "The same is true of 23 more links."


def test_ranks_are_named_by_host_only_where_that_is_clear() -> None:
    shared = tuple(Node(rank, host, "", 1, state="ok") for rank, host in enumerate("aab"))
    topology = Topology(shared, ())
    assert [topology.name(rank) for rank in range(3)] == ["rank 0", "rank 1", "b"]


# -- tables and JSON -------------------------------------------------------------------------------


def full() -> Topology:
    """One with something in every field."""
    fit = Fit(3e-5, 6e9, 0.1, 0.99, 8, (2e-5, 4e-5), (5e9, 7e9))
    whole = attrs.evolve(
        pair(0, 1, 6e9, 5e9),
        crowded=Rate.of(1, [1e-9]),
        curve=(Point(8, Timing.of([1e-5])), Point(16, Timing.of([1e-5]))),
        fit=fit,
    )
    links = (
        Link(0, 1, "rdma", (("en4", "en5"), ("en6", "")), 160e9, whole, "<why>", ("ethernet",)),
        Link(1, 2, "wifi"),
    )
    some = (*nodes(2, ["en9"]), Node(2, "<mini>"))
    return Topology(some, links, "jaccl", "a <simulated> cluster")


def test_a_topology_comes_back_from_json_as_it_was() -> None:
    for topology in (full(), wired(4, ring(4)), wired(1, [])):
        assert read_topology(json.loads(json.dumps(topology.as_json()))) == topology
    data = full().as_json()
    data["later"] = data["nodes"][0]["later"] = 1
    assert read_topology(data) == full()
    del data["simulated"], data["links"][0]["besides"]
    assert read_topology(data).simulated == ""


def changed(path: Sequence[str | int], value: Any) -> dict[str, Any]:
    data: Any = json.loads(json.dumps(full().as_json()))
    found = data
    for step in path[:-1]:
        found = found[step]
    if value is ...:
        del found[path[-1]]
    else:
        found[path[-1]] = value
    return dict(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "it is None, not an object"),
        ([], "not an object"),
        ("{}", "not an object"),
        ({}, "nodes is missing"),
        ({"nodes": [], "links": []}, "it has no nodes"),
        (changed(["nodes", 0, "rank"], "0"), "nodes[0].rank is '0', not a whole number"),
        (changed(["nodes", 0, "rank"], True), "nodes[0].rank is True"),
        (changed(["nodes", 0, "rank"], 1), "node 0 is of rank 1"),
        (changed(["nodes", 1, "host"], ...), "nodes[1].host is missing"),
        (changed(["nodes", 1, "memory"], "512"), "nodes[1].memory is '512'"),
        (changed(["links", 0, "kind"], "laser"), "links[0].kind is 'laser', not one of rdma, "),
        (
            changed(["links", 0, "ports"], [["en4"]]),
            "links[0].ports[0] is ['en4'], not a list of 2",
        ),
        (changed(["links", 0, "ports"], "en4"), "links[0].ports is 'en4', not a list"),
        (changed(["links", 0, "b"], 7), "a link joins 0 and 7 of 3 ranks"),
        (changed(["links", 1, "a"], 2), "a link joins 2 and 2"),
        (changed(["links", 0, "measured", "forward"], None), "measured.forward is None"),
        (changed(["links", 0, "measured", "latency", "p50"], ...), "latency.p50 is missing"),
        (changed(["links"], 2 * full().as_json()["links"][:1]), "two links between 0 and 1"),
        (changed(["links", 0, "why"], "x" * 99 and 7), "links[0].why is 7, not a text"),
    ],
)
def test_what_is_no_topology_is_refused_with_the_place(data: object, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_topology(data)
    assert says in caught.value.what
    assert caught.value.why
    assert caught.value.do


def test_the_table_has_a_row_for_each_link() -> None:
    table = full().table()
    assert list(table.heading) == [
        "from", "to", "kind", "ports", "negotiated", "latency us (p99)", "GB/s there", "back",
        "of rate",
    ]  # fmt: skip
    assert [list(row) for row in table.rows] == [
        ["0 studio-1", "1 studio-2", "rdma", "en4 - en5, en6 - ?", "160 Gb/s", "30.0 (48.2)",
         "6.00", "5.00", "25 %"],
        ["1 studio-2", "2 <mini>", "wifi", "", "", "", "", "", ""],
    ]  # fmt: skip
    assert list(wired(2, [(0, 1)]).table().heading)[-1] == "negotiated"
    assert repr(wired(2, []).table()) == "no links are known"


def test_text_and_html_say_the_same() -> None:
    topology = full()
    text, page = repr(topology), topology._repr_html_()
    words = [
        "jaccl, 3 ranks",
        "simulated, nothing of it exists: a <simulated> cluster",
        "Medians of 10 round trips and of 5 transfers in each direction (jaccl); latency is one",
        str(topology.shape),
        *topology.shape.sentences,
    ]
    assert topology.shape.sentences
    for each in words:
        assert each in text
        assert html.escape(each) in page
    assert "512 GB" in text
    assert "<mini>" not in page
    assert page.count("<table>") == page.count("</table>") == 2
    assert all(len(line) <= 110 for line in text.split("Medians")[0].splitlines())


def test_of_very_many_links_the_slowest_are_shown() -> None:
    speeds = [(a, b, 1e9 + 1e6 * at) for at, (a, b) in enumerate(mesh(16))]
    topology = measured(*speeds, rate=None)
    assert len(topology.links) == 120
    rows = links_table(topology).rows
    shown = [f"{a} studio-{a + 1}, {b} studio-{b + 1}" for a, b in mesh(16)[:MOST_LINKS]]
    assert [f"{row[0]}, {row[1]}" for row in rows] == shown
    assert "54 more links are in .links" in repr(topology)
