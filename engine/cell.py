"""One cell: the same source on a set of ranks, its output, and how it ended."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal, Protocol

import attrs

from . import verdict
from .client import Message, Reply
from .errors import MaclusterError, RankDied
from .hostfile import describe_ranks
from .recovery import Recovery
from .units import headline
from .watch import Finding, Watch

Status = Literal["running", "ok", "error", "died"]
OnOutput = Callable[[int, Message], None]

GRACE = 2.0  # seconds that the others get to end by themselves after one rank has failed
DEATH_GRACE = 1.0  # the same after a rank has died: no collective can end, and a successor starts
RETURN = 2.0  # seconds that interrupted ranks get to return together
LOOK = 0.5  # seconds between two looks at ranks that may wait for each other
QUIET = 2.0  # seconds that a cell runs before anybody looks
KEPT = ("stream", "display_data", "execute_result", "update_display_data", "clear_output")


class Runner(Protocol):
    """What a cell asks of its world when ranks do not end by themselves."""

    @property
    def size(self) -> int: ...

    def where(self, ranks: Sequence[int] | None = None) -> dict[int, dict[str, Any]]: ...

    def interrupt(
        self, cell: str, ranks: Sequence[int], how: str, step: int | None = None
    ) -> dict[int, dict[str, Any]]: ...

    def recover(
        self, why: str, *, seen: int | None = None, progress: Callable[[str], None]
    ) -> Recovery: ...

    def out_of_step(self) -> str: ...

    def note_epoch(self, epoch: int) -> None: ...

    def obituary(self, rank: int) -> str: ...


def order_stop(
    world: Runner, cell: str, held: Mapping[int, Mapping[str, Any]], everyone: bool
) -> tuple[str, float]:
    """Have the ranks that were asked to hold leave the cell; before the same step where they can.

    `held` is what they answered, `everyone` whether all that run the cell did. Returns in words how
    they stop, and the seconds that they get for it.
    """
    steps = {answer["begun"] for answer in held.values()}
    if not everyone or None in steps:
        world.interrupt(cell, list(held), "now")
        return "interrupted", RETURN
    step = max(steps) + 1
    world.interrupt(cell, list(held), "stop", step)
    patience = max(RETURN, *(2 * answer["pace"] for answer in held.values()))
    return f"stopped before step {step}", patience


@attrs.define(eq=False)
class RankRun:
    """What one rank did with the cell."""

    rank: int
    status: Status = "running"
    messages: list[tuple[str, dict[str, Any]]] = attrs.field(factory=list)
    ename: str = ""
    evalue: str = ""
    traceback: list[str] = attrs.field(factory=list)
    place: str = ""  # the line of the cell that raised
    elapsed: float | None = None  # seconds in the rank
    payload: list[dict[str, Any]] = attrs.field(factory=list)
    started: int = 0  # collectives of all ranks that this cell has started
    freed: str = ""  # why the world was given up under this rank's feet; "" when it was not
    death: MaclusterError | None = None
    obituary: str = ""  # how its process ended, as far as that is known

    def text(self, stream: str | None = None) -> str:
        """What the rank printed, on one stream (`"stdout"`, `"stderr"`) or on both in order."""
        return "".join(
            content["text"]
            for kind, content in self.messages
            if kind == "stream" and stream in (None, content["name"])
        )


class Cell:
    """A cell under way or done. `wait` blocks until it ends, `check` raises its error.

    A cell always ends, or says what it waits for. When a rank fails or dies, the others get GRACE
    seconds; then they are freed, and the world is formed anew. `on_wait(text)` is called while
    ranks wait for others, and with "" when they move again, `on_repair(text)` with each step of a
    recovery that takes long.
    """

    def __init__(self, world: Runner, code: str, ranks: Sequence[int]) -> None:
        self.id = uuid.uuid4().hex
        self.number = 0  # among the cells that its world has sent
        self.world = world
        self.code = code
        self.ranks = list(ranks)
        self.runs = {rank: RankRun(rank) for rank in self.ranks}
        self.started = time.monotonic()
        self.ended: float | None = None
        self.notes: list[str] = []
        self.warnings: list[str] = []  # of a cell that ended well
        self.cancelled = False
        self.waiting = ""  # who waits for whom, while it lasts
        self.on_wait: Callable[[str], None] | None = None
        self.on_repair: Callable[[str], None] = lambda _: None
        self.deadlock: Finding | None = None
        self._changed = threading.Condition()
        self._free_at: float | None = None  # when those that still run are freed
        self._rescuing = threading.RLock()
        self._settled = False
        self._killed: set[int] = set()  # by us, because of another rank
        self._watch = Watch(self.ranks, self.id)
        self._looked = 0.0
        self.recoveries: list[Recovery] = []

    def __repr__(self) -> str:
        state = "done" if self.done else "running"
        if any(run.status not in ("ok", "running") for run in self.runs.values()):
            state = "cancelled" if self.cancelled else "failed"
        where = describe_ranks(self.ranks)
        return f"<Cell {state} on {where}, {self.elapsed:.1f} s: {headline(self.code)}>"

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
            run.place = content.get("place", "")
            run.elapsed = content.get("elapsed")
            run.payload = content.get("payload", [])
            run.started, run.freed = content.get("started_here", 0), content.get("broken", "")
            self.world.note_epoch(content.get("epoch", 0))
            # Last, because `done` looks at it from other threads.
            run.status = "ok" if content["status"] == "ok" else "error"
        self._note_end(run)

    def _note_end(self, run: RankRun) -> None:
        if run.status != "ok":
            limit = time.monotonic() + (DEATH_GRACE if run.status == "died" else GRACE)
            self._free_at = min(self._free_at or limit, limit)
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
    def settled(self) -> bool:
        """True once nothing is left to be done about it: it ended well, or was waited for."""
        return self.done and (
            self._settled or all(run.status == "ok" for run in self.runs.values())
        )

    @property
    def elapsed(self) -> float:
        """Seconds since the cell was sent, until it ended."""
        return (self.ended or time.monotonic()) - self.started

    @property
    def running(self) -> list[int]:
        return [rank for rank in self.ranks if self.runs[rank].status == "running"]

    def wait(self, timeout: float | None = None) -> bool:
        """Block until every rank has ended, at most `timeout` seconds. True when all have.

        When it returns True, the world can be used again. Does not raise what the cell raised; see
        `check`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.done:
            now = time.monotonic()
            limit = self._free_at
            if limit is not None and now >= limit:
                self._free("another rank had failed")
                continue
            if deadline is not None and now >= deadline:
                return False
            limits = [LOOK] if deadline is None else [LOOK, deadline - now]
            if limit is not None:
                limits.append(limit - now)
            with self._changed:
                # Also when the first rank fails: from then on there is a limit.
                self._changed.wait_for(
                    lambda: self.done or self._free_at is not limit,  # noqa: B023
                    min(limits),
                )
            self._look()
        self._settle()
        return True

    def _look(self) -> None:
        """See whether ranks wait for each other; free them when nobody will ever come."""
        if self._free_at is not None or self.done:
            return
        now = time.monotonic()
        # Early only when some ranks have ended, which may leave the others waiting.
        early = len(self.running) == len(self.ranks) and now < self.started + QUIET
        if early or now < self._looked + LOOK:
            return
        self._looked = now
        finding = self._watch.look(self.running, self.world.where())
        if finding.deadlock and self.running:
            self.deadlock = finding
            self._free("nobody will ever join the collective that they wait in")
        elif finding.text != self.waiting:
            self.waiting = finding.text
            if self.on_wait is not None:
                self.on_wait(finding.text)

    def interrupt(self, why: str = "interrupted") -> None:
        """Stop the cell on all ranks, together where they can; free those that do not return.

        A rank that has not begun the cell will not run it. Loops over `macluster.steps` stop
        before the same step on all ranks.
        """
        with self._rescuing:
            if not self.done:
                self.cancelled = True
                # A second Ctrl-C: no more patience.
                with contextlib.suppress(KeyboardInterrupt):
                    self._stop(why)
                impatience = 0
                while not self.done:
                    try:
                        self._free(why)
                    except KeyboardInterrupt:
                        impatience += 1
                        if impatience > 1:
                            raise
        self._settle()

    cancel = interrupt

    def _stop(self, why: str) -> None:
        asked = self._begun("hold")
        if not asked:
            return
        how, patience = order_stop(self.world, self.id, asked, len(asked) == len(self.running))
        if self._all_return(patience):
            self.notes.append(f"{describe_ranks(sorted(asked))}: {how}, because {why}.")

    def _begun(self, how: str) -> dict[int, dict[str, Any]]:
        """Ask the running ranks; those that are not at this cell yet will not run it any more."""
        answers = self.world.interrupt(self.id, self.running, how)
        waiting = [rank for rank, answer in answers.items() if answer["stage"] == "waiting"]
        for rank in waiting:
            run = self.runs[rank]
            run.ename, run.evalue = "CancelledError", "the cell was cancelled before its turn"
            run.freed = "cancelled before its turn"
            run.status = "error"
            self._note_end(run)
        if waiting:
            self.notes.append(f"{describe_ranks(waiting)}: cancelled before its turn.")
        return {rank: each for rank, each in answers.items() if each["stage"] == "running"}

    def _free(self, why: str) -> None:
        """Give the world up, so that no rank waits in it, and form a new one."""
        with self._rescuing:
            stood = self.world.where(self.running)
            self._begun("go")
            stuck = self.running
            if not stuck:
                return
            places: dict[str, list[int]] = {}
            for rank in stuck:
                # Of the others, those that come back say it themselves.
                if place := stood.get(rank, {}).get("place"):
                    places.setdefault(place, []).append(rank)
            self.notes += [
                f"{describe_ranks(ranks)} stood at {place}." for place, ranks in places.items()
            ]
            epochs = [answer["epoch"] for answer in stood.values()]
            self._recover(why, max(epochs, default=None))
            if not self._all_return(RETURN):
                for rank in self.running:
                    run = self.runs[rank]
                    run.death, run.status = (
                        RankDied(f"Rank {rank} did not answer any more."),
                        "died",
                    )
                    self._note_end(run)

    def _recover(self, why: str, seen: int | None) -> None:
        for run in self.runs.values():
            if run.status == "died":
                # Now: its successor has the same number.
                run.obituary = run.obituary or self.world.obituary(run.rank)
        alive = {rank for rank, run in self.runs.items() if run.status != "died"}
        try:
            report = self.world.recover(why, seen=seen, progress=self.on_repair)
        except MaclusterError as error:
            self.notes.append(f"{error.what} {error.why}")
            return
        self._killed |= alive & set(report.restarted)
        self.recoveries.append(report)
        self.notes += report.notes

    def _settle(self) -> None:
        """After the last rank has ended: see to it that the next collective is right."""
        with self._rescuing:
            if self._settled:
                return
            if self.on_wait is not None and self.waiting:
                self.on_wait("")
            if all(run.status == "ok" for run in self.runs.values()):
                self._warn_of_uneven_collectives()
            elif why := self.world.out_of_step():
                self._recover(why, None)
            # Last: an interrupt on the way leaves this to whoever comes next.
            self._settled = True

    def _warn_of_uneven_collectives(self) -> None:
        counts: dict[int, list[int]] = {}
        for run in self.runs.values():
            counts.setdefault(run.started, []).append(run.rank)
        if len(counts) > 1 and len(self.ranks) == self.world.size:
            most = max(counts)
            rest = sorted(rank for count, ranks in counts.items() if count < most for rank in ranks)
            self.warnings.append(
                f"{describe_ranks(counts[most])} started collectives that {describe_ranks(rest)} "
                "did not start: the next one would wait for ever, or mix its data with these."
            )

    def _all_return(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.done, seconds)

    def result(self, timeout: float | None = None) -> Cell:
        """Wait, raise the cell's error if it failed, and return the cell itself."""
        if not self.wait(timeout):
            late = self.running
            self.interrupt(f"it ran longer than {timeout:g} s")
            raise verdict.timeout_error(self, timeout or 0.0, late)
        self.check()
        return self

    def check(self) -> None:
        """Raise CellError for the rank whose failure came first, if any rank failed."""
        if (error := verdict.error_of(self)) is not None:
            raise error

    def is_consequence(self, run: RankRun) -> bool:
        """True when the rank was ended because of another one, or from outside."""
        if run.status == "died":
            return run.rank in self._killed
        return bool(run.freed)
