"""Run the quickstart notebook from top to bottom and save what it shows (`make demo`)."""

import asyncio
import os
import signal
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path("notebooks/00_quickstart.ipynb")
OUT = Path("build/demo")
KERNEL_LOG = OUT / "kernel.log"
CELL_TIMEOUT_S = 600
# How long a cluster that was told to stop may take before we end its processes ourselves.
STOP_GRACE_S = 10
# Every process of this run inherits it: parents change when a process is detached, this does not.
MARK = "MACLUSTER_DEMO_RUN"


def main() -> int:
    """Run the notebook; 0 when every cell succeeded."""
    os.chdir(ROOT)
    if not SOURCE.exists():
        print(f"{SOURCE} is not here: is this a complete checkout?", file=sys.stderr)
        return 1
    os.environ[MARK] = mark = uuid.uuid4().hex
    # A closed terminal or a plain kill must clean up as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    notebook = nbformat.read(SOURCE, as_version=4)
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        return _run(notebook)
    except KeyboardInterrupt:
        print("\ninterrupted: stopping the kernel and the cluster", file=sys.stderr)
        return 130
    finally:
        # From here on a second Ctrl-C must not stop the cleaning.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_leftovers(mark)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _run(notebook: NotebookNode) -> int:
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    print(f"{SOURCE}: {len(code_cells)} cells")
    progress = _Progress(code_cells)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(SOURCE.parent)}},
        on_cell_execute=progress.begin,
        on_cell_executed=progress.end,
    )
    failure = ""
    try:
        _execute(client)
    except CellExecutionError as error:
        failure = error.traceback or str(error)
    except (CellTimeoutError, DeadKernelError) as error:
        failure = f"{error}\nThe kernel's own words are in {KERNEL_LOG}"
    # A failed run is saved as well: the notebook shows where it stopped.
    _save(notebook)
    if failure:
        print(f"\ncell {progress.number} of {len(code_cells)} failed:\n{failure}", file=sys.stderr)
        print(f"The notebook up to there: {OUT / SOURCE.name}", file=sys.stderr)
        return 1
    print(f"all {len(code_cells)} cells succeeded in {progress.seconds():.0f} s. The model says:\n")
    for line in _answers(code_cells).splitlines():
        print(f"    {line}")
    print(f"\n  executed notebook  {OUT / SOURCE.name}")
    print(f"  as a page          {(OUT / SOURCE.name).with_suffix('.html')}")
    print("  try it yourself    make lab")
    return 0


def _execute(client: NotebookClient) -> None:
    """Run the notebook in a thread: in the main thread nbclient would take the signals over."""
    loop = asyncio.new_event_loop()
    with (
        TemporaryDirectory(prefix="macluster-") as sockets,
        KERNEL_LOG.open("w") as log,
        ThreadPoolExecutor(1) as pool,
    ):
        # Sockets in a folder of ours: no other user of this machine can reach the kernel.
        manager = client.create_kernel_manager()
        manager.transport, manager.ip = "ipc", f"{sockets}/kernel"
        task = loop.create_task(client.async_execute(stderr=log))
        done = pool.submit(_drive, loop, task)
        try:
            done.result()
        except KeyboardInterrupt:
            loop.call_soon_threadsafe(task.cancel)
            # The kernel is told to shut down, which stops its cluster in an orderly way.
            wait([done], timeout=STOP_GRACE_S)
            raise


def _drive(loop: asyncio.AbstractEventLoop, task: asyncio.Task[NotebookNode]) -> None:
    async def finish() -> None:
        await task

    # Closes the loop, and first everything that nbclient left running on it.
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(finish())


class _Progress:
    """One line per code cell: number, first line, seconds."""

    def __init__(self, cells: list[NotebookNode]) -> None:
        self._cells = cells
        self._began = self._cell_began = time.monotonic()
        self.number = 0

    def begin(self, cell: NotebookNode, cell_index: int) -> None:
        self.number = next(n for n, known in enumerate(self._cells, 1) if known is cell)
        self._cell_began = time.monotonic()
        lines = cell.source.strip().splitlines() or [""]
        print(f"  [{self.number}/{len(self._cells)}] {lines[0][:64]:<64}", end=" ", flush=True)

    def end(self, cell: NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
        print(f"{time.monotonic() - self._cell_began:6.1f} s", flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self._began


def _save(notebook: NotebookNode) -> None:
    nbformat.write(notebook, OUT / SOURCE.name)
    page, _ = HTMLExporter().from_notebook_node(notebook)
    (OUT / SOURCE.name).with_suffix(".html").write_text(page, encoding="utf-8")


def _answers(cells: list[NotebookNode]) -> str:
    """What the cells that let the model speak have printed."""
    streams = [
        output.text
        for cell in cells
        if "generate(" in cell.source
        for output in cell.outputs
        if output.output_type == "stream"
    ]
    return "".join(streams)


def _end_leftovers(mark: str) -> None:
    """Wait until the processes of this run are gone, and end those that are not."""
    left = _marked(mark)
    if not left:
        return
    _, left = psutil.wait_procs(left, timeout=STOP_GRACE_S)
    if not left:
        return
    names = ", ".join(f"{process.pid}" for process in left)
    print(f"still running after {STOP_GRACE_S} s, ended now: {names}", file=sys.stderr)
    for process in left:
        _signal(process, signal.SIGTERM)
    _, left = psutil.wait_procs(left, timeout=2)
    for process in left:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(left, timeout=2)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            # Another user's process, or one that ended just now: not ours.
            continue
    return found


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


if __name__ == "__main__":
    sys.exit(main())
