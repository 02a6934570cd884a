"""What the wiring is, what it allows, and in words what is missing or slow."""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

from macluster.engine.errors import UsageError
from macluster.engine.measure.fit import Fit
from macluster.engine.measure.record import Pair, Point
from macluster.engine.measure.samples import Rate, Timing
from macluster.engine.topology.shape import closing, shape
from macluster.engine.topology.tables import MOST_LINKS, links_table
from macluster.engine.topology.topology import FORMAT, Kind, Link, Node, Topology

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
    [words] = wired(8, ring(8), backend="jaccl").shape.sentences
    assert words.startswith("20 of 28 pairs have no cable, such as studio-1 and studio-3, or ")
    assert len(words) < 250
    # No mesh can be that large.
    assert wired(12, ring(12), backend="jaccl").shape.sentences == ()


@pytest.mark.parametrize("backend", ["ring", "jaccl-ring", "mpi"])
def test_who_needs_no_mesh_is_not_told_of_one(backend: str) -> None:
    kind: Kind = "rdma" if backend == "jaccl-ring" else "thunderbolt"
    rate = 80e9 if backend == "jaccl-ring" else None
    assert wired(4, [*ring(4), (0, 2)], kind, backend, rate=rate).shape.sentences == ()
    # Nor is who has chosen none, and lacks many cables.
    assert wired(5, ring(5)).shape.sentences == ()


def test_a_line_lacks_one_cable() -> None:
    line = wired(4, [(0, 1), (1, 2), (2, 3)], backend="jaccl", free=["en7"])
    mesh_words, ring_words = line.shape.sentences
    assert mesh_words.endswith("jaccl needs a full mesh; a ring of cables is not possible either.")
    assert ring_words == (
        "studio-1 and studio-4 hang on one cable each: a ring of cables needs two. A cable between "
        "studio-1 and studio-4 closes one. Plug en7 of studio-1 to en7 of studio-4."
    )
    assert line.shape.backends == ()  # though one of them runs


