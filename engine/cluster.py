"""`Cluster`: a controller and the ranks of one world, on ipyparallel."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import glob
import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from logging import Logger, getLogger
from pathlib import Path
from threading import Event, Thread
from typing import Any

import attrs
import ipyparallel
import psutil
from IPython.paths import get_ipython_dir
from traitlets import Bool, Dict, Integer, List, Unicode, default
from traitlets.config import Config

from . import backends
from .client import RankClient
from .errors import (
    ClusterExists,
    ClusterNotFound,
    MaclusterError,
    RankDied,
    StartError,
    UsageError,
    WorldBroken,
)
from .forming import Plan, form
from .guardian import Guardian, end_sessions
from .hostfile import Hostfile, split_assignment
from .launch import CONTROLLER_ARGUMENTS, ControllerLauncher, RankSetLauncher
from .processes import runs, watch_processes
from .recovery import Recovery, recover, status
from .world import World

Progress = Callable[[str], None]

DEFAULT_NAME = "macluster"
STOP_PATIENCE = 2.0  # seconds that a stop waits for another process that mends the world
OBITUARY_TIMEOUT = 0.5  # seconds until the exit code of a process that has ended must be known
CANCEL_TIMEOUT = 30.0  # seconds that an interrupted call gets to clean up
ORPHAN_TIMEOUT = 20.0  # seconds that a dead owner's cluster gets to end
START_TIMEOUT = 120.0  # seconds until every rank must have registered


def silent(step: str) -> None:
    """The progress callback that says nothing."""


@attrs.frozen
class Listing:
    """One line of `Cluster.running`."""

    name: str
    size: int
    backend: str
    owner_pid: int
    cluster_file: str


class Cluster(ipyparallel.Cluster):
    """A controller and one rank per entry of a hostfile.

    >>> with Cluster(2) as world:
    ...     world.run("rprint(mx.distributed.all_sum(mx.array(1)).item())").result()

    Every coroutine method has a blocking twin with `_sync` at the end of its name.

    Parameters
    ----------
    hosts
        A number of ranks on this machine, the path of a hostfile, or a `Hostfile`.
    backend
        `"jaccl"`, `"jaccl-ring"`, `"ring"`, `"mpi"` or `"nccl"`; chosen with a reason by default.
    env
        Variables for every rank, beside those of the hostfile.
    name
        What `connect` and `%cluster connect` find the cluster by.
    checked
        Compare every collective across the ranks before any data moves, and raise
        CollectiveMismatch where they differ. It adds one small collective to each.
    keep
        Let the ranks outlive this process; `connect` finds them again, and `stop` ends them.

    Raises HostfileError, BackendError or UsageError when these do not fit together.
    """

    # `to_dict` writes these to the cluster file, so that another process can restart the ranks.
    backend = Unicode(help="The name of MLX's collective backend.").tag(to_dict=True)
    backend_reason = Unicode(help="Why that backend.").tag(to_dict=True)
    hostfile = Dict(help="The hostfile, as JSON.").tag(to_dict=True)
    user_env = Dict(help="Variables for every rank.").tag(to_dict=True)
    owner_pid = Integer(0, help="The process that ends the cluster when it ends.").tag(to_dict=True)
    keep = Bool(help="Whether the ranks outlive the process that started them.").tag(to_dict=True)
    checked = Bool(help="Whether every collective is compared across ranks.").tag(to_dict=True)
    setup_cells = List(Unicode(), help="Cells to run on every new rank.").tag(to_dict=True)

    def __init__(
        self,
        hosts: int | str | Path | Hostfile | None = None,
        *,
        backend: str | None = None,
        env: Mapping[str, str] | None = None,
        name: str | None = None,
        checked: bool = False,
        keep: bool = False,
        **traits: Any,
    ) -> None:
        traits.setdefault("engines", RankSetLauncher)
        traits.setdefault("controller", ControllerLauncher)
        if name is not None:
            traits.setdefault("cluster_id", name)
        if hosts is not None:
            traits |= {"checked": checked, "keep": keep}
        # `from_file` hands it on, and here it is no trait any more, see below.
        traits.pop("shutdown_atexit", None)
        # Without a parent: a notebook's own configuration must not reach the ranks.
        super().__init__(parent=None, config=Config(), **traits)
        self.world: World | None = None
        self.rank_connection: dict[str, Any] = {}  # the controller's address and key
        self._guardian: Guardian | None = None
        self._turn = asyncio.Lock()  # start, stop and recover take turns
        self._clearing: asyncio.Task[None] | None = None
        self._listed = hosts is None  # its file was written, or it was made from that
        self._unlisted = False  # its files are gone, and its name is free
        if hosts is not None:
            hostfile = as_hostfile(hosts)
            choice = backends.choose(hostfile, backend)
            self.backend, self.backend_reason = choice.backend.name, choice.reason
            self.hostfile = hostfile.to_json()
            self.user_env = dict(split_assignment(f"{k}={v}") for k, v in (env or {}).items())
            self.n = len(hostfile)

    # ipyparallel's defaults that do not fit: its own log prints to the notebook, its pause before
    # the ranks start is not needed, and at exit the guardian ends what still runs.
    shutdown_atexit = False
    delay = 0.0
    load_profile = False
    send_engines_connection_env = False

    @default("cluster_id")
    def _default_cluster_id(self) -> str:
        return DEFAULT_NAME

    @default("profile_dir")
    def _default_profile_dir(self) -> str:
        return str(profile_dir())

    @default("log")
    def _default_log(self) -> Logger:
        log = getLogger(f"macluster.{self.cluster_id}")
        log.setLevel("ERROR")
        return log

    @default("controller_args")
    def _default_controller_args(self) -> list[str]:
        return [
            *CONTROLLER_ARGUMENTS,
            f"--profile-dir={self.profile_dir}",
            f"--cluster-id={self.cluster_id}",
        ]

    @property
    def hosts(self) -> Hostfile:
        if self._hosts is None or self._hosts[0] is not self.hostfile:
            self._hosts = (self.hostfile, Hostfile.from_json(self.hostfile))
        return self._hosts[1]

    _hosts: tuple[dict[str, Any], Hostfile] | None = None

    @property
    def running_world(self) -> World:
        """The world. Raises ClusterNotFound when the cluster does not run."""
        if self.world is None:
            raise ClusterNotFound(
                f"The cluster {self.name!r} does not run.",
                why="it was not started, or it was stopped",
                do="start() or Cluster.connect(name)",
            )
        return self.world

    @property
    def name(self) -> str:
        return str(self.cluster_id)

    @property
    def backend_name(self) -> str:
        return str(self.backend)

    # -- life ----------------------------------------------------------------------------------

    async def start(self, progress: Progress = silent) -> World:
        """Start the controller and the ranks, form the world, and return it.

        Calls `progress` with a few words at each step. When anything fails, nothing is left
        running. Raises ClusterExists, StartError, or what the backend's checks raise.
        """
        if self.world is not None:
            raise ClusterExists(
                f"This cluster runs already: {self.world!r}.",
                why="start was called a second time",
                do="use its `world`, or `restart`",
            )
        if not self.hostfile:
            raise UsageError(
                "This cluster has no ranks.",
                why="no hosts were given",
                do="Cluster(2).start_sync()",
            )
        async with self._turn:
            try:
                await self._claim_name()
            except OSError as error:
                raise self._not_started(error, "") from error
            try:
                # Until the world is up, also of a cluster that is to be kept.
                self._guardian = Guardian()
                grace = backends.get(self.backend).term_grace
                self._guardian.tell(
                    files=[*self._files(), *self._logs()],
                    grace=grace,
                    cluster_file=str(self.cluster_file),
                )
                world = await self._start(progress)
                if self.keep:
                    await self._disarm()
                return world
            except BaseException as error:
                if isinstance(error, RankDied):
                    await asyncio.to_thread(self._explain_death, error)
                report = self._last_words()
                # What went wrong while cleaning up must not hide why it had to be done.
                with contextlib.suppress(Exception):
                    await self._stop()
                if isinstance(error, MaclusterError):
                    if report and report not in str(error):
                        error.why += f"\n{report}"
                    raise
                if not isinstance(error, Exception):
                    raise
                raise self._not_started(error, report) from error

    def _explain_death(self, error: RankDied) -> None:
        """Say how the ranks ended that did not live to see the first world."""
        pause, engines = Event(), self.engine_set
        for _ in range(50):
            if engines is not None and engines.missing:
                break
            pause.wait(OBITUARY_TIMEOUT / 50)
        causes = {rank: engines.ended[rank].cause for rank in engines.missing}
        if not causes:
            return  # it is stopped, as the error says
        error.why = "\n".join(f"rank {rank}: {cause}" for rank, cause in causes.items())
        error.do = "see what its last lines say; %cluster start tries again"

    def _not_started(self, error: Exception, report: str) -> StartError:
        do = "%cluster start 2 on this machine shows whether the installation works"
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            do = f"free some space on the disk of {self.profile_dir}"
        return StartError(
            f"The cluster {self.name!r} did not start: {type(error).__name__}: {error}",
            why=report or "see the error that caused this one, above",
            do=do,
        )

    async def _start(self, progress: Progress) -> World:
        by_launcher = backends.get(self.backend).command(self.hosts) is not None
        progress(f"starting {self.n} ranks on {self.backend}")
        if not by_launcher:
            # The ranks import their libraries while the controller comes up.
            await self.start_engines(self.n)
        await self.start_controller()
        self.guard(self.controller.pid)
        self.rank_connection = (await self.controller.get_connection_info())["engine"]
        if by_launcher:
            await self.start_engines(self.n)
        self.engine_set.give_orders()
        progress("waiting for the ranks")
        client = await self.connect_client()
        self.world = World(self, client)
        await self._wait_for_ranks(progress)
        progress("forming the world")
        hosts, backend = self.hosts, backends.get(self.backend)
        await form(self.world, Plan(hosts, backend, 1, self.checked))
        self.world.epoch = 1
        self.update_cluster_file()
        client.on_departure = self._on_departure
        client.on_controller_end = self._on_controller_end
        progress(f"{self.n} ranks on {self.backend} are ready ({self.backend_reason})")
        return self.world

    async def connect_client(self, **options: Any) -> RankClient:
        """A client of the running controller, without any files left to read."""
        connection = await self.controller.get_connection_info()

        def connect() -> RankClient:
            return RankClient(
                connection["client"],
                cluster=self,
                profile_dir=self.profile_dir,
                cluster_id=self.cluster_id,
                **options,
            )

        client = await asyncio.to_thread(connect)
        local = {rank for rank, host in enumerate(self.hosts.hosts) if host.is_local}
        watch_processes(self.controller.pid, local, client)
        return client

    async def _wait_for_ranks(self, progress: Progress) -> None:
        """Until every rank is registered under its own number. Raises StartError."""
        assert self.world is not None
        client, wanted = self.world.client, set(range(self.n))
        loop = asyncio.get_running_loop()
        deadline, seen = loop.time() + START_TIMEOUT, 0
        while not wanted <= set(client.ids):
            if client.lost is not None:
                raise client.lost
            # A look at the processes every now and then: one that dies early never registers.
            await client.until(lambda here: len(here) > seen, timeout=0.1)  # noqa: B023
            if len(client.ids) > seen:
                seen = len(client.ids)
                progress(f"{seen} of {self.n} ranks are here")
            gone = self.engine_set.missing
            if gone:
                raise StartError(
                    f"Rank {gone[0]} ended while it started.",
                    why=self._last_words() or "it printed nothing before it ended",
                    do="correct what its last lines complain about;\n"
                    "`python -m macluster.engine.rank </dev/null` shows whether a rank can start",
                )
            if loop.time() > deadline:
                missing = sorted(wanted - set(client.ids))
                raise StartError(
                    f"Rank {missing[0]} did not register within {START_TIMEOUT:.0f} s.",
                    why=self.last_words(missing[0])
                    or "it printed nothing; the machine may be overloaded",
                    do="try fewer ranks: %cluster start 2",
                )
        strangers = sorted(set(client.ids) - wanted)
        if strangers:
            raise StartError(
                f"Engines {strangers} registered beside the {self.n} ranks.",
                why="a rank was given a wrong number, or another cluster has this name",
                do="%cluster stop, then %cluster start with another --name",
            )

    async def stop(self) -> None:
        """End the ranks and the controller, and remove every file of the cluster."""
        if self.world is not None:
            # Frees a restart that waits for ranks, which would keep us waiting for our turn.
            await asyncio.to_thread(self.world.client.close, 0)
        exclusive = contextlib.nullcontext() if self._unlisted else self._exclusive(STOP_PATIENCE)
        async with self._turn, exclusive:
            self._adopt_from_file()
            if self._clearing is not None:
                await asyncio.wait([self._clearing])
            await self._stop()

    async def _stop(self) -> None:
        world, self.world = self.world, None
        controller, unlisted = self.controller, self._unlisted
        async with contextlib.AsyncExitStack() as steps:
            # Carried out from the last to the first, whatever fails on the way.
            steps.push_async_callback(self._disarm)
            if not unlisted:
                steps.callback(self._remove_files)
            if controller is not None and controller.pid > 0:
                # A controller that was killed leaves children behind.
                steps.push_async_callback(asyncio.to_thread, end_sessions, {controller.pid}, 0.0)
            steps.push_async_callback(self.stop_controller)
            # The ranks first: each one's nanny reports to the controller, and lingers without it.
            steps.push_async_callback(self.stop_engines)
            if world is not None:
                steps.push_async_callback(asyncio.to_thread, world.client.close, 0)

    async def _disarm(self) -> None:
        guardian, self._guardian = self._guardian, None
        if guardian is not None:
            await asyncio.to_thread(guardian.disarm)

    def _remove_files(self) -> None:
        logs = [path for pattern in self._logs() for path in glob.glob(pattern)]
        for path in [*self._files(), *logs]:
            with contextlib.suppress(OSError):
                os.remove(path)

    def _logs(self) -> list[str]:
        """Patterns of the log files."""
        folder, name = glob.escape(f"{self.profile_dir}/log"), glob.escape(self.name)
        return [
            f"{folder}/macluster-{name}-rank-*.log",
            f"{folder}/ipcontroller-{name}-*.log",
            f"{folder}/engines{name}.json",
        ]

    async def restart(self, progress: Progress = silent) -> World:
        """Kill all ranks and start them anew, on the same controller. Variables are lost."""
        if self.world is None:
            return await self.start(progress)
        progress("ending the ranks")
        await self.recover(self.world.epoch, "the ranks are started anew", everyone=True)
        progress(f"{self.n} ranks on {self.backend} are ready ({self.backend_reason})")
        return self.world

    # -- after a failure -----------------------------------------------------------------------

    async def recover(self, seen: int, why: str, *, everyone: bool = False) -> Recovery:
        """Give up the world `seen` and form a new one, unless somebody has done that already."""
        if self.world is not None and self.world.client.lost is not None:
            raise self.world.client.lost
        async with self._turn, self._exclusive():
            world = self.world
            if world is None:
                raise WorldBroken(
                    "This cluster was stopped.",
                    why="it was stopped while a new world was to be formed",
                    do="%cluster start",
                )
            if world.client.lost is not None:
                raise world.client.lost
            if self._was_stopped():
                stopped = WorldBroken(
                    "This cluster was stopped from elsewhere.",
                    why="another notebook, or `macluster stop` in a terminal, has ended it",
                    do="%cluster start",
                )
                world.client.lose(stopped)
                raise stopped
            self._adopt_from_file()
            try:
                report = await recover(self, world, seen=seen, why=why, everyone=everyone)
            except MaclusterError:
                raise
            except Exception as error:
                world.phase = "broken"
                raise WorldBroken(
                    f"No new world could be formed: {type(error).__name__}: {error}",
                    why="see the error that caused this one, above",
                    do="%cluster restart, or %cluster stop and %cluster start",
                ) from error
            if not report.by_others:
                try:
                    self.update_cluster_file()
                except OSError as error:
                    report.notes.append(f"{self.cluster_file} could not be written: {error}.")
            return report

    def recover_blocking(self, seen: int, why: str, *, everyone: bool = False) -> Recovery:
        """`recover`, for a thread. A first Ctrl-C does not break it off, because that would leave
        the ranks without a world; a second one does.
        """
        recovery = self.recover(seen, why, everyone=everyone)
        future = asyncio.run_coroutine_threadsafe(recovery, background_loop())
        impatience = 0
        while True:
            try:
                return future.result()
            except KeyboardInterrupt:
                impatience += 1
                if impatience > 1:
                    future.cancel()
                    raise

    async def replace_ranks(self, ranks: Sequence[int]) -> None:
        """Kill the processes of `ranks` and start new ones, up to their registration."""
        assert self.world is not None
        client, engines = self.world.client, self.engine_set
        pids = [client.pids[rank] for rank in ranks if rank in client.pids]
        await engines.replace(ranks, pids)
        # A number is given again only when its last owner is gone.
        for _ in range(100):
            if await client.until(lambda here: not here & set(ranks), timeout=0.1):
                break
            if client.lost is not None:
                raise client.lost
        self.rank_connection = (await self.controller.get_connection_info())["engine"]
        engines.give_orders()
        await self._wait_for_ranks(silent)

    def clear_leftovers(self) -> None:
        """End what ranks that were replaced have left behind, without waiting for it."""
        if self.engine_set is not None:
            self._clearing = asyncio.create_task(self.engine_set.clear())

    def _on_departure(self, rank: int) -> None:
        """A rank is gone (called in the client's IO thread): have the world mended."""
        loop = background_loop()
        loop.call_soon_threadsafe(lambda: loop.create_task(self._mend(rank)))

    def _on_controller_end(self) -> None:
        """The controller is gone (called in the watching thread): the ranks are of no use."""
        loop = background_loop()
        loop.call_soon_threadsafe(lambda: loop.create_task(self._end_ranks()))

    async def _end_ranks(self) -> None:
        # The name is free from now on.
        self._remove_files()
        self._unlisted = True
        async with self._turn:
            if self.world is not None and self.engine_set is not None:
                await self.engine_set.stop()
                # A controller that was killed leaves children behind.
                await asyncio.to_thread(end_sessions, {self.controller.pid}, 0.0)
                await self._disarm()

    async def _mend(self, rank: int) -> None:
        """A rank has died: start its successor, and mend the world if nobody uses it.

        Whoever runs a cell mends it otherwise, and tells of it with the cell's failure.
        """
        world = self.world
        if world is None or self._turn.locked():
            return
        cause = await asyncio.to_thread(self.obituary, rank)
        async with self._turn:
            if (
                self.world is None
                or not world.dead
                or backends.get(self.backend).command(self.hosts)
            ):
                return
            with contextlib.suppress(MaclusterError, OSError):
                async with self._exclusive():
                    self._adopt_from_file()
                    launcher = self.engine_set.launchers.get(str(rank))
                    if rank not in world.dead or (launcher is not None and runs(launcher.pid)):
                        return  # somebody else was faster
                    await self.engine_set.replace([rank], [])
                    self.update_cluster_file()
        if world.busy or any(state["busy"] for state in (await status(world)).values()):
            return
        with contextlib.suppress(MaclusterError):
            report = await self.recover(world.epoch, f"rank {rank} died")
            if report.restarted:
                world.notices += [f"Rank {rank} died while it was idle: {cause}.", *report.notes]

    def _was_stopped(self) -> bool:
        """True when the cluster was ended: its files are gone, and so is the lock now."""
        if Path(self.cluster_file).exists():
            return False
        with contextlib.suppress(OSError):
            os.remove(self._lock_file)
        return True

    @contextlib.asynccontextmanager
    async def _exclusive(self, patience: float | None = None) -> AsyncIterator[None]:
        """Keep other processes that use this cluster from changing it meanwhile.

        After `patience` seconds, go on without.
        """
        loop = asyncio.get_running_loop()
        deadline = None if patience is None else loop.time() + patience
        lock = os.open(self._lock_file, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if deadline is not None and loop.time() > deadline:
                        break
                    await asyncio.sleep(0.02)
            yield
        finally:
            os.close(lock)
            self._was_stopped()  # then the lock goes, too

    @property
    def _lock_file(self) -> str:
        return str(Path(self.profile_dir) / "security" / f"cluster-{self.name}.lock")

    def _adopt_from_file(self) -> None:
        """Take over the ranks that another process has started since we looked."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            facts = json.loads(Path(self.cluster_file).read_text())
            [engines] = facts["engines"]["sets"].values()
            self.engine_set.adopt(engines["engines"])
            self.setup_cells = facts["cluster"].get("setup_cells", [])

    async def add_setup_cell(self, code: str) -> None:
        """Have a cell run on every rank that is started anew. A second time changes nothing."""
        async with self._turn, self._exclusive():
            self._adopt_from_file()
            if code not in self.setup_cells:
                self.setup_cells = [*self.setup_cells, code]
                self.update_cluster_file()

    def add_setup_cell_sync(self, code: str) -> None:
        """`add_setup_cell`, blocking."""
        self._synchronize(self.add_setup_cell, code)

    def obituary(self, rank: int) -> str:
        """How the last process of a rank ended, in words. Waits a moment for its exit code."""
        pause = Event()
        for _ in range(50):
            if self.engine_set is None or self.world is None:
                break
            client = self.world.client
            # Still under `pids` when it was found dead before the controller has said so.
            ending = self.engine_set.ending(client.pids.get(rank, client.last_pids.get(rank)))
            if ending is not None:
                return str(ending.cause)
            pause.wait(OBITUARY_TIMEOUT / 50)
        return "its process ended"

    # -- other processes -----------------------------------------------------------------------

    @classmethod
    def connect(cls, name: str = DEFAULT_NAME) -> Cluster:
        """Attach to a running cluster of this user by name; its `world` can run cells at once.

        Raises ClusterNotFound.
        """
        path = _cluster_file(name)
        if not _alive(path) or "controller" not in json.loads(path.read_text()):
            running = ", ".join(listing.name for listing in cls.running()) or "none"
            raise ClusterNotFound(
                f"No cluster named {name!r} runs.",
                why=f"it was stopped, never started, or has another name; running: {running}",
                do=f"%cluster start 2 --name {name}",
            )
        cluster: Cluster = cls.from_file(str(path))
        cluster.world = World(cluster, cluster.connect_client_sync())
        cluster.world.learn()
        return cluster

    @classmethod
    async def connect_async(cls, name: str = DEFAULT_NAME) -> Cluster:
        """`connect`, for a program with an event loop."""
        return await asyncio.to_thread(cls.connect, name)

    @classmethod
    def running(cls) -> list[Listing]:
        """The running clusters of this user, by name."""
        found = []
        for path in sorted((profile_dir() / "security").glob("cluster-*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError):
                if _alive(path):
                    facts = json.loads(path.read_text())["cluster"]
                    found.append(
                        Listing(
                            facts["cluster_id"],
                            facts["n"],
                            facts["backend"],
                            facts["owner_pid"],
                            str(path),
                        )
                    )
        return found

    def disconnect(self) -> None:
        """Let go of a cluster that another process owns."""
        world, self.world = self.world, None
        if world is not None:
            world.client.close(linger=0)

    async def __aenter__(self) -> World:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def __enter__(self) -> World:
        world: World = self.start_sync()
        return world

    def __exit__(self, *_: object) -> None:
        self.stop_sync()

    # -- inside --------------------------------------------------------------------------------

    def guard(self, pid: int) -> None:
        """Have a child process ended if this process is killed."""
        if self._guardian is not None:
            self._guardian.tell(leaders=[pid])

    def unguard(self, pids: Iterable[int]) -> None:
        """Child processes and all that they started have ended: their numbers are free again."""
        if self._guardian is not None:
            self._guardian.tell(forget=list(pids))

    def _synchronize(self, async_f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Always in the same loop: the launchers report the end of a process to the loop that
        # started it, and a loop per call would be closed by then.
        ended = Event()

        async def run() -> Any:
            try:
                return await async_f(*args, **kwargs)
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), background_loop())
        try:
            return future.result()
        except KeyboardInterrupt:
            if async_f.__name__ == "stop":
                # Half a stop helps nobody, and it does not take long.
                ended.wait(CANCEL_TIMEOUT)
                return None
            # A start that is given up cleans up after itself; nothing of it may go on.
            future.cancel()
            ended.wait(CANCEL_TIMEOUT)
            raise

    def write_cluster_file(self) -> None:
        """Write the cluster file as a whole, readable by its owner only: it holds `user_env`."""
        path = Path(self.cluster_file)
        if self._unlisted or (self._listed and not path.exists()):
            return  # ipyparallel writes it whenever something ends, also after a stop elsewhere
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(self.to_dict(), file)
            os.replace(scratch, path)
        except OSError:
            os.remove(scratch)
            raise

    def _files(self) -> list[str]:
        security = Path(self.profile_dir) / "security"
        kinds = [f"ipcontroller-{self.cluster_id}-{kind}.json" for kind in ("client", "engine")]
        return [
            str(self.cluster_file),
            self._lock_file,
            *(str(security / name) for name in kinds),
        ]

    async def _claim_name(self) -> None:
        """Raise ClusterExists when the name is taken; clear away what a dead cluster left."""
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise UsageError(
                f"{self.name!r} cannot be the name of a cluster.",
                why="the name becomes part of a file name",
                do="use letters, digits and dashes",
            )
        folder = Path(self.profile_dir)
        for each in (folder, folder / "security", folder / "log"):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
            each.chmod(0o700)
        deadline = asyncio.get_running_loop().time() + ORPHAN_TIMEOUT
        while not self._claimed():
            listing = next((each for each in self.running() if each.name == self.name), None)
            # After a kernel was restarted, the guardian needs a moment to end its cluster.
            gone = listing is None or not psutil.pid_exists(listing.owner_pid)
            if listing and (not gone or asyncio.get_running_loop().time() > deadline):
                raise ClusterExists(
                    f"A cluster named {self.name!r} runs already "
                    f"({listing.size} ranks on {listing.backend}, process {listing.owner_pid}).",
                    why="another notebook of yours started it, or this one did before",
                    do=f"%cluster connect {self.name}, or %cluster start N --name another-name",
                )
            await asyncio.sleep(0.1)

    def _claimed(self) -> bool:
        """Take the name by writing the cluster file, unless a running cluster has it."""
        with open(Path(self.profile_dir) / "security" / "names.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _alive(Path(self.cluster_file)):
                return False
            self._remove_files()
            self._listed = self._unlisted = False
            self.owner_pid = os.getpid()
            self.write_cluster_file()
            self._listed = True
            return True

    def last_words(self, rank: int) -> str:
        """The end of what a rank's process printed outside of any cell, or ""."""
        return str(self.engine_set.last_output(rank)) if self.engine_set else ""

    def _last_words(self) -> str:
        """The last output of the ranks that ended, for a report."""
        ended = sorted(self.engine_set.ended) if self.engine_set else []
        said = {rank: self.last_words(rank) for rank in ended[:2]}
        return "\n".join(
            f"the last output of rank {r}:\n{text}" for r, text in said.items() if text
        )


def as_hostfile(hosts: int | str | Path | Hostfile) -> Hostfile:
    """A Hostfile from a number of local ranks, a path, or itself."""
    if isinstance(hosts, Hostfile):
        return hosts
    if isinstance(hosts, int):
        return Hostfile.local(hosts)
    return Hostfile.load(hosts)


def profile_dir() -> Path:
    """The folder, private to the user, that keeps the files of the running clusters."""
    return Path(get_ipython_dir()) / "profile_macluster"


def _cluster_file(name: str) -> Path:
    return profile_dir() / "security" / f"cluster-{name}.json"


def _alive(path: Path) -> bool:
    """True when the cluster of a cluster file runs, or is just being started."""
    try:
        facts = json.loads(path.read_text())
        starting = "controller" not in facts
        pid = facts["cluster"]["owner_pid"] if starting else facts["controller"]["state"]["pid"]
        return runs(pid)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@functools.cache
def background_loop() -> asyncio.AbstractEventLoop:
    """The event loop, in a thread of its own, that serves every blocking call."""
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name="macluster-loop", daemon=True).start()
    return loop
