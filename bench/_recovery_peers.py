"""What the peers do when one of N local ranks fails while the others wait in a collective.

Peers: stock ipyparallel (`%%px`, MLX's ring formed by hand), `mlx.launch` (MLX's ring) and, where
it is installed, nbdistributed (`%%distributed`, gloo). The notebook peers run in a real kernel.

Faults, all on rank 1: an exception before the collective, SIGKILL, and the user's interrupt
(Ctrl-C, or Jupyter's stop button) while rank 1 is late. Measured for each:

- control: seconds from the fault until the user has control back without doing anything more;
  "no" if that takes more than 20 s
- usable: seconds from the fault until an all_sum over N ranks is right again, in the peer's own
  way (restart_engines, the same mlx.launch once more, %dist_reset and %dist_init). The user acts
  at once: where control did not come back, the 20 s of waiting do not count.
- kept: on how many of the other ranks the variables from before the fault are there after that

    python bench/_recovery_peers.py [--ranks 4] [--repeats 3] [--nbdistributed PYTHON]
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from queue import Empty
from string import Template
from typing import Any

import psutil
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from start import JOIN, free_ports

FAULTS = ("exception", "SIGKILL", "interrupt")
PATIENCE = 20.0  # how long the user waits for control
LIMIT = 120.0  # for every start, restart and check
TOKEN = "MACLUSTER_BENCH_PEERS"


@dataclass(frozen=True)
class Row:
    """One trial. None: not within the limit."""

    peer: str
    fault: str
    returned: float | None
    usable: float | None
    kept: str


# What rank 1 does instead of the collective. It says when, and who it is.
STAMP = "import os, time; print(time.time(), os.getpid(), end=' .', file=open({stamp!r}, 'w'))"
ACTS = {
    "exception": "import time; time.sleep(1); " + STAMP + "; raise ValueError('boom')",
    "SIGKILL": STAMP + "; time.sleep(600)",
    "interrupt": STAMP + "; time.sleep(600)",
}


def faulty(fault: str, stamp: Path, rank: str, collective: str) -> str:
    """The code that all ranks run: rank 1 fails, the others wait for it."""
    return f"if {rank} == 1:\n    {ACTS[fault].format(stamp=str(stamp))}\n{collective}\n"


def provoke(fault: str, stamp: Path, interrupt: Callable[[], None]) -> float:
    """Let the others come to the collective, cause the fault, and return its time."""
    end = time.time() + LIMIT
    while not (stamp.exists() and stamp.read_text().endswith(".")):
        if time.time() > end:
            raise TimeoutError(f"rank 1 never came to its {fault}")
        time.sleep(0.01)
    at, pid, _ = stamp.read_text().split()
    if fault == "exception":
        return float(at)
    time.sleep(1)
    now = time.time()
    if fault == "SIGKILL":
        os.kill(int(pid), signal.SIGKILL)
    else:
        interrupt()
    return now


def running(token: str) -> list[psutil.Process]:
    """Processes that carry the token in their environment: engines leave their session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(TOKEN) == token:
                found.append(process)
    return found


