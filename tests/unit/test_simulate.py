"""The simulator against the closed formulas, and what it makes of a description."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from macluster.engine.errors import UsageError
from macluster.engine.measure import cost
from macluster.engine.measure.fit import Fit
from macluster.engine.plan import macs
from macluster.engine.simulate import Network, Simulation, Traffic, simulate, traffic
from macluster.engine.simulate.simulation import LOOPBACK

LATENCY, BANDWIDTH = 7e-6, 6.3e9
MIB = 1 << 20


def seconds(made: Traffic) -> float:
    """By every way of computing it, which must agree."""
    found = [made.run(ordered=ordered, compiled=False).seconds for ordered in (False, True)]
    if made.shared:
        return found[1]
    assert found[0] == found[1]
    return found[0]


# -- the formulas ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [0, 4, MIB, 1e9])
@pytest.mark.parametrize(("directions", "cables"), [(1, 1), (2, 1), (2, 3)])
def test_rings_take_what_the_formulas_say(
    ranks: int, size: float, directions: int, cables: int
) -> None:
    net = Network.alike("ring", ranks, LATENCY, BANDWIDTH, cables=cables)
    found = seconds(traffic.ring_all_sum(net, size, directions=directions))
    due = cost.ring_all_sum(size, ranks, directions=directions, cables=cables)
    assert found == pytest.approx(due.time(LATENCY, BANDWIDTH))
    found = seconds(traffic.ring_all_gather(net, size, directions=directions))
    due = cost.ring_all_gather(size / ranks, ranks, directions=directions, cables=cables)
    assert found == pytest.approx(due.time(LATENCY, BANDWIDTH))


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [0, 4, MIB, 1e9])
@pytest.mark.parametrize("shared", [False, True])
def test_meshes_take_what_the_formulas_say(ranks: int, size: float, shared: bool) -> None:
    net = Network.alike("switch" if shared else "mesh", ranks, LATENCY, BANDWIDTH)
    for made, due in (
        (traffic.mesh_one_shot(net, size), cost.mesh_one_shot(size, ranks, shared=shared)),
        (traffic.mesh_two_shot(net, size), cost.mesh_two_shot(size, ranks, shared=shared)),
        (
            traffic.mesh_all_gather(net, size),
            cost.mesh_one_shot(size / ranks, ranks, shared=shared),
        ),
    ):
        assert seconds(made) == pytest.approx(due.time(LATENCY, BANDWIDTH))


@pytest.mark.parametrize("compute", [0.0, 1e-5, 1e-3])
def test_a_pipeline_takes_what_the_formula_says(compute: float) -> None:
    net = Network.alike("ring", 5, LATENCY, BANDWIDTH)
    found = seconds(traffic.pipeline(net, MIB, 9, compute))
    assert found == pytest.approx(cost.pipeline(5, 9, compute, MIB, LATENCY, BANDWIDTH))


def test_a_link_of_the_planner_takes_what_the_planner_says() -> None:
    link = macs.LINKS["jaccl-ring"]
    net = Network.of_link(link, 4, "ring")
    due = cost.steps("all_sum", 10_000, 4, "ring")
    expected = due.time(link.latency, link.bandwidth, hop=link.hop)
    assert seconds(traffic.ring_all_sum(net, 10_000)) == pytest.approx(expected)


def test_messages_on_one_wire_follow_each_other() -> None:
    net = Network.alike("mesh", 3, LATENCY, BANDWIDTH, cost=1e-6)
    alone = seconds(traffic.sends(net, [(0, 1)], MIB))
    assert alone == pytest.approx(LATENCY + 1e-6 + MIB / BANDWIDTH)
    # The latency of the next one passes at the same time.
    ten = seconds(traffic.sends(net, [(0, 1)], MIB, count=10))
    assert ten == pytest.approx(LATENCY + 10 * (1e-6 + MIB / BANDWIDTH))
    # Another pair has another wire, and so has the other direction.
    assert seconds(traffic.sends(net, [(0, 1), (1, 0), (1, 2)], MIB)) == pytest.approx(alone)
    both = seconds(traffic.sends(net, [(0, 1), (0, 1)], MIB))
    assert both == pytest.approx(LATENCY + 2 * (1e-6 + MIB / BANDWIDTH))


def test_on_a_switch_hosts_share_their_own_cable_only() -> None:
    net = Network.alike("switch", 4, LATENCY, BANDWIDTH)
    one = LATENCY + MIB / BANDWIDTH
    assert seconds(traffic.sends(net, [(0, 1), (2, 3)], MIB)) == pytest.approx(one)
    two = LATENCY + 2 * MIB / BANDWIDTH
    # Two leave one host, then two reach one host.
    assert seconds(traffic.sends(net, [(0, 1), (0, 2)], MIB)) == pytest.approx(two)
    assert seconds(traffic.sends(net, [(0, 2), (1, 2)], MIB)) == pytest.approx(two)


def test_a_message_that_waits_at_the_switch_does_not_hold_up_others() -> None:
    """Host 1 sends to a busy host 2, while 2's cable serves host 0; then host 3 to idle host 1."""
    net = Network.alike("switch", 4, 0.0, 1.0)
    flow = traffic.sends(net, [(0, 2), (1, 2), (3, 1)], 1.0).run()
    assert flow.finished[1] == pytest.approx(1)
    assert flow.finished[2] == pytest.approx(2)


