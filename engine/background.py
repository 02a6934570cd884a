"""The event loop in which every cluster is looked after, in a thread of its own.

The launchers report the end of a process to the loop that started it, and a lock belongs to one
loop: so whoever asks, with a loop or without, has the work done here.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from threading import Event, Thread
from typing import Any, Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

CANCEL_TIMEOUT = 30.0  # seconds that a cancelled job gets to clean up


@functools.cache
def background_loop() -> asyncio.AbstractEventLoop:
    """The loop, started at the first use."""
    loop = asyncio.new_event_loop()
    Thread(target=loop.run_forever, name="macluster-loop", daemon=True).start()
    return loop


class Job(Generic[T]):
    """A coroutine under way in the background loop; made in any thread."""

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._ended = Event()
        self.future: Future[T] = asyncio.run_coroutine_threadsafe(
            self._run(work), background_loop()
        )

    async def _run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        finally:
            self._ended.set()

    def cancel(self) -> None:
        """Cancel it, and block until it has cleaned up."""
        if self.future.cancel():
            self._ended.wait(CANCEL_TIMEOUT)


def block_on(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end. Ctrl-C cancels it: nothing of it goes on afterwards."""
    job = Job(work)
    try:
        return job.future.result()
    except KeyboardInterrupt:
        job.cancel()
        raise


def see_through(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that must not be left half done: only a second Ctrl-C breaks it off."""
    job, impatience = Job(work), 0
    while True:
        try:
            return job.future.result()
        except KeyboardInterrupt:
            impatience += 1
            if impatience > 1:
                job.future.cancel()
                raise


def in_background(
    method: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Decorate a coroutine function: it runs in the background loop, whichever loop awaits it."""

    @functools.wraps(method)
    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if asyncio.get_running_loop() is background_loop():
            return await method(*args, **kwargs)
        job = Job(method(*args, **kwargs))
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            await asyncio.to_thread(job.cancel)
            raise

    return run
