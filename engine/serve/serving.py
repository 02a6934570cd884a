"""Serving as the notebook sees it: begun, looked at, ended, and begun again after a failure."""

from __future__ import annotations

import argparse
import contextlib
import os
import threading
import time
import uuid
from collections import deque
from typing import Any

from ..cell import Cell
from ..errors import MaclusterError, UsageError, WorldError
from ..source import held
from ..tables import Table
from ..verdict import error_of
from ..world import World

KEY = "MACLUSTER_API_KEY"  # the environment variable with what clients have to know
PATIENCE = 120.0  # seconds until the server must listen: caches are tried out before
DRAIN = 10.0  # seconds that answers under way get when serving ends
FAILURES, WITHIN = 5, 300.0  # as many in so many seconds are too many
CONDEMNED = 3  # failures that one request costs before it is refused, which do not count


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `serve` that a person gives, for a magic or a command."""
    key = f"any other than this machine's own needs a key, in {KEY}"
    silent = "of an answer, where a client does not say it"
    at_once = "answers that are computed at once"
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=key)
    parser.add_argument("--port", type=int, default=8080, metavar="N", help="0: a free one")
    parser.add_argument("--as", dest="name", metavar="NAME", help="what clients call the model")
    parser.add_argument("--max-tokens", type=int, default=2048, metavar="N", help=silent)
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help=at_once)


class Serving:
    """A model that the ranks of a world serve over HTTP.

        serving = macluster.Serving(world, "model").start()
        serving.url      # http://127.0.0.1:8080/v1
        serving.stop()

    While it runs, the ranks run no cells. When a rank fails or dies, the world is mended and the
    model served again at the same address; answers that were under way go on where they were, as
    long as it was not rank 0 that died.

    Args:
        world: from `Cluster.start` or `Cluster.connect`.
        model: the name of the model on the ranks.
        options: those of `macluster.serve`, which runs on the ranks. `api_key` is by default what
            the environment variable MACLUSTER_API_KEY says, if anything.
    """

    def __init__(self, world: World, model: str = "model", **options: Any) -> None:
        self.world = world
        self.model = model
        self._key = options.pop("api_key", None) or os.environ.get(KEY)
        self._options = {"port": 8080, **options}
        self.id = uuid.uuid4().hex  # the server waits for its own `Serving` only
        self.url = ""
        self.failures: deque[tuple[float, str]] = deque(maxlen=100)  # when, and what
        self.error: MaclusterError | None = None  # why it has ended, when nobody wanted it to
        self._cell: Cell | None = None
        self._listening = threading.Event()
        self._ending = False
        self._keeper: threading.Thread | None = None

    def __repr__(self) -> str:
        if self.running:
            return f"<{self.model} is served at {self.url}; %serve stop makes the ranks free>"
        why = f": {self.error.what}" if self.error is not None else ""
        return f"<{self.model} is not served{why}>"

    @property
    def running(self) -> bool:
        return self._keeper is not None and self._keeper.is_alive()

    def start(self) -> Serving:
        """Begin to serve; returns when the server listens.

        Raises WorldError when the ranks serve already or it does not come up, and what the ranks
        raise.
        """
        self.world.require_free()
        status = self.status()
        if status is not None and status["health"] == "ok":
            raise WorldError(
                f"The ranks serve a model at {status['url']}.",
                why="another notebook or program has begun it",
                do="%serve stop ends it, also from here",
            )
        self._ending, self.error = False, None
        self.failures.clear()
        cell = self._send()
        self.world.serving = self
        try:
            self._wait_until_it_listens(cell)
        except BaseException:
            self.world.serving = None
            if not cell.done:
                cell.interrupt("serving was broken off")
            raise
        self._keeper = threading.Thread(
            target=self._keep, args=(cell,), name="macluster-serving", daemon=True
        )
        self._keeper.start()
        return self

    def _send(self) -> Cell:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._options.items())
        code = f"macluster.serve({held(self.model)}, owner={self.id!r}, {arguments})"
        self._listening.clear()
        # Each time: rank 0 may be a new process, which must not serve without it.
        self.world.ask("serving.key", {"key": self._key}, timeout=PATIENCE)
        self._cell = self.world.run(code, on_output=self._on_output, serving=self)
        return self._cell

    def _on_output(self, rank: int, message: dict[str, Any]) -> None:
        # It says so when it listens; whether that was it, its status tells.
        if rank == 0 and message["header"]["msg_type"] == "stream":
            self._listening.set()

    def _wait_until_it_listens(self, cell: Cell) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            # Also looks after ranks that fail.
            ended = cell.wait(timeout=0.05)
            if ended:
                cell.check()
            if ended or self._listening.is_set():
                self._listening.clear()
                status = self.status()
                if status is not None and status["owner"] == self.id:
                    break
            if ended:
                raise WorldError(
                    "The server ended as soon as it had begun.",
                    why="something on rank 0 stopped it",
                    do="%cluster output shows what the ranks printed",
                )
            if time.monotonic() > deadline:
                raise WorldError(
                    f"The server did not listen within {PATIENCE:.0f} s.",
                    why="the ranks are still busy with something else",
                    do="%cluster stacks shows where they are",
                )
        self.url = status["url"]
        # From now on it is that one, also when any was asked for.
        self._options["port"] = int(self.url.rpartition(":")[2].partition("/")[0])

    def _keep(self, cell: Cell) -> None:
        """Wait for the end of the cell, and begin anew when it was a failure."""
        try:
            while True:
                cell.wait()
                error = error_of(cell)
                if error is None or self._ending:
                    return
                now = time.monotonic()
                self.failures.append((now, str(error)))
                self.error = error
                recent = [at for at, _ in self.failures if now - at < WITHIN]
                # All ranks have refused in words: they would do so again.
                if error.ename in ("ModelError", "UsageError"):
                    return
                if len(recent) >= FAILURES + CONDEMNED * self._condemned:
                    return
                cell = self._send()
                self.error = None
                what = error.what.partition("\n")[0]
                self.world.notices.append(
                    f"A rank failed while it served, and the ranks serve again: {what}"
                )
        except MaclusterError as error:
            # The one that cannot be served any more says more than the one that began it.
            self.error = error
        finally:
            self.world.serving = None
            if self.error is not None:
                self.world.notices.append(f"Serving has ended: {self.error}")
            with contextlib.suppress(MaclusterError):
                self.world.ask("serving.close", {"why": "The ranks have failed."}, timeout=5)

    @property
    def _condemned(self) -> int:
        """Requests that the ranks have failed with so often that they are refused."""
        with contextlib.suppress(MaclusterError):
            status = self.status()
            return int(status["condemned"]) if status is not None else 0
        return 0

    def status(self) -> dict[str, Any] | None:
        """Figures of rank 0, see `Front.status`; None when it does not serve."""
        return status_of(self.world)

    def stop(self, drain: float = DRAIN) -> None:
        """End it. Answers under way get `drain` seconds; new requests are refused meanwhile.

        Returns when the ranks are free. A second call does nothing.
        """
        self._ending = True
        if not self.running or self._keeper is None or self._cell is None:
            return
        with contextlib.suppress(MaclusterError):  # the ranks may be failing at this very moment
            stop_serving(self.world, drain)
        # A round may be long, and an answer under way has its seconds.
        self._keeper.join(drain + 2 * DRAIN)
        if self._keeper.is_alive():
            self._cell.interrupt("serving was to end, and did not")
            self._keeper.join()

    def abandon(self) -> None:
        """The ranks are about to be ended on purpose: do not begin again."""
        self._ending = True

    def wait(self, timeout: float) -> bool:
        """Wait until serving has ended, at most `timeout` seconds. True when it has."""
        if self._keeper is not None:
            self._keeper.join(timeout)
        return not self.running

    def __enter__(self) -> Serving:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def status_of(world: World) -> dict[str, Any] | None:
    """What rank 0 serves, also for another notebook; None when it serves nothing."""
    status: dict[str, Any] | None = world.ask("serving")["serving"]
    return status


def stop_serving(world: World, drain: float = DRAIN) -> None:
    """End what the ranks of a world serve, also for another notebook. Does not wait for the end.

    Raises UsageError when they serve nothing.
    """
    if status_of(world) is None:
        raise UsageError(
            "The ranks serve nothing.",
            why="it was stopped, or never begun",
            do="%serve start serves the model that they hold",
        )
    world.ask("serving.stop", {"drain": drain})


def status_table(status: dict[str, Any]) -> Table:
    """The last requests as a table."""
    rows = [
        (
            time.strftime("%H:%M:%S", time.localtime(each["time"])),
            each["kind"],
            f"{each['prompt']}" + (f" ({each['reused']} kept)" if each["reused"] else ""),
            str(each["tokens"]),
            "" if each["first"] is None else f"{each['first']:.2f} s",
            f"{each['seconds']:.2f} s",
            each["finish"],
        )
        for each in status["recent"][-20:]
    ]
    return Table(
        ("at", "kind", "prompt", "tokens", "first after", "took", "end"),
        rows,
        right=(2, 3, 4, 5),
        empty="no requests yet",
    )


def status_line(status: dict[str, Any]) -> str:
    """One line about the server."""
    return (
        f"{status['model']} at {status['url']}: {status['health']}, {status['active']} under way, "
        f"{status['waiting']} waiting, {status['speed']:.1f} tokens/s over 10 s; "
        f"{status['requests']} requests, {status['failed']} failed, {status['given_up']} given up, "
        f"{status['tokens']:,} tokens in {status['up']:.0f} s"
    )
