"""Answers macluster's requests inside a rank.

Three kinds of request, as `engine/client.py` sends them:

- `cell` (shell channel, main thread, in order): run source code as a notebook cell.
- `call` (shell channel, main thread, in order): run one of CALLS, with raw buffers both ways.
- `ask` (control channel, control thread, at once): answer one of QUESTIONS, also while a cell runs.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import gc
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..client import PREFIX, Message
from ..errors import MaclusterError
from ..wire import Wire
from . import cells, data, introspect, variables, world

Answer = tuple[dict[str, Any], Sequence[Any]]
Handler = Callable[[Any, Mapping[str, Any], Sequence[memoryview]], Answer]

CALLS: dict[str, Handler] = {
    "world.prepare": world.prepare,
    "world.form": world.form,
    "data.measure": data.measure,
    "data.push": data.push,
    "data.pull": data.pull,
    "variables.list": variables.table,
    "variables.hash": variables.digests,
}
QUESTIONS: dict[str, Handler] = {
    "complete": introspect.complete,
    "inspect": introspect.inspect_name,
    "status": introspect.status,
    "where": introspect.where,
}


class Service:
    """Takes macluster's requests out of a rank's kernel and answers them.

    Requests on the shell channel go past ipykernel's own dispatch, which would publish two status
    messages and flush twice for each: on a small cell that is half of the time. Everything else,
    such as a `%px` of stock ipyparallel, is passed on, and both take turns on the kernel's lock.
    """

    def __init__(self, kernel: Any, rank: int) -> None:
        self.kernel = kernel
        self.rank = rank
        self._sent: Counter[str] = Counter()
        # One context for all cells, so that a ContextVar set in one is seen by the next.
        self._context = contextvars.copy_context()
        self._pass_on: Callable[[list[Any]], Any] = kernel.shell_stream._recv_callback

    def install(self) -> None:
        kernel = self.kernel
        kernel.control_handlers[PREFIX + "ask_request"] = self.on_ask
        self._count_outputs()
        cells.prepare_shell(kernel.shell)
        signal.signal(signal.SIGTERM, leave)
        self._wire = Wire(kernel.shell_stream, self.on_shell_message)
        # What the imports left is never garbage: the collector need not look at it again.
        gc.collect()
        gc.freeze()

    def on_shell_message(self, frames: list[Any]) -> Any:
        """Answer a request of ours in a task of its own; hand on everything else."""
        idents, parts = self.kernel.session.feed_identities(frames, copy=False)
        if PREFIX.encode() not in parts[1].bytes:
            return self._pass_on(frames)
        return asyncio.get_running_loop().create_task(
            self._answer_in_turn(idents, parts), context=self._context
        )

    async def _answer_in_turn(self, idents: list[bytes], parts: list[Any]) -> None:
        kernel = self.kernel
        async with kernel._main_asyncio_lock:
            try:
                parent = kernel.session.deserialize(parts, content=True, copy=False)
            except ValueError:
                kernel.log.error("a message with a wrong signature was dropped", exc_info=True)
                return
            kernel.set_parent(idents, parent, channel="shell")
            answer = self.on_cell if "cell" in parent["header"]["msg_type"] else self.on_call
            kernel.macluster_task = asyncio.current_task()  # for `introspect.where`
            with interruptible():
                await answer(kernel.shell_stream, idents, parent)

    # -- handlers --------------------------------------------------------------------------

    async def on_cell(self, stream: Any, ident: list[bytes], parent: Message) -> None:
        started = time.perf_counter()
        content = await cells.run(self.kernel.shell, parent["content"])
        content["elapsed"] = time.perf_counter() - started
        self._reply(stream, ident, parent, content)

    async def on_call(self, stream: Any, ident: list[bytes], parent: Message) -> None:
        await self._answer(CALLS, stream, ident, parent)

    async def on_ask(self, stream: Any, ident: list[bytes], parent: Message) -> None:
        await self._answer(QUESTIONS, stream, ident, parent)

    async def _answer(
        self, table: Mapping[str, Handler], stream: Any, ident: list[bytes], parent: Message
    ) -> None:
        content = parent["content"]
        buffers: Sequence[Any] = ()
        try:
            handler = table[content["name"]]
            answer, buffers = handler(
                self.kernel, content, [memoryview(buffer) for buffer in parent["buffers"]]
            )
            body = {"status": "ok", **answer}
        except KeyboardInterrupt:
            body = _failure(RuntimeError("interrupted"))
        except Exception as error:
            body = _failure(error)
        self._reply(stream, ident, parent, body, buffers)

    def _reply(
        self,
        stream: Any,
        ident: list[bytes],
        parent: Message,
        content: dict[str, Any],
        buffers: Sequence[Any] = (),
    ) -> None:
        header = parent["header"]
        if header["msg_type"] != PREFIX + "ask_request":
            # The order matters: what is still buffered must be counted before the count is sent.
            for output in (sys.stdout, sys.stderr):
                output.flush()
        content["outputs"] = self._sent.pop(header["msg_id"], 0)
        session = self.kernel.session
        kind = header["msg_type"].removesuffix("_request") + "_reply"
        if stream is self.kernel.shell_stream and not buffers:
            self._wire.send(session.serialize(session.msg(kind, content, parent=parent), ident))
        else:
            session.send(
                stream, kind, content, parent=parent, ident=ident, buffers=list(buffers) or None
            )

    # -- what ipykernel does that we do in another way ---------------------------------------

    def _count_outputs(self) -> None:
        """Count the output messages of each request.

        A reply and its output travel by different sockets. The count in the reply tells the
        client when it has everything, without a status message for every request.
        """
        session, iopub, send = (
            self.kernel.session,
            self.kernel.iopub_socket,
            self.kernel.session.send,
        )

        def counting_send(stream: Any, message: Any, *args: Any, **kwargs: Any) -> Any:
            if stream is iopub:
                if isinstance(message, Mapping):
                    parent = message.get("parent_header") or {}
                else:
                    parent = kwargs.get("parent") or (args[1] if len(args) > 1 else None) or {}
                    parent = parent.get("header", parent)
                if str(parent.get("msg_type", "")).startswith(PREFIX):
                    self._sent[parent["msg_id"]] += 1
            return send(stream, message, *args, **kwargs)

        session.send = counting_send


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """While a request is answered, SIGINT interrupts it.

    Code that runs gets a KeyboardInterrupt. A cell that awaits something is cancelled, because a
    KeyboardInterrupt would end the rank's event loop instead.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def interrupt(*_: Any) -> None:
        if asyncio.current_task(loop) is task:
            raise KeyboardInterrupt
        if task is not None:
            loop.call_soon_threadsafe(task.cancel)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def leave(*_: Any) -> None:
    """End at once, after the exit functions: MLX tears its group down in one of them.

    ipyparallel's own handler stops the event loop under the kernel's feet, which takes seconds.
    """
    atexit._run_exitfuncs()
    os._exit(0)


def _failure(error: BaseException) -> dict[str, Any]:
    known = isinstance(error, MaclusterError)
    return {
        "status": "error",
        "ename": type(error).__name__,
        "evalue": error.what if isinstance(error, MaclusterError) else str(error),
        "why": error.why if isinstance(error, MaclusterError) else "",
        "do": error.do if isinstance(error, MaclusterError) else "",
        "traceback": [] if known else traceback.format_exception(error),
    }
