"""A topology as a person sees it in a page alone; test_wires.py has it in JupyterLab."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from macluster.engine.measure.fit import Fit
from macluster.engine.measure.record import Pair, Point
from macluster.engine.measure.samples import Rate, Timing
from macluster.engine.topology.topology import Link, Node, Topology
from macluster.widgets.topology import TopologyView
from tests.ui.test_widgets import ALONE

GB = 1 << 30
DARK = """() => {
  document.body.dataset.jpThemeLight = "false";
  document.body.style.cssText = "background: #111; --jp-layout-color0: #111; "
    + "--jp-ui-font-color1: rgba(255, 255, 255, .87); --jp-border-color2: #424242; "
    + "--jp-ui-font-color2: rgba(255, 255, 255, .6)";
}"""


def timing(seconds: float, count: int) -> Timing:
    return Timing(
        seconds, 0.93 * seconds, 1.2 * seconds, 1.5 * seconds, seconds / 2, seconds / 20, count
    )


def pair(a: int, b: int, speed: float) -> Pair:
    fit = Fit(28e-6, speed, 0.02, 0.999, 12)
    points = tuple(Point(4**n, timing(fit.time(4**n), 20)) for n in range(2, 14))
    rate = Rate(speed, 0.97 * speed, 1.02 * speed, 20)
    return Pair(a, b, "jaccl", timing(28e-6, 1000), rate, rate, None, points, fit)


def link(a: int, b: int, speed: float = 5.9e9) -> Link:
    a, b = sorted((a, b))
    return Link(a, b, "rdma", ((f"en{b + 2}", f"en{a + 3}"),), 80e9, pair(a, b, speed), "ibv")


def node(rank: int, used: int = 212, state: str = "ok") -> Node:
    model = "Mac Studio, Apple M3 Ultra"
    return Node(rank, f"studio-{rank}", model, 512 * GB, used * GB, None, state)


def mesh(size: int) -> Topology:
    links = tuple(
        link(a, b, 5.9e9 - 1e8 * (a + b)) for a in range(size) for b in range(a + 1, size)
    )
    return Topology(tuple(node(rank) for rank in range(size)), links, "jaccl")


def ring(size: int) -> Topology:
    links = tuple(link(n, (n + 1) % size, 5e9 + n * 1e7) for n in range(size))
    return Topology(tuple(node(rank) for rank in range(size)), links, "jaccl-ring")


SIZES = {"mesh of 4": mesh(4), "mesh of 8": mesh(8), "ring of 64": ring(64)}
WARNINGS = ["Ranks 1 and 2 are slow: try another cable."]


def state(
    topology: Topology, warnings: Sequence[str] = (), faulty: Sequence[tuple[int, int]] = ()
) -> dict[str, Any]:
    view = TopologyView(topology, warnings=warnings, faulty=faulty)
    names = ("scene", "figures", "link_figures", "status")
    return json.loads(json.dumps({name: getattr(view, name) for name in names}))


def show(page: Page, topology: Topology, **more: Any) -> Locator:
    page.set_viewport_size({"width": 1080, "height": 800})
    page.set_content("<html lang='en'><title>view</title><main></main></html>")
    code = ALONE.replace("el: document.body", "el: document.querySelector('main')")
    # As text: Playwright takes seconds for a large object.
    code = f"([code, text]) => ({code})([code, JSON.parse(text)])"
    page.evaluate(code, [str(TopologyView._esm), json.dumps(state(topology, **more))])
    return page.locator(".macluster-topology")


def update(page: Page, topology: Topology, **more: Any) -> None:
    for name, value in state(topology, **more).items():
        page.evaluate("([name, value]) => window.model.set(name, value)", [name, value])


def here(page: Page) -> str:
    """The label of what the keys are at."""
    return str(
        page.evaluate(
            """() => document.getElementById(
              document.activeElement.getAttribute("aria-activedescendant"))
              ?.getAttribute("aria-label") ?? "" """
        )
    )


@pytest.mark.parametrize("name", SIZES)
def test_axe_finds_nothing_wrong(page: Page, name: str) -> None:
    topology = SIZES[name]
    show(page, topology, warnings=WARNINGS, faulty=[(0, 1)])
    nodes = page.locator(".node")
    expect(nodes).to_have_count(topology.size)
    expect(page.locator(".link")).to_have_count(len(topology.links))
    axe = Axe()
    options = {"resultTypes": ["violations"], "rules": {"page-has-heading-one": {"enabled": False}}}
    found = axe.run(page, options=options)
    assert found.violations_count == 0, found.generate_report()
    nodes.first.dispatch_event("click")
    expect(nodes.first).to_have_attribute("aria-selected", "true")
    found = axe.run(page, options=options)
    assert found.violations_count == 0, found.generate_report()
    # The other theme changes colours, and nothing else.
    page.evaluate(DARK)
    found = axe.run(page, options={**options, "runOnly": ["color-contrast"]})
    assert found.violations_count == 0, found.generate_report()
    assert pale(page) == []


# Texts of a graph that differ too little from the ground behind them, with what dims them.
PALE = """() => {
  const colour = (words) => (words.match(/[\\d.]+/g) ?? []).map(Number);
  const bright = (parts) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, n) => {
    const c = parts[n] / 255;
    return sum + weight * (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  }, 0);
  const ground = document.body.dataset.jpThemeLight === "false" ? [17, 17, 17] : [255, 255, 255];
  const found = [];
  for (const text of document.querySelectorAll("svg.macluster-network text")) {
    const [red, green, blue, alpha = 1] = colour(getComputedStyle(text).fill);
    let seen = alpha;
    for (let node = text; node.closest("svg"); node = node.parentElement) {
      seen *= getComputedStyle(node).opacity;
    }
    const mixed = [red, green, blue].map((c, n) => seen * c + (1 - seen) * ground[n]);
    const [low, high] = [bright(mixed), bright(ground)].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) found.push(text.textContent);
  }
  return found;
}"""


def pale(page: Page) -> list[str]:
    assert page.locator("svg.macluster-network text").count() > 5
    found: list[str] = page.evaluate(PALE)
    return found


def test_hosts_and_links_are_walked_through_with_the_keyboard(page: Page) -> None:
    view = show(page, mesh(4))
    page.evaluate(
        """() => { window.leaked = [];
          document.addEventListener("keydown", (e) => window.leaked.push(e.key)); }"""
    )
    graph = page.get_by_role("listbox")
    page.keyboard.press("Tab")
    expect(graph).to_be_focused()
    for key, label in (
        ("", "rank 0, studio-0"),
        ("ArrowRight", "rank 1, studio-1"),
        ("ArrowLeft", "rank 0,"),
        ("ArrowLeft", "rank 3,"),
        ("Home", "rank 0,"),
        ("ArrowDown", "rank 0 to rank 1, RDMA, 5.80 GB/s"),
        ("ArrowDown", "rank 0 to rank 2,"),
        ("ArrowUp", "rank 0 to rank 1,"),
        ("ArrowUp", "rank 0 to rank 3,"),
        ("ArrowRight", "rank 3,"),
        ("ArrowUp", "rank 2 to rank 3,"),
        ("ArrowLeft", "rank 3,"),
        ("End", "rank 3,"),
        ("ArrowUp", "rank 2 to rank 3,"),
    ):
        if key:
            page.keyboard.press(key)
        assert here(page).startswith(label), (key, here(page))
    page.keyboard.press("Enter")
    panel = page.get_by_role("region")
    expect(panel).to_contain_text("rank 2 – rank 3")
    expect(panel).to_contain_text("5.40 GB/s (5.24-5.51 GB/s, n = 20)")
    heard = view.locator("[aria-live]")
    expect(heard).to_have_text(re.compile(r"^Selected: rank 2 – rank 3. rank 2 to rank 3, RDMA"))
    expect(page.get_by_role("option", selected=True)).to_have_count(1)
    # Letters, too, would be orders to the notebook: d d deletes a cell.
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    expect(graph).not_to_be_focused()
    expect(panel).to_contain_text("Overview")
    expect(heard).to_have_text("")
    assert page.evaluate("window.leaked") == ["Tab"]


def test_a_click_on_a_link_shows_its_curve(page: Page) -> None:
    view = show(page, mesh(4))
    panel = page.get_by_role("region")
    expect(panel.get_by_role("img")).to_have_count(0)
    label = view.locator(".over").filter(has_text="5.80 GB/s")
    label.click()
    curve = panel.get_by_role("img")
    expect(curve).to_have_attribute("aria-label", re.compile("16 B takes 28.0 us"))
    expect(curve.locator(".mark")).to_have_count(12)
    for part in ("fit", "band", "roof", "half"):
        expect(curve.locator(f".{part}")).to_have_count(1)
    expect(panel).to_contain_text("n½")
    # The roof is the fastest that could be: below all points, as these are times.
    points = curve.locator(".mark").evaluate_all(
        "(all) => all.map((each) => each.getBoundingClientRect().top)"
    )
    assert points == sorted(points, reverse=True)
    # The others step back, and the same click lets go.
    expect(view.locator("svg.macluster-network")).to_have_class(re.compile("chosen"))
    # Lines step back, and letters stay as dark as they are.
    assert pale(page) == []
    label.click()
    expect(panel).to_contain_text("Overview")
    # A host shows its links.
    view.locator(".node").nth(2).click()
    expect(panel).to_contain_text("212 of 512 GB in use (41 %)")
    expect(view.locator(".link.near")).to_have_count(3)


def test_an_update_keeps_what_is_there(page: Page) -> None:
    show(page, mesh(4))
    page.locator(".node").nth(1).click()
    page.evaluate("window.before = [...document.querySelectorAll('.item, .item *')]")
    level = "() => document.querySelector('.node .used').height.baseVal.value"
    lower = page.evaluate(level)
    nodes = tuple(node(rank, used=400, state="busy") for rank in range(4))
    update(page, attrs.evolve(mesh(4), nodes=nodes))
    assert page.evaluate(level) > lower
    expect(page.locator(".node").first).to_contain_text("rank 0 · busy")
    expect(page.locator(".node").first).to_have_attribute("aria-label", re.compile("state busy$"))
    # What was drawn is still there, but for the marks, which have another shape.
    gone = page.evaluate(
        "window.before.filter((each) => !each.isConnected).map((each) => each.className.baseVal)"
    )
    assert gone == ["mark ok"] * 4
    selected = page.get_by_role("option", selected=True)
    expect(selected).to_have_attribute("aria-label", re.compile("^rank 1,"))
    expect(page.get_by_role("region")).to_contain_text("400 of 512 GB in use (78 %)")
    # Whoever goes takes their links along, and the selection.
    smaller = mesh(2)
    update(page, attrs.evolve(smaller, nodes=(smaller.nodes[0], attrs.evolve(node(1), host="x"))))
    expect(page.locator(".node")).to_have_count(2)
    expect(page.locator(".link")).to_have_count(1)
    update(page, mesh(1))
    expect(page.get_by_role("region")).to_contain_text("Overview")


def test_a_faulty_link_stands_out(page: Page) -> None:
    view = show(page, mesh(4), warnings=WARNINGS, faulty=[(1, 2)])
    expect(view.get_by_role("listitem")).to_have_text(WARNINGS)
    colours = page.locator(".link .line").evaluate_all(
        "(all) => all.map((each) => getComputedStyle(each).stroke)"
    )
    assert len(set(colours)) == 2
    assert colours.count("rgb(179, 38, 30)") == 1
    expect(view.locator(".over .warn")).to_have_count(1)
    expect(page.get_by_role("option", name=re.compile("1 to rank 2.*faulty$"))).to_have_count(1)


def test_a_page_says_when_it_comes_and_goes(page: Page) -> None:
    view = show(page, mesh(2))
    [opened] = page.evaluate("window.sent")
    assert opened["do"] == "open"
    page.evaluate("window.model.set('status', 'Not up to date: OSError: no route')")
    expect(page.get_by_role("status")).to_have_text("Not up to date: OSError: no route")
    expect(view.locator(".graph")).to_have_class("graph scroll old")
    assert pale(page) == []
    page.evaluate("window.dispatchEvent(new Event('pagehide'))")
    page.evaluate("window.end()")
    sent = page.evaluate("window.sent")
    assert sent[1:] == [{"do": "close", "page": opened["page"]}] * 2
    assert page.evaluate("Object.values(window.listeners).flat().length") == 0


def test_what_a_host_is_called_is_text(page: Page) -> None:
    bad = "<img src=x onerror='window.bad = 1'>"
    nodes = (Node(0, bad, bad), Node(1, "b", bad))
    show(page, Topology(nodes, (link(0, 1),), bad, bad), warnings=[bad])
    page.locator(".node").first.click()
    expect(page.get_by_role("region")).to_contain_text(bad)
    expect(page.locator(".macluster-topology img")).to_have_count(0)
    assert page.evaluate("window.bad") is None


def test_what_does_not_fit_is_scrolled_to(page: Page) -> None:
    view = show(page, mesh(8))
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    graph = view.locator(".graph")
    assert graph.evaluate("(box) => box.scrollWidth > box.clientWidth")
    letters = """(all) => all.map((each) =>
      each.getScreenCTM().a * parseFloat(getComputedStyle(each).fontSize))"""
    assert min(graph.locator("text").evaluate_all(letters)) > 7.9
    page.keyboard.press("Tab")
    for _ in range(8):
        page.keyboard.press("ArrowRight")
        inside = page.evaluate(
            """() => {
              const [node, box] = [".here", ".graph"].map((each) =>
                document.querySelector(each).getBoundingClientRect());
              return box.left <= node.left && node.right <= box.right;
            }"""
        )
        assert inside, here(page)
