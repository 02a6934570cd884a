"""A topology as a person sees it, in a page alone and in JupyterLab."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import attrs
import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from nbconvert import HTMLExporter
from playwright.sync_api import Locator, Page, expect

from macluster.engine.measure.fit import Fit
from macluster.engine.measure.record import Pair, Point
from macluster.engine.measure.samples import Rate, Timing
from macluster.engine.topology.topology import Link, Node, Topology
from macluster.widgets.topology import TopologyView
from tests.ui.lab import LabPage
from tests.ui.test_widgets import ALONE, MINUTE, PICTURES, run, tall_lab

__all__ = ["tall_lab"]  # a fixture

GB = 10**9
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


SIZES = {"1": mesh(1), "2": mesh(2), "mesh of 4": mesh(4), "mesh of 8": mesh(8),
         "ring of 8": ring(8), "ring of 64": ring(64)}  # fmt: skip
WARNINGS = ["Ranks 1 and 2 are slow: try another cable."]


def state(
    topology: Topology, warnings: Sequence[str] = (), faulty: Sequence[tuple[int, int]] = ()
) -> dict[str, Any]:
    view = TopologyView(topology, warnings=warnings, faulty=faulty)
    traits = {"scene": view.scene, "figures": view.figures, "status": view.status}
    return json.loads(json.dumps(traits))


def show(page: Page, topology: Topology, dark: bool = False, **more: Any) -> Locator:
    page.set_viewport_size({"width": 1080, "height": 800})
    page.set_content("<html lang='en'><title>view</title><main></main></html>")
    if dark:
        page.evaluate(DARK)
    code = ALONE.replace("el: document.body", "el: document.querySelector('main')")
    page.evaluate(code, [str(TopologyView._esm), state(topology, **more)])
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


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", SIZES)
def test_axe_finds_nothing_wrong(page: Page, name: str, dark: bool) -> None:
    topology = SIZES[name]
    bad = [(0, 1)] if topology.links else []
    show(page, topology, dark, warnings=WARNINGS, faulty=bad)
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
    expect(view.locator(".graph")).to_have_class("graph old")
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


def test_an_update_is_faster_than_to_draw_anew(page: Page) -> None:
    show(page, ring(64))
    other = attrs.evolve(ring(64), nodes=tuple(node(n, used=300) for n in range(64)))
    times = page.evaluate(TIMES, [str(TopologyView._esm), [state(ring(64)), state(other)], 15])
    assert times["update"] < times["rebuild"]


# Milliseconds of an update, and of a view that is drawn anew, each with its layout: medians.
TIMES = """async ([code, states, count]) => {
  const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const { render } = (await import(url)).default;
  const median = (all) => all.sort((a, b) => a - b)[Math.floor(all.length / 2)];
  const one = document.querySelector("main");
  const two = document.body.appendChild(document.createElement("div"));
  const listeners = {};
  let state = states[0];
  const model = { get: (key) => state[key], off: () => {}, send: () => {},
    on: (name, call) => { listeners[name] = call; } };
  const timed = (act) => {
    const begin = performance.now();
    act();
    document.body.getBoundingClientRect();
    return performance.now() - begin;
  };
  const rebuilt = [];
  const updated = [];
  for (let round = 0; round < count; round += 1) {
    state = states[round % 2];
    two.replaceChildren();
    rebuilt.push(timed(() => render({ model, el: two })));
  }
  for (let round = 0; round < count; round += 1) {
    state = states[round % 2];
    updated.push(timed(() => listeners["change:scene"]()));
  }
  return { update: median(updated), rebuild: median(rebuilt) };
}"""


# -- in JupyterLab ---------------------------------------------------------------------------------

BUILD = """import json
from macluster.engine.measure.record import read_pair
from macluster.engine.topology.topology import Link, Node, Topology
from macluster.widgets.topology import TopologyView
found = json.loads({text!r})
links = tuple(
    Link(each["a"], each["b"], each["kind"], tuple(tuple(p) for p in each["ports"]),
         each["negotiated"], read_pair(each["measured"]))
    for each in found["links"])
topology = Topology(tuple(Node(**each) for each in found["nodes"]), links, found["backend"])
TopologyView(topology, warnings={warnings!r}, faulty={faulty!r})"""


def test_a_topology_in_jupyterlab_and_without_its_kernel(tall_lab: LabPage) -> None:
    lab_page, page = tall_lab, tall_lab.page
    nodes = tuple(node(n, 100 + 90 * n, "busy" if n == 1 else "ok") for n in range(4))
    links = (*mesh(4).links[:3], link(1, 2, 1.9e9), *mesh(4).links[4:])
    topology = Topology(nodes, links, "jaccl")
    slow = "studio-1 – studio-2 (en4 – en4) carries 1.90 GB/s, a third of its peers: "
    warnings = [slow + "try another cable, and measure again."]
    code = BUILD.format(text=json.dumps(topology.as_json()), warnings=warnings, faulty=[(1, 2)])
    run(lab_page, "topology.ipynb", [code, "2 + 2"])
    view = page.locator(".macluster-topology")
    graph = view.get_by_role("listbox")
    expect(graph).to_be_visible(timeout=MINUTE)
    expect(graph.locator(".node")).to_have_count(4)
    # The keys are for the graph, not for the notebook.
    active = "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex"
    graph.focus()
    before = page.evaluate(active)
    for key in ("Home", "ArrowDown", "ArrowDown", "d", "d", "Enter"):
        page.keyboard.press(key)
    expect(view.get_by_role("region")).to_contain_text("rank 0 – rank 2")
    expect(graph).to_be_focused()
    assert page.evaluate(active) == before
    assert len(lab_page.cells()) == 2
    view.locator(".over").filter(has_text="1.90 GB/s").click()
    expect(view.get_by_role("region")).to_contain_text("rank 1 – rank 2")
    for theme, name in (("JupyterLab Light", "light"), ("JupyterLab Dark", "dark")):
        lab_page.execute("apputils:change-theme", {"theme": theme})
        page.wait_for_selector("#jupyterlab-splash", state="detached")
        view.screenshot(path=PICTURES / f"topology-{name}.png")
    lab_page.execute("apputils:change-theme", {"theme": "JupyterLab Light"})
    page.wait_for_selector("#jupyterlab-splash", state="detached")
    lab_page.save()
    # Opened by somebody who did not run it, and whose kernel knows nothing of it: a picture.
    path = lab_page.server.root / "topology.ipynb"
    notebook = nbformat.read(path, as_version=4)
    # Another text, which this JupyterLab has not signed.
    notebook.cells[1].source = "3 + 3"
    nbformat.write(notebook, lab_page.server.root / "cold.ipynb")
    lab_page.open_notebook("cold.ipynb")
    cold = page.locator(".jp-NotebookPanel:visible")
    picture = cold.locator("img[alt^='Topology: 4 ranks on 4 hosts']")
    expect(picture).to_be_visible(timeout=MINUTE)
    assert picture.evaluate("(img) => img.complete && img.naturalWidth") > 500
    expect(cold.locator("table").first).to_be_visible()
    assert not page.locator(".macluster-topology:visible").count()
    exported, _ = HTMLExporter().from_notebook_node(notebook)
    assert '<img alt="Topology: 4 ranks' in exported
    assert "<table>" in exported
