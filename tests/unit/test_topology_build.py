"""Links out of hostfiles, of what hosts say of themselves, and of what was measured."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from macluster.engine.errors import UsageError
from macluster.engine.hostfile import Hostfile
from macluster.engine.measure.record import MeasuredRank, Measurement, Pair
from macluster.engine.measure.samples import Rate, Timing
from macluster.engine.topology.build import build
from macluster.engine.topology.facts import Facts, Interface, Socket
from macluster.engine.topology.topology import Link


def hosts(*entries: Any) -> Hostfile:
    """A hostfile of (name, addresses, RDMA row)."""
    return Hostfile.from_json(
        [
            {"ssh": name, "ips": ips, **({"rdma": rdma} if rdma else {})}
            for name, ips, rdma in entries
        ]
    )


def two(first: str = "10.0.0.1", second: str = "10.0.0.2", rdma: bool = False) -> Hostfile:
    rows = [[None, "rdma_en4"], ["rdma_en5", None]] if rdma else [[], []]
    return hosts(("mac-0", [first], rows[0]), ("mac-1", [second], rows[1]))


def mac(
    name: str, *interfaces: Interface, sockets: tuple[Socket, ...] | None = (), **other: Any
) -> Facts:
    return Facts(name, f"boot of {name}", interfaces=interfaces, sockets=sockets, **other)


def lan(address: str, name: str = "en0", rate: float | None = 10e9) -> Interface:
    return Interface(name, "ethernet", (address,), rate, "Ethernet")


def wifi(address: str, name: str = "en1") -> Interface:
    return Interface(name, "wifi", (address,), None, "Wi-Fi")


def cable(name: str, number: int, *addresses: str, rate: float | None = 80e9) -> Interface:
    return Interface(name, "thunderbolt", addresses, rate, f"Thunderbolt {number}")


def only(hostfile: Hostfile, *facts: Facts | None, backend: str = "ring") -> Link:
    """The one link between two ranks."""
    topology = build(hostfile, backend, dict(enumerate(facts)))
    [link] = topology.links
    return link


# -- where a link is learnt from -------------------------------------------------------------------


def test_rdma_devices_of_the_hostfile_are_cables_with_ports() -> None:
    here, there = mac("a", cable("en4", 1)), mac("b", cable("en5", 2, rate=40e9))
    link = only(two(rdma=True), here, there, backend="jaccl")
    assert (link.kind, link.ports, link.cables) == ("rdma", (("en4", "en5"),), 1)
    assert link.negotiated == 40e9  # the slower end decides
    assert link.why == "the hostfile names rdma_en4 and rdma_en5"


def test_many_cables_of_a_pair_are_one_link() -> None:
    both = hosts(
        ("mac-0", ["10.0.0.1"], [None, ["rdma_en4", "rdma_en6"]]),
        ("mac-1", ["10.0.0.2"], [["rdma_en5", "rdma_en7"], None]),
    )
    here = mac("a", cable("en4", 1), cable("en6", 2))
    there = mac("b", cable("en5", 1), cable("en7", 2))
    link = only(both, here, there, backend="jaccl")
    assert link.ports == (("en4", "en5"), ("en6", "en7"))
    assert (link.cables, link.negotiated) == (2, 160e9)
    # Of a part of the cables, the sum is not known.
    assert only(both, mac("a", cable("en4", 1)), None, backend="jaccl").negotiated is None
    assert only(both, None, None, backend="jaccl").cables == 2


def test_a_device_at_one_end_only_is_no_cable() -> None:
    half = hosts(("mac-0", ["10.0.0.1"], [None, "rdma_en4"]), ("mac-1", ["10.0.0.2"], [None, None]))
    assert build(half, "mpi", {}).links == ()


def test_thunderbolt_names_the_other_end() -> None:
    here = mac(
        "a",
        cable("en6", 2, rate=80e9),
        sockets=(Socket("1", "A1", used=False), Socket("2", "A2", 80e9, ("B1",), used=True)),
    )
    there = mac(
        "b",
        cable("en2", 1, rate=80e9),
        sockets=(Socket("1", "B1", 80e9, ("A2",), used=True), Socket("2", "B2", used=False)),
    )
    link = only(two(), here, there, backend="mpi")
    assert (link.kind, link.ports, link.negotiated) == ("thunderbolt", (("en6", "en2"),), 80e9)
    assert "Thunderbolt" in link.why
    # One of the two may not see the other yet.
    blind = attrs.evolve(there, sockets=(Socket("1", "B1", None, (), used=True),))
    assert only(two(), here, blind, backend="mpi").ports == (("en6", "en2"),)
    alone = attrs.evolve(there, sockets=(Socket("1", "", None, (), used=True),))
    assert build(two(), "mpi", {0: here, 1: alone}).links == ()


def test_the_same_dock_on_both_macs_joins_nothing() -> None:
    docked = (Socket("1", "A1", 40e9, (), used=True),)
    also = (Socket("1", "B1", 40e9, (), used=True),)
    found = build(two(), "mpi", {0: mac("a", sockets=docked), 1: mac("b", sockets=also)})
    assert found.links == ()


def test_addresses_of_one_network_are_a_way_of_the_worse_kind() -> None:
    link = only(two(), mac("a", lan("10.0.0.1/24")), mac("b", lan("10.0.0.2/24", rate=1e9)))
    assert (link.kind, link.ports, link.negotiated) == ("ethernet", (("en0", "en0"),), 1e9)
    assert link.why == "both have an address in 10.0.0.0/24"
    link = only(two(), mac("a", lan("10.0.0.1/24")), mac("b", wifi("10.0.0.2/24")))
    assert (link.kind, link.ports, link.negotiated) == ("wifi", (("en0", "en1"),), None)
    link = only(two(), mac("a", lan("10.0.0.1/24", rate=None)), mac("b", lan("10.0.0.2/24")))
    assert link.negotiated == 10e9


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("10.0.0.1/24", "10.0.1.2/24"),  # two networks
        ("10.0.0.1/16", "10.0.0.2/24"),  # of different sizes
        ("172.17.0.1/16", "172.17.0.1/16"),  # a container's, inside of each
        ("169.254.3.4/16", "169.254.5.6/16"),  # nobody has given them an address
        ("100.64.0.1/32", "100.64.0.1/32"),  # a tunnel
    ],
)
def test_addresses_that_join_nothing(first: str, second: str) -> None:
    facts = {0: mac("a", lan(first)), 1: mac("b", lan(second))}
    assert build(two("1.1.1.1", "1.1.1.2"), "mpi", facts).links == ()


def test_each_network_over_thunderbolt_is_a_cable() -> None:
    here = mac("a", cable("en4", 1, "192.168.0.1/30"), cable("en6", 2, "192.168.1.1/30"))
    there = mac("b", cable("en5", 1, "192.168.1.2/30"), cable("en7", 2, "192.168.0.2/30"))
    link = only(two("192.168.0.1", "192.168.0.2"), here, there)
    assert link.kind == "thunderbolt"
    assert set(link.ports) == {("en4", "en7"), ("en6", "en5")}
    assert (link.cables, link.negotiated) == (2, 160e9)


def test_a_ring_over_ethernet_is_not_called_a_cable() -> None:
    here = mac("a", lan("10.0.0.1/24"), wifi("10.0.0.11/24"), cable("en4", 1, "192.168.0.1/30"))
    there = mac("b", lan("10.0.0.2/24"), cable("en5", 2, "192.168.0.2/30"))
    used = only(two("10.0.0.1", "10.0.0.2"), here, there)
    assert (used.kind, used.ports) == ("ethernet", (("en0", "en0"),))
    assert used.besides == ("thunderbolt", "wifi")
    assert used.cabled
    by_cable = only(two("192.168.0.1", "192.168.0.2"), here, there)
    assert (by_cable.kind, by_cable.besides) == ("thunderbolt", ("ethernet", "wifi"))
    # Another backend says nothing of its way: then the best one counts.
    assert only(two("10.0.0.1", "10.0.0.2"), here, there, backend="mpi").kind == "thunderbolt"
    by_wifi = only(two("10.0.0.11", "10.0.0.2"), here, mac("b", wifi("10.0.0.2/24")))
    assert (by_wifi.kind, by_wifi.ports) == ("wifi", (("en1", "en1"),))
    # What nobody has given addresses joins two Macs all the same, if the hostfile says so.
    own = only(
        two("169.254.1.1", "169.254.1.2"),
        mac("a", lan("169.254.1.1/16")),
        mac("b", lan("169.254.1.2/16")),
    )
    assert own.kind == "ethernet"


def test_jaccl_goes_by_rdma_whatever_else_there_is() -> None:
    here = mac("a", lan("10.0.0.1/24"), cable("en4", 1, "192.168.0.1/30"))
    there = mac("b", lan("10.0.0.2/24"), cable("en5", 2, "192.168.0.2/30"))
    link = only(two(rdma=True), here, there, backend="jaccl")
    assert (link.kind, link.besides) == ("rdma", ("thunderbolt", "ethernet"))
    over_tcp = only(two(rdma=True), here, there, backend="ring")
    assert (over_tcp.kind, over_tcp.besides) == ("ethernet", ("rdma", "thunderbolt"))


def test_ranks_of_one_host_are_linked_by_loopback() -> None:
    topology = build(Hostfile.local(3), "ring", {0: Facts("here"), 2: Facts("here")})
    assert [(each.a, each.b, each.kind) for each in topology.links] == [
        (0, 1, "loopback"), (0, 2, "loopback"), (1, 2, "loopback"),
    ]  # fmt: skip
    # A rank that has died keeps the name of its host, as the others there say it.
    assert [node.host for node in topology.nodes] == ["here", "here", "here"]
    assert [node.own_name for node in topology.nodes] == ["here", "", "here"]
    assert build(Hostfile.local(1), "ring", {}).nodes[0].host == "127.0.0.1"
    # Two names of one machine; and one machine with two containers.
    same = {0: Facts("a", "boot"), 1: Facts("a", "boot")}
    assert build(two(), "mpi", same).links[0].kind == "loopback"
    assert build(two(), "mpi", {**same, 1: Facts("b", "boot")}).links == ()
    twice = hosts(("mac-0", ["10.0.0.1"], []), ("mac-0", ["10.0.0.1"], []))
    assert build(twice, "mpi", {}).links[0].kind == "loopback"


def test_a_ring_has_its_neighbours_even_if_nothing_is_known_of_them() -> None:
    four = hosts(*((f"mac-{rank}", [f"10.0.0.{rank + 1}"], []) for rank in range(4)))
    topology = build(four, "ring", {0: None})
    assert [(each.a, each.b) for each in topology.links] == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert {each.kind for each in topology.links} == {"unknown"}
    assert {each.why for each in topology.links} == {"neighbours in the ring"}
    assert build(four, "mpi", {}).links == ()


# -- nodes and measurements ------------------------------------------------------------------------


def test_nodes_say_what_is_known_of_a_rank() -> None:
    facts = mac(
        "studio.lan", cable("en6", 2), cable("en2", 1), model="Mac Studio", chip="Apple M3 Ultra",
        memory=512, used=100, held=7,
        sockets=(Socket("2", "A", used=False), Socket("1", "B", 80e9, ("C",), used=True)),
    )  # fmt: skip
    states = {0: "busy", 1: "dead"}
    first, second = build(two(), "ring", {0: facts, 1: None}, states=states).nodes
    # The hostfile's name is the one that people use.
    assert (first.host, first.model, first.state) == ("mac-0", "Mac Studio, Apple M3 Ultra", "busy")
    assert (first.memory, first.used, first.held, first.free) == (512, 100, 7, ("en6",))
    assert (second.host, second.state, second.memory) == ("mac-1", "dead", None)
    assert second.silent
    assert not first.silent


def measured(size: int, *pairs: tuple[int, int, str]) -> Measurement:
    timing, rate = Timing.of([1e-5]), Rate.of(1000, [1e-6])
    return Measurement(
        "ring",
        tuple(MeasuredRank(f"mac-{rank}") for rank in range(size)),
        tuple(Pair(a, b, via, timing, rate, rate) for a, b, via in pairs),
    )


def test_what_was_measured_belongs_to_the_link_or_is_one() -> None:
    three = hosts(*((f"mac-{rank}", [f"10.0.0.{rank + 1}"], []) for rank in range(3)))
    taken = measured(3, (0, 1, "tcp"), (0, 1, "ring"), (0, 2, "tcp"))
    facts = {0: mac("a", lan("10.0.0.1/24")), 1: mac("b", lan("10.0.0.2/24"))}
    topology = build(three, "mpi", facts, taken)
    first, second = topology.links
    assert first.measured is not None
    assert first.plain is not None
    assert (first.plain.via, second.plain) == ("tcp", None)
    assert (first.kind, first.measured.via) == ("ethernet", "ring")
    assert first.part_of_rate == pytest.approx(8 * 1e9 / 10e9)
    assert (second.kind, second.why) == ("unknown", "bytes were sent there (tcp)")
    assert topology.link(2, 1) is None
    with pytest.raises(UsageError, match="of 4 ranks, and the world has 3"):
        build(three, "mpi", facts, measured(4))
    with pytest.raises(UsageError, match="simulated, and not measured: 3 x M3 Ultra, mesh"):
        build(three, "mpi", facts, attrs.evolve(taken, simulated="3 x M3 Ultra, mesh"))
