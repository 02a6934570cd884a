"""The sidebar in JupyterLab: a cluster's whole life, seen and steered while notebooks run."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect

from tests.ui.lab import LabPage, LabServer
from tests.ui.many import Server, cluster
from tests.ui.test_widgets import PICTURES

NAME = "studios"
PATIENCE = 90_000  # ms, for what real processes do on a busy machine
LATE = """%%distributed
import time
if rank == 0:
    mx.eval(mx.distributed.all_sum(mx.ones(1)))
else:
    while True:
        time.sleep(0.01)"""
BUSY = """%%distributed
import time
for step in macluster.steps(range(100_000)):
    time.sleep(0.01)"""
MODEL = """%%distributed
model = macluster.load(macluster.toy_path())"""


@pytest.fixture
def wide(lab_page: LabPage) -> LabPage:
    lab_page.page.set_viewport_size({"width": 1500, "height": 1000})
    show(lab_page)
    return lab_page


@pytest.fixture(autouse=True)
def nothing_left(lab: LabServer) -> Iterator[None]:
    yield
    for name in clusters(lab):
        ask(lab, f"clusters/{name}/stop", {})


def ask(lab: LabServer, path: str, body: Any = None) -> Any:
    """What the server extension answers."""
    request = urllib.request.Request(
        f"{lab.url}/macluster/api/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"token {lab.token}", "Content-Type": "application/json"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=120) as answer:
        return json.load(answer)


def clusters(lab: LabServer) -> dict[str, Any]:
    found: dict[str, Any] = ask(lab, "clusters")["clusters"]
    return found


def show(lab: LabPage) -> None:
    lab.execute("macluster:show-sidebar")
    expect(panel(lab.page)).to_be_visible()


def panel(page: Page) -> Locator:
    return page.get_by_test_id("macluster-panel")


def state(page: Page) -> Locator:
    return page.get_by_test_id("macluster-state")


def ranks(page: Page) -> Locator:
    return page.get_by_test_id("macluster-rank")


def picture(lab: LabPage, name: str, part: Locator | None = None) -> None:
    """As it looks in both themes."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for theme, full in (("dark", "JupyterLab Dark"), ("light", "JupyterLab Light")):
        lab.execute("apputils:change-theme", {"theme": full})
        lab.page.wait_for_selector("#jupyterlab-splash", state="detached")
        (part or lab.page).screenshot(path=PICTURES / f"{name}-{theme}.png")


def start(lab: LabPage, number: int = 2) -> None:
    """Start a cluster in the dialog."""
    page = lab.page
    page.get_by_test_id("macluster-new").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("input[name=count]").fill(str(number))
    dialog.locator("input[name=name]").fill(NAME)
    expect(dialog.get_by_test_id("macluster-choice")).to_contain_text("ring")
    picture(lab, "sidebar-new", dialog)
    dialog.get_by_role("button", name="Start").click()
    expect(state(page)).to_have_attribute("data-state", "idle", timeout=PATIENCE)
    expect(ranks(page)).to_have_count(number)