def test_flow_says_which_wires_were_in_use() -> None:
    net = Network.alike("ring", 4, LATENCY, BANDWIDTH)
    flow = traffic.ring_all_sum(net, 4 * MIB).run()
    there, back = net.wires(0, 1)[0].ravel(), net.wires(1, 0)[0].ravel()
    assert flow.busy[there] == pytest.approx(6 * MIB / BANDWIDTH)
    assert flow.busy[back] == 0
    assert flow.messages == 24
    assert flow.finished == pytest.approx(np.full(4, flow.seconds))


def test_compiled_code_finds_the_same_seconds() -> None:
    net = Network.alike("switch", 5, LATENCY, BANDWIDTH).slow(2, latency=1e-3)
    made = traffic.mesh_two_shot(net, MIB)
    plain, compiled = (made.run(compiled=each) for each in (False, True))
    assert plain.seconds == pytest.approx(compiled.seconds, rel=1e-12)
    assert plain.finished == pytest.approx(compiled.finished, rel=1e-12)


def test_thousands_of_hosts() -> None:
    net = Network.alike("ring", 2048, LATENCY, BANDWIDTH)
    made = traffic.ring_all_sum(net, MIB)
    assert made.messages == 2 * 2047 * 2048
    due = cost.ring_all_sum(MIB, 2048)
    assert made.run().seconds == pytest.approx(due.time(LATENCY, BANDWIDTH))
    mesh = Network.alike("mesh", 512, LATENCY, BANDWIDTH)
    due = cost.mesh_two_shot(MIB, 512)
    assert traffic.mesh_two_shot(mesh, MIB).run().seconds == pytest.approx(
        due.time(LATENCY, BANDWIDTH)
    )


# -- bad cables ------------------------------------------------------------------------------------


def test_a_slow_cable_sets_the_pace_of_a_ring() -> None:
    net = Network.alike("ring", 4, LATENCY, BANDWIDTH).slow(
        1, 2, latency=1e-3, bandwidth_factor=0.1
    )
    part = MIB
    hold = part / (0.1 * BANDWIDTH)
    slow = 1e-3 + LATENCY + hold
    quick = LATENCY + part / BANDWIDTH
    # Six messages cross it, each ready before the one before it has left: only the last one's
    # latency shows.
    assert 3 * quick + slow < 4 * hold
    found = seconds(traffic.ring_all_sum(net, 4 * part))
    assert found == pytest.approx(6 * hold + 1e-3 + LATENCY)
    # With a latency that is much longer than that, the messages wait for each other: the first and
    # the fifth step of those that cross it follow from each other.
    far = Network.alike("ring", 4, LATENCY, BANDWIDTH).slow(1, 2, latency=1.0)
    assert seconds(traffic.ring_all_sum(far, 4 * part)) == pytest.approx(2.0, rel=0.01)
    # The other way round is slow, too.
    assert seconds(traffic.sends(net, [(2, 1)], part)) == pytest.approx(slow)
    assert seconds(traffic.sends(net, [(0, 1)], part)) == pytest.approx(quick)


