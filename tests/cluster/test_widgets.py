"""The views over live ranks: a conversation, its end, and the sharding map."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import macluster
from macluster.engine.models.shards import read_map
from macluster.widgets.chat import ChatView
from tests.cluster.models import ENV, TIMEOUT, answers, start
from tests.cluster.notebook import Notebook
from tests.cluster.processes import PATIENCE

TOY = str(macluster.toy_path())
FRANCE, COUNT = "What is the capital of France?", "Count from 1 to 15."
PARIS = "The capital of France is Paris."
LOAD = f"model = macluster.load({TOY!r})"
# The model waits on all ranks, from the third token on, until the file is there.
HELD = """
import os, time
_call, _calls = type(model.model).__call__, []
def _waiting(*args, **options):
    _calls.append(1)
    while len(_calls) > 3 and not os.path.exists({gate!r}):
        time.sleep(0.01)
    return _call(*args, **options)
type(model.model).__call__ = _waiting
"""
FREE = "type(model.model).__call__ = _call"


@pytest.fixture(scope="module")
def two() -> Iterator[macluster.World]:
    yield from start(2)


@pytest.fixture
def world(two: macluster.World) -> macluster.World:
    two.run(f"globals().pop('chat', None)\n{LOAD}").result(TIMEOUT)
    return two


def until(view: ChatView, trait: str, reached: Callable[[Any], bool]) -> None:
    """Wait until a trait of a view has reached a value."""
    found = threading.Event()

    def look(*_: Any) -> None:
        if reached(getattr(view, trait)):
            found.set()

    view.observe(look, [trait])
    look()
    try:
        assert found.wait(PATIENCE), (trait, getattr(view, trait))
    finally:
        view.unobserve(look, [trait])


def said(view: ChatView) -> list[list[str]]:
    return [[turn["role"], turn["text"]] for turn in view.turns]


def test_a_turn_is_answered_with_its_figures(world: macluster.World) -> None:
    view = ChatView(lambda: world)
    assert view.title.startswith("qwen2, 0.20 M parameters, tensor over 2 ranks")
    shown: list[str] = []
    view.observe(lambda change: shown.append(change["new"]), "answer")
    view.say(FRANCE)
    assert view.wait(TIMEOUT)
    assert said(view) == [["user", FRANCE], ["assistant", PARIS]]
    assert "tokens/s" in view.turns[1]["note"]
    assert (view.phase, view.status, view.answer) == ("ready", "", "")
    assert view.figures["limit"] == 512
    assert view.figures["context"] > view.figures["tokens"] > 5
    # It came piece by piece, each with what was there before.
    pieces = [text for text in shown if text]
    assert all(PARIS.startswith(text) for text in pieces)


def test_the_conversation_is_that_of_the_ranks(world: macluster.World) -> None:
    world.run(f"chat = macluster.Chat(model, system='Be brief.')\nchat.say({FRANCE!r})").result(
        TIMEOUT
    )
    view = ChatView(lambda: world)
    assert view.settings["system"] == "Be brief."
    assert said(view) == [["user", FRANCE], ["assistant", PARIS]]
    # Somebody goes on with it in a cell, and then here.
    world.run(f"chat.say({COUNT!r})").result(TIMEOUT)
    view.say(FRANCE)
    assert view.wait(TIMEOUT)
    assert [text for role, text in said(view) if role == "user"] == [FRANCE, COUNT, FRANCE]
    counts = answers(world, "print(json.dumps([len(chat.messages), chat.system]))")
    assert counts == [[7, "Be brief."]] * 2
    # Another system prompt begins anew, and so does a reset.
    view.say(FRANCE, {"system": "Shout."})
    assert view.wait(TIMEOUT)
    assert said(view)[0] == ["user", FRANCE]
    assert len(view.turns) == 2
    view.reset()
    view.say(COUNT)
    assert view.wait(TIMEOUT)
    assert [text for role, text in said(view) if role == "user"] == [COUNT]
    assert answers(world, "print(json.dumps(len(chat.messages)))") == [3, 3]


def test_stop_ends_the_answer_on_all_ranks_after_the_same_token(
    world: macluster.World, tmp_path: Any
) -> None:
    gate = tmp_path / "gate"
    world.run(HELD.format(gate=str(gate))).result(TIMEOUT)
    try:
        view = ChatView(lambda: world)
        view.say(COUNT)
        until(view, "answer", lambda text: text != "")
        view.stop()
        assert view.phase == "stopping"
        gate.touch()
        assert view.wait(TIMEOUT)
    finally:
        gate.touch()
        world.run(FREE).result(TIMEOUT)
    assert (view.phase, view.status) == ("ready", "stopped on all ranks")
    assert view.turns[-1]["note"].endswith("stopped")
    # Three were under way when the button was pressed.
    assert 0 < view.figures["tokens"] <= 3 + 8
    assert (
        answers(world, "print(json.dumps(chat.messages))")[0]
        == answers(world, "print(json.dumps(chat.messages))")[1]
    )
    view.say(FRANCE)
    assert view.wait(TIMEOUT)
    assert said(view)[-1] == ["assistant", PARIS]


def test_a_turn_behind_a_cell_says_so(world: macluster.World, tmp_path: Any) -> None:
    gate = tmp_path / "gate"
    cell = world.run(
        f"import os, time\nwhile not os.path.exists({str(gate)!r}):\n    time.sleep(0.01)"
    )
    try:
        view = ChatView(lambda: world)
        assert "A cell runs on the ranks" in view.status
        view.say(FRANCE)
        assert view.phase == "waiting"
        assert "A cell runs on the ranks" in view.status
    finally:
        gate.touch()
    cell.result(TIMEOUT)
    assert view.wait(TIMEOUT)
    assert said(view)[-1] == ["assistant", PARIS]
    assert view.status == ""


def test_a_turn_that_fails_is_told_and_the_next_one_is_answered(world: macluster.World) -> None:
    view = ChatView(lambda: world, chat="other")
    world.run("kept = model\ndel model").result(TIMEOUT)
    view.say(FRANCE)
    assert view.wait(TIMEOUT)
    assert view.turns[-1] == {
        "role": "error",
        "text": "There is no model named 'model' on the ranks.\n  Why: they hold kept\n"
        "  Do:  %model load PATH, or name 'kept'",
        "note": "",
    }
    world.run("model = kept").result(TIMEOUT)
    view.say(FRANCE)
    assert view.wait(TIMEOUT)
    assert said(view)[-1] == ["assistant", PARIS]


@pytest.mark.parametrize("strategy", ["tensor", "pipeline"])
def test_a_map_has_the_memory_of_each_rank(two: macluster.World, strategy: str) -> None:
    found = answers(
        two,
        f"m = macluster.load({TOY!r}, {strategy!r})\n"
        "print(json.dumps(macluster.shards(m).as_json()))",
    )
    assert found[0] == found[1]
    drawn = read_map(found[0])
    assert drawn.context == 512  # all that the toy was made for
    holding = {piece.holding for place in drawn.places()[1:-1] for piece in place.pieces[0]}
    assert holding == ({"split", "copy"} if strategy == "tensor" else {"whole", "none"})
    held = answers(two, "print(json.dumps(m.nbytes))")
    assert drawn.totals() == held
    # Keys and values: of half the heads in all layers, or of all heads in half of the layers.
    assert [room.cache for room in drawn.rooms] == [524_288, 524_288]
    for room, total in zip(drawn.rooms, drawn.totals(), strict=True):
        assert room.limit is not None
        assert room.limit > total
        assert "its share of the free memory on " in room.of


def test_a_notebook_keeps_a_picture_and_a_conversation() -> None:
    nb = Notebook(**ENV)
    try:
        nb.ok("%load_ext macluster\nimport macluster")
        none = nb.run("macluster.chat_ui()")
        assert none.ename == "ClusterNotFound"
        assert (
            "There is no notebook here"
            in nb.run(
                "from macluster.magics.chat_ui import current_session as _c\n"
                "from unittest import mock\n"
                "with mock.patch('IPython.get_ipython', lambda: None): _c()"
            ).evalue
        )
        nb.ok(f"%cluster start 2 --name test-widgets-{os.getpid()}")
        nb.ok(f"%model load {TOY}")
        [drawn] = nb.ok("%model shards --context 100").all("execute_result")
        data = drawn.content["data"]
        assert "application/vnd.jupyter.widget-view+json" in data
        assert "data:image/svg+xml;base64," in data["text/html"]
        assert "462.6 kB   462.6 kB" in data["text/plain"]
        assert "cannot be a name" in nb.run("macluster.chat_ui('no name')").evalue
        shown = nb.ok("view = macluster.chat_ui()\nview").all("display_data")
        assert [output.plain.partition(" with ")[0] for output in shown] == ["Conversation"] * 2
        assert "application/vnd.jupyter.widget-view+json" in shown[0].content["data"]
        ran = nb.ok(f"view.say({FRANCE!r})\nassert view.wait({TIMEOUT})\nprint(view)")
        assert PARIS in ran.text()
        updates = [output.plain for output in ran.all("update_display_data")]
        later = nb.ok("1")
        updates += [output.plain for output in later.all("update_display_data")]
        assert any(PARIS in text for text in updates)
    finally:
        nb.close()
