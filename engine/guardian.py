"""End what a cluster started when its owner is gone, however the owner went.

The owner keeps a pipe to this process open and writes one line of JSON for each process it starts.
When the pipe closes without a "disarm" line, the owner was killed: this process then ends every
process of the sessions it was told about, with their children, and removes the cluster's files.
It runs as a plain script, so that it starts in milliseconds and needs no import of macluster.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import signal
import subprocess
import sys
from typing import Any, TextIO


class Guardian:
    """The owner's end: starts the guardian and tells it what to end."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def tell(self, **order: Any) -> None:
        """Send an order.

        `leaders=[pid]` and `forget=[pid]` name processes, `files=[pattern]` what to remove,
        `cluster_file=path` where other processes note what they have started, `grace` the seconds
        between SIGTERM and SIGKILL, and `disarm=True` calls everything off.
        """
        process = self._process
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()

    def disarm(self) -> None:
        """The owner has cleaned up by itself: the guardian ends without killing anything."""
        self.tell(disarm=True)
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait(timeout=10)


def watch(lines: TextIO) -> tuple[set[int], list[str], float, bool]:
    """Read orders until the pipe closes: session leaders, files, grace, whether to do nothing."""
    leaders: set[int] = set()
    files: list[str] = []
    grace, disarmed, cluster_file = 2.0, False, ""
    for line in lines:
        try:
            order = json.loads(line)
        except ValueError:
            # The owner was killed while it wrote.
            continue
        leaders.update(order.get("leaders", []))
        leaders.difference_update(order.get("forget", []))
        files.extend(order.get("files", []))
        cluster_file = order.get("cluster_file", cluster_file)
        grace = order.get("grace", grace)
        disarmed = disarmed or order.get("disarm", False)
    return leaders | started_by_others(cluster_file), files, grace, disarmed


def started_by_others(cluster_file: str) -> set[int]:
    """The ranks that the cluster file lists: another process may have replaced one."""
    try:
        with open(cluster_file) as file:
            sets = json.load(file)["engines"]["sets"].values()
        return {rank["pid"] for ranks in sets for rank in ranks["engines"].values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return set()  # there is none yet, or none any more


def end_sessions(leaders: set[int], grace: float) -> None:
    """End every process whose session was started by one of `leaders`, and their children.

    All get SIGTERM first, so that a rank can leave its group, and SIGKILL after `grace` seconds.
    """
    import psutil

    doomed = _members(leaders)
    for process in doomed:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(doomed, timeout=grace)
    # Looked up anew: something may have been started meanwhile.
    alive = [*_members(leaders), *(process for process in doomed if process.is_running())]
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def _members(leaders: set[int]) -> list[Any]:
    """The processes in the sessions of `leaders`, and their children."""
    import psutil

    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) in leaders and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
                found.update({child.pid: child for child in process.children(recursive=True)})
    return list(found.values())


def main() -> None:
    # A Ctrl-C in the owner's terminal reaches the whole foreground group.
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    leaders, files, grace, disarmed = watch(sys.stdin)
    if disarmed:
        return
    for path in (path for pattern in files for path in glob.glob(pattern)):
        with contextlib.suppress(OSError):
            os.remove(path)
    end_sessions(leaders, grace)


if __name__ == "__main__":
    main()