@contextlib.contextmanager
def sandbox(python: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder and an environment for one trial. All that runs in it is killed at the end."""
    token = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "pkill").write_text(PKILL.format(python=sys.executable))
        (folder / "pkill").chmod(0o700)
        # Peers start "python" by that name.
        path = [name, str(Path(python).parent), os.environ["PATH"]]
        env = {TOKEN: token, "TMPDIR": name, "PATH": os.pathsep.join(path)}
        try:
            yield folder, os.environ | env
        finally:
            end = time.time() + 10
            while (left := running(token)) and time.time() < end:
                for process in left:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                psutil.wait_procs(left, timeout=1)


# nbdistributed's reset runs `pkill -9 -f "python.*worker"`, which would hit anybody's processes.
# In the sandbox this stands in for it and looks at the kernel's children only.
PKILL = """#!{python}
import contextlib, os, re, signal, sys
import psutil
number = signal.SIGKILL if "-9" in sys.argv else signal.SIGTERM
for process in psutil.Process(os.getppid()).children(recursive=True):
    with contextlib.suppress(psutil.Error):
        if process.pid != os.getpid() and re.search(sys.argv[-1], " ".join(process.cmdline())):
            process.send_signal(number)
"""


class Notebook:
    """A Jupyter kernel, started and interrupted as Jupyter does it: in its own process group."""

    def __init__(self, python: str, folder: Path, env: dict[str, str]) -> None:
        file, _ = write_connection_file(str(folder / "kernel.json"))
        command = [python, "-m", "ipykernel_launcher", "-f", file]
        with open(folder / "kernel.log", "w") as log:
            self.process = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, start_new_session=True
            )
        self.client = BlockingKernelClient()
        self.client.load_connection_file(file)
        self.client.start_channels(iopub=False, stdin=False, hb=False, control=False)

    def send(self, code: str, result: str = "None") -> str:
        return str(self.client.execute(code, user_expressions={"result": result}))

    def reply(self, message: str, limit: float) -> dict[str, Any] | None:
        """The kernel's answer to this cell, or None if it still runs after `limit` seconds."""
        end = time.time() + limit
        while (left := end - time.time()) > 0:
            try:
                answer = self.client.get_shell_msg(timeout=left)
            except Empty:
                break
            if answer["parent_header"].get("msg_id") == message:
                return dict(answer)
        return None

    def run(self, code: str, result: str = "None") -> Any:
        """Run a cell and return the value of an expression after it."""
        answer = self.reply(self.send(code, result), LIMIT)
        if answer is None:
            raise TimeoutError(f"still running after {LIMIT:.0f} s: {code}")
        content = answer["content"]
        value = content.get("user_expressions", {}).get("result", content)
        if "data" not in value:
            raise RuntimeError("\n".join(value.get("traceback", [str(value)])))
        return ast.literal_eval(value["data"]["text/plain"])

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def stop(self, message: str) -> bool:
        """Press Jupyter's stop button until the cell ends, every 2 s, 10 times at most."""
        for _ in range(10):
            self.interrupt()
            if self.reply(message, 2):
                return True
        return False

    def close(self) -> None:
        self.client.stop_channels()
        self.process.kill()
        self.process.wait(10)


def sent(message: dict[str, Any]) -> float:
    return datetime.fromisoformat(str(message["header"]["date"])).timestamp()


@dataclass(frozen=True)
class Cells:
    """A notebook peer as the user types it. $ranks, $nodes and $folder are filled in."""

    peer: str
    magic: str
    rank: str
    collective: str
    start: str
    join: str  # after a start and after a restart
    restart: str
    totals: str  # an expression: the sum that each rank has
    kept: str  # an expression: whether each rank has the variable `mark`


IPYPARALLEL = Cells(
    peer="ipyparallel",
    magic="%%px",
    rank="my_rank",
    collective="total = int(mx.distributed.all_sum(mx.array(my_rank + 1), group=world).item())",
    start="""
import logging, ipyparallel
cluster = ipyparallel.Cluster(n=$ranks, profile_dir="$folder", log_level=logging.ERROR)
client = cluster.start_and_connect_sync()
""",
    join=f"""
client.wait_for_engines($ranks, timeout=60)
client.activate()
view = client[:]
view.push(dict(nodes=$nodes), block=True)
view.scatter("my_rank", range($ranks), flatten=True, block=True)
view.execute({JOIN!r}, block=True)
""",
    restart="cluster.restart_engines_sync()",
    totals="view.pull('total', block=True)",
    kept="view.apply_sync(lambda: 'mark' in globals())",
)

# It listens on all addresses and unpickles what comes: here on loopback only. What it sends to a
# worker that has not connected yet is lost, and %dist_init does not wait: here `join` waits.
NBDISTRIBUTED = Cells(
    peer="nbdistributed",
    magic="%%distributed",
    rank="rank",
    collective="value = torch.tensor(rank + 1); dist.all_reduce(value); total = int(value)",
    start="""
import zmq
bind = zmq.Socket.bind
zmq.Socket.bind = lambda self, address: bind(self, address.replace("*", "127.0.0.1"))
get_ipython().run_line_magic("load_ext", "nbdistributed")
get_ipython().run_line_magic("dist_init", "-n $ranks")
get_ipython().run_line_magic("dist_mode", "--disable")
""",
    join="""
manager = get_ipython().magics_manager.registry["DistributedMagic"]._comm_manager
for _ in range(60):
    try:
        manager.send_to_all("get_status", dict(), timeout=1)
        break
    except TimeoutError:
        pass
""",
    restart="""
get_ipython().run_line_magic("dist_reset", "")
get_ipython().run_line_magic("dist_init", "-n $ranks")
get_ipython().run_line_magic("dist_mode", "--disable")
""",
    totals="[manager.send_to_rank(rank, 'get_var', 'total')['value'] for rank in range($ranks)]",
    kept="['value' in manager.send_to_rank(rank, 'get_var', 'mark') for rank in range($ranks)]",
)


def in_notebook(cells: Cells, python: str, ranks: int, fault: str) -> Row:
    """One trial of a peer that lives in a notebook."""
    with sandbox(python) as (folder, env):
        notebook = Notebook(python, folder, env)

        def run(code: str, result: str = "None") -> Any:
            nodes = [[f"127.0.0.1:{port}"] for port in free_ports(ranks)]
            known = {"ranks": ranks, "nodes": nodes, "folder": folder}
            filled = [Template(part).substitute(known) for part in (code, result)]
            return notebook.run(*filled)

        def join() -> None:
            run(cells.join)
            run(f"{cells.magic}\n{cells.collective}")
            totals = run("", cells.totals)
            if totals != [ranks * (ranks + 1) // 2] * ranks:
                raise RuntimeError(f"wrong sums: {totals}")

        try:
            run(cells.start)
            join()
            run(f"{cells.magic}\nmark = 1")
            code = faulty(fault, folder / "stamp", cells.rank, cells.collective)
            message = notebook.send(f"{cells.magic}\n{code}")
            at = provoke(fault, folder / "stamp", notebook.interrupt)
            answer = notebook.reply(message, at + PATIENCE - time.time())
            began = time.time()
            returned = sent(answer) - at if answer else None
            if returned is not None and returned < 0:
                raise RuntimeError(f"{cells.peer} ended the cell before the {fault}")
            usable: float | None = None
            kept: list[bool] = []
            try:
                if not answer and not notebook.stop(message):
                    raise TimeoutError("interrupts do not end the cell")
                run(cells.restart)
                join()
                usable = (returned or 0) + time.time() - began
                kept = run("", cells.kept)
            except (RuntimeError, TimeoutError) as error:
                print(f"{cells.peer}, {fault}: not usable again: {error}", file=sys.stderr)
        finally:
            notebook.close()
    others = sum(there for rank, there in enumerate(kept) if rank != 1)
    return Row(cells.peer, fault, returned, usable, f"{others} of {ranks - 1}")


PROGRAM = """
import os
import mlx.core as mx
world = mx.distributed.init(backend="ring", strict=True)
my_rank = world.rank()
{collective}
print("READY", my_rank, os.getpid(), total, flush=True)
"""


class Launch:
    """One mlx.launch at a terminal: it and its ranks are one process group."""

    def __init__(self, folder: Path, env: dict[str, str], ranks: int, port: int, code: str) -> None:
        self.ranks = ranks
        program = folder / f"{uuid.uuid4().hex}.py"
        program.write_text(PROGRAM.format(collective=IPYPARALLEL.collective) + code)
        self.log = program.with_suffix(".log")
        tool = str(Path(sys.executable).parent / "mlx.launch")
        options = ["--backend", "ring", "-n", str(ranks), "-p", str(port)]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [tool, *options, "--python", sys.executable, "--", str(program)],
                env=env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self) -> dict[int, int]:
        """Wait for the right sum on every rank. Gives the process id of each rank."""
        end = time.time() + LIMIT
        sums: dict[int, list[str]] = {}
        while len(sums) < self.ranks and time.time() < end:
            time.sleep(0.01)
            ended = self.process.poll() is not None
            lines = [line.split() for line in self.log.read_text().splitlines()]
            sums = {int(line[1]): line for line in lines if line[:1] == ["READY"] and line[3:]}
            if ended:
                break
        want = str(self.ranks * (self.ranks + 1) // 2)
        if len(sums) < self.ranks or any(line[3] != want for line in sums.values()):
            raise RuntimeError(f"mlx.launch did not get ready: {self.log.read_text()[-2000:]}")
        return {rank: int(line[2]) for rank, line in sums.items()}

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self, limit: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(limit)
        return self.process.returncode is not None

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        if self.process.stdin:
            self.process.stdin.close()


def free_row(count: int) -> int:
    """The first of `count` free ports in a row, as mlx.launch wants them."""
    while True:
        first = free_ports(1)[0]
        with contextlib.suppress(OSError, OverflowError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


def with_launch(ranks: int, fault: str) -> Row:
    """One trial of mlx.launch. Its way to a world that works is the same command again."""
    port = free_row(ranks)
    with sandbox(sys.executable) as (folder, env):
        code = faulty(fault, folder / "stamp", "my_rank", IPYPARALLEL.collective)
        launch = Launch(folder, env, ranks, port, code)
        usable = None
        try:
            pids = launch.ready()
            at = provoke(fault, folder / "stamp", launch.interrupt)
            ended = launch.ended(at + PATIENCE - time.time())
            began = time.time()
            returned = began - at if ended else None
            launch.close()
            again = Launch(folder, env, ranks, port, "")
            try:
                again.ready()
                usable = (returned or 0) + time.time() - began
            except RuntimeError as error:
                print(f"mlx.launch, {fault}: not usable again: {error}", file=sys.stderr)
            finally:
                again.close()
            kept = sum(psutil.pid_exists(pid) for rank, pid in pids.items() if rank != 1)
        finally:
            launch.close()
    return Row("mlx.launch", fault, returned, usable, f"{kept} of {ranks - 1}")


def measure_peers(ranks: int, repeats: int, nbdistributed: str = sys.executable) -> list[Row]:
    """Every peer and every fault, `repeats` times. One row per trial."""
    peers: list[Callable[[str], Row]] = [
        lambda fault: in_notebook(IPYPARALLEL, sys.executable, ranks, fault),
        lambda fault: with_launch(ranks, fault),
    ]
    needs = "import nbdistributed.magic, torch.distributed, ipykernel"
    found = subprocess.run(
        [nbdistributed, "-c", needs], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if found.returncode:
        print(f"nbdistributed left out: {found.stderr.strip().splitlines()[-1]}")
    else:
        peers.append(lambda fault: in_notebook(NBDISTRIBUTED, nbdistributed, ranks, fault))
    rows = []
    for _ in range(repeats):
        for peer in peers:
            for fault in FAULTS:
                try:
                    rows.append(peer(fault))
                except (RuntimeError, TimeoutError) as error:
                    print(f"a trial of {fault} is left out: {error}", file=sys.stderr)
    return rows


def times(values: list[float | None]) -> str:
    """p50 and max of those that came in time, and how many did not."""
    done = [value for value in values if value is not None]
    if not done:
        return "no"
    text = f"{statistics.median(done):.2f} s, max {max(done):.2f} s"
    return text if len(done) == len(values) else f"{text} ({len(done)} of {len(values)})"


def show(rows: list[Row]) -> None:
    head = ("peer", "fault", "control back", "usable again", "kept")
    lines = [head]
    for peer, fault in dict.fromkeys((row.peer, row.fault) for row in rows):
        here = [row for row in rows if (row.peer, row.fault) == (peer, fault)]
        kept = " / ".join(dict.fromkeys(row.kept for row in here))
        returned, usable = [row.returned for row in here], [row.usable for row in here]
        lines.append((peer, fault, times(returned), times(usable), kept))
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    for line in lines:
        print("".join(map(str.ljust, line, widths)).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--nbdistributed",
        metavar="PYTHON",
        default=sys.executable,
        help="the interpreter of an environment that has nbdistributed and ipykernel",
    )
    parser.add_argument("--json", metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rows = measure_peers(options.ranks, options.repeats, options.nbdistributed)
    print(f"rank 1 of {options.ranks} local ranks fails, {options.repeats} times each")
    show(rows)
    print(f"control back: by itself, within {PATIENCE:.0f} s ('no': not so).")
    print("usable again: a right all_sum on all ranks, the peer's own way, the user acts at once.")
    print("kept: on how many of the other ranks the variables are there after that.")
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(row) for row in rows], file)


if __name__ == "__main__":
    main()
