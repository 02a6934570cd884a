"""The sharding map and the conversation, as a person uses them in JupyterLab."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from playwright.sync_api import Locator, Page, expect

import macluster
from macluster.engine.models.shards import ShardMap, ShardRow
from macluster.widgets.chat import DEFAULTS, ChatView
from macluster.widgets.shards import ShardView, scene
from tests.ui.lab import LabPage

PICTURES = Path(__file__).parents[2] / "build" / "pictures"
MINUTE = 60_000  # milliseconds
TALL = {"width": 1100, "height": 1400}
START = ["%load_ext macluster", "import os; os.environ['MLX_DISABLE_COMPILE'] = '1'"]
LOAD = f"%model load {macluster.toy_path()}"
# A step that takes this long leaves time to press a button.
SLOWLY = """%%distributed
import time
_call = type(model.model).__call__
type(model.model).__call__ = lambda *a, **k: (time.sleep(0.1), _call(*a, **k))[1]"""


@pytest.fixture
def tall_lab(lab_page: LabPage) -> Iterator[LabPage]:
    PICTURES.mkdir(parents=True, exist_ok=True)
    lab_page.page.set_viewport_size(TALL)
    yield lab_page
    assert lab_page.faults == []


def run(lab_page: LabPage, name: str, cells: list[str]) -> None:
    lab_page.open_notebook(lab_page.server.write_notebook(name, cells))
    lab_page.execute("application:toggle-left-area")
    lab_page.run_all_cells()
    errors = [
        output
        for cell in lab_page.cells()
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]
    assert errors == []


def saved(lab_page: LabPage, cell: int) -> dict[str, Any]:
    """The forms that the last display of a cell is saved in."""
    outputs = lab_page.cells()[cell]["outputs"]
    data: dict[str, Any] = [output["data"] for output in outputs if "data" in output][-1]
    return {mime: "".join(value) for mime, value in data.items() if isinstance(value, str | list)}


def picture(lab_page: LabPage, part: Locator, name: str) -> None:
    """The part in both themes."""
    part.screenshot(path=PICTURES / f"{name}-light.png")
    lab_page.execute("apputils:change-theme", {"theme": "JupyterLab Dark"})
    lab_page.page.wait_for_selector("#jupyterlab-splash", state="detached")
    part.screenshot(path=PICTURES / f"{name}-dark.png")
    lab_page.execute("apputils:change-theme", {"theme": "JupyterLab Light"})
    lab_page.page.wait_for_selector("#jupyterlab-splash", state="detached")


def test_the_sharding_map_is_walked_through_with_the_keyboard(tall_lab: LabPage) -> None:
    lab_page = tall_lab
    cells = [*START, "%cluster start 2 --name map", LOAD, "%model shards", "%cluster stop"]
    run(lab_page, "map.ipynb", cells)
    page = lab_page.page
    grid = page.get_by_role("grid")
    expect(grid).to_be_visible(timeout=MINUTE)
    rows = grid.get_by_role("row")
    expect(rows).to_have_count(2)
    # The way in, four layers, the way out, and the memory.
    expect(rows.first.get_by_role("gridcell")).to_have_count(7)
    first = rows.first.get_by_role("gridcell").first
    first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    here = page.locator("[role=gridcell]:focus")
    expect(here).to_have_attribute("tabindex", "0")
    label = here.get_attribute("aria-label") or ""
    assert label.startswith("layer 1, rank 1: ")
    assert "kB" in label
    assert "attention" in label
    # One cell only is reached with Tab.
    expect(grid.locator("[role=gridcell][tabindex='0']")).to_have_count(1)
    expect(page.locator(".macluster-shards .detail")).to_contain_text("layer 1, rank 1")
    page.keyboard.press("End")
    expect(page.locator(".macluster-shards .detail")).to_contain_text("memory of rank 1")
    first.hover()
    expect(page.locator(".macluster-shards .detail")).to_contain_text("embed_tokens, rank 0")
    picture(lab_page, page.locator(".macluster-shards"), "shards")
    # Whoever opens the notebook without a kernel has a picture and a table.
    data = saved(lab_page, 4)
    assert "<img alt=" in data["text/html"]
    assert "<table>" in data["text/html"]
    assert "rank 1" in data["text/plain"]
    encoded = data["text/html"].split("base64,")[1].split('"')[0]
    assert base64.b64decode(encoded).startswith(b"<svg")


def test_a_conversation_is_held_and_stopped(tall_lab: LabPage) -> None:
    lab_page = tall_lab
    cells = [
        *START,
        "%cluster start 2 --name talk",
        LOAD,
        "import macluster\nmacluster.chat_ui()",
        SLOWLY,
    ]
    run(lab_page, "talk.ipynb", cells)
    page = lab_page.page
    try:
        chat = page.get_by_role("region", name="Conversation")
        box = chat.get_by_role("textbox", name="What you want to say")
        box.fill("What is the capital of France?")
        box.press("Enter")
        log = chat.get_by_role("log")
        expect(log).to_contain_text("The capital of France is Paris.", timeout=MINUTE)
        expect(log).to_contain_text("tokens/s")
        expect(chat.locator(".status")).to_contain_text("of 512")
        # What is kept has been brought up to date; whoever writes has not noticed.
        expect(page.get_by_text("Transcript: 2 turns")).to_be_visible()
        expect(chat.get_by_role("button", name="Send")).to_be_visible()
        expect(box).to_have_value("")
        expect(box).to_be_focused()

        box.fill("Count from 1 to 15.")
        chat.get_by_role("button", name="Send").click()
        expect(chat.locator(".open .text")).to_contain_text("1,", timeout=MINUTE)
        seen = (chat.locator(".open .text").text_content() or "").count(",")
        chat.get_by_role("button", name="Stop").click()
        expect(chat.get_by_role("button", name="Send")).to_be_visible(timeout=MINUTE)
        expect(log).to_contain_text("stopped")
        answer = log.locator(".turn.assistant .text").last.text_content() or ""
        assert "15." not in answer
        # A number and a comma are two tokens or three.
        assert answer.count(",") <= seen + 8

        # Markup of anybody stays text, and the conversation goes on.
        box.fill("<img src=x onerror=document.title='bad'>")
        box.press("Enter")
        expect(log.locator(".turn.assistant")).to_have_count(3, timeout=MINUTE)
        expect(chat.get_by_role("button", name="Send")).to_be_visible(timeout=MINUTE)
        expect(log.locator("img")).to_have_count(0)
        picture(lab_page, chat, "chat")
        data = saved(lab_page, 4)
        assert "The capital of France is Paris." in data["text/plain"]
        assert "The capital of France is Paris." in data["text/html"]
        assert "<img" not in data["text/html"]
        kept = page.locator("details").filter(has_text="Transcript: 6 turns")
        expect(kept.locator("pre").first).to_be_hidden()
    finally:
        lab_page.execute("notebook:insert-cell-below")
        lab_page.execute("notebook:replace-selection", {"text": "%cluster stop"})
        lab_page.execute("notebook:run-cell")


# -- a page alone, with a stand-in for the widget's model ------------------------------------------

ALONE = """async ([code, state]) => {
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const { render } = (await import(url)).default;
  const listeners = {};
  window.sent = [];
  window.model = {
    get: (key) => state[key],
    set: (key, value) => {
      state[key] = value;
      for (const listener of listeners[`change:${key}`] ?? []) listener();
    },
    on: (name, listener) => (listeners[name] ??= []).push(listener),
    off: (name, listener) => {
      listeners[name] = (listeners[name] ?? []).filter((each) => each !== listener);
    },
    send: (content) => window.sent.push(content),
  };
  window.listeners = listeners;
  window.end = render({ model: window.model, el: document.body });
}"""
TALK = {
    "title": "toy", "turns": [], "answer": "", "phase": "ready", "status": "", "figures": {},
    "settings": DEFAULTS,
}  # fmt: skip


def alone(page: Page, code: str, state: dict[str, Any]) -> None:
    page.set_content("<body></body>")
    page.evaluate(ALONE, [code, json.loads(json.dumps(state))])


def test_what_is_written_is_sent_once_with_the_settings(page: Page) -> None:
    alone(page, str(ChatView._esm), TALK)
    box = page.get_by_role("textbox", name="What you want to say")
    box.fill("one")
    box.press("Shift+Enter")
    box.press_sequentially("two")
    assert page.evaluate("window.sent") == []
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("System prompt").fill("Be brief.")
    box.press("Enter")
    [sent] = page.evaluate("window.sent")
    assert (sent["do"], sent["text"]) == ("say", "one\ntwo")
    assert sent["settings"]["temperature"] == "0.5"
    assert sent["settings"]["system"] == "Be brief."
    expect(box).to_have_value("")
    # No kernel has answered.
    expect(page.get_by_role("status")).to_contain_text("No answer from the notebook's kernel yet")
    page.evaluate("window.model.set('phase', 'waiting')")
    box.fill("three")
    box.press("Enter")
    assert len(page.evaluate("window.sent")) == 1
    expect(box).to_have_value("three")
    page.get_by_role("button", name="Stop").click()
    assert page.evaluate("window.sent")[1] == {"do": "stop"}


def test_what_a_model_says_is_text(page: Page) -> None:
    bad = "<img src=x onerror='window.bad = 1'><b>bold</b>"
    alone(page, str(ChatView._esm), TALK | {"phase": "answering"})
    for end in (10, 30, len(bad)):
        page.evaluate("(text) => window.model.set('answer', text)", bad[:end])
        expect(page.locator(".open .text")).to_have_text(bad[:end])
    turns = [{"role": "assistant", "text": bad, "note": bad}]
    page.evaluate("(turns) => window.model.set('turns', turns)", turns)
    for key in ("status", "title"):
        page.evaluate("([key, text]) => window.model.set(key, text)", [key, bad])
    expect(page.locator(".turn.assistant .note")).to_have_text(bad)
    expect(page.locator("img, .log b")).to_have_count(0)
    assert page.evaluate("window.bad") is None
    assert page.get_by_role("log").get_attribute("aria-live") == "polite"
    # A view that is taken away listens no more.
    page.evaluate("window.end()")
    assert page.evaluate("Object.values(window.listeners).flat().length") == 0


def test_a_map_of_61_layers_and_8_ranks_is_walked_through(page: Page) -> None:
    names = ["model.embed_tokens.weight", *(f"model.layers.{n}.mlp.w.weight" for n in range(61))]
    rows = tuple(
        ShardRow(rank, int(name.split(".")[2]) if "layers" in name else None, "mlp.w", name, 8,
                 "split", 0)
        for rank in range(8) for name in names
    )  # fmt: skip
    drawn = scene(ShardMap(rows, "large", 8, 4000))
    alone(page, str(ShardView._esm), {"scene": attrs.asdict(drawn), "title": "large"})
    cells = page.get_by_role("gridcell")
    expect(cells).to_have_count(8 * (61 + 2))
    here = page.locator("[role=gridcell]:focus")
    cells.first.focus()
    for key, label in (
        ("ArrowUp", "w, rank 0"),
        ("ArrowLeft", "w, rank 0"),
        ("ArrowRight", "layer 0, rank 0"),
        ("ArrowDown", "layer 0, rank 1"),
        ("End", "memory of rank 1"),
        ("ArrowRight", "memory of rank 1"),
        ("ArrowLeft", "layer 60, rank 1"),
        ("Control+End", "memory of rank 7"),
        ("Home", "w, rank 7"),
        ("Control+Home", "w, rank 0"),
    ):
        page.keyboard.press(key)
        label_here = here.get_attribute("aria-label") or ""
        assert label_here.startswith(label), (key, label_here)