def test_a_missing_cable_is_named() -> None:
    net = Network.alike("mesh", 4, LATENCY, BANDWIDTH).without(0, 2)
    assert not net.has(0, 2)
    assert not net.has(2, 0)
    assert net.has(0, 1)
    with pytest.raises(UsageError, match="no cable between hosts 0 and 2"):
        traffic.mesh_one_shot(net, 4)
    # A ring in rank order does not need it.
    assert traffic.ring_all_sum(net, 4).run().seconds > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Network.alike("ring", 4, 0, 1).wires(0, 2), "not neighbours"),
        (lambda: Network.alike("ring", 4, 0, 1).slow(0), "name two hosts"),
        (lambda: Network.alike("switch", 4, 0, 1).slow(0, 1), "name the host"),
        (lambda: Network.alike("mesh", 4, 0, 1).slow(0, 4), "no host 4"),
        (lambda: Network.alike("mesh", 4, 0, 1).slow(0, 1, bandwidth_factor=0), "slow cable"),
        (lambda: Network.alike("mesh", 1, 0, 1), "two hosts or more"),
        (lambda: Network.alike("switch", 4, 0, 1, cables=2), "one cable"),
    ],
    ids=["far", "one host", "two hosts", "unknown", "no bandwidth", "alone", "two to a switch"],
)  # fmt: skip
def test_networks_that_cannot_be(make, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        make()
    assert words in str(raised.value)


# -- descriptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size", "backend", "shape", "kind", "links", "rate"),
    [
        ("4 x M3 Ultra, mesh, TB5", 4, "jaccl", "mesh", "rdma", 6, 80e9),
        ("8 x M4 Max 64GB, ring", 8, "ring", "ring", "thunderbolt", 8, 80e9),
        ("4 x M3 Ultra 512GB, 10gbe", 4, "ring", "switch", "ethernet", 6, 10e9),
        ("16 x M2 Ultra, ethernet", 16, "ring", "switch", "ethernet", 120, 10e9),
        ("4 x M2 Ultra, ring", 4, "ring", "ring", "thunderbolt", 4, 40e9),
        ("2 x M3 Ultra, jaccl-ring, 2 cables", 2, "jaccl-ring", "ring", "rdma", 1, 160e9),
        ("100 x M3 Ultra", 100, "jaccl-ring", "ring", "rdma", 100, 80e9),
        (4, 4, "ring", "ring", "loopback", 4, None),
        ("3", 3, "ring", "ring", "loopback", 3, None),
    ],
)  # fmt: skip
def test_what_a_description_means(
    text: str | int,
    size: int,
    backend: str,
    shape: str,
    kind: str,
    links: int,
    rate: float | None,
) -> None:
    made = simulate(text)
    found = made.topology()
    assert made.network.shape == shape
    assert (found.size, found.backend, len(found.links)) == (size, backend, links)
    assert {link.kind for link in found.links} == {kind}
    assert {link.negotiated for link in found.links} == {rate}
    assert found.simulated == made.text != ""
    assert all(link.measured is not None for link in found.links)
    for link in found.links:
        assert link.a < link.b
        assert link.part_of_rate is None or 0 < link.part_of_rate <= 1


