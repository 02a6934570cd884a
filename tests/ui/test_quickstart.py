"""The first ten minutes: the quickstart, as a person sees it in JupyterLab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.sync_api import expect

from tests.ui.lab import LabPage

QUICKSTART = Path(__file__).parents[2] / "notebooks" / "00_quickstart.ipynb"
PICTURES = Path(__file__).parents[2] / "build" / "pictures"
MINUTE = 60_000  # milliseconds
# JupyterLab draws the cells in view only.
TALL = {"width": 1100, "height": 2400}


@pytest.fixture(autouse=True)
def _tall_page(lab_page: LabPage) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    lab_page.page.set_viewport_size(TALL)


def texts(cell: dict[str, Any]) -> str:
    """All text that a saved cell holds."""
    parts = []
    for output in cell["outputs"]:
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        parts.append("".join(text))
    return "".join(parts)


def test_the_quickstart_runs_and_the_model_answers(lab_page: LabPage) -> None:
    source = nbformat.read(QUICKSTART, as_version=4)
    code = [cell.source for cell in source.cells if cell.cell_type == "code"]
    path = lab_page.server.root / "quickstart.ipynb"
    path.write_text(QUICKSTART.read_text())
    lab_page.open_notebook(path.name)
    lab_page.execute("application:toggle-left-area")
    lab_page.run_all_cells()
    cells = [cell for cell in lab_page.cells() if cell["cell_type"] == "code"]
    shown = dict(zip(code, map(texts, cells), strict=True))
    assert not [
        output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"
    ]
    started = next(text for source, text in shown.items() if "cluster start" in source)
    assert "2 ranks on ring are ready" in started
    answer = next(text for source, text in shown.items() if "stream_generate" in source)
    assert "The capital of France is Paris." in answer
    assert len(str(cells)) < 50_000
    lab_page.save()
    lab_page.page.screenshot(path=PICTURES / "quickstart-light.png")
    lab_page.execute("apputils:change-theme", {"theme": "JupyterLab Dark"})
    lab_page.page.wait_for_selector("#jupyterlab-splash", state="detached")
    lab_page.page.screenshot(path=PICTURES / "quickstart-dark.png")
    lab_page.execute("apputils:change-theme", {"theme": "JupyterLab Light"})
    assert lab_page.faults == []


def test_what_a_rank_shows_looks_as_if_it_had_run_here(lab_page: LabPage) -> None:
    cells = [
        "%load_ext macluster",
        "%cluster start 2 --name looks",
        "%%distributed\nfrom tqdm.auto import tqdm\nfor step in tqdm(range(20)): pass",
        "%%distributed\nfor step in range(3):\n    print(f'rank {rank} step {step}')",
        "%%distributed\nimport matplotlib.pyplot as plt\nplt.figure(figsize=(3, 1)).gca();",
        "%variables",
        "%cluster status",
        "%cluster stop",
    ]
    lab_page.open_notebook(lab_page.server.write_notebook("looks.ipynb", cells))
    lab_page.execute("application:toggle-left-area")
    lab_page.run_all_cells()
    page = lab_page.page
    outputs = page.locator(".jp-Notebook .jp-Cell-outputArea")
    # A widget of rank 0, driven from the rank: the bar is full.
    expect(outputs.nth(2)).to_contain_text("20/20", timeout=MINUTE)
    expect(outputs.nth(2).locator(".jupyter-widgets, .widget-html").first).to_be_visible()
    folded = outputs.nth(3).locator("details")
    expect(folded).to_have_count(1)
    expect(folded.locator("pre")).to_be_hidden()
    folded.locator("summary").click()
    expect(folded.locator("pre")).to_contain_text("rank 1 step 2")
    expect(outputs.nth(4).locator("img")).to_be_visible()
    page.screenshot(path=PICTURES / "looks-light.png")
    lab_page.save()
    assert lab_page.faults == []