def test_one_that_hangs_on_one_cable_is_named() -> None:
    tail = wired(4, [(0, 1), (1, 2), (0, 2), (2, 3)])
    assert any(
        words.startswith("studio-4 hangs on one cable: a ring of cables needs two. A cable ")
        for words in tail.shape.sentences
    )
    alone = wired(4, [(0, 1), (1, 2), (0, 2)])
    assert any(
        words.startswith("studio-4 has no cable: a ring of cables needs two. 2 cables ")
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


def band(size: int) -> Pairs:
    """Each linked to the next two: the only ring goes up the even ranks and down the odd ones."""
    return [(a, b) for a, b in mesh(size) if b - a <= 2]


@pytest.mark.parametrize("size", [17, 24, 40, 64])
def test_of_many_ranks_the_only_ring_is_found(size: int) -> None:
    found = wired(size, band(size)).shape
    assert (found.name, found.ring, found.sentences) == ("ring", True, ())


def test_of_many_ranks_the_words_are_not_surer_than_the_search() -> None:
    uneven = [(a, b) for a in range(9) for b in range(9, 20)]
    [words] = wired(20, uneven).shape.sentences
    assert words == (
        "No ring of these cables was found; above 16 ranks not all orders are tried, so there may "
        "be one."
    )
    # What can be ruled out is.
    grid = [(a, b) for a, b in mesh(25) if b == a + 5 or (b == a + 1 and b % 5)]
    assert wired(25, grid).shape.sentences == (
        "No order of the ranks makes a ring of these cables.",
    )


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
    # Who runs a ring over TCP needs no RDMA, and simulated Macs are as they were asked for.
    links = [attrs.evolve(each, kind="thunderbolt") for each in links]
    old = Topology(nodes(3), tuple(links), "ring")
    assert one(old, "studio-2 - studio-3 (en1 - en2) runs at 40 Gb/s, where others have 80: that ")
    assert not any("jaccl needs" in each for each in old.shape.sentences)
    assert attrs.evolve(old, simulated="3 Macs").shape.sentences == ()
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
    words = one(measured(*speeds, rate=None), "studio-2 - studio-4 (en1 - en3) carries 1.90 GB/s")
    assert ", where the median of 6 RDMA links is 6.00 GB/s." in words
    speeds = [(a, b, 2.1e9 if (a, b) == (1, 3) else 6e9) for a, b in mesh(4)]
    assert measured(*speeds, rate=None).shape.sentences == ()


def test_only_what_is_alike_is_compared() -> None:
    links = [
        link(0, 1, "loopback", None, measured=pair(0, 1, 20e9)),
        link(2, 3, "loopback", None, measured=pair(2, 3, 20e9)),
        link(0, 2, "ethernet", None, measured=pair(0, 2, 1e9)),
        link(1, 3, "ethernet", None, measured=pair(1, 3, 0.2e9, via="tcp")),
    ]
    assert shape(Topology(nodes(4), tuple(links))).sentences == ()


def test_ethernet_in_a_ring_of_thunderbolt_is_no_broken_cable() -> None:
    speeds = {(0, 1): 5.5e9, (1, 2): 5.5e9, (2, 3): 5.5e9, (0, 3): 1.1e9}
    links = [
        link(a, b, "ethernet" if b - a == 3 else "thunderbolt", None, measured=pair(a, b, rate))
        for (a, b), rate in speeds.items()
    ]
    found = shape(Topology(nodes(4), tuple(links), "ring"))
    about = [words for words in found.sentences if "studio-1 - studio-4 (en0 - en3)" in words]
    assert about == [
        (
            "studio-1 - studio-4 (en0 - en3) is Ethernet, and other links are Thunderbolt: a ring "
            "moves at the pace of its slowest link, here 1.10 GB/s, where those have 5.50 GB/s."
        )
    ]
    assert found.faulty == ()
    # With the ranks in order it is not in use.
    links[3] = link(1, 3, "ethernet", 10e9)
    links.append(link(0, 3, "thunderbolt", None))
    assert shape(Topology(nodes(4), tuple(links), "ring")).sentences == ()


def test_wi_fi_is_called_that_and_nothing_else() -> None:
    air = [link(a, b, "wifi", 1.2e9, measured=pair(a, b, 0.045e9)) for a, b in ring(3)]
    [words] = shape(Topology(nodes(3), tuple(air), "ring")).sentences
    assert words.endswith(" are Wi-Fi: a cable would be faster.")
    air[0] = attrs.evolve(air[0], measured=pair(0, 1, 0.001e9))
    words, rest = shape(Topology(nodes(3), tuple(air), "ring")).sentences
    assert "studio-1 - studio-2" not in words
    assert rest == (
        "studio-1 - studio-2 (en0 - en1) carries 1.00 MB/s, where the median of 3 Wi-Fi links is "
        "45.0 MB/s. It is Wi-Fi: a cable would be faster."
    )


def late(a: int, b: int, rate: float, seconds: float) -> Pair:
    return attrs.evolve(pair(a, b, rate), latency=Timing.of([seconds] * 9))


@pytest.mark.parametrize("simulated", ["", "4 Macs"])
def test_all_that_is_wrong_with_a_link_is_one_sentence(simulated: str) -> None:
    links = [link(a, b, measured=pair(a, b, 6e9)) for a, b in mesh(4)]
    links[4] = attrs.evolve(
        links[4],
        measured=attrs.evolve(late(1, 3, 1.5e9, 230e-6), backward=Rate.of(1, [1 / 0.75e9])),
    )
    found = shape(Topology(nodes(4), tuple(links), "jaccl", simulated))
    [words] = found.sentences
    assert words == (
        "studio-2 - studio-4 (en1 - en3) carries 1.50 GB/s there and 750 MB/s back, 8 % of the 80 "
        "Gb/s that it has negotiated, where the median of 6 RDMA links is 6.00 GB/s; it takes 230 "
        "us one way, where their median is 30.0 us. See whether one of the two is busy, then try "
        "another cable or socket there, and measure again."
    )
    assert found.faulty == ((1, 3),)


def test_a_late_cable_is_no_switch() -> None:
    links = [link(a, b, measured=late(a, b, 6e9, 30e-6 * (1 + 9 * (b == 1)))) for a, b in mesh(4)]
    [words] = shape(Topology(nodes(4), tuple(links), "jaccl")).sentences
    assert "takes 300 us one way, where the median of 6 RDMA links is 30.0 us" in words
    assert "switch" not in words
    assert "Wi-Fi" not in words


def test_most_links_of_a_host_are_one_sentence() -> None:
    def rate(a: int, b: int) -> float:
        return 0.2e9 if 2 in (a, b) else 1.1e9

    def wire(a: int, b: int) -> Link:
        return Link(a, b, "ethernet", (("en0", "en0"),), 10e9, pair(a, b, rate(a, b), via="tcp"))

    found = shape(Topology(nodes(5), tuple(wire(a, b) for a, b in mesh(5)), "ring"))
    [words] = found.sentences
    assert words == (
        "All 4 links of studio-3 (en0) measured badly: the slowest carries 200 MB/s (median of the "
        "others: 1.10 GB/s). See whether studio-3 is busy, then try another cable and port of the "
        "switch, and measure again."
    )
    assert found.faulty == ((0, 2), (1, 2), (2, 3), (2, 4))


def test_if_most_links_are_bad_no_host_is_blamed() -> None:
    found = measured(*((a, b, 1e9) for a, b in mesh(8))).shape
    [words] = found.sentences
    assert words == (
        "All 28 links measured badly: the slowest carries 1.00 GB/s. See what the hosts are busy "
        "with, and measure again; then look at the cables."
    )
    assert len(found.faulty) == 28


# -- several ranks on a host -----------------------------------------------------------------------


def pairs_of_hosts(hosts: str, speed: float | None = None, **options: Any) -> Topology:
    """A rank for each letter, and a cable between each two hosts that all of their ranks share."""
    links = [
        link(a, b, "loopback", None)
        if hosts[a] == hosts[b]
        else Link(
            a, b, "thunderbolt", (("en1", "en1"),), 40e9, speed and pair(a, b, speed, via="ring")
        )
        for a, b in mesh(len(hosts))
    ]
    some = tuple(Node(rank, f"mac-{host}", "", 1, state="ok") for rank, host in enumerate(hosts))
    return Topology(some, tuple(links), "ring", **options)


def test_ranks_that_share_a_cable_lack_none() -> None:
    for hosts in ("aabb", "aabbcc"):
        topology = pairs_of_hosts(hosts, 2.7e9)
        assert topology.shape.sentences == ()
        assert topology.shape.missing == ()
    # Also where the neighbours of the ring alone are known.
    known = [
        each for each in pairs_of_hosts("aabb").links if (each.a, each.b) not in [(0, 2), (1, 3)]
    ]
    found = shape(attrs.evolve(topology, nodes=topology.nodes[:4], links=tuple(known), backend=""))
    assert (found.missing, found.sentences) == ((), ())


def test_a_bad_cable_that_ranks_share_is_named_once() -> None:
    [words] = pairs_of_hosts("aabb", 1e9).shape.sentences
    assert words.startswith("rank 0 - rank 2 (en1 - en1) carries 1.00 GB/s, 20 % of the 40 Gb/s")


def test_hosts_of_several_ranks_are_called_by_their_names() -> None:
    topology = pairs_of_hosts("aabbcc")
    line = [each for each in topology.links if not (each.a < 2 and each.b > 3)]
    line = [attrs.evolve(each, negotiated=None) for each in line]
    found = shape(attrs.evolve(topology, links=tuple(line), backend="jaccl"))
    assert found.missing == ((0, 4), (0, 5), (1, 4), (1, 5))
    [words] = found.sentences
    assert words == (
        "No cable between mac-a and mac-c: jaccl needs a full mesh; a ring is possible in the "
        "order 0, 1, 2, 4, 5, 3 of the ranks."
    )


def test_the_ranks_of_a_host_belong_side_by_side() -> None:
    [words] = pairs_of_hosts("abab").shape.sentences
    assert words == (
        "The ring crosses from one host to another 4 times, where 2 are enough: put the ranks of a "
        "host side by side in the hostfile, in the order 0, 2, 1, 3."
    )
    assert pairs_of_hosts("abba").shape.sentences == ()
    assert attrs.evolve(pairs_of_hosts("abab"), backend="mpi").shape.sentences == ()


def test_two_directions_that_differ_are_named() -> None:
    odd = wired(2, [(0, 1)], rate=None, measured=pair(0, 1, 6e9, 3.9e9))
    words = one(odd, "studio-1 - studio-2 (en0 - en1) carries 6.00 GB/s there and 3.90 GB/s back")
    assert "measure again" in words
    assert "median" not in words  # it is the only one
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
    words = shape(Topology(nodes(4), tuple(links), "jaccl")).sentences
    starts = [
        "No cable between",
        "studio-1 and studio-4 hang on one",
        "studio-1 - studio-2 (en0 - ",
    ]
    assert all(any(each.startswith(start) for each in words) for start in starts)
    old = [each for each in words if "runs at" in each]
    assert len(old) == 2
    assert "; it carries 10.0 MB/s there and 20.0 MB/s back, 8 % of the 1 Gb/s that " in old[1]
    assert sum("carries" in each for each in words) == 1
    # Each has two links, and one of them is bad.
    speeds = [(a, b, 1e9 if a % 2 == 0 else 6e9) for a, b in map(sorted, ring(16)[:-1])]
    words = measured(*speeds, (0, 15, 6e9)).shape.sentences
    assert sum("carries" in each for each in words) == 5
    assert words[-1] == "The same is true of 3 more links."


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
        assert json.loads(json.dumps(topology.as_json())) == topology.as_json()
        assert Topology.from_json(json.loads(json.dumps(topology.as_json()))) == topology
    data = full().as_json()
    data["later"] = data["nodes"][0]["later"] = 1
    assert Topology.from_json(data) == full()
    del data["simulated"], data["links"][0]["besides"]
    assert Topology.from_json(data).simulated == ""


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
        ({}, "its format is None, not 'macluster topology 1'"),
        ({"format": "macluster measurement 1"}, "its format is 'macluster measurement 1', not "),
        ({"format": FORMAT}, "nodes is missing"),
        ({"format": FORMAT, "nodes": [], "links": []}, "it has no nodes"),
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
        Topology.from_json(data)
    assert caught.value.what == "This is no topology of macluster."
    assert says in caught.value.why
    assert caught.value.do


def test_a_topology_is_kept_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "wires.json"
    full().save(path)
    assert Topology.load(str(path)) == full()
    with pytest.raises(UsageError, match="no topology in"):
        Topology.load(tmp_path / "none.json")
    path.write_text("{")
    with pytest.raises(UsageError, match="no topology in"):
        Topology.load(path)
    path.write_text("[]")
    with pytest.raises(UsageError, match="no topology of macluster"):
        Topology.load(path)


def test_what_is_no_finite_number_is_not_kept(tmp_path: Path) -> None:
    odd = wired(2, [(0, 1)], rate=float("nan"))
    with pytest.raises(UsageError, match="cannot be saved"):
        odd.save(tmp_path / "wires.json")
    assert not (tmp_path / "wires.json").exists()
    with pytest.raises(UsageError) as caught:
        Topology.from_json(odd.as_json())
    assert "not a finite number" in caught.value.why


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
