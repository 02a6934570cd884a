"""The views of the wires together: in JupyterLab, and side by side on one page."""

from __future__ import annotations

import json
import re
from typing import Any

import attrs
import nbformat
from nbconvert import HTMLExporter
from playwright.sync_api import Page, expect

from macluster.widgets.chat import ChatView
from macluster.widgets.measure import MeasureView, page_data
from macluster.widgets.topology import TopologyView
from tests.ui.lab import LabPage
from tests.ui.test_topology_widget import link, mesh, node, state
from tests.ui.test_widgets import ALONE, MINUTE, PICTURES, TALK, run, saved, tall_lab
from tests.unit.test_measure_tables import measured, slow
from tests.unit.test_measure_widget import topology

__all__ = ["tall_lab"]  # a fixture


def test_views_on_one_page_have_names_of_their_own(page: Page) -> None:
    page.set_content("<body></body>")
    kinds: list[tuple[str, Any]] = [
        (str(MeasureView._esm), {"data": page_data(measured(4), topology(4))}),
        (str(TopologyView._esm), state(mesh(4))),
        (str(ChatView._esm), TALK),
    ]
    # As anywidget does it: each view imports the code anew.
    into = "el: document.body.appendChild(document.createElement('section'))"
    code = ALONE.replace("el: document.body", into)
    for esm, traits in kinds * 2:
        page.evaluate(code, [esm, json.loads(json.dumps(traits))])
    first, second = page.locator(".macluster-measure").all()
    for each in (first, second):
        each.get_by_role("tab", name="Curves").click()
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) > 40
    assert len(set(ids)) == len(ids)
    # A choice in one view is none in the other.
    first.get_by_role("radio", name="algbw").click()
    second.get_by_role("radio", name="busbw").click()
    expect(first.get_by_role("radio", name="algbw")).to_be_checked()
    # What is read is in the graph that has the keys.
    graph = page.get_by_role("listbox").nth(1)
    graph.focus()
    page.keyboard.press("ArrowRight")
    assert graph.evaluate(
        "(root) => root.contains("
        "document.getElementById(root.getAttribute('aria-activedescendant')))"
    )
    # Each curve is cut off at the frame of its own view.
    assert second.locator("[clip-path]").first.evaluate(
        "(plot) => plot.parentNode.contains("
        "document.getElementById(plot.getAttribute('clip-path').slice(5, -1)))"
    )


TOPOLOGY = """import json
from macluster.engine.topology.topology import Topology
from macluster.widgets.topology import TopologyView
TopologyView(Topology.from_json(json.loads({text!r})), warnings={warnings!r}, faulty={faulty!r})"""
MEASURE = """from macluster.engine.measure.record import Measurement
from macluster.widgets.measure import MeasureView
MeasureView(Measurement.load({path!r}))"""


def test_both_views_are_shown_saved_and_seen_again_without_a_kernel(tall_lab: LabPage) -> None:
    lab, page = tall_lab, tall_lab.page
    path = lab.server.root / "wires.json"
    slow(8).save(path)
    nodes = tuple(node(n, 100 + 90 * n, "busy" if n == 1 else "ok") for n in range(4))
    links = (*mesh(4).links[:3], link(1, 2, 1.9e9), *mesh(4).links[4:])
    shown = attrs.evolve(mesh(4), nodes=nodes, links=links)
    warnings = ["studio-1 – studio-2 (en4 – en4) carries 1.90 GB/s: try another cable."]
    text = json.dumps(shown.as_json())
    cells = [
        TOPOLOGY.format(text=text, warnings=warnings, faulty=[(1, 2)]),
        MEASURE.format(path=str(path)),
    ]
    run(lab, "wires.ipynb", cells)
    network, view = page.locator(".macluster-topology"), page.locator(".macluster-measure")
    graph = network.get_by_role("listbox")
    expect(graph.locator(".node")).to_have_count(4, timeout=MINUTE)
    expect(view.get_by_role("grid")).to_be_visible(timeout=MINUTE)

    # The keys are for the views, not for the notebook: "d" twice would delete a cell.
    active = "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex"
    graph.focus()
    before = page.evaluate(active)
    for key in ("Home", "ArrowDown", "ArrowDown", "d", "d", "Enter"):
        page.keyboard.press(key)
    expect(network.get_by_role("region")).to_contain_text("rank 0 – rank 2")
    expect(graph).to_be_focused()
    assert page.evaluate(active) == before
    network.locator(".over").filter(has_text="1.90 GB/s").click()
    expect(network.get_by_role("region")).to_contain_text("rank 1 – rank 2")
    view.get_by_role("gridcell").nth(2 * 8 + 4).focus()
    before = page.evaluate(active)
    for key in ("ArrowRight", "d", "d"):
        page.keyboard.press(key)
    expect(view.locator(".detail")).to_contain_text("rank 2 to rank 5: bandwidth 0.915 GB/s")
    assert page.evaluate(active) == before
    assert len(lab.cells()) == 2
    for theme, name in (("JupyterLab Dark", "dark"), ("JupyterLab Light", "light")):
        lab.execute("apputils:change-theme", {"theme": theme})
        page.wait_for_selector("#jupyterlab-splash", state="detached")
        network.screenshot(path=PICTURES / f"topology-{name}.png")
        view.screenshot(path=PICTURES / f"measure-pairs-{name}.png")
    page.keyboard.press("Enter")
    expect(view.get_by_role("tab", name="Curves")).to_be_focused()
    view.screenshot(path=PICTURES / "measure-curves-light.png")
    assert "WRONG RESULTS" in saved(lab, 1)["text/plain"]
    lab.save()

    # Nobody has vouched for this copy, and no kernel knows its views. With the very same content it
    # would be trusted: Jupyter goes by a signature of that.
    copy = lab.server.root / "copy.ipynb"
    notebook = nbformat.read(lab.server.root / "wires.ipynb", 4)
    assert "widgets" not in notebook.metadata
    notebook.cells[0].source += "  # somebody else's"
    nbformat.write(notebook, copy)
    lab.execute("application:close-all")
    lab.open_notebook("copy.ipynb")
    output = page.locator(".jp-OutputArea-output")
    pictures = output.locator("img")
    expect(pictures).to_have_count(3, timeout=MINUTE)
    for each, alt in zip(
        pictures.all(),
        ("^Topology: 4 ranks on 4 hosts", "^Pairs of ranks, jaccl, 8 ranks", "^Time by size"),
        strict=True,
    ):
        expect(each).to_have_attribute("alt", re.compile(alt))
        expect(each).to_be_visible()
        assert each.evaluate("(node) => node.naturalWidth") > 400
    assert page.locator(".macluster-topology, .macluster-measure").count() == 0
    expect(output.get_by_text("Wrong results: all_sum, 256 KiB: 2 wrong.")).to_be_visible()
    folded = output.locator("details table").first
    expect(folded).to_be_hidden()
    output.get_by_text("Tables").click()
    expect(folded).to_be_visible()
    expect(folded.locator("tbody tr")).to_have_count(28)

    body, _ = HTMLExporter().from_filename(str(copy))
    assert body.count('<img alt="') == 3
    assert len(re.findall(r"<table[ >]", body)) > 5
