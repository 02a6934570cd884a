"""Count the processes of a cluster, and wait for them to end."""

from __future__ import annotations

import psutil

import macluster

# Longer than any step takes on two busy cores; a condition ends the wait long before.
PATIENCE = 60.0


def family(cluster: macluster.Cluster) -> list[psutil.Process]:
    """The controller, the ranks, and all of their children."""
    roots = [cluster.controller.pid]
    roots += [launcher.pid for launcher in cluster.engine_set.launchers.values()]
    return with_children(roots)


def with_children(pids: list[int]) -> list[psutil.Process]:
    processes = [psutil.Process(pid) for pid in pids]
    return [each for root in processes for each in (root, *root.children(recursive=True))]


def still_there(processes: list[psutil.Process], patience: float = PATIENCE) -> list[str]:
    """The command lines of those that have not ended after `patience` seconds."""
    _, alive = psutil.wait_procs(processes, timeout=patience)
    left = []
    for process in alive:
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            left.append(" ".join(process.cmdline()))
    return left
