"""What the pages of JupyterLab hear of clusters, and when."""

from __future__ import annotations

import copy
import json
import logging
import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import pytest

from macluster.engine.errors import ClusterNotFound, UsageError
from macluster.engine.models.shards import ShardMap, ShardRow
from macluster.engine.topology.topology import Node, Topology
from macluster.server.hub import ALIVE, MOST, REST, WANT, WINDOW, Hub, Page
from macluster.server.patch import merge_patch, sendable
from macluster.server.requests import Wish, on_server, read_body, read_wish
from macluster.server.views import Painter, View, shows
from macluster.server.workers import Workers
from tests.patches import merged

TIMEOUT = 60  # seconds
GB = 1 << 30


def rank(number: int, **more: Any) -> dict[str, Any]:
    memory = {"total": 512 * GB, "used": 100 * GB, "arrays": GB, "wired": None}
    return {"rank": number, "host": f"studio-{number}", "state": "idle", "doing": "",
            "since": None, "heard": 1.0, "memory": memory, "gpu": None, **more}  # fmt: skip


def cluster(name: str, size: int = 2, **more: Any) -> dict[str, Any]:
    return {"name": name, "backend": "ring", "size": size, "state": "idle", "words": "",
            "since": 5.0, "busy": None, "failure": None, "models": {}, "measured": "",
            "ranks": {str(n): rank(n) for n in range(size)}, **more}  # fmt: skip


def toy_map() -> ShardMap:
    rows = tuple(
        ShardRow(n, layer, "mlp.up_proj", f"layers.{layer}.mlp.up_proj.weight", 400, "split", 0)
        for n in range(2)
        for layer in range(2)
    )
    return ShardMap(rows, "toy, 2 kB", 2, 1600)


