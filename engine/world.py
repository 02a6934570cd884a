"""The world: all ranks of a cluster as one thing that runs cells."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Any

from .cell import LOOK, RETURN, Cell, OnOutput
from .client import RankClient, Reply, raise_failure
from .errors import MaclusterError, WorldError
from .hostfile import describe_ranks
from .recovery import Recovery

if TYPE_CHECKING:
    from .cluster import Cluster
    from .measure.record import Measurement
    from .serve.serving import Serving
    from .topology.topology import Topology

ASK_TIMEOUT = 5.0  # seconds
PROBE_PATIENCE = 4.0  # seconds that a host gets to look at its cables
WHERE_TIMEOUT = 0.5  # seconds, for all ranks together: a rescue must not wait for the stuck ones


class World:
    """The ranks of a running cluster. Made by `Cluster.start` and `Cluster.connect`."""

    def __init__(self, cluster: Cluster, client: RankClient) -> None:
        self.cluster = cluster
        self.client = client
        self.last_cell: Cell | None = None
        self.epoch = 0  # counts the worlds of this cluster; a failure may begin a new one
        self.phase = "ok"
        self.notices: list[str] = []  # what happened while no cell ran, for whoever looks next
        self._cells: weakref.WeakSet[Cell] = weakref.WeakSet()
        self.cells_sent = 0  # from here
        self.held: dict[str, dict[str, Any]] = {}  # models that new ranks have yet to be given
        self.serving: Serving | None = None  # begun here: no cell can run meanwhile
        self.rebuilds = True  # whether MLX lets a process leave its world and join another

    def __repr__(self) -> str:
        return f"<World {self.cluster.name}: {self.size} ranks, {self.backend}, {self.state}>"

    @property
    def size(self) -> int:
        return len(self.cluster.hosts)

    @property
    def backend(self) -> str:
        return self.cluster.backend_name

    @property
    def ranks(self) -> list[int]:
        return list(range(self.size))

    @property
    def alive(self) -> list[int]:
        """The ranks that can answer, as far as the controller and this process know."""
        return [rank for rank in self.client.reachable if rank < self.size]

    @property
    def dead(self) -> list[int]:
        return sorted(set(self.ranks) - set(self.alive))

    @property
    def state(self) -> str:
        """ "ok", or in words what is wrong."""
        if self.client.lost is not None:
            return self.client.lost.what.rstrip(".").lower()
        if self.phase != "ok":
            return self.phase
        return f"{describe_ranks(self.dead)} died" if self.dead else "ok"

    @property
    def busy(self) -> bool:
        """True while a cell that was sent from here runs, or its failure is dealt with."""
        return any(not cell.settled for cell in list(self._cells))

    # -- cells -------------------------------------------------------------------------------

    def run(
        self,
        code: str,
        ranks: Sequence[int] | None = None,
        *,
        execution_count: int = 1,
        checked: bool = False,
        on_output: OnOutput | None = None,
        serving: Serving | None = None,
    ) -> Cell:
        """Send a cell to `ranks` (all by default) and return at once.

        `on_output(rank, message)` is called in another thread for each output message. `checked`
        compares every collective before it moves data; `serving` is whom the cell serves a model
        for. A world that has lost a rank is mended first. Raises WorldBroken when it cannot be,
        and WorldError while the ranks serve a model.
        """
        self.require_free(serving)
        if self.client.lost is not None:
            raise self.client.lost
        self._mend()
        chosen = self.ranks if ranks is None else list(ranks)
        cell = Cell(self, code, chosen)
        self.cells_sent += 1
        cell.number = self.cells_sent
        self.last_cell = cell
        self._cells.add(cell)

        def keep(rank: int, message: dict[str, Any]) -> None:
            cell.record(rank, message)
            if on_output is not None:
                on_output(rank, message)

        content = {
            "cell": cell.id,
            "code": code,
            "execution_count": execution_count,
            "checked": checked,
            # A rank on which a cell has failed runs no later one until that failure is dealt with.
            "number": cell.number,
            "settled": self._settled_before(cell.number),
        }
        futures = self.client.request(chosen, "cell", content, on_output=keep)
        for rank, future in zip(chosen, futures, strict=True):
            cell.follow(rank, future)
        return cell

    def _mend(self) -> None:
        """Before anything is sent: deal with failures that nobody has waited for."""
        if self.client.lost is not None:
            return
        for cell in list(self._cells):
            if cell.done and not cell.settled:
                cell.wait(0)
        if self.dead or self.phase != "ok":
            self.notices += self.recover("a rank had died").notes

    def require_free(self, serving: Serving | None = None) -> None:
        """Raise WorldError when the ranks serve a model, for another than `serving`."""
        if self.serving is not None and self.serving is not serving:
            raise WorldError(
                f"The ranks serve a model at {self.serving.url}.",
                why="while they do, they run nothing else: all of them compute the answers in step",
                do="%serve stop makes them free, with the model still loaded; %serve start goes on",
            )

    def _settled_before(self, number: int) -> int:
        """The number of the last cell before which all are dealt with."""
        open_cells = [each.number for each in list(self._cells) if not each.settled]
        return min([number, *open_cells]) - 1

    def call(
        self,
        name: str,
        content: Mapping[str, Any] | None = None,
        *,
        ranks: Sequence[int] | None = None,
        buffers: Sequence[Any] = (),
        each: Callable[[int], Mapping[str, Any]] | None = None,
        timeout: float | None = None,
    ) -> list[Reply]:
        """Run one of a rank's CALLS on `ranks`, after the cells that are under way.

        Raises the error that a rank raised, or WorldError when it takes longer than `timeout`. An
        interrupt ends the call on the ranks, too; when they do not react, the world is given up.
        Raises WorldError also while the ranks serve a model.
        """
        self.require_free()
        self._mend()
        futures = self.send_call(name, content, ranks=ranks, buffers=buffers, each=each)
        try:
            self._wait_for_call(futures, timeout)
            return [self._outcome(name, future, 0 if timeout else timeout) for future in futures]
        except KeyboardInterrupt:
            self.signal("SIGINT", self.ranks if ranks is None else ranks)
            if wait(futures, RETURN).not_done:
                self.recover("a call did not react to an interrupt")
            raise

    def _wait_for_call(self, futures: Sequence[Future[Reply]], timeout: float | None) -> None:
        """Until all have answered; but not for ever after one of them has failed."""
        deadline = None if timeout is None else time.monotonic() + timeout
        failed_at: float | None = None
        pending: set[Future[Reply]] = set(futures)
        while pending:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return
            if failed_at is not None and now >= failed_at + RETURN:
                self.recover("a call had failed on another rank")
                return
            done, pending = wait(pending, LOOK, return_when=FIRST_COMPLETED)
            # A rank may wait for one that is dead, and was not asked.
            if failed_at is None and (self.dead or any(_failed(future) for future in done)):
                failed_at = time.monotonic()

    def send_call(
        self,
        name: str,
        content: Mapping[str, Any] | None = None,
        *,
        ranks: Sequence[int] | None = None,
        buffers: Sequence[Any] = (),
        each: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> list[Future[Reply]]:
        """Like `call`, without waiting."""
        chosen = self.ranks if ranks is None else ranks
        body = {"name": name, **(content or {})}
        return self.client.request(chosen, "call", body, buffers=buffers, each=each)

    def ask(
        self, name: str, content: Mapping[str, Any] | None = None, *, rank: int = 0,
        timeout: float = ASK_TIMEOUT,
    ) -> dict[str, Any]:  # fmt: skip
        """Ask a rank one of its QUESTIONS; it answers while a cell runs, too."""
        [future] = self.client.request(
            [rank], "ask", {"name": name, **(content or {})}, channel="control"
        )
        return self._outcome(name, future, timeout).content

    def _outcome(self, name: str, future: Future[Reply], timeout: float | None) -> Reply:
        try:
            reply = future.result(timeout)
        except FutureTimeout:
            raise WorldError(
                f"A rank did not answer {name!r} within {timeout:g} s.",
                why="a cell runs on it, or it is stopped (SIGSTOP, a sleeping Mac)",
                do="wait for the cell, or use %cluster abort",
            ) from None
        return raise_failure(reply)

    def ask_all(
        self,
        name: str,
        content: Mapping[str, Any] | None = None,
        ranks: Sequence[int] | None = None,
        timeout: float = WHERE_TIMEOUT,
    ) -> dict[int, dict[str, Any]]:
        """The answers of those of `ranks` (all by default) that answer within `timeout`."""
        asked = self.ranks if ranks is None else ranks
        body = {"name": name, **(content or {})}
        futures = self.client.request(asked, "ask", body, channel="control")
        wait(futures, timeout)
        answers: dict[int, dict[str, Any]] = {}
        for rank, future in zip(asked, futures, strict=True):
            # A rank may hold the interpreter in native code, or be stopped.
            with contextlib.suppress(FutureTimeout, MaclusterError):
                answers[rank] = raise_failure(future.result(0)).content
        return answers

    # -- looking at ranks that are busy --------------------------------------------------------

    def where(self, ranks: Sequence[int] | None = None) -> dict[int, dict[str, Any]]:
        """Where the ranks that answer stand: see `rank/introspect.py`."""
        return self.ask_all("where", ranks=ranks)

    def stacks(self, timeout: float = 1.0) -> dict[int, dict[str, Any] | None]:
        """Each rank's stack and seconds in its cell, also while it runs; None without an answer.

        {"elapsed": seconds or None, "started": collectives, "frames": [{"file", "line",
        "function", "source"}, ...]}, the outermost frame of the cell first.
        """
        answers = self.ask_all("stacks", timeout=timeout)
        return {rank: answers.get(rank) for rank in self.ranks}

    def topology(self, measured: Measurement | None = None, *, age: float = 0.0) -> Topology:
        """The ranks, what they run on, and the links between them; also while a cell runs.

        `measured` adds what `measure` found of this world. The hosts look at their cables anew,
        which takes a second or two of a Mac's time, unless they did at most `age` seconds ago;
        memory and state are always those of now. A rank that has died, or does not
        answer, is part of it with what the hostfile says. Raises UsageError when `measured` is of
        another number of ranks, and WorldBroken when no rank can be reached any more.
        """
        from .records import structured
        from .topology.build import build
        from .topology.facts import Facts

        if self.client.lost is not None:
            raise self.client.lost
        answers = self.ask_all(
            "topology",
            {"patience": PROBE_PATIENCE, "age": age},
            timeout=PROBE_PATIENCE + WHERE_TIMEOUT,
        )
        states = {rank: "busy" if each["busy"] else "ok" for rank, each in answers.items()}
        states |= {rank: "dead" for rank in self.dead if rank not in answers}
        facts = {rank: structured(Facts, each["facts"]) for rank, each in answers.items()}
        return build(self.cluster.hosts, self.backend, facts, measured, states)

    def obituary(self, rank: int) -> str:
        """How the process of a rank ended, in words; "" when that is not known here."""
        return self.cluster.supervisor.obituary(rank)

    # -- ending things -------------------------------------------------------------------------

    def interrupt(
        self,
        cell: str,
        ranks: Sequence[int],
        how: str,
        step: int | None = None,
        timeout: float = WHERE_TIMEOUT,
    ) -> dict[int, dict[str, Any]]:
        """Interrupt one cell on `ranks`: see `rank/introspect.py`."""
        content = {"cell": cell, "how": how, "step": step}
        return self.ask_all("interrupt", content, ranks, timeout)

    def signal(self, name: str, ranks: Sequence[int]) -> None:
        """Send a signal, such as "SIGINT", to ranks through their nannies. Does not wait."""
        alive = [rank for rank in ranks if rank in self.client.ids]
        if alive:
            self.client.send_signal(name, targets=alive, block=False)

    def abort(self, why: str = "it was aborted") -> Recovery:
        """End whatever the ranks do and form a new world; variables stay where the backend can.

        On `ring` every rank keeps its variables and models, except what it was just computing. A
        model that they serve is not served again.
        """
        serving = self.serving
        if serving is not None:
            serving.abandon()
        # Another process may have begun it: it learns from the server that this was meant.
        self.ask_all("serving.stop", {"drain": 0}, [0])
        epochs = [answer["epoch"] for answer in self.ask_all("status").values()]
        report = self.recover(why, seen=max([self.epoch, *epochs]))
        if serving is not None:
            serving.wait(ASK_TIMEOUT)
        return report

    def recover(self, why: str, *, seen: int | None = None, **options: Any) -> Recovery:
        """Give up the world `seen` (by default the one known here) and form a new one.

        The options are `Supervisor.recover`'s. Raises WorldBroken when none can be formed.
        """
        return self.cluster.supervisor.recover_blocking(
            self.epoch if seen is None else seen, why, **options
        )

    def know(self, facts: Sequence[Mapping[str, Any]]) -> None:
        """The ranks said what they are, before they form a world."""
        self.rebuilds = all(fact["rebuilds"] for fact in facts)
        self.client.pids = {rank: fact["pid"] for rank, fact in enumerate(facts)}

    def learn(self) -> None:
        """Find out what a process that connects cannot know."""
        answers = self.ask_all("status", timeout=ASK_TIMEOUT)
        self.epoch = max((answer["epoch"] for answer in answers.values()), default=0)
        self.client.pids = {rank: answer["pid"] for rank, answer in answers.items()}

    # -- keeping in step -----------------------------------------------------------------------

    def note_epoch(self, epoch: int) -> None:
        """A cell has ended in that world, which another user of the cluster may have formed."""
        self.epoch = max(self.epoch, epoch)

    def out_of_step(self) -> str:
        """Why the next collective could go wrong, or "": for after a cell that has failed."""
        if self.dead:
            return f"{describe_ranks(self.dead)} died"
        states = self.ask_all("status")
        if any(state["broken"] for state in states.values()):
            return "the world had been given up"
        if all(not state["busy"] for state in states.values()):
            if len({state["started"] for state in states.values()}) > 1:
                return "the ranks had started different numbers of collectives"
            holders = [rank for rank, state in states.items() if state["unread"]]
            if holders:
                return f"data that nobody had asked for was left on {describe_ranks(holders)}"
        return ""


def _failed(future: Future[Reply]) -> bool:
    """True when a rank has died, or has answered with an error."""
    if future.exception() is not None:
        return True
    return future.result().content.get("status") == "error"