def test_hosts_have_names_and_memory_and_the_reason_says_what_was_assumed() -> None:
    made = simulate("2 x M3 Ultra + M4 Max 64GB, mesh")
    nodes = made.topology().nodes
    assert [node.host for node in nodes] == ["m3-ultra-1", "m3-ultra-2", "m4-max-1"]
    assert [node.memory for node in nodes] == [512 * 2**30, 512 * 2**30, 64 * 2**30]
    assert nodes[0].model == "Mac Studio, Apple M3 Ultra"
    assert "M3 Ultra with 512GB, the most it was sold with" in made.reason
    assert "M4 Max" not in made.reason
    assert "simulated, nothing of it was measured" in repr(made)


def test_no_port_is_used_twice() -> None:
    for text in ("4 x M3 Ultra, mesh, 2 cables", "5 x M3 Ultra, jaccl-ring, 2 cables"):
        used: set[tuple[int, str]] = set()
        links = simulate(text).topology().links
        for link in links:
            assert link.cables == 2
            for a, b in link.ports:
                assert not {(link.a, a), (link.b, b)} & used
                used |= {(link.a, a), (link.b, b)}
        assert {port for _, port in used} <= {f"en{number}" for number in range(3, 9)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("M3 Ultra", "a single host"),
        ("0", "'0' describes no hosts"),
        (-1, "'-1' describes no hosts"),
        ("4x M3 Ultra mesh", "lacks a comma before 'mesh'.\n"),
        ("2 x M3 Ultra 512GB 10 gbe", 'write "M3 Ultra 512GB, 10 gbe"'),
        ("2 x M3 Ultra TB5, mesh", "lacks a comma before 'TB5'"),
        ("2 x M3 Ultra 2 cables", "lacks a comma before '2 cables'"),
        (1, "a single host"),
        ("4 x M9, mesh", "no chip"),
        ("4 x M3 Ultra 96GB, tokenring", "no link"),
        ("4 x M2 Ultra, mesh", "RDMA needs Thunderbolt 5"),
        ("4 x M2 Ultra, ring, TB5", "it has Thunderbolt 4"),
        ("9 x M3 Ultra, mesh", "cannot be a mesh"),
        ("100 x M3 Ultra, mesh", "at most 8 ranks"),
        ("9000 x M3 Ultra", "9,000 hosts are more"),
        (9000, "9,000 ranks on one machine are more than can be simulated, 64"),
        ("²", "no chip"),
        (None, "None does not describe hosts"),
        (4.0, "4.0 does not describe hosts"),
        (True, "True does not describe hosts"),
        ("4 x M3 Ultra, 10gbe, TB5", "uses no Thunderbolt cable"),
        ("8 x M3 Ultra, mesh", "at most 6 ports"),
        ("4 x M3 Ultra, mesh, 3 cables", "ask for 2"),
        ("2 x M3 Ultra, jaccl-ring, 5 cables", "ask for 4"),
        ("4 x M3 Ultra, ethernet, 2 cables", "one cable to the switch"),
        ("", "does not describe hosts"),
    ],
)
def test_descriptions_that_make_no_sense(text: Any, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        simulate(text)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda made: made.measure(sizes=[0]), "1 or more"),
        (lambda made: made.measure(sizes=[64, -4]), "1 or more"),
        (lambda made: made.measure(sizes=[]), "1 or more"),
        (lambda made: made.measure(sizes=[1.5]), "whole numbers of bytes"),
        (lambda made: made.measure(sizes=64), "whole numbers of bytes"),
        (lambda made: made.time("all_sum", -1), "0 bytes or more"),
        (lambda made: made.time("all_sum", float("nan")), "0 bytes or more"),
        (lambda made: made.slow(0, 1, latency=float("nan")), "0 or more"),
        (lambda made: made.slow(0, 1, latency=float("inf")), "0 or more"),
        (lambda made: made.slow(0, 1, bandwidth_factor=2), "at most 1"),
        (lambda made: made.slow(0, 1, bandwidth_factor=float("nan")), "at most 1"),
        (lambda made: made.slow(0.5, 1), "no host 0.5"),
        (lambda made: made.without("a", 1), "no host 'a'"),
        (lambda made: made.slow(None, 1), "no host None"),
    ],
    ids=[
        "zero", "negative", "none", "part of a byte", "no list", "negative time", "nan time", "nan",
        "inf", "faster", "nan factor", "half", "letter", "first is missing",
    ],
)  # fmt: skip
def test_what_cannot_be_asked_of_a_simulation(
    ask: Callable[[Simulation], object], words: str
) -> None:
    with pytest.raises(UsageError) as raised:
        ask(simulate("4 x M3 Ultra, mesh"))
    assert words in str(raised.value)


