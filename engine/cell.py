"""One cell: the same source on a set of ranks, its output, and how it ended."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, Protocol

import attrs

from .client import Message, Reply
from .errors import CellCancelled, CellError, CellTimeout, MaclusterError, RankDied
from .hostfile import describe_ranks

Status = Literal["running", "ok", "error", "died"]
OnOutput = Callable[[int, Message], None]

GRACE = 2.0  # seconds that the others get to end by themselves after one rank has failed
RETURN = 2.0  # seconds that interrupted ranks get to return together
KEPT = ("stream", "display_data", "execute_result", "update_display_data", "clear_output")


class Rescuer(Protocol):
    """What a cell asks of its world when ranks do not end by themselves."""

    def where(self, ranks: Sequence[int]) -> dict[int, dict[str, Any]]: ...

    def forget(self, cell: str, ranks: Sequence[int]) -> None: ...

    def signal(self, name: str, ranks: Sequence[int]) -> None: ...

    def restart_ranks(self) -> None: ...


@attrs.define(eq=False)
class RankRun:
    """What one rank did with the cell."""

    rank: int
    status: Status = "running"
    messages: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)
    ename: str = ""
    evalue: str = ""
    traceback: list[str] = attrs.field(factory=list)
    elapsed: float | None = None  # seconds in the rank
    payload: list[dict[str, Any]] = attrs.field(factory=list)
    death: MaclusterError | None = None

    def text(self, stream: str | None = None) -> str:
        """What the rank printed, on one stream (`"stdout"`, `"stderr"`) or on both in order."""
        return "".join(
            content["text"]
            for kind, content in self.messages
            if kind == "stream" and stream in (None, content["name"])
        )


class Cell:
    """A cell under way or done. `wait` blocks until it ends, `check` raises its error.

    A cell always ends: a rank that fails or dies while others run gives them GRACE seconds, then
    they are interrupted, and those that do not return are restarted.
    """

    def __init__(self, world: Rescuer, code: str, ranks: Sequence[int]) -> None:
        self.id = uuid.uuid4().hex
        self.world = world
        self.code = code
        self.ranks = list(ranks)
        self.runs = {rank: RankRun(rank) for rank in self.ranks}
        self.started = time.monotonic()
        self.ended: float | None = None
        self.notes: list[str] = []
        self.cancelled = False
        self._changed = threading.Condition()
        self._first_failure: float | None = None
        self._rescuing = threading.Lock()
        self._killed: set[int] = set()  # by us, because they were stuck

    def __repr__(self) -> str:
        state = "done" if self.done else "running"
        if any(run.status not in ("ok", "running") for run in self.runs.values()):
            state = "failed"
        lines = (line.strip() for line in self.code.splitlines())
        first = next((line for line in lines if line and not line.startswith("#")), "")
        return f"<Cell {state} on {describe_ranks(self.ranks)}, {self.elapsed:.1f} s: {first[:40]}>"

    # -- bookkeeping by the world ------------------------------------------------------------

    def follow(self, rank: int, future: Future[Reply]) -> None:
        """Take the rank's answer when it comes."""
        future.add_done_callback(lambda done: self._on_done(self.runs[rank], done))

    def record(self, rank: int, message: Message) -> None:
        """Keep an output message (called in the client's IO thread)."""
        kind = message["header"]["msg_type"]
        if kind in KEPT:
            self.runs[rank].messages.append((kind, message["content"]))

    def _on_done(self, run: RankRun, future: Future[Reply]) -> None:
        if run.status != "running":
            return  # forgotten before its turn
        try:
            content = future.result().content
        except Exception as error:
            if isinstance(error, MaclusterError):
                run.death = error
            else:
                run.death = RankDied(f"Rank {run.rank} is lost: {error!r}")
            run.status = "died"
        else:
            run.ename, run.evalue = content.get("ename", ""), content.get("evalue", "")
            run.traceback = content.get("traceback", [])
            run.elapsed = content.get("elapsed")
            run.payload = content.get("payload", [])
            # Last, because `done` looks at it from other threads.
            run.status = "ok" if content["status"] == "ok" else "error"
        self._note_end(run)

    def _note_end(self, run: RankRun) -> None:
        if run.status != "ok" and self._first_failure is None:
            self._first_failure = time.monotonic()
        if self.done and self.ended is None:
            self.ended = time.monotonic()
        if self.ended is not None or run.status != "ok":
            # Not for each rank that ends well: waking the waiting thread costs the others time.
            with self._changed:
                self._changed.notify_all()

    # -- for everybody -----------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return all(run.status != "running" for run in self.runs.values())

    @property
    def elapsed(self) -> float:
        """Seconds since the cell was sent, until it ended."""
        return (self.ended or time.monotonic()) - self.started

    @property
    def running(self) -> list[int]:
        return [rank for rank in self.ranks if self.runs[rank].status == "running"]

    def wait(self, timeout: float | None = None) -> bool:
        """Block until every rank has ended, at most `timeout` seconds. True when all have.

        Does not raise what the cell raised; see `check`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.done:
            now = time.monotonic()
            failure = self._first_failure
            if failure is not None and now >= failure + GRACE:
                self._rescue("another rank had failed")
                continue
            if deadline is not None and now >= deadline:
                return False
            limits = [] if deadline is None else [deadline - now]
            if failure is not None:
                limits.append(failure + GRACE - now)
            with self._changed:
                # Also when the first rank fails: from then on there is a limit.
                self._changed.wait_for(
                    lambda: self.done or self._first_failure is not failure,  # noqa: B023
                    min(limits) if limits else None,
                )
        return True

    def interrupt(self, why: str = "interrupted") -> None:
        """Stop the cell on all ranks; restart those that do not return within RETURN seconds."""
        if not self.done:
            self.cancelled = True
            self._rescue(why)

    cancel = interrupt

    def _rescue(self, why: str) -> None:
        """Interrupt the ranks that still run; kill and restart the world when that is no use."""
        with self._rescuing:
            if not self.running:
                return
            stood = self.world.where(self.running)
            self._forget_where_it_waits(stood)
            stuck = self.running
            if not stuck:
                self.notes.append(f"cancelled before its turn, because {why}.")
                return
            self.world.signal("SIGINT", stuck)
            if self._all_return(RETURN):
                self.notes.append(f"{describe_ranks(stuck)}: interrupted, because {why}.")
                return
            stuck = self.running
            for rank in stuck:
                place = stood.get(rank, {}).get("place") or "an unknown place"
                self.notes.append(f"rank {rank} was at {place}.")
            self.notes.append(
                f"{describe_ranks(stuck)} did not react to an interrupt within {RETURN:.0f} s "
                f"({why}), so all ranks were restarted: their variables and models are gone."
            )
            self._killed = set(stuck)
            self.world.restart_ranks()
            self._all_return(RETURN)

    def _forget_where_it_waits(self, stood: Mapping[int, Mapping[str, Any]]) -> None:
        """End the cell on ranks that are busy with an earlier one, which is not to be disturbed."""
        waiting = [
            rank for rank in self.running if stood.get(rank, {}).get("cell") not in (None, self.id)
        ]
        self.world.forget(self.id, waiting)
        for rank in waiting:
            run = self.runs[rank]
            run.ename, run.evalue = "CancelledError", "the cell was cancelled before its turn"
            run.status = "error"
            self._note_end(run)

    def _all_return(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.done, seconds)

    def result(self, timeout: float | None = None) -> Cell:
        """Wait, raise the cell's error if it failed, and return the cell itself."""
        if not self.wait(timeout):
            self.interrupt(f"it ran longer than {timeout:g} s")
            raise CellTimeout(
                f"The cell was stopped after {timeout:g} s.",
                why="\n".join(["it ran longer than its timeout", *self.notes]),
                do="raise --timeout, or leave it out to let the cell run as long as it needs",
            )
        self.check()
        return self

    def check(self) -> None:
        """Raise CellError for the rank whose failure came first, if any rank failed."""
        failed = [run for run in self.runs.values() if run.status in ("error", "died")]
        if not failed:
            return
        # Ranks that were interrupted or killed as a consequence come after the cause.
        failed.sort(key=lambda run: (self._is_consequence(run), run.status != "died", run.rank))
        first, others = failed[0], failed[1:]
        notes = [f"raised on rank {first.rank}" if first.status == "error" else ""]
        same = [
            run.rank for run in others if (run.ename, run.evalue) == (first.ename, first.evalue)
        ]
        if same and first.status == "error":
            notes[0] += f" (and the same on {describe_ranks(same)})"
        notes += [
            f"rank {run.rank}: {run.ename}: {run.evalue}"
            for run in others
            if run.status == "error" and run.rank not in same and not self._is_consequence(run)
        ]
        well = [run.rank for run in self.runs.values() if run.status == "ok"]
        if well:
            notes.append(f"{describe_ranks(well)}: ended without an error")
        notes += self.notes
        if first.status == "died":
            death = first.death or RankDied(f"Rank {first.rank} died.")
            why = "\n".join(note for note in [death.why, *notes] if note)
            raise CellError(death.what, why=why, do=death.do, rank=first.rank)
        kind = CellCancelled if self.cancelled else CellError
        raise kind.named(first.ename)(
            first.evalue or first.ename,
            why="\n".join(notes),
            rank=first.rank,
            ename=first.ename,
            traceback=first.traceback,
        )

    def _is_consequence(self, run: RankRun) -> bool:
        if run.status == "died":
            return run.rank in self._killed
        return run.ename in ("KeyboardInterrupt", "CancelledError")
