"""Kill what a cluster started when its owner is gone, however the owner went.

The owner keeps a pipe to this process open and writes one line of JSON for each process it starts.
When the pipe closes without a "disarm" line, the owner was killed: this process then ends every
process of the sessions it was told about, with their children, and removes the cluster's files.
It runs as a plain script, so that it starts in milliseconds and needs no import of macluster.
"""

from __future__ import annotations

import contextlib
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
        """Send an order: `leaders=[pid]`, `forget=[pid]`, `files=[path]` or `disarm=True`."""
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


def watch(lines: TextIO) -> tuple[list[int], list[str], bool]:
    """Read orders until the pipe closes: session leaders, files, and whether to do nothing."""
    leaders: list[int] = []
    files: list[str] = []
    disarmed = False
    for line in lines:
        order = json.loads(line)
        leaders.extend(order.get("leaders", []))
        files.extend(order.get("files", []))
        for gone in order.get("forget", []):
            leaders = [pid for pid in leaders if pid != gone]
        disarmed = disarmed or order.get("disarm", False)
    return leaders, files, disarmed


def kill_sessions(leaders: list[int]) -> None:
    """SIGKILL every process whose session was started by one of `leaders`, and their children."""
    import psutil

    wanted = set(leaders)
    doomed: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) in wanted:
                doomed[process.pid] = process
                doomed.update({child.pid: child for child in process.children(recursive=True)})
    for process in doomed.values():
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(list(doomed.values()), timeout=5)


def main() -> None:
    # A Ctrl-C in the owner's terminal reaches the whole foreground group.
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    leaders, files, disarmed = watch(sys.stdin)
    if disarmed:
        return
    kill_sessions(leaders)
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


if __name__ == "__main__":
    main()
