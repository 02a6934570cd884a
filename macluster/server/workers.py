"""Threads for what may block: nothing of it may run in the loop of the server."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Workers:
    """At most `most` threads, each begun when it is needed.

    They are daemons, unlike those of ThreadPoolExecutor: a server that is told to end does not wait
    for a host that does not answer.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self._there_is_work = threading.Condition()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = 0
        self._idle = 0
        self._closed = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have it done; what it raises is in the future. Cancelled when this was closed."""
        future: Future[T] = Future()
        with self._there_is_work:
            if self._closed:
                future.cancel()
                return future
            self._waiting.append((future, work))
            if len(self._waiting) > self._idle and self._threads < self._most:
                self._threads += 1
                name = f"{self._name}-{self._threads}"
                threading.Thread(target=self._run, name=name, daemon=True).start()
            self._there_is_work.notify()
        return future

    def close(self) -> None:
        """End: what has not begun is cancelled, what is under way is not waited for."""
        with self._there_is_work:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            self._there_is_work.notify_all()
        for future, _ in waiting:
            future.cancel()

    def _run(self) -> None:
        while True:
            with self._there_is_work:
                self._idle += 1
                self._there_is_work.wait_for(lambda: self._waiting or self._closed)
                self._idle -= 1
                if not self._waiting:
                    return
                future, work = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            # Or they would live on until the next piece of work comes.
            del future, work
