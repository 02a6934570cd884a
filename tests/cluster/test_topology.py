"""What running ranks say about themselves and their links: idle, in a cell, and with one killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import macluster
from macluster.engine.measure.record import MeasuredRank, Measurement
from macluster.engine.topology.topology import Topology
from tests.cluster.processes import PATIENCE


@pytest.fixture(scope="module", params=[2, 3])
def world(request: pytest.FixtureRequest) -> Iterator[macluster.World]:
    with macluster.Cluster(request.param, name=f"topology-{request.param}") as world:
        yield world


def until_dead(world: macluster.World, rank: int) -> None:
    pause, deadline = threading.Event(), time.monotonic() + PATIENCE
    while rank not in world.dead:
        assert time.monotonic() < deadline
        pause.wait(0.02)


def test_idle_ranks_say_what_they_are(world: macluster.World) -> None:
    world.run("kept = mx.zeros(1_000_000); mx.eval(kept)").result(PATIENCE)
    topology = world.topology()
    assert (topology.size, topology.backend) == (world.size, "ring")
    total = psutil.virtual_memory().total
    for node in topology.nodes:
        assert (node.state, node.memory) == ("ok", total)
        assert node.used is not None
        assert 0 < node.used < total
        assert node.held is not None
        assert node.held >= 4_000_000
        assert node.host == topology.nodes[0].host not in ("", "127.0.0.1")
    assert len(topology.links) == world.size * (world.size - 1) // 2
    assert {(each.kind, each.why) for each in topology.links} == {
        ("loopback", "both ranks run on one host")
    }
    assert topology.shape.title == "a mesh and a ring"
    assert topology.shape.sentences == ()
    assert topology.best_ring.is_rank_order
    assert Topology.from_json(topology.as_json()) == topology
    text = repr(topology)
    assert text.splitlines()[0] == f"ring, {world.size} ranks"
    assert "loopback" in text


def test_ranks_answer_while_a_cell_runs(world: macluster.World, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    # Rank 0 waits in a collective for the others, and they for this test.
    cell = world.run(
        f"if rank > 0:\n    open({str(gate)!r}).read()\nmx.eval(mx.distributed.all_sum(mx.ones(3)))"
    )
    # Opening it waits for a reader: until a rank is in the cell.
    writer = os.open(gate, os.O_WRONLY)
    try:
        while any(each["place"] is None for each in world.where().values()):
            assert not cell.done
        topology = world.topology()
        assert [node.state for node in topology.nodes] == ["busy"] * world.size
        assert all(node.memory for node in topology.nodes)
        assert not cell.done
    finally:
        os.close(writer)
    cell.result(PATIENCE)
    assert [node.state for node in world.topology().nodes] == ["ok"] * world.size


def test_a_killed_rank_stays_part_of_it(
    world: macluster.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = world.size - 1
    # Nobody may replace it meanwhile.
    monkeypatch.setattr(world.client, "on_departure", None)
    os.kill(world.client.pids[last], signal.SIGKILL)
    until_dead(world, last)
    began = time.monotonic()
    topology = world.topology()
    assert time.monotonic() - began < 4  # it is not waited for
    assert [node.state for node in topology.nodes] == ["ok"] * last + ["dead"]
    assert topology.nodes[last].silent
    assert topology.nodes[last].host == topology.nodes[0].host not in ("", "127.0.0.1")
    # The hostfile says that it was here.
    assert {each.kind for each in topology.of(last)} == {"loopback"}
    assert any(f"rank {last} did not answer" in words for words in topology.shape.sentences)
    monkeypatch.undo()
    world.run("mx.eval(mx.distributed.all_sum(mx.ones(3)))").result(PATIENCE)
    assert [node.state for node in world.topology().nodes] == ["ok"] * world.size


def test_a_stopped_rank_is_not_waited_for_long(world: macluster.World) -> None:
    pid = world.client.pids[1]
    os.kill(pid, signal.SIGSTOP)
    try:
        topology = world.topology()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert topology.nodes[0].state == "ok"
    assert topology.nodes[1].state in ("dead", "unknown")
    assert topology.nodes[1].memory is None
    while 1 in world.dead:
        world.where()  # until it is seen to go on
    world.run("mx.eval(mx.distributed.all_sum(mx.ones(3)))").result(PATIENCE)


def test_a_measurement_of_another_world_is_refused(world: macluster.World) -> None:
    other = Measurement("ring", tuple(MeasuredRank("x") for _ in range(world.size + 1)))
    with pytest.raises(macluster.UsageError, match=f"of {world.size + 1} ranks"):
        world.topology(other)


def test_a_stopped_cluster_says_so() -> None:
    with macluster.Cluster(1, name="topology-gone") as world:
        assert [node.state for node in world.topology().nodes] == ["ok"]
        assert world.topology().shape.title == "one rank"
    with pytest.raises(macluster.WorldBroken, match="connection to the cluster was closed"):
        world.topology()
