"""Answers macluster's requests inside a rank.

Three kinds of request, as `engine/client.py` sends them:

- `cell` (shell channel, main thread, in order): run source code as a notebook cell.
- `call` (shell channel, main thread, in order): run one of CALLS, with raw buffers both ways.
- `ask` (control channel, control thread, at once): answer one of QUESTIONS, also while a cell runs.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..client import PREFIX, Message
from ..errors import MaclusterError
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
    """Installs the handlers on a rank's kernel."""

    def __init__(self, kernel: Any, rank: int) -> None:
        self.kernel = kernel
        self.rank = rank
        self._sent: Counter[str] = Counter()

    def install(self) -> None:
        kernel = self.kernel
        kernel.shell_handlers[PREFIX + "cell_request"] = self.on_cell
        kernel.shell_handlers[PREFIX + "call_request"] = self.on_call
        kernel.control_handlers[PREFIX + "ask_request"] = self.on_ask
        self._count_outputs()
        self._mute_status()
        signal.signal(signal.SIGTERM, leave)
        cells.prepare_shell(kernel.shell)

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
        kind = header["msg_type"].removesuffix("_request") + "_reply"
        self.kernel.session.send(
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

    def _mute_status(self) -> None:
        """No busy and idle messages for our own requests: nobody reads them."""
        publish = self.kernel._publish_status

        def publish_status(status: str, channel: str, parent: Any = None) -> None:
            parent = parent or self.kernel.get_parent(channel)
            if not str(parent.get("header", {}).get("msg_type", "")).startswith(PREFIX):
                publish(status, channel, parent)

        self.kernel._publish_status = publish_status


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