class StandIn:
    """A fleet whose clusters are what a test says."""

    def __init__(self, *names: str) -> None:
        self.clusters = {name: cluster(name) for name in names}
        self.wants: list[tuple[float, str | None]] = []
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.closed = False

    def state(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return {"clusters": self.clusters, "default_name": "macluster"}

    def want(self, period: float, chosen: str | None) -> None:
        self.wants.append((period, chosen))

    def topology(self, name: str) -> Topology:
        self._ask("topology", name)
        nodes = [
            Node(each["rank"], each["host"], memory=512 * GB, used=each["memory"]["used"])
            for each in self.clusters[name]["ranks"].values()
        ]
        return Topology(tuple(nodes), (), "ring")

    def measurement(self, name: str) -> None:
        self._ask("measurement", name)

    def shards(self, name: str, model: str) -> ShardMap:
        self._ask(f"shards of {model}", name)
        if model not in self.clusters[name]["models"]:
            raise UsageError("There is no such model.", do="load it")
        return toy_map()

    def _ask(self, what: str, name: str) -> None:
        self.asked.append(what)
        if name not in self.clusters:
            raise ClusterNotFound(f"No cluster named {name!r} runs.", do="start one")

    def close(self) -> None:
        self.closed = True


class Handle:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self.when, self.call, self.cancelled = when, call, False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """A loop whose time passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Handle] = []
        self.soon: deque[Callable[[], None]] = deque()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Handle:
        handle = Handle(when, callback)
        self.timers.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def run(self) -> None:
        while self.soon:
            self.soon.popleft()()

    def pass_by(self, seconds: float) -> None:
        """Let time pass: everything happens at its moment."""
        end = self.now + seconds
        self.run()
        while True:
            self.timers = [each for each in self.timers if not each.cancelled]
            due = min(self.timers, key=lambda each: each.when, default=None)
            if due is None or due.when > end + 1e-9:
                break
            self.timers.remove(due)
            self.now = max(self.now, due.when)
            due.call()
            self.run()
        self.now = end


class AtOnce(Workers):
    """Does everything where it is asked for; or, while `held`, later."""

    held: list[Callable[[], None]] | None = None

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        if AtOnce.held is None:
            run()
        else:
            AtOnce.held.append(run)
        return future


class Flush:
    def __init__(self, done: bool) -> None:
        self.calls: list[Callable[[Any], None]] = []
        self.done = done
        self.error: Exception | None = None

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        self.calls.append(call)
        if self.done:
            call(self)

    def cancelled(self) -> bool:
        return False

    def exception(self) -> Exception | None:
        return self.error

    def finish(self, error: Exception | None = None) -> None:
        self.error = error
        for call in self.calls:
            call(self)


class Browser:
    """A page, and all that it was sent: (time, message)."""

    def __init__(self, desk: Desk, *, slow: bool = False) -> None:
        self.desk, self.slow = desk, slow
        self.told: list[tuple[float, dict[str, Any]]] = []
        self.flushes: list[Flush] = []
        self.shut_with: list[tuple[int, str]] = []
        self.page = Page(self._write, lambda code, reason: self.shut_with.append((code, reason)))
        desk.hub.join(self.page)

    def _write(self, text: str) -> Flush:
        self.told.append((self.desk.loop.now, json.loads(text)))
        self.flushes.append(Flush(not self.slow))
        return self.flushes[-1]

    def wish(self, visible: bool = True, **more: Any) -> None:
        self.desk.hub.hear(self.page, Wish(visible, **more))
        self.desk.loop.run()

    def take(self) -> list[dict[str, Any]]:
        """What has come since the last time, without the server's clock."""
        taken, self.told = self.told, []
        for _, message in taken:
            assert isinstance(message.pop("now"), float)
        return [message for _, message in taken]


class Desk:
    """A hub with a stand-in fleet, at a time of its own."""

    def __init__(self, *names: str) -> None:
        self.loop = FakeLoop()
        self.fleet = StandIn(*names)
        self.made = 0
        self.hub = Hub(
            self.loop, self._make, logging.getLogger("hub"), now=lambda: self.loop.now,
            workers=AtOnce,
        )  # fmt: skip

    def _make(self, on_change: Callable[[], None]) -> Any:
        self.made += 1
        self.fleet.on_change = on_change
        return self.fleet

    def change(self, name: str, **fields: Any) -> None:
        self.fleet.clusters[name] = {**self.fleet.clusters[name], **fields}
        self.fleet.on_change()
        self.loop.run()

    def use(self, name: str, used: int) -> None:
        """Rank 0's host uses so many bytes."""
        ranks = copy.deepcopy(self.fleet.clusters[name]["ranks"])
        ranks["0"]["memory"]["used"] = used
        self.change(name, ranks=ranks)


@pytest.fixture
def desk() -> Desk:
    return Desk("a", "b")


# -- patches ---------------------------------------------------------------------------------------


def bare(value: Any) -> Any:
    """Without what is null, which a merge patch cannot tell from what is not there."""
    if isinstance(value, dict):
        return {name: bare(each) for name, each in value.items() if each is not None}
    return value


def made_up(source: random.Random, depth: int = 3) -> Any:
    kind = source.randrange(8 if depth else 5)
    if kind >= 5:
        names = source.sample("abcd", source.randrange(4))
        return {name: made_up(source, depth - 1) for name in names}
    return [None, 0, 1.5, "x", [1, source.randrange(2)]][kind]


def test_a_patch_turns_one_into_the_other() -> None:
    source = random.Random(1)
    for _ in range(3000):
        before, after = ({"root": made_up(source)} for _ in range(2))
        patch = merge_patch(before, after)
        assert bare(merged(before, patch)) == bare(after)
        # As on a page, which has the nulls of a whole state, or has none after patches.
        assert bare(merged(bare(before), patch)) == bare(after)
        assert merge_patch(after, copy.deepcopy(after)) == {}
        assert (patch == {}) == (bare(before) == bare(after)), (before, after, patch)


def test_what_is_sent_has_only_what_json_has_and_stays_as_it_is() -> None:
    state = {"clusters": {"a": cluster("a")}, "default_name": "m"}
    state["clusters"]["a"]["ranks"]["0"]["cpu"] = float("nan")
    state["clusters"]["a"]["ranks"]["1"] |= {"state": "silent", "heard": 7.0}
    sent = sendable(state)
    assert sent["clusters"]["a"]["ranks"]["0"]["cpu"] is None
    json.dumps(sent, allow_nan=False)
    heard = {number: each["heard"] for number, each in sent["clusters"]["a"]["ranks"].items()}
    assert heard == {"0": None, "1": 7.0}
    state["clusters"]["a"]["ranks"].clear()
    assert len(sent["clusters"]["a"]["ranks"]) == 2


# -- the state -------------------------------------------------------------------------------------


def test_nothing_is_made_before_somebody_looks(desk: Desk) -> None:
    browser = Browser(desk)
    browser.wish(visible=False)
    desk.loop.pass_by(60)
    assert desk.made == 0
    assert {"alive": True} in browser.take()
    browser.wish()
    assert desk.made == 1
    Browser(desk).wish()
    assert desk.made == 1


def test_the_whole_state_comes_first_then_what_changes(desk: Desk) -> None:
    browser = Browser(desk)
    browser.wish(period=0.5)
    [first] = browser.take()
    assert first == {"state": sendable(desk.fleet.state())}
    desk.loop.pass_by(1)
    assert browser.take() == []
    desk.change("a", state="busy", busy={"since": 9.0, "ranks": [0, 1]})
    [second] = browser.take()
    busy = {"state": "busy", "busy": {"since": 9.0, "ranks": [0, 1]}}
    assert second == {"patch": {"clusters": {"a": busy}}}
    desk.loop.pass_by(1)
    desk.change("a", state="idle", busy=None)
    assert browser.take() == [{"patch": {"clusters": {"a": {"state": "idle", "busy": None}}}}]
    del desk.fleet.clusters["b"]
    desk.loop.pass_by(1)
    desk.change("a")
    assert browser.take() == [{"patch": {"clusters": {"b": None}}}]


@pytest.mark.parametrize("period", [0.25, 0.4, 1.0, 5.0])
def test_changes_come_no_sooner_than_after_a_period(desk: Desk, period: float) -> None:
    browser = Browser(desk)
    browser.wish(period=period)
    browser.take()
    for count in range(1000):
        desk.use("a", count)
        desk.loop.pass_by(0.01)
    desk.loop.pass_by(period)
    times = [at for at, message in browser.told if "patch" in message]
    assert len(times) == pytest.approx(10 / period, abs=2)
    gaps = [after - before for before, after in pairwise(times)]
    assert min(gaps, default=period) >= period - 1e-6
    # The newest comes in the end, and nothing in between was put off for longer than a period.
    last = [message["patch"] for _, message in browser.told if "patch" in message][-1]
    assert last["clusters"]["a"]["ranks"]["0"]["memory"]["used"] == 999
    assert max(gaps, default=period) <= period + 0.02


def test_many_changes_are_one_message_and_none_is_none(desk: Desk) -> None:
    browser = Browser(desk)
    browser.wish(period=1.0)
    browser.take()
    for _ in range(100):
        desk.fleet.on_change()
    # However often it is called, the loop has one thing to do.
    assert len(desk.loop.soon) == 1
    desk.loop.pass_by(3)
    assert browser.take() == []
    # There and back within a period.
    desk.change("a", words="x")
    browser.take()
    desk.change("a", words="y")
    desk.change("a", words="x")
    desk.loop.pass_by(2)
    assert browser.take() == []


def test_when_a_rank_was_heard_of_is_told_once_it_is_silent(desk: Desk) -> None:
    browser = Browser(desk)
    browser.wish()
    browser.take()
    for at in range(10):
        desk.loop.pass_by(1)
        desk.change("a", ranks={"0": rank(0, heard=float(at)), "1": rank(1)})
    assert [each for each in browser.take() if "patch" in each] == []
    desk.loop.pass_by(1)
    desk.change("a", ranks={"0": rank(0, heard=9.0, state="silent"), "1": rank(1)})
    silent = {"clusters": {"a": {"ranks": {"0": {"state": "silent", "heard": 9.0}}}}}
    assert browser.take() == [{"patch": silent}]


def test_who_does_not_look_hears_only_that_the_server_is_there(desk: Desk) -> None:
    browser = Browser(desk)
    browser.wish()
    browser.wish(visible=False)
    browser.take()
    for count in range(41):
        desk.use("a", count)
        desk.loop.pass_by(0.5)
    assert browser.take() == [{"alive": True}] * 4
    # What it missed comes as a whole.
    browser.wish()
    [message] = browser.take()
    assert message["state"]["clusters"]["a"]["ranks"]["0"]["memory"]["used"] == 40
    desk.loop.pass_by(ALIVE)
    assert browser.take() == [{"alive": True}]
    # Who hears of changes knows it without that.
    for count in range(12):
        desk.loop.pass_by(1)
        desk.use("a", count)
    assert {"alive": True} not in browser.take()


def test_coming_and_going_does_not_get_more_than_the_limit(desk: Desk) -> None:
    browser = Browser(desk)
    for _ in range(100):
        browser.wish()
        browser.wish(visible=False)
        desk.loop.pass_by(0.01)
    assert len(browser.told) <= MOST + 1
    browser.wish()
    desk.loop.pass_by(WINDOW)
    assert "state" in browser.told[-1][1]


def test_a_slow_reader_gets_one_patch_with_everything(desk: Desk) -> None:
    slow, quick = Browser(desk, slow=True), Browser(desk)
    slow.wish(period=0.25)
    quick.wish(period=0.25)
    assert len(slow.take()) == 1
    quick.take()
    for count in range(8):
        desk.loop.pass_by(1)
        desk.use("a", count)
    assert slow.take() == []
    assert len(quick.take()) == 8
    slow.flushes[-1].finish()
    [message] = slow.take()
    assert message["patch"]["clusters"]["a"]["ranks"] == {"0": {"memory": {"used": 7}}}
    # One that has gone while something was on its way is forgotten.
    slow.flushes[-1].finish(ConnectionError())
    desk.loop.pass_by(60)
    assert slow.take() == []


def test_a_page_whose_connection_fails_is_forgotten(desk: Desk) -> None:
    browser = Browser(desk)

    def fail(text: str) -> Any:
        raise ConnectionError

    browser.page.write = fail
    browser.wish()
    other = Browser(desk)
    other.wish()
    assert "state" in other.take()[0]
    desk.hub.leave(browser.page)
    assert desk.fleet.wants


def test_two_pages_have_each_its_own(desk: Desk) -> None:
    one, two = Browser(desk), Browser(desk)
    one.wish(period=0.5, chosen="a")
    two.wish(period=2.0, chosen="b")
    one.take(), two.take()
    for count in range(40):
        desk.loop.pass_by(0.1)
        desk.use("a", count)
    assert len(one.take()) == 8
    assert len(two.take()) == 2
    desk.hub.leave(one.page)
    desk.loop.pass_by(2)
    desk.use("a", 77)
    assert one.take() == []
    assert "patch" in two.take()[-1]


def test_the_fleet_knows_that_somebody_looks_and_at_what(desk: Desk) -> None:
    one, two = Browser(desk), Browser(desk)
    one.wish(period=2.0, chosen="a")
    assert desk.fleet.wants == [(2.0, "a")]
    one.wish(period=2.0, chosen="a")
    assert len(desk.fleet.wants) == 1
    # The shortest period, and what was chosen last.
    two.wish(period=0.5, chosen="b")
    assert desk.fleet.wants[1:] == [(0.5, "b")]
    one.wish(period=2.0, chosen="a")
    assert desk.fleet.wants[2:] == [(0.5, "a")]
    # A status bar that looks at no cluster takes nothing from who does.
    two.wish(period=0.5)
    assert desk.fleet.wants[3:] == []
    desk.loop.pass_by(4 * WANT)
    assert desk.fleet.wants[3:] == [(0.5, "a")] * 4
    one.wish(visible=False)
    desk.hub.leave(two.page)
    desk.fleet.wants.clear()
    desk.loop.pass_by(10 * WANT)
    assert desk.fleet.wants == []


def test_a_fleet_without_a_state_is_asked_again_at_the_next_change(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    browser = Browser(desk)
    desk.fleet.error = ValueError("secret")
    browser.wish()
    desk.loop.pass_by(20)
    assert browser.take() == [{"alive": True}] * 4
    desk.fleet.error = None
    desk.change("a")
    assert "state" in browser.take()[0]
    desk.fleet.error = ValueError("secret")
    desk.loop.pass_by(5)
    desk.change("a", words="new")
    desk.loop.pass_by(1)
    assert all("patch" not in each for each in browser.take())
    desk.fleet.error = None
    desk.change("a")
    assert "patch" in browser.take()[-1]
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_pages_come_back_when_no_fleet_can_be_made(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(on_change: Any) -> Any:
        raise ImportError("ipyparallel")

    monkeypatch.setattr(desk.hub, "_make_fleet", fail)
    browser = Browser(desk)
    browser.wish()
    assert browser.shut_with == [(1011, "cannot look at clusters: ImportError")]
    monkeypatch.undo()
    again = Browser(desk)
    again.wish()
    assert "state" in again.take()[0]


# -- views -----------------------------------------------------------------------------------------

TOPOLOGY = View("a", "topology")


def views(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each["traits"] for each in messages if "view" in each]


def test_a_view_has_the_traits_of_the_widget(desk: Desk) -> None:
    from macluster.widgets.shards import ShardView
    from macluster.widgets.topology import TopologyView

    desk.fleet.clusters["a"]["models"] = {"model": {"name": "model"}}
    browser = Browser(desk)
    wanted = (TOPOLOGY, View("a", "measurement"), View("a", "shards", "model"), View("a", "shards"))
    browser.wish(visible=False, views=wanted)
    desk.loop.pass_by(1)
    messages = browser.take()
    assert [each["view"] for each in messages] == [
        {"cluster": "a", "kind": "topology", "model": None},
        {"cluster": "a", "kind": "measurement", "model": None},
        {"cluster": "a", "kind": "shards", "model": "model"},
        {"cluster": "a", "kind": "shards", "model": None},
    ]
    topology, measurement, shards, only = views(messages)
    widget = TopologyView(desk.fleet.topology("a"))
    names = ("scene", "figures", "link_figures", "status")
    assert topology == json.loads(json.dumps({name: getattr(widget, name) for name in names}))
    assert measurement == {"data": None}
    drawn = ShardView(toy_map())
    assert shards == only == json.loads(json.dumps({"scene": drawn.scene, "title": drawn.title}))


def test_a_view_is_made_anew_only_when_what_it_shows_may_have_changed(desk: Desk) -> None:
    browser = Browser(desk)
    browser.wish(views=(TOPOLOGY,), period=0.5)
    desk.loop.pass_by(1)
    assert len(views(browser.take())) == 1
    assert desk.fleet.asked == ["topology"]
    # What the picture does not show.
    for words in ("x", "y", "z"):
        desk.change("a", words=words)
        desk.change("b", state="busy")
        desk.loop.pass_by(1)
    assert desk.fleet.asked == ["topology"]
    assert views(browser.take()) == []
    # What it may show, and what it does show: of that, the part that differs.
    desk.change("a", since=6.0)
    desk.loop.pass_by(1)
    assert desk.fleet.asked == ["topology"] * 2
    assert views(browser.take()) == []
    desk.use("a", 7 * GB)
    [traits] = views(browser.take())
    assert set(traits) <= {"scene", "figures"}
    # Not more often than once in a period.
    desk.fleet.asked.clear()
    for count in range(400):
        desk.use("a", count * GB)
        desk.loop.pass_by(0.01)
    assert len(desk.fleet.asked) <= 9
    assert len(views(browser.take())) <= 9


def test_a_view_that_cannot_be_shown_says_so_and_comes_back_whole(desk: Desk) -> None:
    browser = Browser(desk)
    browser.wish(views=(View("c", "topology"), View("a", "shards", "model")))
    desk.loop.pass_by(1)
    missing, unloaded = views(browser.take())
    assert missing == {"error": "No cluster named 'c' runs.\n  Do:  start one"}
    assert set(unloaded) == {"error"}
    desk.fleet.clusters["c"] = cluster("c")
    desk.change("a", models={"model": {"name": "model"}})
    desk.loop.pass_by(1)
    names = [sorted(each) for each in views(browser.take())]
    assert names == [["figures", "link_figures", "scene", "status"], ["scene", "title"]]
    # Of a model that cannot be shown, another try is made when the ranks do something else.
    desk.fleet.asked.clear()
    desk.change("a", models={})
    desk.loop.pass_by(1)
    assert [set(each) for each in views(browser.take())] == [{"error"}]
    for at in range(3):
        desk.change("a", busy={"since": float(at), "ranks": [0]})
        desk.loop.pass_by(2)
    assert desk.fleet.asked.count("shards of model") >= 4


def test_a_measurement_is_looked_at_again_when_one_was_made(desk: Desk) -> None:
    browser = Browser(desk)
    browser.wish(views=(View("a", "measurement"),))
    desk.loop.pass_by(5)
    desk.use("a", 5)
    desk.loop.pass_by(5)
    assert desk.fleet.asked == ["measurement"]
    desk.change("a", measured="2026-11-21T10:00:00+00:00")
    desk.loop.pass_by(5)
    assert desk.fleet.asked == ["measurement"] * 2


def test_what_fails_to_be_drawn_is_said_without_its_words(
    desk: Desk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = KeyError("secret")  # the line that raises it may be in the log

    def fail(name: str) -> Any:
        raise error

    monkeypatch.setattr(desk.fleet, "topology", fail)
    browser = Browser(desk)
    browser.wish(views=(TOPOLOGY,))
    desk.loop.pass_by(1)
    assert views(browser.take()) == [
        {"error": "It could not be drawn (KeyError): the server's log says where."}
    ]
    assert "KeyError" in caplog.text
    assert "secret" not in caplog.text


def test_all_that_a_page_is_sent_keeps_to_the_limit_and_nothing_starves(desk: Desk) -> None:
    browser = Browser(desk)
    kinds: list[Any] = ["topology", "measurement"]
    wanted = tuple(View(name, kind) for name in "ab" for kind in kinds)
    browser.wish(views=wanted, period=0.25)
    for count in range(2000):
        desk.use("a", count * GB)
        desk.use("b", count * GB)
        desk.loop.pass_by(0.01)
    times = [at for at, _ in browser.told]
    for first, later in zip(times, times[MOST:], strict=False):
        assert later - first >= WINDOW - 1e-6
    assert len(times) >= 0.9 * MOST * 20
    told = ["patch" if "patch" in each else each["view"]["cluster"] for _, each in browser.told[5:]]
    # The state and both topologies change all the time: each gets its turn.
    assert all(told.count(what) >= 20 for what in ("patch", "a", "b"))


def test_a_view_under_way_is_not_begun_twice(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = Browser(desk)
    browser.wish()
    held: list[Callable[[], None]] = []
    monkeypatch.setattr(AtOnce, "held", held)
    browser.wish(views=(TOPOLOGY,), period=0.25)
    for count in range(20):
        desk.use("a", count * GB)
        desk.loop.pass_by(1)
    assert len(held) == 1
    held.pop()()
    desk.loop.pass_by(0)
    assert len(views(browser.take())) == 1
    # What has changed in the meantime is drawn next.
    desk.loop.pass_by(1)
    assert len(held) == 1
    # The page has gone when it is ready.
    desk.hub.leave(browser.page)
    held.pop()()
    desk.loop.pass_by(5)
    assert browser.take() == []


def test_a_view_that_takes_long_to_make_is_made_seldom(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = Browser(desk)
    browser.wish()
    held: list[Callable[[], None]] = []
    monkeypatch.setattr(AtOnce, "held", held)
    browser.wish(views=(TOPOLOGY,), period=0.25)
    begun = []
    for count in range(200):
        desk.use("a", count * GB)
        if held:
            begun.append(desk.loop.now)
            desk.loop.pass_by(0.5)
            held.pop()()
        desk.loop.pass_by(0.1)
    gaps = [after - before for before, after in pairwise(begun)]
    assert len(gaps) > 5
    # As seen every tenth of a second.
    assert min(gaps) >= REST * 0.5 - 0.11


def test_what_has_not_changed_is_not_written_anew(desk: Desk) -> None:
    painter = Painter(TOPOLOGY)
    first = painter.paint(desk.fleet)  # type: ignore[arg-type]
    desk.use("a", 7 * GB)
    second = painter.paint(desk.fleet)  # type: ignore[arg-type]
    assert first["link_figures"] is second["link_figures"]
    assert first["figures"] != second["figures"]


def test_the_painter_names_what_a_view_depends_on(desk: Desk) -> None:
    state = sendable(desk.fleet.state())
    for kind in ("topology", "measurement", "shards"):
        assert shows(View("zz", kind), state, failed=False) is None
        same = shows(View("a", kind), copy.deepcopy(state), failed=False)
        assert shows(View("a", kind), state, failed=False) == same
    # A cluster that is just being started has ranks without numbers, or none.
    state["clusters"]["a"]["ranks"]["0"]["memory"] = None
    assert shows(TOPOLOGY, state, failed=False)
    said = Painter(View("a", "shards")).paint(desk.fleet)  # type: ignore[arg-type]
    assert "No model is loaded on 'a'." in json.loads(said["error"])


# -- the end ---------------------------------------------------------------------------------------


async def test_the_end_closes_everything(desk: Desk) -> None:
    browser = Browser(desk)
    browser.wish(views=(TOPOLOGY,))
    browser.take()
    await desk.hub.close()
    assert browser.shut_with == [(1001, "the server is being stopped")]
    assert desk.fleet.closed
    desk.change("a", words="too late")
    desk.loop.pass_by(60)
    assert browser.take() == []
    with pytest.raises(RuntimeError):
        desk.hub.call(lambda fleet: fleet.state()).result()


async def test_a_hub_that_nobody_used_ends_at_once(desk: Desk) -> None:
    await desk.hub.close()
    assert desk.made == 0


# -- what pages may say ----------------------------------------------------------------------------


def test_a_wish_is_read_and_kept_within_bounds() -> None:
    said = {"visible": True, "chosen": "a b", "period": 0.001, "views": [
        {"cluster": "a", "kind": "topology", "model": None}, {"cluster": "a", "kind": "topology"},
    ]}  # fmt: skip
    assert read_wish(json.dumps(said)) == Wish(True, "a b", 0.25, (TOPOLOGY,))
    assert read_wish('{"period": 1e300}').period == 5.0
    assert read_wish('{"period": 1' + 400 * "0" + "}").period == 5.0
    assert read_wish("{}") == Wish()


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ("nonsense", "JSON"),
        ("[]", "object"),
        ('{"visible": 1}', "visible"),
        ('{"chosen": 5}', "chosen"),
        ('{"period": "often"}', "period"),
        ('{"period": NaN}', "JSON"),
        ('{"views": [{"cluster": "a", "kind": "secret"}]}', "views"),
        ('{"views": [{"kind": "topology"}]}', "views"),
        ('{"other": 1}', "fields"),
        ("[" * 100_000, "bytes"),
        ("[" * 60_000, "JSON"),
        (b"\xff\xfe{", "JSON"),
    ],
)
def test_anything_else_is_refused_in_words(message: str | bytes, word: str) -> None:
    with pytest.raises(UsageError, match=word) as found:
        read_wish(message)
    assert found.value.why
    assert found.value.do
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "hosts"),
        ({"hosts": 0}, "hosts"),
        ({"hosts": True}, "hosts"),
        ({"hosts": []}, "hosts"),
        ({"hosts": ["a", 1]}, "hosts"),
        ({"hosts": ""}, "hosts"),
        ({"hosts": 2, "backend": 5}, "backend"),
        ({"hosts": 2, "name": "../x"}, "name"),
        ({"hosts": 2, "name": "-x"}, "name"),
        ({"hosts": 2, "name": "x\n"}, "name"),
        ({"hosts": 2, "checked": "yes"}, "checked"),
        ({"hosts": 2, "more": 1}, "fields"),
    ],
)
def test_a_start_that_cannot_be_is_refused_in_words(body: Any, field: str) -> None:
    with pytest.raises(UsageError, match=field) as found:
        read_body("start", json.dumps(body).encode())
    assert found.value.why


def test_a_start_that_can_be_is_not() -> None:
    for hosts in (1, "cluster.json", ["one", "two"]):
        body = {"hosts": hosts, "backend": None, "name": "größe-2.b", "checked": True}
        assert read_body("start", json.dumps(body)) == body


def test_a_path_is_seen_from_the_folder_of_the_file_browser() -> None:
    assert on_server("a/b.json", "/root") == "/root/a/b.json"
    assert on_server("/c.json", "/root") == "/c.json"
    assert on_server(4, "/root") == 4
    assert on_server(["a"], "/root") == ["a"]
    home = on_server("~/c.json", "/root")
    assert isinstance(home, str)
    assert "~" not in home


# -- workers ---------------------------------------------------------------------------------------


def test_workers_do_so_much_at_once_and_no_more() -> None:
    import threading

    workers = Workers("some", 2)
    gate, begun = threading.Event(), threading.Semaphore(0)

    def wait() -> str:
        begun.release()
        assert gate.wait(TIMEOUT)
        return threading.current_thread().name

    futures = [workers.submit(wait) for _ in range(5)]
    assert all(begun.acquire(timeout=TIMEOUT) for _ in range(2))
    assert not begun.acquire(blocking=False)
    gate.set()
    assert {future.result(TIMEOUT) for future in futures} == {"some-1", "some-2"}
    assert all(each.daemon for each in threading.enumerate() if each.name.startswith("some-"))
    with pytest.raises(ZeroDivisionError):
        workers.submit(lambda: 1 // 0).result(TIMEOUT)
    # Those that wait for work go on: an error ends none of them.
    assert workers.submit(lambda: 5).result(TIMEOUT) == 5
    workers.close()
    assert workers.submit(wait).cancelled()


def test_what_has_not_begun_when_workers_end_is_cancelled() -> None:
    import threading

    workers = Workers("one", 1)
    gate, begun = threading.Event(), threading.Event()
    first = workers.submit(lambda: (begun.set(), gate.wait(TIMEOUT)))
    assert begun.wait(TIMEOUT)
    second = workers.submit(lambda: None)
    workers.close()
    assert second.cancelled()
    gate.set()
    assert first.result(TIMEOUT)