def test_thunderbolt_4_carries_the_part_of_its_rate_that_5_does() -> None:
    for text in ("4 x M2 Ultra, ring", "2 x M2 Ultra, ring", "2 x M3 Ultra + 2 x M2 Ultra, ring"):
        made = simulate(text)
        assert "taken to carry 55 % of its 40 Gb/s each way" in made.reason
        assert any("55 % of its 40 Gb/s" in note for note in made.measure([64]).notes)
        for link in made.topology().links:
            assert link.part_of_rate == pytest.approx(0.55, abs=0.02)
    # Both ways together are what the planner has.
    old, new = (simulate(f"4 x {chip}, ring") for chip in ("M2 Ultra", "M3 Ultra"))
    assert old.time("all_sum", 1e9) == pytest.approx(new.time("all_sum", 1e9), rel=0.01)
    assert "55 %" not in new.reason


@pytest.mark.parametrize(
    "text",
    ["4 x M3 Ultra, ring", "8 x M3 Ultra, jaccl-ring", "4 x M3 Ultra, mesh, 2 cables",
     "4 x M2 Ultra, ring", "4 x M3 Ultra, 10gbe", "4", "2 x M3 Ultra + 2 x M2 Ultra, ring"],
)  # fmt: skip
def test_a_simulation_without_faults_has_nothing_to_mend(text: str) -> None:
    assert simulate(text).topology().shape.sentences == ()


def test_a_bad_cable_is_one_sentence() -> None:
    made = simulate("4 x M3 Ultra, mesh").slow(0, 2, latency=2e-4, bandwidth_factor=0.3)
    [words] = made.topology().shape.sentences
    assert words.startswith("m3-ultra-1 - m3-ultra-3 (en4 - en3) carries 1.8")
    assert "; it takes 23" in words
    [words] = (
        simulate("6 x M3 Ultra, 10gbe").slow(3, bandwidth_factor=0.2).topology().shape.sentences
    )
    assert words.startswith("All 5 links of m3-ultra-4 (en0) measured badly")


# -- what would be measured ------------------------------------------------------------------------


def test_a_measurement_holds_the_figures_of_the_link() -> None:
    link = macs.LINKS["mesh"]
    found = simulate("4 x M3 Ultra, mesh").measure()
    assert found.simulated == "4 x M3 Ultra 512GB, mesh"
    assert (found.backend, found.size, len(found.pairs)) == ("jaccl", 4, 6)
    assert found.ranks[0].device == "Apple M3 Ultra"
    for pair in found.pairs:
        assert pair.via == "jaccl"
        assert pair.latency.p50 == pytest.approx(link.latency, rel=0.2)
        best, worst = link.spread
        assert pair.latency.least >= best * link.latency
        assert pair.latency.p99 <= worst * link.latency * 1.01
        assert pair.bandwidth == pytest.approx(link.bandwidth, rel=0.01)
        assert pair.crowded is not None
        assert pair.crowded.p50 == pytest.approx(link.bandwidth, rel=0.01)
        assert pair.fit is not None
        assert pair.fit.good
        assert pair.fit.bandwidth == pytest.approx(link.bandwidth, rel=0.05)
    assert [sweep.op for sweep in found.sweeps] == ["all_sum", "all_gather", "sendrecv", "barrier"]
    large = found.sweeps[0].points[-1]
    # A part of a quarter to each of three others, twice.
    assert large.algbw == pytest.approx(2 * link.bandwidth, rel=0.01)
    assert large.busbw == pytest.approx(1.5 * large.algbw)
    barrier = found.sweep("barrier")
    assert barrier is not None
    assert [point.busbw for point in barrier.points] == [0]
    assert not any(point.wrong for sweep in found.sweeps for point in sweep.points)


