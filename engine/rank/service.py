"""Answers macluster's requests inside a rank.

Three kinds of request, as `engine/client.py` sends them:

- `cell` (shell channel, main thread, in order): run source code as a notebook cell.
- `call` (shell channel, main thread, in order): run one of CALLS, with raw buffers both ways.
- `ask` (control channel, control thread, at once): answer one of QUESTIONS, also while a cell runs.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import gc
import inspect
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from ..client import PREFIX, Message
from ..errors import MaclusterError, WorldBroken
from ..wire import Wire
from . import cells, data, introspect, metrics, models, serving, topology, variables, world
from .collectives import collectives
from .streams import RankStream
from .work import MainThread

Answer = tuple[dict[str, Any], Sequence[Any]]
# Takes the kernel, the request's content and its buffers. One of QUESTIONS may be a coroutine.
Handler = Callable[[Any, Mapping[str, Any], Sequence[memoryview]], Any]

CALLS: dict[str, Handler] = {
    "world.prepare": world.prepare,
    "world.form": world.form,
    "world.seed": world.seed,
    "data.measure": data.measure,
    "data.push": data.push,
    "data.settle": data.settle,
    "data.pull": data.pull,
    "models.reload": models.reload,
    "variables.list": variables.table,
    "variables.hash": variables.digests,
}
QUESTIONS: dict[str, Handler] = {
    "abort": world.abort,
    "complete": introspect.complete,
    "inspect": introspect.inspect_name,
    "status": introspect.status,
    "where": introspect.where,
    "stacks": introspect.stacks,
    "interrupt": introspect.interrupt,
    "measurement": topology.measurement,
    "metrics.watch": metrics.watch,
    "models": models.held,
    "models.parts": models.parts,
    "serving": serving.status,
    "serving.close": serving.close,
    "serving.key": serving.key,
    "serving.stop": serving.stop,
    "topology": topology.topology,
}


FAILURE = 1000  # characters of a failure that are kept for whoever watches

# What C++ libraries say when MLX looks for a socket of a ring that it has closed.
NO_SUCH_SOCKET = ("_Map_base::at", "unordered_map::at: key not found", "map::at:  key not found")


class Service:
    """Takes macluster's requests out of a rank's kernel and answers them.

    Requests on the shell channel go past ipykernel's own dispatch, which would publish two status
    messages and flush twice for each: on a small cell that is half of the time. Everything else,
    such as a `%px` of stock ipyparallel, is passed on, and both take turns on the kernel's lock.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._sent: Counter[str] = Counter()
        self._counting = threading.Lock()
        # For each client, the number of the last of its cells that failed here.
        self._failed: dict[str, int] = {}
        # One context for all cells, so that a ContextVar set in one is seen by the next.
        self._context = contextvars.copy_context()
        self._pass_on: Callable[[list[Any]], Any] = kernel.shell_stream._recv_callback

    def install(self) -> None:
        kernel = self.kernel
        self.main = kernel.macluster = MainThread(kernel.shell)
        self.main.install()
        self.main.metrics = metrics.Metrics(kernel)
        collectives.cell_files = kernel.shell.compile._filename_map
        kernel.control_handlers[PREFIX + "ask_request"] = self.on_ask
        self._count_outputs()
        cells.prepare_shell(kernel.shell)
        # An interrupt in the middle of numpy's import would spoil it for this process.
        import_module("numpy")
        signal.signal(signal.SIGTERM, leave)
        self._wire = Wire(kernel.shell_stream, self.on_shell_message)
        # What the imports left is never garbage: the collector need not look at it again.
        gc.collect()
        gc.freeze()

    def on_shell_message(self, frames: list[Any]) -> Any:
        """Answer a request of ours in a task of its own; hand on everything else."""
        idents, parts = self.kernel.session.feed_identities(frames, copy=False)
        if PREFIX.encode() not in parts[1].bytes:
            # ipykernel's handler is a coroutine function; its stream would have awaited it.
            return asyncio.ensure_future(self._pass_on(frames))
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
            content: dict[str, Any]
            buffers: Sequence[Any] = ()
            cell, started = parent["content"].get("cell"), collectives.started
            try:
                with self.main.at_work(cell):
                    content, buffers = await self._work(parent)
            except (Exception, KeyboardInterrupt, asyncio.CancelledError) as error:
                content = _failure(error)
            self.main.rest()
            if cell is not None:
                if content["status"] != "ok":
                    self._failed[parent["header"]["session"]] = parent["content"]["number"]
                # What the one who sent the cell needs to know whether the world is still in step.
                content["started_here"] = collectives.started - started
                content["epoch"] = collectives.epoch
                broken = collectives.broken
                content["broken"] = (broken.why or broken.what) if broken is not None else ""
                self._note_failure(content)
            self._reply(kernel.shell_stream, idents, parent, content, buffers)

    def _note_failure(self, content: Mapping[str, Any]) -> None:
        """Keep a cell's own failure for whoever watches; not one that others have caused."""
        interrupted = content.get("ename") in ("KeyboardInterrupt", "CancelledError")
        if content["status"] == "error" and not content["broken"] and not interrupted:
            keys = ("ename", "evalue", "place")
            # It is sent again and again, and an exception's text may be megabytes.
            self.main.failure = {key: str(content.get(key, ""))[:FAILURE] for key in keys}
            self.main.failure["at"] = time.monotonic()

    async def _work(self, parent: Message) -> Answer:
        """Run a cell or one of CALLS, in the main thread."""
        content = parent["content"]
        if "call" in parent["header"]["msg_type"]:
            answer, buffers = self._handle(CALLS, parent)
            return {"status": "ok", **answer}, buffers
        collectives.require_world()
        session, failed = parent["header"]["session"], self._failed
        if failed.get(session, -1) > content["settled"]:
            # The others may still be in the cell that failed: this one's collectives would meet it.
            raise asyncio.CancelledError("not run: a cell before it failed on this rank")
        work, started = self.main.work, time.perf_counter()
        collectives.checked = content.get("checked") or collectives.always_checked
        collectives.solo = content.get("solo", "")
        try:
            reply = await cells.run(self.kernel.shell, content)
        finally:
            collectives.checked, collectives.solo = False, ""
        used_stale = work is not None and self.main.stale is work
        if used_stale or reply.get("evalue") in NO_SUCH_SOCKET:
            raise stale_use()
        if collectives.given_up and reply["status"] == "ok":
            # It was freed a moment before the interrupt came, and has worked with NaN.
            raise KeyboardInterrupt
        return {**reply, "elapsed": time.perf_counter() - started}, ()

    async def on_ask(self, stream: Any, ident: list[bytes], parent: Message) -> None:
        """Answer one of QUESTIONS, in the control thread."""
        buffers: Sequence[Any] = ()
        try:
            found = self._handle(QUESTIONS, parent)
            answer, buffers = await found if inspect.isawaitable(found) else found
            content = {"status": "ok", **answer}
        except Exception as error:
            content = _failure(error)
        self._reply(stream, ident, parent, content, buffers)

    def _handle(self, table: Mapping[str, Handler], parent: Message) -> Any:
        content = parent["content"]
        buffers = [memoryview(buffer) for buffer in parent["buffers"]]
        return table[content["name"]](self.kernel, content, buffers)

    def _reply(
        self,
        stream: Any,
        ident: list[bytes],
        parent: Message,
        content: dict[str, Any],
        buffers: Sequence[Any] = (),
    ) -> None:
        header = parent["header"]
        asked = header["msg_type"] == PREFIX + "ask_request"
        if not asked:
            # The order matters: what is still buffered must be counted before the count is sent.
            for output in (sys.stdout, sys.stderr):
                if isinstance(output, RankStream):
                    output.drain()
                output.flush()
        with self._counting:
            sent = self._sent.pop(header["msg_id"], 0)
        # A question has no output but ipykernel's status messages, which nobody needs.
        content["outputs"] = 0 if asked else sent
        session = self.kernel.session
        kind = header["msg_type"].removesuffix("_request") + "_reply"
        if stream is self.kernel.shell_stream and not buffers:
            self._wire.send(
                session.serialize(session.msg(kind, printable(content), parent=parent), ident)
            )
        else:
            session.send(
                stream,
                kind,
                printable(content),
                parent=parent,
                ident=ident,
                buffers=list(buffers) or None,
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
                sent = send(stream, message, *args, **kwargs)
                # Only now: a message that cannot be sent must not be waited for.
                if str(parent.get("msg_type", "")).startswith(PREFIX):
                    with self._counting:
                        self._sent[parent["msg_id"]] += 1
                return sent
            return send(stream, message, *args, **kwargs)

        session.send = counting_send


def stale_use() -> WorldBroken:
    return WorldBroken(
        "The cell used something that belongs to a world that was given up.",
        why="an array or a compiled function was made before the world was rebuilt, and holds a "
        "collective of the old one; what it gave is NaN",
        do="run the cells again that make it",
    )


def leave(*_: Any) -> None:
    """End at once, after the exit functions: MLX tears its group down in one of them.

    ipyparallel's own handler stops the event loop under the kernel's feet, which takes seconds.
    """
    atexit._run_exitfuncs()
    os._exit(0)


def printable(value: Any) -> Any:
    """JSON whose texts can be encoded: half a surrogate pair cannot."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {printable(key): printable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(each) for each in value]
    return value


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
