"""Start and stop the processes of a cluster: the controller and the ranks.

These are ipyparallel launchers. They stay import-light (no MLX), because ipyparallel imports every
registered launcher whenever it builds a cluster. `RankSetLauncher.launcher_for` is the seam for
other machines: it says which launcher starts the ranks of a host.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from signal import SIGKILL, SIGTERM, Signals
from subprocess import DEVNULL, PIPE, STDOUT, Popen, TimeoutExpired
from typing import IO, Any

import attrs
import psutil
from ipyparallel.cluster.launcher import (
    LocalControllerLauncher,
    LocalEngineLauncher,
    LocalEngineSetLauncher,
    NotRunning,
)
from traitlets import Float

from . import backends
from .errors import BackendError
from .guardian import end_sessions
from .hostfile import Host

# A rank leaves when it has not heard from the controller for about this many beats.
HEARTBEAT_MS = 200
MISSED_BEATS = 25
NANNY_GRACE = 0.7  # seconds
# Seconds that a rank gets from its request to its first heartbeat. Then the controller forgets it,
# without telling it; on an overloaded machine that took 5.3 s.
REGISTRATION_TIMEOUT = 60

CONTROLLER_COMMAND = [sys.executable, "-m", "macluster.engine.controller"]
RANK_COMMAND = [sys.executable, "-m", "macluster.engine.rank"]
RANK_ARGUMENTS = [
    "--log-level=WARN",
    "--IPEngine.max_heartbeat_misses=10",
    "--IPEngine.timeout=30",
    "--HistoryManager.enabled=False",
    "--InteractiveShellApp.exec_PYTHONSTARTUP=False",
]
CONTROLLER_ARGUMENTS = [
    "--nodb",
    "--usethreads",
    "--log-level=WARN",
    f"--HeartMonitor.period={HEARTBEAT_MS}",
    f"--HeartMonitor.max_heartmonitor_misses={MISSED_BEATS}",
    f"--IPController.registration_timeout={REGISTRATION_TIMEOUT}",
    "--IPController.broadcast_scheduler_depth=0",
]


async def end_tree(root: Any, grace: float) -> None:
    """SIGTERM a launcher's process, then SIGKILL it and its descendants after `grace` seconds.

    ipyparallel's own `stop` waits for one process after the other, and leaves the children of a
    controller behind when that is stopped while it starts.
    """
    if root.process is None:
        return  # it could not be started
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = [root.process, *root.process.children(recursive=True)]
    with contextlib.suppress(psutil.Error):
        root.process.send_signal(SIGTERM)
    await asyncio.to_thread(psutil.wait_procs, family[:1], timeout=grace)
    # A nanny reports the end of its rank at once, but may take seconds to leave.
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, timeout=NANNY_GRACE)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.send_signal(SIGKILL)
    await asyncio.to_thread(psutil.wait_procs, alive, timeout=10)
    if root._popen_process is not None:
        with contextlib.suppress(TimeoutExpired):
            root._popen_process.wait(timeout=10)
    root.notify_stop({"exit_code": None, "pid": root.pid, "identifier": root.identifier})


def _send(processes: Iterable[psutil.Process], signal: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal)


@attrs.frozen
class Ending:
    """How a process ended: its exit code (minus the signal's number), and what it had printed."""

    pid: int
    code: int | None
    output: str

    @property
    def cause(self) -> str:
        """In words, or "" when nothing is known."""
        if self.code is None:
            return ""
        if self.code >= 0:
            return f"its process ended with exit code {self.code}"
        name = Signals(-self.code).name if -self.code in set(Signals) else f"signal {-self.code}"
        return f"its process was ended by {name}{_SIGNAL_CAUSES.get(name, '')}"


_SIGNAL_CAUSES = {
    "SIGKILL": ": by somebody's kill, or by the system when memory ran out",
    "SIGSEGV": ": a crash in native code",
    "SIGBUS": ": a crash in native code",
    "SIGABRT": ": native code gave up",
}


class ControllerLauncher(LocalControllerLauncher):
    """The controller, as a child process that is stopped with all of its children."""

    # What the cluster file says, for a process that connects.
    entrypoint_name = "macluster.engine.launch.ControllerLauncher"
    controller_cmd = CONTROLLER_COMMAND

    async def get_connection_info(self, timeout: float | None = None) -> dict[str, Any]:
        paths = list(self.connection_files.values())
        deadline = asyncio.get_running_loop().time() + (timeout or self.connection_info_timeout)
        while not all(_complete(path) for path in paths):
            if self.poll() is not None or asyncio.get_running_loop().time() > deadline:
                raise TimeoutError("the controller wrote no connection file")
            await asyncio.sleep(0.02)
        return {kind: json.loads(_read(path)) for kind, path in self.connection_files.items()}

    async def stop(self) -> None:
        await end_tree(self, grace=2.0)
        for path in self.connection_files.values():
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _complete(path: str) -> bool:
    try:
        json.loads(_read(path))
    except (FileNotFoundError, ValueError):
        return False
    return True


class RankLauncher(LocalEngineLauncher):
    """One child process that becomes a rank when it is given its orders on standard input."""

    term_grace = Float(2.0, help="seconds between SIGTERM and SIGKILL")
    _orders: IO[bytes] | None = None

    def find_args(self) -> list[str]:
        return list(self.engine_cmd)

    def start(self) -> int:
        with open(self.output_file, "ab") as log:
            process = self._popen_process = Popen(
                self.args,
                # With a launcher of its own, a backend carries the orders in the environment.
                stdin=DEVNULL if "MACLUSTER_ORDERS" in self.environment else PIPE,
                stdout=log,
                stderr=STDOUT,
                env={**os.environ, **self.get_env()},
                cwd=self.work_dir,
                start_new_session=True,
            )
        self._orders = process.stdin
        self.pid = process.pid
        self.process = psutil.Process(process.pid)
        self.notify_start(process.pid)
        self._start_waiting()
        return process.pid

    @property
    def waits(self) -> bool:
        """True while the process has not been given its orders."""
        return self._orders is not None

    def give_orders(self, orders: Mapping[str, Any]) -> None:
        """Send the rank its orders. One that died before it got them is noticed by its exit."""
        if self._orders is None:
            return
        with contextlib.suppress(BrokenPipeError):
            self._orders.write(json.dumps(orders).encode() + b"\n")
            self._orders.close()
        self._orders = None

    def notify_stop(self, data: dict[str, Any]) -> dict[str, Any]:
        if self._orders is not None:
            self._orders.close()
            self._orders = None
        stopped: dict[str, Any] = super().notify_stop(data)
        return stopped

    async def stop(self) -> None:
        if self.state != "after":
            await end_tree(self, self.term_grace)

    def get_output(self, remove: bool = False) -> str:
        # Kept until the cluster is stopped: `%cluster status` shows what a dead rank said.
        try:
            with open(self.output_file, errors="replace") as file:
                return file.read()
        except OSError:
            return ""


class RankSetLauncher(LocalEngineSetLauncher):
    """All ranks of a world. `parent` is the `Cluster` that says which host each rank is on."""

    entrypoint_name = "macluster.engine.launch.RankSetLauncher"
    launcher_class = RankLauncher

    def launcher_for(self, host: Host) -> type[RankLauncher]:
        """The launcher of a host's ranks. Raises BackendError for a host that has none."""
        if host.is_local:
            return RankLauncher
        raise BackendError(
            f"macluster cannot start ranks on {host.ssh} yet: it starts them on this machine only.",
            why="starting over ssh is not part of this version",
            do="rehearse on this machine with %cluster start 2, or run the program with\n"
            "mlx.launch --hostfile FILE",
        )

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        # Every process started here leads a session; also of ranks that have ended since.
        self.leaders: set[int] = set()
        self.ended: dict[int, Ending] = {}

    @property
    def one_for_all(self) -> bool:
        """True when the backend's own launcher (mpirun) starts all ranks as one child of ours."""
        return backends.get(self.parent.backend).command(self.parent.hosts) is not None

    def start(self, n: int) -> list[int]:
        """Start the processes, without waiting for any of them."""
        self.n = n
        for rank in [0] if self.one_for_all else range(n):
            self.start_rank(rank)
        pids = [launcher.pid for launcher in self.launchers.values()]
        self.notify_start(pids)
        return pids

    def start_rank(self, rank: int) -> None:
        """Start one process, which waits for its orders. Raises StartError."""
        cluster = self.parent
        backend, hostfile = backends.get(cluster.backend), cluster.hosts
        command = backend.command(hostfile)
        launcher = self.launcher_for(hostfile.hosts[rank])(
            work_dir=self.work_dir,
            parent=self,
            log=self.log,
            profile_dir=self.profile_dir,
            cluster_id=self.cluster_id,
            identifier=str(rank),
            output_file=os.path.join(
                self.profile_dir, "log", f"macluster-{self.cluster_id}-rank-{rank}.log"
            ),
            environment={
                # What a Jupyter kernel sets for itself, for figures in the notebook.
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                **hostfile.environment(),
                **cluster.user_env,
                **backend.launch_environment(hostfile, rank),
            },
            term_grace=backend.term_grace,
        )
        launcher.engine_cmd = [*(command or []), *RANK_COMMAND]
        if command is not None:
            launcher.environment["MACLUSTER_ORDERS"] = json.dumps(self.orders())
        os.makedirs(os.path.dirname(launcher.output_file), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.remove(launcher.output_file)
        launcher.on_stop(self._notice_engine_stopped)
        self.launchers[str(rank)] = launcher
        self.leaders.add(launcher.start())
        cluster.guard(launcher.pid)

    def _notice_engine_stopped(self, data: dict[str, Any]) -> None:
        identifier = data["identifier"]
        launcher = self.launchers.get(identifier)
        # Its successor may be there already.
        if launcher is not None and launcher.pid == data["pid"]:
            del self.launchers[identifier]
            self.ended[int(identifier)] = Ending(
                launcher.pid, data["exit_code"], launcher.get_output()
            )

    async def replace(self, ranks: Sequence[int], pids: Iterable[int]) -> None:
        """Kill the processes of `ranks`, whether or not they still run, and start new ones.

        `pids` are the ranks' own processes, which differ from those started here where a backend
        has a launcher of its own. The new ones wait for their orders, see `give_orders`.
        """
        keys = ["0"] if self.one_for_all else [str(rank) for rank in ranks]
        # One that waits for its orders is fresh: it was started as soon as its rank had died.
        keys = [key for key in keys if not getattr(self.launchers.get(key), "waits", False)]
        old = [self.launchers[key] for key in keys if key in self.launchers]
        # The ranks alone at first: their nannies then tell the controller at once.
        doomed = {process.pid: process for process in (launcher.process for launcher in old)}
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                doomed[pid] = psutil.Process(pid)
        if self.one_for_all:
            # mpirun ends by itself when its children do, and would take the nannies with it.
            for launcher in old:
                doomed.pop(launcher.pid, None)
        grace = backends.get(self.parent.backend).kill_grace
        if grace:
            _send(doomed.values(), SIGTERM)
            await asyncio.to_thread(psutil.wait_procs, list(doomed.values()), timeout=grace)
        _send(doomed.values(), SIGKILL)
        await asyncio.to_thread(psutil.wait_procs, list(doomed.values()), timeout=10)
        for launcher in old:
            if self.one_for_all:
                await end_tree(launcher, 1.0)
            self._notice_engine_stopped(
                {"identifier": launcher.identifier, "pid": launcher.pid, "exit_code": -SIGKILL}
            )
        # Of processes that another one has started, too: what they leave behind is ours to end.
        self.leaders |= {launcher.pid for launcher in old}
        for key in keys:
            self.start_rank(int(key))

    async def clear(self) -> None:
        """End what ranks that are gone have left behind: nannies, children, held sockets."""
        here = {launcher.pid for launcher in self.launchers.values()}
        gone = self.leaders - here
        if gone:
            await asyncio.to_thread(end_sessions, gone, 0.0)
            self.leaders -= gone  # only now: a stop meanwhile ends them, too
            self.parent.unguard(gone)

    def adopt(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over the processes that another process of the user has started meanwhile."""
        for identifier, state in states.items():
            known = self.launchers.get(identifier)
            if known is not None and known.pid == state["pid"]:
                continue
            with contextlib.suppress(NotRunning):
                launcher = RankLauncher.from_dict(state, identifier=identifier, parent=self)
                launcher.on_stop(self._notice_engine_stopped)
                self.launchers[identifier] = launcher
                self.leaders.add(launcher.pid)

    def orders(self) -> dict[str, Any]:
        """What a rank must know to join: the controller's address and key, and its arguments."""
        arguments = [*RANK_ARGUMENTS, f"--profile-dir={self.profile_dir}"]
        return {"connection": self.parent.rank_connection, "arguments": arguments}

    def give_orders(self) -> None:
        """Let the waiting ranks join the controller."""
        for identifier, launcher in list(self.launchers.items()):
            launcher.give_orders({**self.orders(), "rank": int(identifier)})

    async def stop(self) -> None:
        leaders = self.leaders | {launcher.pid for launcher in self.launchers.values()}
        self.leaders = set()
        ranks = [launcher.stop() for launcher in list(self.launchers.values())]
        await asyncio.gather(*ranks, return_exceptions=True)
        if leaders:
            # What a cell has started in the background would outlive its rank.
            await asyncio.to_thread(end_sessions, leaders, 0.0)
            self.parent.unguard(leaders)
        if self.state == "running":
            self.notify_stop({"exit_code": None})

    @property
    def missing(self) -> list[int]:
        """The ranks whose process has ended and has no successor."""
        return sorted(rank for rank in self.ended if str(rank) not in self.launchers)

    def ending(self, pid: int | None) -> Ending | None:
        """How the process of a rank ended, or None while nobody here knows."""
        return next((each for each in self.ended.values() if each.pid == pid), None)

    def last_output(self, rank: int, lines: int = 12) -> str:
        """The end of what a rank printed outside of any cell."""
        number = 0 if self.one_for_all else rank
        launcher, ended = self.launchers.get(str(number)), self.ended.get(number)
        text = launcher.get_output() if launcher else ended.output if ended else ""
        return "\n".join(text.strip().splitlines()[-lines:])
