"""Notebook kernels that end while their cluster runs, and notebooks that run from top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient

from macluster.engine.files import running
from tests.cluster.notebook import Notebook
from tests.cluster.processes import PATIENCE, still_there

# What a notebook without the toy model shows, and its largest size: 40 kB for each view.
SHOWN = {"01_wires": ("wrong results: 0", 220_000)}
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture
def kernel() -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        yield manager, client
    finally:
        client.stop_channels()
        if manager.is_alive():
            manager.shutdown_kernel(now=True)
        manager.cleanup_resources()


def run(client: BlockingKernelClient, code: str) -> None:
    """Run a cell; fails with the cell's own traceback."""
    outputs: list[str] = []
    reply = client.execute_interactive(
        code, timeout=PATIENCE, output_hook=lambda message: outputs.append(str(message["content"]))
    )
    assert reply["content"]["status"] == "ok", outputs


def start(manager: KernelManager, client: BlockingKernelClient, name: str) -> list[psutil.Process]:
    """Start a cluster in the kernel; return every process that came with it."""
    run(client, "%load_ext macluster")
    run(client, f"%cluster start 2 --name {name}")
    run(client, "%%distributed\nmx.eval(mx.distributed.all_sum(mx.array(1)))")
    processes = psutil.Process(manager.provisioner.pid).children(recursive=True)
    # The controller and its heart, two ranks with their nannies, and the guardian.
    assert len(processes) >= 6
    return processes


def test_a_kernel_that_is_killed_leaves_nothing(
    kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    manager, client = kernel
    processes = start(manager, client, "killed-kernel")
    psutil.Process(manager.provisioner.pid).kill()
    assert still_there(processes) == []


def test_a_kernel_that_restarts_leaves_nothing_and_can_start_the_same_name_again(
    kernel: tuple[KernelManager, BlockingKernelClient],
) -> None:
    manager, client = kernel
    processes = start(manager, client, "restarted-kernel")
    manager.restart_kernel()
    client.wait_for_ready(timeout=PATIENCE)
    again = start(manager, client, "restarted-kernel")
    assert still_there(processes) == []
    run(client, "%cluster stop")
    assert still_there(again) == []


def test_an_interrupted_start_leaves_nothing_and_says_so() -> None:
    notebook = Notebook()
    try:
        notebook.ok("%load_ext macluster")
        sent = notebook.send("%cluster start 2 --name interrupted-start")
        notebook.wait_for_output(sent, "waiting for the ranks")
        notebook.interrupt()
        ran = notebook.finish(sent)
        assert ran.ename == "StartError"
        assert ran.evalue.startswith("The start was broken off.")
        assert [each.name for each in running() if each.name == "interrupted-start"] == []
        notebook.ok("%cluster start 2 --name interrupted-start")
        notebook.ok("%cluster stop")
    finally:
        notebook.close()


def test_a_model_that_is_loaded_again_is_told_of_while_it_lasts() -> None:
    notebook = Notebook(MLX_DISABLE_COMPILE="1")
    try:
        notebook.ok("%load_ext macluster")
        notebook.ok("%cluster start 2 --name loaded-again")
        notebook.ok("%%distributed\nmodel = macluster.load(macluster.toy_path())")
        ran = notebook.run("%%distributed\nimport os\nif rank == 1:\n    os._exit(3)\nx = 1")
        assert ran.evalue.startswith("Rank 1 died.")
        assert any("loading `model` again on rank 1" in str(output) for output in ran.outputs)
    finally:
        notebook.close()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs_from_top_to_bottom(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    # nbclient raises the error of a cell that fails.
    # Without the state of the widgets, which JupyterLab does not save either.
    NotebookClient(notebook, timeout=120, kernel_name="python3", store_widget_state=False).execute()
    shown = nbformat.writes(notebook)
    said, most = SHOWN.get(path.stem, ("The capital of Japan is Tokyo.", 60_000))
    assert said in shown
    assert len(shown) < most
