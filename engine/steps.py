"""Loops that all ranks leave after the same step.

An interrupt that lands anywhere leaves the ranks in different places: one has started a collective
that another one never joins. So a loop over `steps` has one place where it can be stopped, and the
ranks are told to stop there after the same step. That costs no collective: the one who interrupts
first asks every rank to hold at its next step, and then names the step that the foremost has
reached, which all others can reach too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

HOLD = 2.0  # seconds that a rank waits between two steps to be told where to stop


class Turnstile:
    """Counts the steps that this process has begun, and can stop it before one of them."""

    def __init__(self) -> None:
        self.begun = 0  # steps, since `reset`
        self.pace = 0.0  # seconds that the last whole step took
        self.stopped = False  # between two steps, in this cell
        self._last = 0.0
        self._loops = 0
        self._held = False
        self._stop_before: int | None = None
        self._changed = threading.Condition()

    def reset(self) -> None:
        """A new cell begins."""
        with self._changed:
            self.begun, self._loops, self._held, self._stop_before = 0, 0, False, None
            self.pace = self._last = 0.0
            self.stopped = False

    # -- the loop (main thread) --------------------------------------------------------------

    def enter(self) -> None:
        self._loops += 1

    def leave(self) -> None:
        self._loops = max(0, self._loops - 1)

    def step(self) -> None:
        """Begin a step. Raises KeyboardInterrupt when this is where the ranks stop."""
        # In this order, see `hold`: either the count that it reads is this one, or we see the hold.
        self.begun += 1
        now = time.monotonic()
        self.pace, self._last = now - (self._last or now), now
        if self._held:
            self._wait()

    def _wait(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._stop_before is not None, HOLD)
            if self._stop_before is None:
                self._held = False  # nobody came back to say where: go on
            elif self.begun >= self._stop_before:
                self._held, self._stop_before = False, None
                self.stopped = True
                raise KeyboardInterrupt

    # -- the one who interrupts (another thread) ---------------------------------------------

    def hold(self) -> int | None:
        """Hold before the next step. The steps begun so far, or None when no loop is under way."""
        with self._changed:
            if self._loops == 0:
                return None
            self._held = True
            return self.begun

    def stop_before(self, step: int) -> None:
        """Go on until `step` would begin, and stop there."""
        with self._changed:
            self._stop_before = step
            self._changed.notify_all()

    def release(self) -> None:
        """Go on as if nothing had been asked."""
        with self._changed:
            self._held, self._stop_before = False, None
            self._changed.notify_all()


turnstile = Turnstile()


def steps(iterable: Iterable[Item]) -> Iterator[Item]:
    """Iterate over `iterable`; an interrupt stops every rank before the same item.

        for batch in macluster.steps(batches):
            loss = step(batch)
            mx.eval(loss, model.parameters())

    Every rank must run the loop alike. Ctrl-C, `--timeout` and a handle's `cancel` then raise
    KeyboardInterrupt here and nowhere else, as long as a step takes less than two seconds, so no
    collective is left half done. `generate` and `stream_generate` do this by themselves. In a
    notebook without ranks it is a plain iteration.
    """
    turnstile.enter()
    try:
        for item in iterable:
            turnstile.step()
            yield item
    finally:
        turnstile.leave()
