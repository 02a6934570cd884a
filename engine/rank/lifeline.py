"""Keep a rank that waits in MLX's ring able to go on, whatever happens to its neighbours.

MLX's ring has no time limit. A rank whose neighbour raises, stops or dies waits for ever, and a
closed socket makes it worse: after ten errors MLX's socket thread ends, and every collective that
is still queued is never served. So no socket of a ring may close while a rank may wait on it:

- a `holder`, a child process of each rank, has the rank's sockets open too. When the rank dies,
  its neighbours see silence instead of an end;
- `cut` puts a local socket in the place of each ring socket and feeds MLX from there, with bytes
  0xFF, which are NaN in every floating-point type. Every queued collective then completes at
  once, and the main thread is back in Python, where it can be interrupted.

What was being computed holds NaN, and nothing else is touched: variables and models stay.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import selectors
import socket
import subprocess
import termios
import threading
from collections.abc import Callable, Iterable

import psutil

BLOCK = b"\xff" * 2**18
HOLD = 600  # seconds that a dead rank's sockets stay open at most; its successor ends that


class Lifeline:
    """The ring sockets of this process: those with one of `ports` at either end.

    `on_stale_use()` is called, in another thread, when MLX still sends on them after `retire`.
    """

    def __init__(self, ports: Iterable[int], on_stale_use: Callable[[], None]) -> None:
        wanted = set(ports)
        self._descriptors = [
            each.fd
            for each in psutil.Process().net_connections(kind="tcp4")
            if each.status == psutil.CONN_ESTABLISHED
            and (each.laddr.port in wanted or each.raddr.port in wanted)
        ]
        self._on_stale_use = on_stale_use
        self._originals: list[int] = []
        self._retired = False
        self._cutting = threading.Lock()
        # It waits for the rank's end on a pipe, and needs no Python of its own.
        self._holder = subprocess.Popen(
            ["/bin/sh", "-c", f"read _; exec sleep {HOLD}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=self._descriptors,
        )

    def unread(self) -> int:
        """Bytes that a neighbour has sent and no collective of this rank has asked for."""
        total, count = 0, array.array("i", [0])
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                fcntl.ioctl(descriptor, termios.FIONREAD, count)
                total += count[0]
        return total

    def cut(self) -> None:
        """Free the main thread: let every collective of the ring complete at once, with NaN."""
        with self._cutting:
            if self._originals:
                return
            ends = []
            for descriptor in self._descriptors:
                # Open until all ranks are free: the neighbour must not see an end.
                self._originals.append(os.dup(descriptor))
                ours, theirs = socket.socketpair()
                ours.setblocking(False)
                theirs.setblocking(False)
                os.dup2(theirs.fileno(), descriptor)
                theirs.close()
                ends.append(ours)
        threading.Thread(target=self._feed, args=(ends,), name="macluster-cut", daemon=True).start()

    def _feed(self, ends: list[socket.socket]) -> None:
        """Until MLX closes its sockets: swallow what it sends, and send it all that it asks for."""
        with selectors.DefaultSelector() as selector:
            for end in ends:
                selector.register(end, selectors.EVENT_READ | selectors.EVENT_WRITE, end)
            while selector.get_map():
                for key, events in selector.select():
                    ours: socket.socket = key.data
                    try:
                        if events & selectors.EVENT_WRITE:
                            ours.send(BLOCK)
                        if events & selectors.EVENT_READ:
                            if not ours.recv(len(BLOCK)):
                                raise ConnectionError
                            if self._retired:
                                self._on_stale_use()
                    except BlockingIOError:
                        pass
                    except OSError:
                        selector.unregister(ours)
                        ours.close()

    def retire(self) -> None:
        """Every rank is free, and this ring is never used again: let its sockets go."""
        self._retired = True
        for descriptor in self._originals:
            os.close(descriptor)
        self._originals.clear()
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.kill()
        self._holder.wait()
