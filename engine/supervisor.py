"""The supervisor of a cluster: has its world mended after a failure, once and by one process.

Whoever runs a cell notices a failure first and asks for the recovery; a rank that dies while nobody
runs one is noticed here. `recovery` has the steps.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from threading import Event
from typing import TYPE_CHECKING, Any, TypeVar

from . import backends
from .background import Job, in_background, see_through
from .errors import MaclusterError, WorldBroken
from .guardian import end_sessions
from .launch import Ending
from .processes import runs
from .recovery import Recovery, recover, status

if TYPE_CHECKING:
    from .cluster import Cluster
    from .world import World

T = TypeVar("T")

ENDING_TIMEOUT = 0.5  # seconds until it must be known how a process ended
LOOKS = 50  # in that time


class Supervisor:
    """Lets one task at a time change the ranks of a cluster. `turn` is held meanwhile."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.turn = asyncio.Lock()  # start, stop and recover take turns

    # -- asked for -----------------------------------------------------------------------------

    @in_background
    async def recover(
        self,
        seen: int,
        why: str,
        *,
        everyone: bool = False,
        progress: Callable[[str], None] = lambda _: None,
    ) -> Recovery:
        """Give up the world `seen` and form a new one, unless somebody has done that already."""
        cluster = self.cluster
        if cluster.world is not None and cluster.world.client.lost is not None:
            raise cluster.world.client.lost
        async with self.turn, cluster.files.exclusive():
            world = self._stopped_or_world()
            cluster.adopt_from_file()
            try:
                report = await recover(
                    cluster, world, seen=seen, why=why, everyone=everyone, progress=progress
                )
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
                    cluster.update_cluster_file()
                except OSError as error:
                    report.notes.append(f"{cluster.cluster_file} could not be written: {error}.")
            return report

    def recover_blocking(self, seen: int, why: str, **options: Any) -> Recovery:
        """`recover`, for a thread. Half of one would leave the ranks without a world."""
        return see_through(self.recover(seen, why, **options))

    def _stopped_or_world(self) -> World:
        """The world. Raises WorldBroken when the cluster was stopped meanwhile."""
        world = self.cluster.world
        if world is None:
            raise WorldBroken(
                "This cluster was stopped.",
                why="it was stopped while a new world was to be formed",
                do="%cluster start",
            )
        if world.client.lost is None and self.cluster.files.gone:
            world.client.lose(
                WorldBroken(
                    "This cluster was stopped from elsewhere.",
                    why="another notebook, or `macluster stop` in a terminal, has ended it",
                    do="%cluster start",
                )
            )
        if world.client.lost is not None:
            raise world.client.lost
        return world

    # -- noticed -------------------------------------------------------------------------------

    def on_departure(self, rank: int) -> None:
        """A rank is gone (called in the client's IO thread): have the world mended."""
        self._start(self._replace(rank), f"the successor of rank {rank}")

    def on_controller_end(self) -> None:
        """The controller is gone (called in the watching thread): the ranks are of no use."""
        self._start(self._end_ranks(), "the end of the ranks")

    def _start(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Do something that nobody waits for; a failure is told to whoever looks next."""

        def tell(done: Future[None]) -> None:
            world = self.cluster.world
            if world is not None and not done.cancelled() and done.exception() is not None:
                world.notices.append(f"{what} failed: {done.exception()!r}")

        Job(work).future.add_done_callback(tell)

    async def _end_ranks(self) -> None:
        cluster = self.cluster
        cluster.files.give_back()
        async with self.turn:
            if cluster.world is not None and cluster.engine_set is not None:
                await cluster.engine_set.stop()
                # A controller that was killed leaves children behind.
                await asyncio.to_thread(end_sessions, {cluster.controller.pid}, 0.0)
                await cluster.disarm()

    async def _replace(self, rank: int) -> None:
        """A rank has died: start its successor, and mend the world if nobody uses it.

        Whoever runs a cell mends it otherwise, and tells of it with the cell's failure.
        """
        cluster, world = self.cluster, self.cluster.world
        if world is None or self.turn.locked():
            return
        cause = await asyncio.to_thread(self.obituary, rank)
        async with self.turn:
            one_for_all = backends.get(cluster.backend).command(cluster.hosts) is not None
            if cluster.world is None or not world.dead or one_for_all:
                return
            with contextlib.suppress(MaclusterError, OSError):
                async with cluster.files.exclusive():
                    cluster.adopt_from_file()
                    launcher = cluster.engine_set.launchers.get(str(rank))
                    if rank not in world.dead or (launcher is not None and runs(launcher.pid)):
                        return  # somebody else was faster
                    await cluster.engine_set.replace([rank], [])
                    cluster.update_cluster_file()
        if world.busy or any(state["busy"] for state in (await status(world)).values()):
            return
        with contextlib.suppress(MaclusterError):
            report = await self.recover(world.epoch, f"rank {rank} died")
            if report.restarted:
                world.notices += [f"Rank {rank} died while it was idle: {cause}.", *report.notes]

    # -- how ranks ended -----------------------------------------------------------------------

    def obituary(self, rank: int) -> str:
        """How the last process of a rank ended, in words. Waits a moment for its exit code."""
        ending = _patiently(lambda: self._ending(rank))
        return ending.cause if ending is not None else "its process ended"

    def _ending(self, rank: int) -> Ending | None:
        engines, world = self.cluster.engine_set, self.cluster.world
        if engines is None or world is None:
            return None
        client = world.client
        # Still under `pids` when it was found dead before the controller has said so.
        ending: Ending | None = engines.ending(client.pids.get(rank, client.last_pids.get(rank)))
        return ending

    def obituaries(self) -> dict[int, str]:
        """The same for every rank that has no successor."""
        engines = self.cluster.engine_set
        missing = _patiently(lambda: engines.missing or None) if engines is not None else None
        return {rank: engines.ended[rank].cause for rank in missing or ()}


def _patiently(look: Callable[[], T | None]) -> T | None:
    """What `look` finds once the end of a process has been noticed here, or None."""
    pause = Event()
    for _ in range(LOOKS):
        if (found := look()) is not None:
            return found
        pause.wait(ENDING_TIMEOUT / LOOKS)
    return None
