"""A plan and a token's time, as a person sees them in JupyterLab."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from macluster.engine.models.timing import RankTime, TokenTime
from macluster.widgets.plan import PlanView
from macluster.widgets.timing import TimeView
from tests.ui.lab import LabPage
from tests.ui.test_widgets import ALONE, MINUTE, picture, run, saved, tall_lab

__all__ = ["tall_lab"]  # a fixture

# It fits with 8,192 tokens, and not with the 131,072 that it was made for.
PLAN = "%model plan 'Llama-3.1-70B 8-bit' '2 x M4 Max 64GB, mesh' --strategy tensor"


def test_a_context_is_chosen_with_the_keyboard(tall_lab: LabPage) -> None:
    run(tall_lab, "plan.ipynb", ["%load_ext macluster", PLAN])
    page = tall_lab.page
    view = page.locator(".macluster-bars")
    drawn = view.get_by_role("img")
    expect(drawn).to_have_attribute("aria-label", re.compile("tensor: fits"), timeout=MINUTE)
    slider = view.get_by_role("slider", name="Context")
    expect(slider).to_have_attribute("aria-valuetext", "8,192 tokens")
    expect(view).to_contain_text("38.6 GB + 1.3 GB of 51.5 GB: 11.6 GB left")
    expect(view).to_contain_text("cache of 8,192 tokens")
    selected = "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex"
    slider.focus()
    before = page.evaluate(selected)
    page.keyboard.press("ArrowRight")
    expect(view).to_contain_text("38.6 GB + 2.7 GB of 51.5 GB: 10.3 GB left", timeout=MINUTE)
    expect(slider).to_have_attribute("aria-valuetext", "16,384 tokens")
    page.keyboard.press("End")
    expect(view).to_contain_text("8.5 GB too much", timeout=MINUTE)
    expect(view).to_contain_text("does not fit: ranks 0-1 need 8.5 GB more")
    expect(view).to_contain_text("The cheapest change: let the GPU use 88% of the memory")
    expect(drawn).to_have_attribute("aria-label", re.compile("131,072 tokens.*does not fit"))
    expect(view.locator("[aria-live]")).to_contain_text("131,072 tokens: tensor does not fit")
    expect(view.get_by_role("status")).to_have_text("")
    # The keys were for the slider, not for the notebook.
    expect(slider).to_be_focused()
    assert page.evaluate(selected) == before
    picture(tall_lab, view, "plan")
    # Whoever opens the notebook without a kernel has a picture and the tables.
    data = saved(tall_lab, 1)
    assert "<img alt=" in data["text/html"]
    assert "<table>" in data["text/html"]
    assert "Predicted, not measured" in data["text/plain"]


# -- a page alone, with a stand-in for the widget's model ------------------------------------------


def alone(page: Page, code: str, state: dict[str, Any]) -> None:
    page.set_content("<body></body>")
    page.evaluate(ALONE, [code, json.loads(json.dumps(state))])


def answer(context: int, words: str) -> dict[str, Any]:
    scene = {"width": 300, "height": 40, "label": words, "shapes": [["over", 0, 0, 9, 9]],
             "texts": [["text", 9, 20, "start", words]]}  # fmt: skip
    return {"context": context, "scene": scene, "summary": words, "notes": [words]}


@pytest.fixture
def plan_page(page: Page) -> Page:
    """A plan of 1024 tokens, in a kernel that answers when it is told to."""
    page.clock.install(time=0)
    state = {"title": "toy", "contexts": [1024, 2048, 4096], "status": "",
             "answer": answer(1024, "one")}  # fmt: skip
    alone(page, str(PlanView._esm), state)
    # From here on time passes only when it is told to: a busy machine is slower than the page.
    page.clock.pause_at(3600)
    return page


def test_only_the_last_of_quick_steps_is_asked_for(plan_page: Page) -> None:
    slider = plan_page.get_by_role("slider")
    slider.focus()
    plan_page.keyboard.press("ArrowRight")
    plan_page.keyboard.press("ArrowRight")
    expect(plan_page.get_by_role("status")).to_have_text("computing")
    expect(plan_page.locator(".chosen")).to_have_text("4,096 tokens")
    assert plan_page.evaluate("window.sent") == []
    plan_page.clock.run_for(200)
    assert plan_page.evaluate("window.sent") == [{"do": "plan", "context": 4096}]
    # An answer to an older question does not move the slider back.
    plan_page.evaluate("(a) => window.model.set('answer', a)", answer(2048, "two"))
    expect(slider).to_have_attribute("aria-valuetext", "4,096 tokens")
    expect(plan_page.get_by_role("status")).to_have_text("computing")
    plan_page.evaluate("(a) => window.model.set('answer', a)", answer(4096, "three"))
    expect(plan_page.get_by_role("status")).to_have_text("")
    expect(plan_page.get_by_role("img")).to_have_attribute("aria-label", "three")
    # Another page of the same plan has chosen.
    plan_page.evaluate("(a) => window.model.set('answer', a)", answer(1024, "four"))
    expect(slider).to_have_attribute("aria-valuetext", "1,024 tokens")


def test_a_busy_kernel_is_said(plan_page: Page) -> None:
    plan_page.get_by_role("slider").focus()
    plan_page.keyboard.press("End")
    plan_page.clock.run_for(200)
    plan_page.clock.run_for(5000)
    status = plan_page.get_by_role("status")
    expect(status).to_contain_text("it answers when it runs no cell")
    plan_page.evaluate("window.model.set('status', 'computing the plan for 4,096 tokens')")
    expect(status).to_have_text("computing the plan for 4,096 tokens")
    # A view that is taken away listens no more.
    plan_page.evaluate("window.end()")
    assert plan_page.evaluate("Object.values(window.listeners).flat().length") == 0


def test_what_a_plan_is_called_is_text(page: Page) -> None:
    bad = "<img src=x onerror='window.bad = 1'>"
    state = {"title": bad, "contexts": [512], "status": bad, "answer": answer(512, bad)}
    alone(page, str(PlanView._esm), state)
    expect(page.locator(".title")).to_have_text(bad)
    expect(page.locator(".macluster-bars img")).to_have_count(0)
    assert page.evaluate("window.bad") is None
    # There is nothing to choose from.
    expect(page.get_by_role("slider")).to_be_disabled()


def test_a_straggler_is_seen_and_heard(page: Page) -> None:
    def rank(number: int, compute: float, wait: float) -> RankTime:
        return RankTime(number, (compute, compute * 1.1), (wait, wait), (0.001, 0.002), 8, 4096)

    time = TokenTime((rank(0, 0.004, 0.005), rank(1, 0.009, 0)), 32, 0.01, 0.012, "toy")
    view = TimeView(time)
    alone(page, str(TimeView._esm), {"title": "toy", "scene": view.scene, "words": view.words})
    drawn = page.get_by_role("img")
    expect(drawn).to_have_attribute("aria-label", re.compile("Rank 1 is the straggler"))
    expect(drawn.get_by_text("straggler")).to_be_visible()
    box = drawn.locator(".late").bounding_box()
    bar = drawn.locator(".compute").nth(1).bounding_box()
    assert box is not None
    assert bar is not None
    assert box["y"] < bar["y"] < bar["y"] + bar["height"] < box["y"] + box["height"]
    # Three parts of two ranks, and three in the legend; each drawn in a way of its own.
    for part in ("compute", "wait", "wire"):
        expect(drawn.locator(f".{part}")).to_have_count(3)
    fills = {
        drawn.locator(f".{part}").first.evaluate("(node) => getComputedStyle(node).fill")
        for part in ("compute", "wait", "wire")
    }
    assert len(fills) == 3
    expect(page.locator("p").first).to_contain_text("rank 0 waits for rank 1")