def test_the_seed_decides_the_spread() -> None:
    texts = [str(simulate("3 x M3 Ultra, mesh", seed=seed).measure([64])) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    sums = {simulate("3 x M3 Ultra", seed=seed).time("all_sum", 64) for seed in (0, 1)}
    assert len(sums) == 1


def test_a_ring_measures_neighbours_and_a_switch_the_others_by_tcp() -> None:
    ring = simulate("5 x M4 Max 64GB, ring").measure([64])
    assert [(pair.a, pair.b) for pair in ring.pairs] == [(0, 1), (0, 4), (1, 2), (2, 3), (3, 4)]
    assert {pair.via for pair in ring.pairs} == {"ring"}
    ethernet = simulate("5 x M4 Max 64GB, ethernet")
    switch = ethernet.measure([64])
    near = {(0, 1), (0, 4), (1, 2), (2, 3), (3, 4)}
    far = {(0, 2), (0, 3), (1, 3), (1, 4), (2, 4)}
    assert {(p.a, p.b) for p in switch.pairs if p.via == "ring"} == near
    assert {(p.a, p.b) for p in switch.pairs if p.via == "tcp"} == near | far
    for link in ethernet.topology().links:
        assert link.measured is not None
        both = (link.measured.via, link.plain.via if link.plain else "")
        assert both == (("ring", "tcp") if (link.a, link.b) in near else ("tcp", ""))


def test_equal_pairs_of_many_hosts_share_their_figures() -> None:
    made = simulate("64 x M3 Ultra, jaccl-ring").slow(7, 8, bandwidth_factor=0.5)
    found = made.measure([64, MIB, 16 * MIB])
    assert len(found.pairs) == 64
    assert "64 pairs: equal ones share their figures." in found.notes
    slow = [(pair.a, pair.b) for pair in found.pairs if pair.bandwidth < 4e9]
    assert slow == [(7, 8)]


def test_a_slow_cable_shows() -> None:
    made = simulate("4 x M3 Ultra, mesh")
    bad = made.slow(0, 2, latency=2e-4, bandwidth_factor=0.3)
    found = bad.measure([64, MIB, 16 * MIB])
    usual, slow = found.pair(0, 1), found.pair(0, 2)
    assert usual is not None
    assert slow is not None
    assert slow.bandwidth == pytest.approx(0.3 * usual.bandwidth, rel=0.05)
    assert slow.latency.p50 > 5 * usual.latency.p50
    assert bad.time("all_sum", 4) == pytest.approx(made.time("all_sum", 4) + 2e-4, rel=1e-4)
    assert "cable 0-2 200 us slower, 0.3 of its bandwidth" in found.simulated
    link = bad.topology().link(0, 2)
    assert link is not None
    assert link.part_of_rate == pytest.approx(0.3 * 6.3 * 8 / 80, rel=0.05)


def test_mlx_makes_a_ring_of_a_mesh_with_a_gap() -> None:
    made = simulate("4 x M3 Ultra, mesh").without(0, 2)
    assert made.topology().link(0, 2) is None
    assert len(made.topology().links) == 5
    # MLX's ring sends to neighbours only.
    assert [(pair.a, pair.b) for pair in made.measure([64]).pairs] == [
        (0, 1), (0, 3), (1, 2), (2, 3),
    ]  # fmt: skip
    link = macs.LINKS["mesh"]
    assert made.time("all_sum", 4) == pytest.approx(link.latency + 5 * link.hop, rel=1e-3)
    # That is what it is called, and what is missing is said.
    assert made.backend == made.topology().backend == made.measure([64]).backend == "jaccl-ring"
    assert {pair.via for pair in made.measure([64]).pairs} == {"jaccl-ring"}
    [words] = made.topology().shape.sentences
    assert words == (
        "No cable between m3-ultra-1 and m3-ultra-3: jaccl needs a full mesh; a ring is possible. "
        "Plug en4 of m3-ultra-1 to en3 of m3-ultra-3."
    )
    broken = made.without(1, 2)
    assert len(broken.topology().links) == 4
    with pytest.raises(UsageError, match="no world without the cable between hosts 1 and 2") as e:
        broken.measure()
    assert "order" not in e.value.do


def test_a_ring_in_another_order_of_the_hosts_is_named() -> None:
    made = simulate("4 x M3 Ultra, mesh").without(0, 3)
    [words] = made.topology().shape.sentences
    assert "a ring is possible in the order 0, 1, 3, 2 of the ranks." in words
    for ask in (made.measure, lambda: made.time("all_sum", 4)):
        with pytest.raises(UsageError, match="without the cable between hosts 0 and 3") as caught:
            ask()
        assert "these cables are a ring in the order 0, 1, 3, 2" in caught.value.why
        assert "hostfile in the order 0, 1, 3, 2" in caught.value.do
    assert made.backend == "jaccl"  # as asked for: nothing runs


@pytest.mark.parametrize(
    ("text", "bandwidth"),
    [
        ("4 x M2 Ultra, ring", "2.75 GB/s"),
        ("2 x M3 Ultra + 2 x M2 Ultra, ring", "2.75 to 5.5 GB/s"),
        ("4 x M3 Ultra, mesh", "6.3 GB/s"),
    ],
)
def test_the_bandwidth_that_is_shown_is_the_one_that_is_used(text: str, bandwidth: str) -> None:
    made = simulate(text)
    assert f" us, {bandwidth} a cable" in repr(made)
    pairs = made.measure([64]).pairs
    ends = [min(each.bandwidth for each in pairs), max(each.bandwidth for each in pairs)]
    said = [float(each) for each in re.findall(r"\d[.\d]*", bandwidth)]
    assert ends == pytest.approx([1e9 * said[0], 1e9 * said[-1]], rel=0.03)


def test_ports_without_a_cable_are_free() -> None:
    made = simulate("4 x M3 Ultra, mesh")
    assert {node.free for node in made.topology().nodes} == {("en6", "en7", "en8")}
    [first, *_, last] = made.without(0, 3).topology().nodes
    assert (first.free, last.free) == (("en5", "en6", "en7", "en8"), ("en3", "en6", "en7", "en8"))
    for text in ("4 x M3 Ultra, 10gbe", 4):
        assert {node.free for node in simulate(text).topology().nodes} == {None}


def test_mlx_uses_all_cables_and_both_directions_for_large_sums() -> None:
    link = macs.LINKS["jaccl-ring"]
    made = simulate("4 x M3 Ultra, jaccl-ring, 2 cables")
    for size, directions, cables in ((1024, 1, 1), (MIB, 2, 2)):
        due = cost.ring_all_sum(size, 4, directions=directions, cables=cables)
        expected = due.time(link.latency, link.bandwidth, hop=link.hop)
        assert made.time("all_sum", size) == pytest.approx(expected)
    with pytest.raises(UsageError, match="no collective 'all_max'"):
        made.time("all_max", 4)


def test_sendrecv_is_two_messages_one_after_the_other() -> None:
    link = macs.LINKS["thunderbolt"]
    for ranks in (2, 3, 4, 5):
        found = simulate(f"{ranks} x M4 Max 64GB, ring").time("sendrecv", MIB)
        assert found == pytest.approx(2 * (link.latency + MIB / link.bandwidth))


def test_ranks_with_links_as_measured() -> None:
    line = Fit(40e-6, 2e9, 0.0, 1.0, 9, (38e-6, 45e-6), (1.9e9, 2.1e9))
    net = Network.of_fit(line, 4, "ring")
    due = cost.ring_all_sum(MIB, 4)
    assert seconds(traffic.ring_all_sum(net, MIB)) == pytest.approx(due.time(40e-6, 2e9))
    made = Simulation.of_fit(line, 4)
    assert made.time("all_sum", MIB) == pytest.approx(due.time(40e-6, 2e9))
    found = made.measure([64, MIB, 16 * MIB])
    assert found.backend == "ring"
    assert found.pairs[0].fit is not None
    assert found.pairs[0].fit.latency == pytest.approx(line.latency, rel=0.05)
    assert made.topology().links[0].negotiated is None


# -- the page --------------------------------------------------------------------------------------


def published() -> dict[str, float]:
    """What the page says is predicted, computed again; each row under its number there."""
    thunderbolt, mesh = macs.LINKS["thunderbolt"], macs.LINKS["mesh"]
    ethernet = Network.alike("switch", 4, thunderbolt.hop, 10e9 / 8 * 1448 / 1538)
    single = Network.alike("ring", 4, thunderbolt.hop, 48e9 / 8 / 2)
    double = Network.alike("ring", 4, thunderbolt.hop, 48e9 / 8 / 2, cables=2)
    bus = 8 * 0.75  # Gb of 1 GB that cross a link in a gather of four
    gather = traffic.ring_all_gather(double, 1e9, directions=2)
    jaccl = traffic.ring_all_sum(Network.of_link(mesh, 4, "mesh"), 256 * MIB, directions=2)
    pair = Network.of_link(thunderbolt, 2, "ring")
    wifi = Network.alike("ring", 4, 18.75e-3 / 2, 50e6)
    token = traffic.pipeline(wifi, 8192, 1, 37e-3 / 4).run().seconds
    token += traffic.ring_all_gather(wifi, 256).run().seconds
    return {
        "1": traffic.ring_all_sum(ethernet, 2e9).run().seconds,
        "2": traffic.ring_all_sum(single, 2e9, directions=2).run().seconds,
        "3": bus / gather.run().seconds,
        "4": bus / simulate("4 x M2 Ultra, ring").time("all_gather", 1e9),
        "5": 256 * MIB / 1e9 / jaccl.run().seconds,
        "6": 8 * 6.4 / traffic.sends(pair, [(0, 1)], 64e6, count=100).run().seconds,
        "7": simulate("2 x M3 Ultra, mesh").measure([4]).pairs[0].bandwidth / 1e9,
        "8": 2e3 * traffic.sends(pair, [(0, 1)], 64).run().seconds,
        "9": 1 / token,
    }


def test_the_page_shows_what_is_predicted() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if re.match(r"\| \d \|", line)]
    shown = {row[0].strip(): [cell.strip() for cell in row] for row in rows}
    expected = published()
    assert set(shown) == set(expected)
    for number, value in expected.items():
        predicted, found = shown[number][3], shown[number][4]
        assert float(predicted.split()[0]) == pytest.approx(value, rel=0.01), number
        # Predicted / published, of both ends where a range was published.
        ends = [float(each) for each in re.findall(r"\d+(?:\.\d+)?", found)]
        ratios = sorted(value / each for each in ends)
        said = [float(each) for each in re.findall(r"\d+\.\d+", shown[number][5])]
        assert said == pytest.approx(ratios, abs=0.02), number


def test_the_page_shows_where_rings_overtake() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
    line = Fit(30e-6, 6.3e9, 0.0, 1.0, 14)
    for cables in (2, 3):
        size = cost.crossover(line, 4, ring_cables=cables)
        assert size is not None
        assert f"| ring with {cables}, mesh with 1 | {size / 1e6:.1f} MB |" in page
    assert cost.crossover(line, 4) is cost.crossover(line, 4, ring_cables=3, mesh_cables=2) is None


def test_loopback_says_where_its_figures_are_from() -> None:
    assert "Linux" in LOOPBACK.source
    assert "Linux" in repr(simulate(2))
