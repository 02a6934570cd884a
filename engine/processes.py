"""Watch the processes of a cluster that run on this machine: what no socket says in time."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Collection
from threading import Event, Thread

import psutil

from .client import RankClient
from .errors import RankDied, WorldBroken

INTERVAL = 0.25  # seconds between two looks
LOOKS = 4  # in a row that must find a process stopped


def runs(pid: int) -> bool:
    """True when the process is there and has not ended."""
    return state(pid) in ("running", "stopped")


def state(pid: int) -> str:
    """ "running", "stopped" (SIGSTOP) or "gone"."""
    try:
        status = psutil.Process(pid).status()
    except psutil.Error:
        return "gone"
    if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        return "gone"
    # A debugger's or a profiler's stop is another state, and passes.
    return "stopped" if status == psutil.STATUS_STOPPED else "running"


def watch_processes(controller: int, local: Collection[int], client: RankClient) -> None:
    """Tell `client` when its controller ends, or one of the `local` ranks stops or ends.

    A rank that ends is usually reported by its nanny; but that may have been killed, too. Ends by
    itself when the client is closed or collected.
    """
    watcher = Thread(
        target=_watch,
        args=(controller, frozenset(local), weakref.ref(client)),
        name="macluster-processes",
        daemon=True,
    )
    watcher.start()


def _watch(controller: int, local: Collection[int], reference: weakref.ref[RankClient]) -> None:
    pause, stopped = Event(), Counter[int]()
    while runs(controller):
        client = reference()
        if client is None or client.lost is not None:
            return
        for rank, pid in list(client.pids.items()):
            if rank in local:
                found = state(pid)
                stopped[pid] = stopped[pid] + 1 if found == "stopped" else 0
                if found != "stopped" or stopped[pid] >= LOOKS:
                    _tell(client, rank, pid, found)
        del client
        pause.wait(INTERVAL)
    if (left := reference()) is not None:
        left.lose(
            WorldBroken(
                "The controller of this cluster ended.",
                why="its process was killed, or the notebook that owned the cluster is gone",
                do="%cluster start",
            )
        )
        if left.on_controller_end is not None:
            left.on_controller_end()


def _tell(client: RankClient, rank: int, pid: int, found: str) -> None:
    if client.pids.get(rank) != pid:
        return  # replaced meanwhile
    if found == "running":
        client.take_back(rank)
    elif found == "stopped":
        client.give_up(
            rank,
            RankDied(
                f"Rank {rank} is stopped.",
                why=f"its process {pid} was sent SIGSTOP",
                do=f"kill -CONT {pid} lets it go on; a cell that needs it replaces it",
            ),
        )
    else:
        client.give_up(rank, RankDied(f"Rank {rank} died.", why="its process ended"))
