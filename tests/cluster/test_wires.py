"""`%measure` and `%topology` in a notebook whose ranks are real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import macluster
from tests.cluster.models import ENV
from tests.cluster.notebook import Notebook

LIMIT = 150.0  # seconds that a measurement may take on a busy machine
QUICK = "--quick --most 16KiB"
OPEN = """
import threading
busy = threading.Event()
def look(change):
    if any(node.state == "busy" for node in network.topology.nodes):
        busy.set()
network.observe(look, "scene")
network._on_page(None, {"do": "open", "page": "a"}, None)
"""
BUSY = """
cell = "import time\\nfor n in range(600):\\n    time.sleep(0.1)"
handle = get_ipython().run_cell_magic("distributed", "--noblock", cell)
"""


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    notebook = Notebook(**ENV)
    try:
        notebook.ok("%load_ext macluster\nimport macluster")
        notebook.ok("%cluster start 2 --name test-wires")
        yield notebook
        notebook.ok("%cluster stop")
    finally:
        notebook.close()


@pytest.fixture(scope="module")
def baseline(notebook: Notebook, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `%measure --save` wrote. Its view is `wires` in the notebook."""
    path = tmp_path_factory.mktemp("wires") / "wires.json"
    notebook.ok(f"wires = %measure {QUICK} --save {path}", timeout=LIMIT)
    return path


def test_a_measurement_is_shown_saved_and_kept_small(notebook: Notebook, baseline: Path) -> None:
    shown = notebook.ok("wires")
    [view] = shown.all("execute_result")
    html = view.content["data"]["text/html"]
    assert "data:image/svg+xml;base64," in html
    assert "<table" in html
    assert len(html) < 40_000
    assert "0 - 1" in view.plain
    found = macluster.Measurement.load(baseline)
    assert [sweep.op for sweep in found.sweeps] == ["all_sum", "barrier"]
    assert found.sweeps[0].points[-1].size == 16 << 10
    assert json.loads(baseline.read_text())["backend"] == "ring"


def test_how_far_it_is_stands_on_one_line(notebook: Notebook) -> None:
    ran = notebook.ok("%measure --links none --ops all_sum,barrier --most 64KiB", timeout=LIMIT)
    lines = [output.plain for output in ran.all("update_display_data")]
    assert lines[-1].startswith("measured in ")
    assert len(ran.all("display_data")) <= 1
    assert all("\n" not in line and "format" not in line for line in lines)


def test_the_links_take_their_colours_from_it_and_the_view_is_live(
    notebook: Notebook, baseline: Path
) -> None:
    plain = notebook.ok("network = %topology\nnetwork").result
    assert "loopback" in plain
    assert "latency us (p99)" in plain
    measured = notebook.ok("network.topology.links[0].measured.via").result
    assert measured == "'ring'"
    # As a page does that is opened: a rank that is busy shows as such.
    notebook.ok(f"{OPEN}\n{BUSY}")
    assert notebook.ok("busy.wait(60)").result == "True"
    notebook.ok("handle.cancel()\nhandle.wait(30)")
    notebook.ok("network._on_page(None, {'do': 'close', 'page': 'a'}, None)")
    assert notebook.ok("network.wait(30)").result == "True"


def test_what_has_changed_is_said(notebook: Notebook, baseline: Path) -> None:
    # A baseline in which the sums took a thousandth of the time.
    facts = json.loads(baseline.read_text())
    for point in facts["sweeps"][0]["points"]:
        for name in ("p50", "p5", "p95", "p99", "least"):
            point["time"][name] /= 1000
    quicker = baseline.with_name("quicker.json")
    quicker.write_text(json.dumps(facts))
    ran = notebook.ok(
        f"%measure --links none --ops all_sum --most 1KiB --against {quicker}", timeout=LIMIT
    )
    assert "all_sum at all sizes is up to " in ran.text()
    assert "times as long since today" in ran.text()
    assert "is not now." in ran.text()  # the link was not measured this time


def test_a_baseline_of_others_is_refused_before_anything_is_measured(
    notebook: Notebook, baseline: Path
) -> None:
    facts = json.loads(baseline.read_text())
    facts["backend"] = "jaccl"
    other = baseline.with_name("other.json")
    other.write_text(json.dumps(facts))
    ran = notebook.run(f"%measure --against {other}")
    assert ran.evalue.startswith("The measurement is of other backends: jaccl there, ring here.")
    facts = json.loads(baseline.read_text())
    facts["ranks"][1]["host"] = "studio-9"
    other.write_text(json.dumps(facts))
    for line in (f"%measure --against {other}", f"%topology --measured {other}"):
        ran = notebook.run(line)
        assert ran.evalue.startswith("The measurement is of other hosts: ")
        assert ran.all("update_display_data") == []
    colours = notebook.ok(
        f"seen = %topology --measured {baseline}\nseen.topology.links[0].measured"
    )
    assert "via='ring'" in colours.result


def test_simulated_figures_do_not_colour_ranks_that_exist(
    notebook: Notebook, tmp_path: Path
) -> None:
    path = tmp_path / "simulated.json"
    notebook.ok(f'%measure "2 x M3 Ultra, mesh" --save {path}')
    for line in (f"%measure --against {path}", f"%topology --measured {path}"):
        assert notebook.run(line).evalue.startswith("This was simulated, and not measured: 2 x M3")


def test_a_notebook_without_ranks_is_told_why_nothing_was_measured(notebook: Notebook) -> None:
    shown = notebook.ok("alone = macluster.measure()\nalone").result
    assert "This process is alone, and a link takes two ranks." in shown
    assert "%%distributed" in shown


def test_an_interrupt_ends_it_and_the_ranks_go_on(notebook: Notebook) -> None:
    sent = notebook.send("%measure")
    notebook.wait_for_output(sent, "bandwidth")
    notebook.interrupt()
    ran = notebook.finish(sent)
    # As wherever a cell is interrupted, and without a look into our own code.
    assert ran.ename == "KeyboardInterrupt"
    assert ran.evalue.startswith("It was ended on all ranks.")
    assert "job.py" not in ran.traceback
    total = notebook.ok("%%distributed\nint(mx.distributed.all_sum(mx.array(rank + 1)))")
    assert total.result == "3"
