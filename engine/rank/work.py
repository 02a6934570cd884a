"""What a rank's main thread is busy with, where it stands, and how it is stopped.

Everything here may be called from the control thread while a cell runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import linecache
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from ..steps import turnstile

LOOK = 0.02  # seconds between two looks whether the main thread has come back
NUDGE = 0.5  # seconds between two interrupts: the first one's traceback takes a while


@attrs.define(eq=False)
class Work:
    """One request: the cell's id (None for a call), its task, and when it began (monotonic)."""

    cell: str | None
    task: asyncio.Task[Any] | None
    began: float = attrs.field(factory=time.monotonic)


class MainThread:
    """The main thread of a rank."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.work: Work | None = None
        self.interrupted: Work | None = None  # the last work that `abort` has ended
        self.stale: Work | None = None  # the last work that used a world that was given up
        self.failure: dict[str, Any] | None = None  # of the last cell that failed by itself
        self.metrics: Any = None  # what keeps those informed who watch this rank
        self._forgotten: set[str] = set()
        self._ended: deque[str | None] = deque(maxlen=100)  # the last cells
        self._looking = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ident = threading.main_thread().ident or 0

    def install(self) -> None:
        """Take SIGINT over. To be called in the main thread, in its event loop."""
        self._loop = asyncio.get_running_loop()
        signal.signal(signal.SIGINT, self._on_sigint)

    # -- in the main thread ------------------------------------------------------------------

    @contextlib.contextmanager
    def at_work(self, cell: str | None) -> Iterator[None]:
        """While a request is answered: say which one, and let SIGINT interrupt it.

        Raises CancelledError for a cell that was forgotten before its turn.
        """
        work = Work(cell, asyncio.current_task())
        with self._looking:
            if cell in self._forgotten:
                self._forgotten.discard(cell)
                raise asyncio.CancelledError("the cell was cancelled before its turn")
            self.work = work
        if cell is not None:
            turnstile.reset()
        try:
            yield
        finally:
            self._ended.append(cell)
            self.rest()

    def rest(self) -> None:
        """The work is done. Until this has returned, an interrupt may still come."""
        while self.work is not None:
            with contextlib.suppress(KeyboardInterrupt):
                self.work = None

    def _on_sigint(self, *_: Any) -> None:
        """Interrupt what runs; without any work, SIGINT is ignored.

        Code that runs gets a KeyboardInterrupt. A cell that awaits something is cancelled, because
        a KeyboardInterrupt would end the rank's event loop instead.
        """
        work = self.work
        if work is None or self._loop is None:
            return
        if asyncio.current_task(self._loop) is work.task:
            raise KeyboardInterrupt
        if work.task is not None:
            self._loop.call_soon_threadsafe(work.task.cancel)

    # -- from the control thread -------------------------------------------------------------

    def stage(self, cell: str) -> str:
        """ "running", "ended", or "waiting": then it is forgotten, and will not run."""
        with self._looking:
            if self.work is not None and self.work.cell == cell:
                return "running"
            if cell in self._ended:
                return "ended"
            self._forgotten.add(cell)
            return "waiting"

    def interrupt_cell(self, cell: str) -> None:
        """Interrupt the work of now if it is this cell."""
        work = self.work
        if work is not None and work.cell == cell:
            self.interrupt(work)

    def interrupt(self, work: Work | None) -> None:
        """Interrupt `work` if it still runs."""
        if work is not None and self.work is work:
            # To the thread itself, so that a blocking system call there returns.
            signal.pthread_kill(self._ident, signal.SIGINT)

    def end_work(self) -> None:
        """Interrupt the work of now for good: see `vacate`."""
        self.interrupted = self.work or self.interrupted
        self.interrupt(self.work)

    async def vacate(self, patience: float) -> bool:
        """Interrupt the work of now until it ends, for `patience` seconds. True when it has."""
        work = self.work
        now = time.monotonic()
        deadline, nudge = now + patience, now + NUDGE
        while work is not None and self.work is work:
            now = time.monotonic()
            if now > deadline:
                return False
            if now >= nudge:
                self.interrupt(work)
                nudge = now + NUDGE
            await asyncio.sleep(LOOK)
        return True

    def frames(self) -> list[types.FrameType]:
        """The main thread's frames from the cell's own inwards; [] when no cell runs."""
        cell_files = self.shell.compile._filename_map
        inner: list[types.FrameType] = []
        frame = sys._current_frames().get(self._ident)
        outermost = None
        while frame is not None:
            inner.append(frame)
            if frame.f_code.co_filename in cell_files:
                outermost = len(inner)
            frame = frame.f_back
        if outermost is not None:
            return inner[:outermost][::-1]
        return self._suspended_frames(cell_files)

    def _suspended_frames(self, cell_files: Mapping[str, Any]) -> list[types.FrameType]:
        """The frames of a cell that awaits something."""
        work = self.work
        inner = work.task.get_coro() if work is not None and work.task is not None else None
        found: list[types.FrameType] = []
        while inner is not None:
            frame = getattr(inner, "cr_frame", None)
            if frame is not None and (found or frame.f_code.co_filename in cell_files):
                found.append(frame)
            inner = getattr(inner, "cr_await", None)
        return found

    def place(self) -> str | None:
        """The innermost line of the cell that the main thread stands in, in words."""
        cell_files = self.shell.compile._filename_map
        for frame in reversed(self.frames()):
            if frame.f_code.co_filename in cell_files:
                return line_text(frame.f_code.co_filename, frame.f_lineno)
        return None

    def moment(self) -> list[int]:
        """Numbers that are the same only as long as the main thread stands at the same point."""
        frames = self.frames()
        if not frames:
            return []
        return [id(frames[-1]), frames[-1].f_lasti, len(frames), turnstile.begun]


def line_text(file: str, number: int) -> str:
    """`line 3: `the source`` for a line of a cell."""
    return f"line {number}: `{linecache.getline(file, number).strip()}`"
