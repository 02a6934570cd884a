"""The streams behind `print` on a rank."""

from __future__ import annotations

import codecs
import os
import selectors
import threading
from typing import Any

from ipykernel.iostream import OutStream

CHUNK = 2**16  # bytes
LIMIT = 2**20  # bytes; a pipe holds much less


class RankStream(OutStream):
    """An OutStream that costs nothing when nothing was written, and loses nothing at the end.

    ipykernel's flush waits for another thread each time, and every request flushes four times. And
    what native code and child processes write comes through a pipe that its thread reads at its
    leisure; here, `drain` reads what is there.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        # Before the base class starts its thread.
        self._written = False
        self._draining = threading.Lock()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]

    def write(self, string: str) -> Any:
        self._written = True
        return super().write(string)

    def flush(self) -> None:
        if self._written:
            self._written = False
            super().flush()  # type: ignore[no-untyped-call]

    def drain(self) -> bool:
        """Take over what the pipe holds. False when nobody can write to it any more.

        At most LIMIT: a child that goes on writing must not keep a request from ending.
        """
        pipe: int | None = getattr(self, "_fid", None)
        if pipe is None:
            return False
        # Under the lock, so that whoever comes second finds what was read written already.
        with self._draining:
            for _ in range(LIMIT // CHUNK):
                try:
                    data = os.read(pipe, CHUNK)
                except BlockingIOError:
                    return True
                if not data:
                    return False
                self.write(self._decoder.decode(data))
                os.write(self._original_stdstream_copy or 2, data)
        return True

    def _watch_pipe_fd(self) -> None:
        # In place of ipykernel's, which blocks in a read that nobody can wait for.
        assert self._fid is not None
        os.set_blocking(self._fid, False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._fid, selectors.EVENT_READ)
            while self._should_watch:
                selector.select()
                if not self.drain():
                    return
