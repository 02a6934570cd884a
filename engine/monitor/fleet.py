"""All clusters of this user, however they were started: what they do, and what is done to them."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from .. import backends
from ..cluster import DEFAULT_NAME, as_hostfile
from ..errors import (
    BackendError,
    ClusterExists,
    ClusterNotFound,
    HostfileError,
    MaclusterError,
    UsageError,
    WorldError,
)
from ..files import ClusterFiles, Listing, profile_dir, running
from ..hostfile import Hostfile
from .command import Process, command
from .monitor import Monitor, read_logs

if TYPE_CHECKING:
    from ..measure.record import Measurement
    from ..models.shards import ShardMap
    from ..topology.topology import Topology

Hosts = int | str | Sequence[str]

WANTED = 15.0  # seconds for which `want` keeps everything up to date
LOOK = 1.0  # seconds between two looks at which clusters run
CALL_OFF = 30.0  # seconds that a start gets to clear up when it is called off
BACKGROUND = 1.0  # seconds at least between two messages of ranks of a cluster that is not chosen


@attrs.define
class Task:
    """Something that is being done to a cluster in a process of its own."""

    verb: str
    size: int = 0
    backend: str = ""
    reason: str = ""
    step: str = ""
    since: float = attrs.field(factory=time.time)
    failure: dict[str, Any] | None = None
    process: Process | None = None
    called_off: bool = False
    done: threading.Event = attrs.field(factory=threading.Event)


class Fleet:
    """The clusters of this user. Every method may be called from any thread.

    Only `state` and `want` return at once. `on_change` is called, in any thread, when `state` may
    say something new.
    """

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._lock = threading.RLock()
        self._monitors: dict[str, Monitor] = {}
        self._opening: set[str] = set()
        self._listings = _running()
        self._tasks: dict[str, Task] = {}
        self._failures: dict[tuple[str, str], dict[str, Any]] = {}  # by name and birth
        self._unreachable: dict[str, str] = {}  # why a cluster that runs cannot be watched
        self._outlines: dict[str, Any] = {}  # what was last told of each
        self._wanted_until = 0.0
        self._period, self._chosen = 1.0, None
        self._wake = threading.Event()
        self._worker: threading.Thread | None = None
        self._closed = False

    _chosen: str | None

    # -- being up to date ----------------------------------------------------------------------

    def want(self, period: float, chosen: str | None) -> None:
        """Keep everything up to date for the next seconds, and `chosen` every `period` seconds."""
        with self._lock:
            if self._closed:
                return
            self._wanted_until = time.monotonic() + WANTED
            changed = (period, chosen) != (self._period, self._chosen)
            self._period, self._chosen = period, chosen
            if self._worker is None:
                self._worker = threading.Thread(
                    target=self._work, name="macluster-fleet", daemon=True
                )
                self._worker.start()
            elif changed:
                self._wake.set()

    def refresh(self) -> None:
        """Look now which clusters run."""
        listings = _running()
        with self._lock:
            changed = listings.keys() != self._listings.keys()
            self._listings = listings
        if changed:
            self._on_change()

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._closed or time.monotonic() > self._wanted_until:
                    self._worker = None
                    monitors, self._monitors = self._monitors, {}
                    break
            self._look()
            self._wake.wait(LOOK)
            self._wake.clear()
        for monitor in monitors.values():
            self._close(monitor)

    def _close(self, monitor: Monitor) -> None:
        """Let go of a cluster, but not of what has failed there."""
        if monitor.failure is not None:
            with self._lock:
                self._failures[monitor.name, monitor.cluster.birth] = monitor.failure
        monitor.close()

    def _look(self) -> None:
        """Find what is new and what is gone, and have the ranks go on sending."""
        listings = _running()
        with self._lock:
            changed = listings.keys() != self._listings.keys()
            self._listings = listings
            # Somebody else has started one of that name: the start that failed is history.
            for name in listings.keys() & self._tasks.keys():
                if self._tasks[name].failure is not None:
                    del self._tasks[name]
            for name in self._unreachable.keys() - listings.keys():
                del self._unreachable[name]
            gone = [
                self._monitors.pop(name)
                for name in list(self._monitors)
                if name not in listings or self._monitors[name].gone
            ]
            new = listings.keys() - self._monitors.keys() - self._opening
            self._opening |= new
            monitors = dict(self._monitors)
            period, chosen = self._period, self._chosen
        for monitor in gone:
            self._close(monitor)
        for name in new:
            _in_thread(self._open, name)
        for name, monitor in monitors.items():
            with contextlib.suppress(MaclusterError):
                monitor.want(period if name == chosen else max(period, BACKGROUND))
        # Silence changes a state, too, and no message tells of it.
        outlines = {name: _outline(monitor) for name, monitor in monitors.items()}
        if changed or gone or outlines != self._outlines:
            self._outlines = outlines
            self._on_change()

    def _open(self, name: str) -> None:
        monitor, why = None, ""
        try:
            monitor = self._connect(name)
        except ClusterNotFound:
            pass  # it is just being started, and has no controller yet
        except Exception as error:
            why = error.what if isinstance(error, MaclusterError) else str(error)
        with self._lock:
            self._opening.discard(name)
            self._unreachable[name] = why
            if monitor is not None and not self._closed and self._worker is not None:
                self._monitors[name] = monitor
                monitor.want(self._period)
                monitor = None
        if monitor is not None:
            monitor.close()
        self._on_change()

    def _connect(self, name: str) -> Monitor:
        monitor = Monitor(name, self._on_change)
        with self._lock:
            monitor.failure = self._failures.get((name, monitor.cluster.birth))
        return monitor

    def close(self) -> None:
        """Let go of everything. The clusters run on."""
        with self._lock:
            self._closed = True
            worker = self._worker
        self._wake.set()
        if worker is not None:
            worker.join()
        with self._lock:
            monitors, self._monitors = self._monitors, {}
        for monitor in monitors.values():
            monitor.close()

    # -- what there is to see ------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """{"clusters": {name: what `Monitor.state` says}, "default_name": a free name}."""
        with self._lock:
            listings, monitors = dict(self._listings), dict(self._monitors)
            tasks = dict(self._tasks)
        clusters: dict[str, Any] = {}
        for name, listing in listings.items():
            monitor, found = monitors.get(name), None
            if monitor is not None:
                # It may be stopped in this very moment.
                with contextlib.suppress(MaclusterError):
                    found = monitor.state()
            clusters[name] = found or _unknown(listing, self._unreachable.get(name, ""))
        for name, task in tasks.items():
            clusters[name] = _with_task(name, clusters.get(name), task)
        return {"clusters": clusters, "default_name": self._free_name(clusters)}

    def _free_name(self, taken: dict[str, Any]) -> str:
        name, number = DEFAULT_NAME, 1
        while name in taken:
            number += 1
            name = f"{DEFAULT_NAME}-{number}"
        return name

    # -- starting ------------------------------------------------------------------------------

    def choice(self, hosts: Hosts, backend: str | None = None) -> dict[str, Any]:
        """What a cluster of these hosts would be, and which backends fit. Raises MaclusterError."""
        hostfile = _hostfile(hosts)
        chosen = backends.choose(hostfile, backend or None)
        fits = []
        for name, each in backends.BACKENDS.items():
            why = ""
            try:
                each.check(hostfile)
            except (BackendError, HostfileError) as error:
                why = f"{error.what} {error.why}".strip()
            fits.append({"name": name, "fits": not why, "why": why})
        return {
            "size": len(hostfile),
            "hosts": [host.ssh for host in hostfile.hosts],
            "backend": chosen.backend.name,
            "reason": chosen.reason,
            "backends": fits,
        }

    def start(
        self,
        hosts: Hosts,
        backend: str | None = None,
        name: str | None = None,
        checked: bool = False,
    ) -> str:
        """Start a cluster that runs until it is stopped, and return its name at once.

        How it goes on is in `state`. Raises ClusterExists, and what `choice` raises.
        """
        choice = self.choice(hosts, backend)
        with self._lock:
            taken = _running().keys() | self._tasks.keys()
            name = name or self._free_name(dict.fromkeys(taken))
            if name in taken:
                raise ClusterExists(
                    f"A cluster named {name!r} is there already.",
                    why="it runs, is being started, or its start failed and was not dismissed",
                    do="choose another name",
                )
            task = Task("start", choice["size"], choice["backend"], choice["reason"])
            self._tasks[name] = task
        by_name = not isinstance(hosts, (int, str))
        arguments = ["-" if by_name else str(hosts), f"--name={name}"]
        arguments += [f"--backend={backend}"] if backend else []
        arguments += ["--checked"] if checked else []
        text = json.dumps(_hostfile(hosts).to_json()) if by_name else ""
        _in_thread(self._carry_out, name, task, arguments, text, True)
        return name

    def dismiss(self, name: str) -> str:
        """Take a start that failed off the list."""
        with self._lock:
            task = self._tasks.get(name)
            if task is None or task.failure is None:
                raise ClusterNotFound(
                    f"There is no failed start of a cluster {name!r}.",
                    why="it was dismissed already",
                )
            del self._tasks[name]
        self._on_change()
        return f"{name} is off the list"

    def _carry_out(
        self,
        name: str,
        task: Task,
        arguments: Sequence[str],
        text: str = "",
        keep_failure: bool = False,
    ) -> str:
        """Run a command about a cluster, and show in `state` how far it is."""

        def step(words: str) -> None:
            task.step = words
            self._on_change()

        def begun(process: Process) -> None:
            task.process = process
            if task.called_off:
                process.send_signal(signal.SIGINT)

        self._on_change()
        kept = False
        try:
            return command(task.verb, arguments, step, text, begun)
        except Exception as error:
            known = error if isinstance(error, MaclusterError) else _unknown_error(task, error)
            kept = keep_failure and not task.called_off
            if not keep_failure:
                raise known from error
            if kept:
                task.failure = {"words": str(known), "at": time.time()}
            return ""
        finally:
            task.done.set()
            if not kept:
                self._look()
                self._forget(name, task)
            self._on_change()

    def _forget(self, name: str, task: Task) -> None:
        with self._lock:
            if self._tasks.get(name) is task:
                del self._tasks[name]
        self._wake.set()
        self._on_change()

    # -- doing something to one ----------------------------------------------------------------

    def stop(self, name: str) -> str:
        """End a cluster, with all that its ranks hold."""
        return self._change(name, "stop")

    def restart(self, name: str) -> str:
        """Start all ranks anew; their variables are lost."""
        return self._change(name, "restart")

    def abort(self, name: str) -> str:
        """End whatever the ranks do; where the backend can, they keep their variables."""
        return self._change(name, "abort")

    def measure(self, name: str) -> str:
        """Measure the links of ranks that are idle."""
        if self._monitor(name).at_work():
            raise UsageError(
                f"The ranks of {name!r} are busy.",
                why="a measurement beside a cell would measure the cell, too",
                do="wait until the cell has ended",
            )
        return self._change(name, "measure")

    def _call_off(self, name: str, task: Task) -> str:
        """End a start that is under way; it clears up after itself."""
        task.called_off = True
        if task.process is not None:
            task.process.send_signal(signal.SIGINT)
        if not task.done.wait(CALL_OFF):
            raise WorldError(
                f"The start of {name!r} does not end.",
                why=f"it was interrupted {CALL_OFF:.0f} s ago, and still clears up",
                do=f"wait, or kill its process {task.process.pid if task.process else ''}",
            )
        return f"the start of {name!r} was called off"

    def _change(self, name: str, verb: str) -> str:
        listing = _running().get(name)
        with self._lock:
            task = self._tasks.get(name)
            starting = task is not None and task.verb == "start" and task.failure is None
        if task is not None and starting and verb == "stop":
            return self._call_off(name, task)
        if listing is None:
            raise _not_found(name)
        with self._lock:
            task = self._tasks.get(name)
            free = task is None or task.failure is not None
            # Whoever waits too long may still abort or stop.
            if (
                task is not None
                and not free
                and (starting or verb not in ("abort", "stop") or task.verb == verb)
            ):
                raise ClusterExists(
                    f"{task.verb} of {name!r} is under way.",
                    why=task.step or "it has just begun",
                    do="wait for it, or stop the cluster",
                )
            task = self._tasks[name] = Task(verb, listing.size, listing.backend)
            monitor = self._monitors.get(name)
        with contextlib.ExitStack() as meanwhile:
            if monitor is not None and verb != "measure":
                meanwhile.enter_context(monitor.on_purpose())
            return self._carry_out(name, task, ["--", name])

    def interrupt(self, name: str) -> str:
        """Interrupt what runs, on all ranks together where they can."""
        return self._monitor(name).interrupt()

    def stacks(self, name: str) -> str:
        """Where every rank stands, also while a cell runs."""
        return self._monitor(name).stacks()

    def logs(self, name: str) -> list[dict[str, str]]:
        """The last lines that each process printed outside of cells: {"name", "text"}."""
        files = ClusterFiles(profile_dir(), name)
        if not files.cluster_file.exists():
            raise _not_found(name)
        return read_logs(files)

    def topology(self, name: str) -> Topology:
        """The ranks and their links."""
        return self._monitor(name).topology()

    def measurement(self, name: str) -> Measurement | None:
        """What `measure` found last, None when nobody has measured."""
        return self._monitor(name).measurement()

    def shards(self, name: str, model: str) -> ShardMap:
        """Who holds what of a loaded model."""
        return self._monitor(name).shards(model)

    def _monitor(self, name: str) -> Monitor:
        """The monitor of a running cluster, opened when there is none yet."""
        with self._lock:
            monitor = self._monitors.get(name)
        if monitor is not None and not monitor.gone:
            return monitor
        if name not in _running():
            raise _not_found(name)
        monitor = self._connect(name)
        with self._lock:
            known = self._monitors.get(name)
            taken = known is not None and not known.gone
            if not taken:
                self._monitors[name] = monitor
        # Kept up to date for a while, and closed after that.
        self.want(self._period, self._chosen)
        if known is not None and taken:
            monitor.close()
            return known
        if known is not None:
            self._close(known)
        monitor.want(self._period)
        return monitor


def _running() -> dict[str, Listing]:
    return {each.name: each for each in running()}


def _in_thread(work: Callable[..., Any], *values: Any) -> None:
    """Not of a pool: a start that hangs must not keep the process from ending."""
    threading.Thread(target=work, args=values, name="macluster-fleet", daemon=True).start()


def _outline(monitor: Monitor) -> Any:
    """What changes in a state without any message."""
    with contextlib.suppress(MaclusterError):
        state = monitor.state()
        ranks = [rank["state"] for rank in state["ranks"].values()]
        return state["state"], state["words"], state["failure"], ranks
    return None


def _unknown_error(task: Task, error: Exception) -> WorldError:
    return WorldError(
        f"`macluster {task.verb}` could not be carried out.",
        why=f"{type(error).__name__}: {error}",
        do="try again; the machine may be short of memory, processes or open files",
    )


def _unknown(listing: Listing, why: str) -> dict[str, Any]:
    """A cluster that runs, or is being started by somebody, and is not connected yet."""
    return _blank(listing.name, listing.size, listing.backend, "") | {
        "words": why or "connecting to it",
        "owner": f"process {listing.owner_pid}",
    }


def _blank(name: str, size: int, backend: str, reason: str) -> dict[str, Any]:
    return {
        "name": name,
        "backend": backend,
        "reason": reason,
        "size": size,
        "state": "starting",
        "words": "",
        "since": None,
        "owner": "",
        "kept": True,
        "checked": False,
        "serving": "",
        "busy": None,
        "failure": None,
        "ranks": {},
        "models": {},
        "measured": "",
    }


_STATES = {"start": "starting", "restart": "starting", "stop": "stopping", "abort": "repairing"}


def _with_task(name: str, known: dict[str, Any] | None, task: Task) -> dict[str, Any]:
    found = known or _blank(name, task.size, task.backend, task.reason)
    if task.failure is not None:
        return found | {"state": "broken", "words": "it did not start", "failure": task.failure,
                        "since": task.failure["at"]}  # fmt: skip
    if task.verb == "measure":
        return found | {"words": task.step or "measuring the links"}
    return found | {"state": _STATES[task.verb], "words": task.step or task.verb,
                    "since": task.since}  # fmt: skip


def _not_found(name: str) -> ClusterNotFound:
    return ClusterNotFound(
        f"No cluster named {name!r} runs.",
        why="it was stopped meanwhile, or its owner has ended",
        do="start one: New cluster, or %cluster start 2",
    )


def _hostfile(hosts: Hosts) -> Hostfile:
    if isinstance(hosts, (int, str)):
        return as_hostfile(hosts)
    return Hostfile.from_json([{"ssh": host, "ips": [host], "rdma": []} for host in hosts])
