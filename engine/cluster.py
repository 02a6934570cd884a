"""`Cluster`: a controller and the ranks of one world, on ipyparallel."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import Logger, getLogger
from pathlib import Path
from typing import Any

import ipyparallel
from traitlets import Bool, Dict, Integer, List, Unicode, default
from traitlets.config import Config

from . import backends
from .background import block_on, in_background, see_through
from .client import RankClient
from .errors import (
    ClusterExists,
    ClusterNotFound,
    MaclusterError,
    RankDied,
    StartError,
    UsageError,
    WorldError,
)
from .files import ClusterFiles, Listing, cluster_file, is_alive, profile_dir, running
from .forming import Plan, form
from .guardian import Guardian, end_sessions
from .hostfile import Hostfile, split_assignment
from .launch import CONTROLLER_ARGUMENTS, ControllerLauncher, RankSetLauncher
from .processes import watch_processes
from .supervisor import Supervisor
from .world import World

Progress = Callable[[str], None]

DEFAULT_NAME = "macluster"
STOP_PATIENCE = 2.0  # seconds that a stop waits for another process that mends the world
CONNECT_TIMEOUT = 5.0  # seconds until the controller of a running cluster must have answered
START_TIMEOUT = 120.0  # seconds until every rank must have registered


def silent(step: str) -> None:
    """The progress callback that says nothing."""


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
    birth = Unicode(help="Tells it from another cluster of the same name.").tag(to_dict=True)
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
        self._clearing: asyncio.Task[None] | None = None
        self.supervisor = Supervisor(self)
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

    @default("cluster_file")
    def _default_cluster_file(self) -> str:
        return str(cluster_file(Path(self.profile_dir), self.name))

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

    @functools.cached_property
    def files(self) -> ClusterFiles:
        """Its files. Not before the traits are set: `from_file` does that after `__init__`."""
        return ClusterFiles(Path(self.profile_dir), self.name, self.birth)

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

    @in_background
    async def start(self, progress: Progress = silent) -> World:
        """Start the controller and the ranks, form the world, and return it.

        Calls `progress` with a few words at each step, in another thread. When anything fails,
        nothing is left running. Raises ClusterExists, StartError, or what the backend's checks
        raise.
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
        async with self.supervisor.turn:
            files = self.files  # before there is a birth: so far it has no name
            self.owner_pid, self.birth = os.getpid(), uuid.uuid4().hex
            try:
                await files.take_name(self.to_dict())
            except OSError as error:
                raise self._not_started(error, "") from error
            try:
                # Until the world is up, also of a cluster that is to be kept.
                self._guardian = Guardian()
                grace = backends.get(self.backend).term_grace
                self._guardian.tell(
                    files=self.files.patterns,
                    grace=grace,
                    cluster_file=str(self.files.cluster_file),
                )
                world = await self._start(progress)
                if self.keep:
                    await self.disarm()
                return world
            except BaseException as error:
                if isinstance(error, RankDied):
                    await self._explain_death(error)
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

    async def _explain_death(self, error: RankDied) -> None:
        """Say how the ranks ended that did not live to see the first world."""
        causes = await asyncio.to_thread(self.supervisor.obituaries)
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
        client.on_departure = self.supervisor.on_departure
        client.on_controller_end = self.supervisor.on_controller_end
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
            self._require_no_strangers()
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
        self._require_no_strangers()

    def _require_no_strangers(self) -> None:
        """Raise StartError when an engine has registered under a number that is no rank's."""
        assert self.world is not None
        strangers = sorted(set(self.world.client.ids) - set(range(self.n)))
        if strangers:
            raise StartError(
                f"Engines {strangers} registered beside the {self.n} ranks.",
                why="a rank was given a wrong number, or another cluster has this name",
                do="%cluster stop, then %cluster start with another --name",
            )

    @in_background
    async def stop(self) -> None:
        """End the ranks and the controller, and remove every file of the cluster."""
        if self.world is not None:
            if self.world.serving is not None:
                self.world.serving.abandon()
            # Frees a restart that waits for ranks, which would keep us waiting for our turn.
            await asyncio.to_thread(self.world.client.close, 0)
        async with self.supervisor.turn, self.files.exclusive(STOP_PATIENCE):
            self.adopt_from_file()
            await self._stop()

    def stop_sync(self) -> None:
        """`stop`, blocking. Half a stop helps nobody, and a whole one does not take long."""
        see_through(self.stop())

    async def _stop(self) -> None:
        world, self.world = self.world, None
        controller = self.controller
        async with contextlib.AsyncExitStack() as steps:
            # Carried out from the last to the first, whatever fails on the way.
            steps.push_async_callback(self.disarm)
            steps.callback(self.files.give_back)
            if controller is not None and controller.pid > 0:
                # A controller that was killed leaves children behind.
                steps.push_async_callback(asyncio.to_thread, end_sessions, {controller.pid}, 0.0)
            steps.push_async_callback(self.stop_controller)
            # The ranks first: each one's nanny reports to the controller, and lingers without it.
            steps.push_async_callback(self.stop_engines)
            if world is not None:
                steps.push_async_callback(asyncio.to_thread, world.client.close, 0)

    async def disarm(self) -> None:
        """Call the guardian off."""
        guardian, self._guardian = self._guardian, None
        if guardian is not None:
            await asyncio.to_thread(guardian.disarm)

    @in_background
    async def restart(self, progress: Progress = silent) -> World:
        """Kill all ranks and start them anew, on the same controller. Variables are lost."""
        if self.world is None:
            return await self.start(progress)
        if self.world.serving is not None:
            self.world.serving.abandon()
        progress("ending the ranks")
        await self.supervisor.recover(
            self.world.epoch, "the ranks are started anew", everyone=True, progress=progress
        )
        progress(f"{self.n} ranks on {self.backend} are ready ({self.backend_reason})")
        return self.world

    # -- after a failure -----------------------------------------------------------------------

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
        await client.cancel_registrations(ranks)
        self.rank_connection = (await self.controller.get_connection_info())["engine"]
        engines.give_orders()
        await self._wait_for_ranks(silent)

    def clear_leftovers(self) -> None:
        """End what ranks that were replaced have left behind, without waiting for it."""
        if self.engine_set is not None:
            self._clearing = asyncio.create_task(self.engine_set.clear())

    def adopt_from_file(self) -> None:
        """Take over the ranks that another process has started since we looked."""
        if self.files.gone:
            return  # what lies there now belongs to another cluster
        with contextlib.suppress(OSError, ValueError, KeyError):
            facts = self.files.read()
            [engines] = facts["engines"]["sets"].values()
            self.engine_set.adopt(engines["engines"])
            self.setup_cells = facts["cluster"].get("setup_cells", [])

    @in_background
    async def add_setup_cell(self, code: str) -> None:
        """Have a cell run on every rank that is started anew. A second time changes nothing."""
        async with self.supervisor.turn, self.files.exclusive():
            self.adopt_from_file()
            if code not in self.setup_cells:
                self.setup_cells = [*self.setup_cells, code]
                self.update_cluster_file()

    # -- other processes -----------------------------------------------------------------------

    @classmethod
    def connect(cls, name: str = DEFAULT_NAME, *, topic: bytes = b"") -> Cluster:
        """Attach to a running cluster of this user by name; its `world` can run cells at once.

        With a `topic`, it hears nothing else of what the ranks send, see `RankClient`.
        Raises ClusterNotFound.
        """
        files = ClusterFiles(profile_dir(), name)
        if not is_alive(files.cluster_file, ready=True):
            others = ", ".join(listing.name for listing in cls.running()) or "none"
            raise ClusterNotFound(
                f"No cluster named {name!r} runs.",
                why=f"it was stopped, never started, or has another name; running: {others}",
                do=f"%cluster start 2 --name {name}",
            )
        cluster: Cluster = cls.from_file(str(files.cluster_file))
        try:
            client = cluster.connect_client_sync(topic=topic, timeout=CONNECT_TIMEOUT)
        except TimeoutError:
            raise WorldError(
                f"The controller of {name!r} did not answer within {CONNECT_TIMEOUT:.0f} s.",
                why="it is just being started, it is stopped (SIGSTOP), or the machine is busy",
                do="try again; `macluster list` shows its process",
            ) from None
        cluster.world = World(cluster, client)
        cluster.world.learn()
        return cluster

    @classmethod
    async def connect_async(cls, name: str = DEFAULT_NAME) -> Cluster:
        """`connect`, for a program with an event loop."""
        return await asyncio.to_thread(cls.connect, name)

    @classmethod
    def running(cls) -> list[Listing]:
        """The running clusters of this user, by name."""
        return running()

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
        # What ipyparallel calls for every name that ends in `_sync`.
        return block_on(async_f(*args, **kwargs))

    def write_cluster_file(self) -> None:
        """Called by ipyparallel whenever something starts or ends."""
        self.files.write(self.to_dict())

    def remove_cluster_file(self) -> None:
        """Called by ipyparallel when everything has ended; `stop` removes all files at once."""

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
    """A Hostfile from a number of local ranks, also as text, a path, or itself."""
    if isinstance(hosts, Hostfile):
        return hosts
    # A file whose name is a number can be given as ./4.
    if isinstance(hosts, int) or (isinstance(hosts, str) and hosts.lstrip("-").isdigit()):
        return Hostfile.local(int(hosts))
    return Hostfile.load(hosts)
