"""Somebody who only watches sees what real ranks do, and can end it."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

import macluster
from macluster.engine.errors import ClusterExists, ClusterNotFound, UsageError
from macluster.engine.files import profile_dir
from macluster.engine.monitor.command import command
from macluster.engine.monitor.fleet import Fleet
from macluster.engine.monitor.monitor import Monitor
from tests.cluster.models import ENV
from tests.cluster.processes import PATIENCE

PERIOD = 0.1  # seconds
MEASURING = 200  # seconds, on a busy machine
ENDLESS = "import time\nfor n in macluster.steps(range(10**6)):\n    time.sleep(0.01)"


class Watcher:
    """Waits for what a monitor or a fleet says."""

    def __init__(self) -> None:
        self.changed = threading.Event()
        self.look: Callable[[], dict[str, Any]] = dict
        self.keep: Callable[[], None] = lambda: None

    def tell(self) -> None:
        # At once: what comes from the ranks waits meanwhile, and with it what they answer.
        self.changed.set()

    def until(self, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The first state that fulfils the condition."""
        seen: list[dict[str, Any]] = []

        def holds() -> bool:
            self.keep()
            seen[:] = [self.look()]
            return bool(condition(seen[0]))

        for _ in range(int(PATIENCE / PERIOD)):
            self.changed.clear()
            if holds():
                return seen[0]
            self.changed.wait(PERIOD)
        pytest.fail(f"never seen within {PATIENCE:.0f} s; the last was {seen[0]}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[macluster.Cluster]:
    cluster = macluster.Cluster(2, backend="ring", name=f"test-monitor-{os.getpid()}", env=ENV)
    try:
        cluster.start_sync()
        yield cluster
    finally:
        cluster.stop_sync()


@pytest.fixture
def world(cluster: macluster.Cluster) -> macluster.World:
    return cluster.running_world


@pytest.fixture
def watcher(cluster: macluster.Cluster) -> Iterator[Watcher]:
    watcher = Watcher()
    monitor = Monitor(cluster.name, watcher.tell)
    watcher.look, watcher.keep = monitor.state, lambda: monitor.want(PERIOD)
    watcher.monitor = monitor  # type: ignore[attr-defined]
    try:
        watcher.until(lambda state: state["state"] == "idle" and all_are(state, "idle"))
        yield watcher
    finally:
        monitor.close()


def all_are(state: dict[str, Any], what: str) -> bool:
    return {rank["state"] for rank in state["ranks"].values()} == {what}


def test_idle_ranks_say_what_they_hold(watcher: Watcher, cluster: macluster.Cluster) -> None:
    state = watcher.until(lambda state: all_are(state, "idle"))
    assert (state["size"], state["backend"], state["words"]) == (2, "ring", "")
    assert state["reason"] == cluster.backend_reason
    for rank in state["ranks"].values():
        assert rank["pid"] == cluster.running_world.client.pids[rank["rank"]]
        memory = rank["memory"]
        assert 10e6 < memory["process"] < memory["total"] == psutil.virtual_memory().total
        assert 0 <= memory["arrays"] <= memory["peak"]
        assert rank["gpu"] is None or 0 <= rank["gpu"] <= 100


def test_a_cell_is_seen_with_its_line_and_its_time(watcher: Watcher, world: Any) -> None:
    cell = world.run("a = 1\n" + ENDLESS)
    state = watcher.until(lambda state: len((state["busy"] or {"ranks": []})["ranks"]) == 2)
    assert state["state"] == "busy"
    assert "line 3: `for n in" in str(state["ranks"]) or "line 4: `time.sleep" in str(
        state["ranks"]
    )
    began = state["ranks"]["0"]["since"]
    heard = state["ranks"]["0"]["heard"]
    later = watcher.until(lambda state: state["ranks"]["0"]["heard"] > heard + 1)
    assert later["ranks"]["0"]["since"] == began  # a page counts by itself
    said = watcher.monitor.interrupt()  # type: ignore[attr-defined]
    assert "ranks 0-1: stopped before step" in said
    cell.wait(PATIENCE)
    assert {run.ename for run in cell.runs.values()} == {"KeyboardInterrupt"}
    watcher.until(lambda state: all_are(state, "idle"))
    with pytest.raises(UsageError, match="nothing to interrupt"):
        watcher.monitor.interrupt()  # type: ignore[attr-defined]


def test_messages_come_in_the_middle_of_a_long_computation(watcher: Watcher, world: Any) -> None:
    # One mx.eval in native code, which holds the main thread for seconds.
    code = (
        "x = mx.random.uniform(shape=(1500, 1500))\nfor _ in range(60): x = x @ x / 1e3\nmx.eval(x)"
    )
    cell = world.run(code)
    state = watcher.until(lambda state: "mx.eval(x)" in state["ranks"]["0"]["doing"])
    heard = state["ranks"]["0"]["heard"]
    watcher.until(
        lambda state: (
            state["ranks"]["0"]["heard"] > heard and "mx.eval(x)" in state["ranks"]["0"]["doing"]
        )
    )
    cell.interrupt()
    watcher.until(lambda state: all_are(state, "idle"))


def test_collectives_are_counted_with_their_bytes(watcher: Watcher, world: Any) -> None:
    before = watcher.until(lambda state: state["ranks"]["0"]["collectives"])
    world.run("mx.eval(mx.distributed.all_sum(mx.zeros((1000,), mx.float32)))").result(PATIENCE)
    was = before["ranks"]["1"]["collectives"]
    watcher.until(lambda state: state["ranks"]["1"]["collectives"]["count"] == was["count"] + 1)
    watcher.until(lambda state: state["ranks"]["1"]["collectives"]["bytes"] == was["bytes"] + 4000)


def test_who_waits_for_whom_is_told(watcher: Watcher, world: Any) -> None:
    cell = world.run(
        "import time\nif rank == 0:\n    mx.eval(mx.distributed.all_sum(mx.ones(1)))\n"
        "else:\n    while True: time.sleep(0.01)"
    )
    state = watcher.until(lambda state: "waiting for the others" in state["words"])
    assert "rank 0 at line 3" in state["words"]
    assert "rank 1 at line 5" in state["words"]
    cell.interrupt()
    watcher.until(lambda state: all_are(state, "idle"))


def test_the_failure_of_a_cell_is_kept(watcher: Watcher, world: Any) -> None:
    cell = world.run("if rank == 1:\n    raise ValueError('boom')")
    cell.wait(PATIENCE)
    state = watcher.until(lambda state: state["failure"])
    assert (
        state["failure"]["words"]
        == "rank 1: ValueError: boom\nat line 2: `raise ValueError('boom')`"
    )
    watcher.until(lambda state: all_are(state, "idle"))


def test_a_model_is_seen_and_mapped(watcher: Watcher, world: Any) -> None:
    world.run("model = macluster.load(macluster.toy_path())").result(PATIENCE)
    shown = world.run("import json; print(json.dumps(macluster.shards(model).as_json()))")
    state = watcher.until(lambda state: len(state["models"].get("model", {}).get("ranks", ())) == 2)
    model = state["models"]["model"]
    assert (model["strategy"], model["layers"]) == ("tensor", 4)
    assert {part["layers"] for part in model["ranks"].values()} == {None}
    assert sum(part["share"] for part in model["ranks"].values()) == pytest.approx(1, abs=1e-3)
    from macluster.engine.models.shards import read_map

    text = shown.result(PATIENCE).runs[0].text("stdout")
    expected = read_map(__import__("json").loads(text))
    found = watcher.monitor.shards("model")  # type: ignore[attr-defined]
    assert sorted(map(repr, found.rows)) == sorted(map(repr, expected.rows))
    assert model["ranks"]["1"]["bytes"] == found.totals()[1]

    tokens: list[float] = []
    cell = world.run("macluster.generate(model, 'Count from 1 to 15.', max_tokens=100000)")

    def rate(state: dict[str, Any]) -> bool:
        if state["ranks"]["0"]["tokens"]:
            tokens.append(state["ranks"]["0"]["tokens"])
        return cell.done or bool(tokens)

    watcher.until(rate)
    assert cell.wait(PATIENCE)
    world.run("del model").result(PATIENCE)
    watcher.until(lambda state: not state["models"])
    with pytest.raises(UsageError, match="do not hold the whole"):
        watcher.monitor.shards("model")  # type: ignore[attr-defined]


def test_links_are_shown_as_they_were_measured(watcher: Watcher, world: Any) -> None:
    monitor = watcher.monitor  # type: ignore[attr-defined]
    [link] = monitor.topology().links
    assert link.measured is None
    world.run("found = macluster.measure(ops=(), most=1024)").result(MEASURING)
    watcher.until(lambda _: monitor.measurement() is not None)
    watcher.until(lambda state: all_are(state, "idle"))
    topology = monitor.topology()
    assert topology.links[0].measured is not None
    assert [node.state for node in topology.nodes] == ["ok", "ok"]


def test_a_rank_that_dies_is_named_and_its_successor_seen(watcher: Watcher, world: Any) -> None:
    pid = world.client.pids[1]
    os.kill(pid, signal.SIGSTOP)
    state = watcher.until(lambda state: state["ranks"]["1"]["state"] == "dead")
    assert "Rank 1 is stopped." in state["words"]
    os.kill(pid, signal.SIGCONT)
    watcher.until(lambda state: all_are(state, "idle"))
    os.kill(pid, signal.SIGKILL)
    state = watcher.until(lambda state: "died" in (state["failure"] or {"words": ""})["words"])
    # What it logs whenever it starts tells nothing about its end.
    assert state["failure"]["words"] == "rank 1 died"
    # The owner replaces it, and the ranks form a new world.
    state = watcher.until(
        lambda state: (
            state["state"] == "idle"
            and all_are(state, "idle")
            and state["ranks"]["1"]["pid"] != pid
        )
    )
    assert state["words"] == ""


def test_words_of_any_length_are_cut(watcher: Watcher, world: Any) -> None:
    world.run("raise ValueError('x' * 3_000_000)").wait(PATIENCE)
    state = watcher.until(lambda state: "xxx" in (state["failure"] or {"words": ""})["words"])
    assert len(state["failure"]["words"]) < 3000


# -- all clusters ----------------------------------------------------------------------------------


@pytest.fixture
def fleet() -> Iterator[Watcher]:
    watcher = Watcher()
    fleet = Fleet(lambda: watcher.tell())  # noqa: PLW0108 - a test puts another in its place
    watcher.look, watcher.keep = fleet.state, lambda: fleet.want(PERIOD, None)
    watcher.fleet = fleet  # type: ignore[attr-defined]
    try:
        yield watcher
    finally:
        fleet.close()


def test_a_cluster_is_started_aborted_and_stopped_from_outside(fleet: Watcher) -> None:
    name = f"test-fleet-{os.getpid()}"
    life: Fleet = fleet.fleet  # type: ignore[attr-defined]
    choice = life.choice(2)
    assert (choice["size"], choice["backend"]) == (2, "ring")
    assert {each["name"]: each["fits"] for each in choice["backends"]}["jaccl"] is False
    assert life.start(2, "ring", name) == name
    state = fleet.look()["clusters"][name]
    assert (state["state"], state["size"], state["backend"]) == ("starting", 2, "ring")
    with pytest.raises(ClusterExists):
        life.start(2, None, name)
    try:
        fleet.until(lambda state: state["clusters"][name]["state"] == "idle")
        assert fleet.look()["default_name"] != name
        cluster = macluster.Cluster.connect(name)
        cell = cluster.running_world.run("while True: pass")
        fleet.until(lambda state: state["clusters"][name]["state"] == "busy")
        assert "while True: pass" in life.stacks(name)
        with pytest.raises(UsageError, match="busy"):
            life.measure(name)
        assert "the world is ok again" in life.abort(name)
        cell.wait(PATIENCE)
        fleet.until(lambda state: state["clusters"][name]["state"] == "idle")
        before = cluster.running_world.ask("status")["pid"]
        life.restart(name)
        fleet.until(
            lambda state: state["clusters"][name]["ranks"]["0"]["pid"] not in (None, before)
        )
        assert [each["name"] for each in life.logs(name)] == ["rank 0", "rank 1", "controller"]
        assert fleet.look()["clusters"][name]["failure"] is None  # they were ended on purpose
        cluster.disconnect()
    finally:
        life.stop(name)
    fleet.until(lambda state: name not in state["clusters"])
    with pytest.raises(ClusterNotFound):
        life.stacks(name)


def test_a_start_that_fails_stays_until_it_is_dismissed(
    fleet: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    life: Fleet = fleet.fleet  # type: ignore[attr-defined]
    name = f"test-failed-{os.getpid()}"
    # A rank that finds no Python of its own cannot start.
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    life.start(2, "ring", name)
    state = fleet.until(lambda state: state["clusters"][name]["state"] == "broken")
    monkeypatch.undo()
    assert state["clusters"][name]["words"] == "it did not start"
    assert state["clusters"][name]["failure"]["words"]
    life.dismiss(name)
    assert name not in fleet.look()["clusters"]


def test_a_start_is_called_off_by_a_stop(fleet: Watcher) -> None:
    life: Fleet = fleet.fleet  # type: ignore[attr-defined]
    name = f"test-called-off-{os.getpid()}"
    life.start(2, "ring", name)
    fleet.until(lambda state: "starting" in state["clusters"][name]["words"])
    assert life.stop(name) == f"the start of {name!r} was called off"
    fleet.until(lambda state: name not in state["clusters"])
    assert not list(profile_dir().glob(f"*/*{name}*"))


def test_what_cannot_be_carried_out_leaves_no_trace_but_words(
    fleet: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    life: Fleet = fleet.fleet  # type: ignore[attr-defined]

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("macluster.engine.monitor.command.subprocess.Popen", refuse)
    life.start(2, "ring", "test-refused")
    state = fleet.until(lambda state: state["clusters"]["test-refused"]["state"] == "broken")
    assert "too many open files" in state["clusters"]["test-refused"]["failure"]["words"]
    life.dismiss("test-refused")


def test_a_command_may_complain_as_much_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Python then writes megabytes to standard error, more than a pipe holds.
    monkeypatch.setenv("PYTHONVERBOSE", "1")
    with pytest.raises(ClusterNotFound):
        command("stop", ["--", "-no-such-cluster"])


def test_measuring_from_outside_leaves_the_names_of_the_ranks_alone(
    cluster: macluster.Cluster, world: Any
) -> None:
    world.run("measured, json = 'mine', 'mine, too'").result(PATIENCE)
    steps: list[str] = []
    assert command("measure", ["--quick", cluster.name], steps.append).startswith(
        "measured 2 ranks in "
    )
    assert steps
    assert "{" not in "".join(steps)
    kept = world.run("print(measured, json, sep=', ')").result(PATIENCE)
    assert kept.runs[0].text() == "mine, mine, too\n"


def test_silence_is_told_though_no_message_tells_of_it(
    fleet: Watcher, cluster: macluster.Cluster, world: Any
) -> None:
    name = cluster.name
    fleet.until(lambda state: state["clusters"].get(name, {}).get("state") == "idle")
    # Native code that holds the interpreter on all ranks.
    cell = world.run("import ctypes\nctypes.PyDLL(None).sleep(9)")
    silent = threading.Event()

    def look() -> None:
        state = fleet.look()["clusters"].get(name, {"state": "", "ranks": {}})
        if {"silent"} == {rank["state"] for rank in state["ranks"].values()}:
            silent.set()

    fleet.tell = look  # type: ignore[method-assign]
    for _ in range(int(PATIENCE)):
        fleet.keep()
        if silent.wait(1.0):
            break
    assert silent.is_set()
    cell.wait(PATIENCE)


def test_clusters_of_others_are_found(fleet: Watcher, cluster: macluster.Cluster) -> None:
    state = fleet.until(
        lambda state: state["clusters"].get(cluster.name, {}).get("state") == "idle"
    )
    assert state["clusters"][cluster.name]["owner"] == f"process {os.getpid()}"