def test_a_cluster_lives_in_the_sidebar(wide: LabPage, lab: LabServer) -> None:
    page = wide.page
    expect(page.get_by_test_id("macluster-empty")).to_be_visible()
    picture(wide, "sidebar-empty")
    start(wide)

    # Its code goes into the notebook, and the notebook finds it.
    wide.open_notebook(lab.write_notebook("story.ipynb", ["", MODEL, BUSY, LATE, "1 + 1"]))
    page.get_by_role("button", name="Insert", exact=False).first.click()
    expect(page.get_by_text(f"%cluster connect {NAME}").first).to_be_visible()
    wide.execute("notebook:run-cell")
    expect(page.get_by_text("2 ranks on ring", exact=False).first).to_be_visible(timeout=PATIENCE)
    run_cell(wide, MODEL)
    expect(page.get_by_test_id("macluster-model")).to_have_count(1, timeout=PATIENCE)

    # Ranks go busy, with the line that they stand at; Interrupt ends the cell on both.
    run_cell(wide, BUSY, wait=False)
    expect(state(page)).to_have_attribute("data-state", "busy", timeout=PATIENCE)
    expect(ranks(page).first).to_contain_text("line ", timeout=PATIENCE)
    expect(page.get_by_test_id("macluster-status")).to_contain_text("busy")
    picture(wide, "sidebar-busy")
    button(page, "Interrupt").click()
    expect(state(page)).to_have_attribute("data-state", "idle", timeout=PATIENCE)
    assert "KeyboardInterrupt" in error_of(wide, BUSY)

    # A cell that hangs says who waits for whom; Abort ends it, and the model stays.
    run_cell(wide, LATE, wait=False)
    expect(page.get_by_test_id("macluster-words")).to_contain_text(
        "waiting for the others", timeout=PATIENCE
    )
    button(page, "Stacks").click()
    expect(page.get_by_test_id("macluster-stacks-text")).to_contain_text("time.sleep(0.01)")
    button(page, "Abort").click()
    expect(state(page)).to_have_attribute("data-state", "idle", timeout=PATIENCE)
    assert error_of(wide, LATE)
    expect(page.get_by_test_id("macluster-model")).to_have_count(1)

    # A rank that is killed is named, and its successor takes its place.
    pid = clusters(lab)[NAME]["ranks"]["1"]["pid"]
    os.kill(pid, signal.SIGKILL)
    expect(page.get_by_test_id("macluster-failure")).to_contain_text("rank 1 died")
    picture(wide, "sidebar-failed")
    run_cell(wide, MODEL)
    expect(state(page)).to_have_attribute("data-state", "idle", timeout=PATIENCE)

    button(page, "Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    expect(page.get_by_test_id("macluster-empty")).to_be_visible(timeout=PATIENCE)
    assert clusters(lab) == {}
    assert wide.faults == []


def test_tabs_come_back_and_an_old_server_is_not_believed(wide: LabPage, lab: LabServer) -> None:
    page = wide.page
    start(wide)
    for kind in ("topology", "measurements", "logs"):
        wide.execute(f"macluster:open-{kind}", {"cluster": NAME})
    expect(page.get_by_test_id("macluster-tab-logs")).to_be_visible()
    # The layout is saved a moment after it has changed.
    with page.expect_response(lambda answer: "/api/workspaces" in answer.url):
        wide.execute("macluster:open-topology", {"cluster": NAME})
    expect(page.get_by_test_id("macluster-tab-topology")).to_contain_text("rank 1")
    picture(wide, "sidebar-topology")
    page.goto(page.url.partition("?")[0])
    wide.restored()
    expect(page.get_by_test_id("macluster-tab-topology")).to_contain_text("rank 1")
    expect(page.get_by_role("tab", name="Logs of", exact=False)).to_be_visible()
    show(wide)

    os.kill(lab.process.pid, signal.SIGSTOP)
    try:
        expect(page.get_by_test_id("macluster-stale")).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_test_id("macluster-status")).to_contain_text("stale")
        # Another theme is saved on the server, which does not answer.
        page.screenshot(path=PICTURES / "sidebar-stale-light.png")
    finally:
        os.kill(lab.process.pid, signal.SIGCONT)
    expect(page.get_by_test_id("macluster-stale")).to_be_hidden(timeout=PATIENCE)
    expect(state(page)).to_have_attribute("data-state", "idle")
    axe = Axe().run(page, context=".mcl-Panel")
    assert [each["id"] for each in axe.response["violations"]] == []


def button(page: Page, name: str) -> Locator:
    return panel(page).get_by_role("button", name=name, exact=False).first


# The notebook stays at hand when a tab of ours is in front of it.
RUN = """async ([source, wait]) => {
  const app = window.jupyterapp;
  const panel = [...app.shell.widgets('main')].find(each => each.context && each.content.widgets);
  app.shell.activateById(panel.id);
  const cells = panel.content.widgets;
  panel.content.activeCellIndex = cells.findIndex(
    each => each.model.sharedModel.getSource() === source);
  const done = app.commands.execute('notebook:run-cell');
  if (wait) await done;
}"""
OUTPUTS = """(source) => {
  const panel = [...window.jupyterapp.shell.widgets('main')].find(
    each => each.context && each.content.widgets);
  const cell = panel.content.model.toJSON().cells.find(each => each.source === source
    || each.source.join?.('') === source);
  return cell.execution_count === null ? null : cell.outputs;
}"""


def run_cell(lab: LabPage, source: str, *, wait: bool = True) -> None:
    """Run the cell with this source; with `wait`, until it has ended."""
    lab._call(RUN, [source, wait], PATIENCE)


def error_of(lab: LabPage, source: str) -> str:
    """The error that the cell ends with."""
    code = f"(source) => ({OUTPUTS})(source)?.some(each => each.output_type === 'error')"
    lab.page.wait_for_function(code, arg=source, timeout=PATIENCE)
    [error] = [
        each for each in lab.page.evaluate(OUTPUTS, source) if each["output_type"] == "error"
    ]
    return str(error["ename"])


WATCH_ROWS = """() => {
  window.touched = [];
  const row = (node) => (node.closest ? node : node.parentElement)?.closest('.mcl-Rank');
  new MutationObserver((changes) => {
    for (const each of changes) window.touched.push(row(each.target)?.dataset.rank);
  }).observe(document.querySelector('.mcl-Ranks'), {
    subtree: true, childList: true, characterData: true, attributes: true });
}"""


def test_one_of_64_ranks_changes_and_one_row_is_drawn(lab_page: LabPage, page: Page) -> None:
    clusters = {f"other-{number}": cluster(f"other-{number}", 4) for number in range(9)}
    server = Server(page, {"many": cluster("many", 64)} | clusters)
    page.reload()
    lab_page.restored()
    show(lab_page)
    expect(page.get_by_test_id("macluster-cluster")).to_have_count(10)
    page.get_by_role("option", name="many").click()
    expect(ranks(page)).to_have_count(64)
    picture(lab_page, "sidebar-many")
    page.evaluate(WATCH_ROWS)
    server.change("many", {"7": {"doing": "line 8: `save()`"}})
    expect(ranks(page).nth(7)).to_contain_text("save()")
    assert set(page.evaluate("window.touched")) == {"7"}
    server.change("many", {"63": {"state": "dead", "doing": "", "since": None}})
    expect(ranks(page).nth(63)).to_have_attribute("data-state", "dead")
