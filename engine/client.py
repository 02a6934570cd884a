"""The line to the ranks: requests, replies and output, over ipyparallel's sockets.

This is the only module that touches the private API of ipyparallel's client: `_setup_streams`,
`_dispatch_reply`, `_dispatch_single_reply`, `_dispatch_iopub`, `_registration_callbacks`,
`_engines`, `_mux_stream`, `_control_stream`, `_query_stream`, `_iopub_socket` and `_io_loop`. It
sends macluster's own messages beside ipyparallel's, because `execute_request` costs each rank four
more messages and a full pass through ipykernel's request handling. Both go through the same
authenticated sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any, Literal

import attrs
import ipyparallel
import zmq
from ipyparallel.client.client import unpack_message

from . import errors
from .errors import MaclusterError, RankDied, WorldBroken, WorldError
from .wire import Wire

Message = dict[str, Any]
Channel = Literal["shell", "control"]

PREFIX = "macluster_"
# The topic of what watched ranks say of themselves, and the kind of those messages.
METRICS = b"macluster_metrics"

log = logging.getLogger(__name__)

# ipyparallel's handlers without the decorator that parses the frames: a message can be parsed once
# only, because its signature is refused the second time.
_stock_dispatch_reply: Callable[..., None] = inspect.unwrap(ipyparallel.Client._dispatch_reply)
_stock_dispatch_single_reply: Callable[..., None] = inspect.unwrap(
    ipyparallel.Client._dispatch_single_reply
)
_stock_dispatch_iopub: Callable[..., None] = inspect.unwrap(ipyparallel.Client._dispatch_iopub)


@attrs.frozen
class Reply:
    """A rank's answer: JSON `content` and raw `buffers`."""

    rank: int
    content: dict[str, Any]
    buffers: list[memoryview] = attrs.field(factory=list)


def raise_failure(reply: Reply) -> Reply:
    """The reply itself, or the error that it reports: a MaclusterError as it was raised there."""
    content = reply.content
    if content.get("status") != "error":
        return reply
    kind = getattr(errors, content["ename"], None)
    if isinstance(kind, type) and issubclass(kind, MaclusterError):
        what = f"On rank {reply.rank}: {content['evalue']}"
        raise kind(what, why=content.get("why", ""), do=content.get("do", ""))
    last = "".join(content["traceback"]).strip()
    raise WorldError(
        f"Rank {reply.rank} failed: {content['ename']}: {content['evalue']}",
        why=last,
        do="if the lines above do not explain it, %cluster restart gives fresh ranks",
    )


@attrs.define(eq=False)
class Request:
    """One message under way to one rank.

    `future` resolves to a Reply once the rank has answered and all of the output that it says it
    sent has arrived, or to RankDied.
    """

    rank: int
    msg_id: str
    on_output: Callable[[int, Message], None] | None
    future: Future[Reply]
    reply: Reply | None = None
    outputs: int = 0

    @property
    def complete(self) -> bool:
        """True when the reply and all of the output that it counts are here."""
        return self.reply is not None and self.outputs >= self.reply.content.get("outputs", 0)


def _ours(msg: Message) -> bool:
    """True for a reply to a request of ours, perhaps of one that was given up before."""
    return str(msg["header"]["msg_type"]).startswith(PREFIX)


class RankClient(ipyparallel.Client):
    """An ipyparallel client whose engines are ranks.

    With a `topic`, such as METRICS, it hears that and nothing else of what the ranks print.
    """

    def __init__(self, *args: Any, topic: bytes = b"", **kwargs: Any) -> None:
        self._topic = topic
        # The base class starts its IO thread inside __init__.
        self._requests: dict[str, Request] = {}
        self._requests_lock = threading.Lock()
        self._departed: set[int] = set()
        self._given_up: dict[int, MaclusterError] = {}
        self.pids: dict[int, int] = {}  # the process of each rank, where it is known
        self.last_pids: dict[int, int] = {}  # of ranks that are gone
        # Called in the IO thread when a rank is gone.
        self.on_departure: Callable[[int], None] | None = None
        # Called when the controller's process has ended, in the thread that watches it.
        self.on_controller_end: Callable[[], None] | None = None
        # Called in the IO thread with what a rank says of itself while it is watched.
        self.on_metrics: Callable[[Message], None] | None = None
        self._lost: MaclusterError | None = None
        super().__init__(*args, **kwargs)
        self._registration_callbacks.append(self._on_registration)

    # -- sending ---------------------------------------------------------------------------

    def request(
        self,
        ranks: Sequence[int],
        kind: str,
        content: Mapping[str, Any],
        *,
        buffers: Sequence[Any] = (),
        each: Callable[[int], Mapping[str, Any]] | None = None,
        channel: Channel = "shell",
        on_output: Callable[[int, Message], None] | None = None,
    ) -> list[Future[Reply]]:
        """Send one request to each of `ranks` and return a future for each reply, in that order.

        `each(rank)` gives content that differs between ranks. `on_output(rank, message)` is
        called in the IO thread for every output message of the request. A rank that is dead, or
        dies before it answers, resolves its future with RankDied, and a client that is closed or
        has lost its controller with WorldBroken.
        """
        prepared: list[tuple[Request, Message, bytes]] = []
        futures: list[Future[Reply]] = []
        packed = self.session.pack(dict(content))  # once, for all ranks
        for rank in ranks:
            future: Future[Reply] = Future()
            futures.append(future)
            uuid = self._engines.get(rank)
            if uuid is None or rank in self._given_up:
                future.set_exception(self._death(rank))
                continue
            message = self.session.msg(PREFIX + kind + "_request")
            message["content"] = self.session.pack({**content, **each(rank)}) if each else packed
            request = Request(rank, message["header"]["msg_id"], on_output, future)
            with self._requests_lock:
                if self._lost is not None:
                    future.set_exception(self._lost)
                    continue
                self._requests[request.msg_id] = request
            prepared.append((request, message, uuid.encode()))

        def send() -> None:
            if channel == "shell" and not buffers:
                self._wire.send(*(self.session.serialize(m, ident=i) for _, m, i in prepared))
                return
            stream = self._control_stream if channel == "control" else self._mux_stream
            for _, message, ident in prepared:
                self.session.send(stream, message, ident=ident, buffers=list(buffers) or None)

        self._io_loop.add_callback(send)
        # A rank that left between the look-up above and here has had its notification already.
        for request, _, ident in prepared:
            gone = self._engines.get(request.rank) != ident.decode()
            if gone or request.rank in self._given_up:
                self._resolve(request, self._death(request.rank))
        return futures

    # -- receiving (IO thread) -------------------------------------------------------------

    def _setup_streams(self) -> None:
        super()._setup_streams()
        self._wire = Wire(self._mux_stream, self._dispatch_reply)
        if self._topic:
            self._iopub_socket.setsockopt(zmq.SUBSCRIBE, self._topic)
            self._iopub_socket.setsockopt(zmq.UNSUBSCRIBE, b"")

    def _dispatch_reply(self, frames: list[Any]) -> None:
        _, parts = self.session.feed_identities(frames, copy=False)
        try:
            msg = self.session.deserialize(parts, content=True, copy=False)
        except ValueError:
            log.exception("a message with a wrong signature was dropped")
            return
        if not self._take_reply(msg) and not _ours(msg):
            _stock_dispatch_reply(self, msg)

    @unpack_message
    def _dispatch_single_reply(self, msg: Message) -> None:
        if not self._take_reply(msg) and not _ours(msg):
            _stock_dispatch_single_reply(self, msg)

    def _dispatch_iopub(self, frames: list[Any]) -> None:
        watched = bytes(frames[0].buffer).startswith(METRICS)
        if watched and self.on_metrics is None:
            return  # somebody else watches the ranks
        self._dispatch_output(frames)

    @unpack_message
    def _dispatch_output(self, msg: Message) -> None:
        if msg["header"]["msg_type"] == METRICS.decode():
            if self.on_metrics is not None:
                self.on_metrics(msg["content"])
            return
        parent_id = (msg["parent_header"] or {}).get("msg_id", "")
        request = self._requests.get(parent_id)
        if request is None:
            if not msg["parent_header"].get("msg_type", "").startswith(PREFIX):
                _stock_dispatch_iopub(self, msg)
            return
        request.outputs += 1
        if request.on_output is not None:
            try:
                request.on_output(request.rank, msg)
            except Exception:
                # Showing output may fail; the cell that sent it must end all the same.
                log.exception("an output message could not be shown")
        if request.complete:
            self._resolve(request)

    def _take_reply(self, msg: Message) -> bool:
        request = self._requests.get(msg["parent_header"].get("msg_id", ""))
        if request is None:
            return False
        buffers = [memoryview(buffer) for buffer in msg["buffers"]]
        request.reply = Reply(request.rank, msg["content"], buffers)
        if request.complete:
            self._resolve(request)
        return True

    def _resolve(self, request: Request, error: Exception | None = None) -> None:
        """Resolve a request, once: whoever takes it out of the table does it."""
        with self._requests_lock:
            if self._requests.pop(request.msg_id, None) is None:
                return
        # Whoever asked may have lost patience, and cancelled the future.
        with contextlib.suppress(InvalidStateError):
            if error is not None:
                request.future.set_exception(error)
            elif request.reply is not None:
                request.future.set_result(request.reply)

    async def cancel_registrations(self, ranks: Sequence[int]) -> None:
        """Have the controller forget registrations that were begun under these numbers.

        A process that is killed in the middle of one would keep its number taken for a minute.
        """

        sent: Future[None] = Future()

        def send() -> None:
            for rank in ranks:
                content = {"id": rank}
                self.session.send(self._query_stream, "unregistration_request", content=content)
            self._query_stream.flush()
            sent.set_result(None)

        self._io_loop.add_callback(send)
        # Their successors register as soon as they are told to, and must come after this.
        await asyncio.wrap_future(sent)

    async def until(self, condition: Callable[[set[int]], bool], timeout: float) -> bool:
        """Wait until `condition` holds for the set of registered ranks. False after `timeout`."""
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def notice(_: Mapping[str, Any]) -> None:
            loop.call_soon_threadsafe(changed.set)

        self._registration_callbacks.append(notice)
        deadline = loop.time() + timeout
        try:
            while not condition(set(self.ids)):
                changed.clear()
                left = deadline - loop.time()
                if left <= 0:
                    return False
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(changed.wait(), left)
            return True
        finally:
            self._registration_callbacks.remove(notice)

    # -- deaths ----------------------------------------------------------------------------

    def _on_registration(self, event: Mapping[str, Any]) -> None:
        rank = int(event["id"])
        self._given_up.pop(rank, None)
        if rank in self.pids:
            self.last_pids[rank] = self.pids.pop(rank)
        if event["event"] == "register":
            self._departed.discard(rank)
            return
        self._departed.add(rank)
        self._strand(rank)
        if self.on_departure is not None:
            self.on_departure(rank)

    def _strand(self, rank: int) -> None:
        """Fail what a rank that is gone has not answered."""
        with self._requests_lock:
            stranded = [r for r in self._requests.values() if r.rank == rank]
        for request in stranded:
            self._resolve(request, self._death(rank))

    def give_up(self, rank: int, error: MaclusterError) -> None:
        """A rank cannot answer although it is registered: fail what is asked of it."""
        if rank not in self._given_up:
            self._given_up[rank] = error
            self._strand(rank)

    def take_back(self, rank: int) -> None:
        """A rank that was given up can answer again."""
        self._given_up.pop(rank, None)

    @property
    def reachable(self) -> list[int]:
        """The ranks that can answer, as far as anybody knows."""
        return [rank for rank in self.ids if rank not in self._given_up]

    @property
    def lost(self) -> MaclusterError | None:
        """Why no rank can be reached any more, or None."""
        return self._lost

    def lose(self, error: MaclusterError) -> None:
        """No reply will ever come again: fail what is under way and whatever is asked later."""
        with self._requests_lock:
            self._lost = self._lost or error
            pending = list(self._requests.values())
        for request in pending:
            self._resolve(request, error)

    def absence(self, rank: int) -> MaclusterError:
        """Why a rank that is not `reachable` cannot answer."""
        return self._death(rank)

    def _death(self, rank: int) -> MaclusterError:
        if rank in self._given_up:
            return self._given_up[rank]
        if rank in self._departed:
            return RankDied(f"Rank {rank} died.", why="its process ended")
        return RankDied(f"There is no rank {rank}.", why="it is not registered at the controller")

    def close(self, linger: int | None = None) -> None:
        # The base class closes itself once more when it is collected, perhaps half-built.
        if hasattr(self, "_lost"):
            self.lose(
                WorldBroken(
                    "The connection to the cluster was closed.",
                    why="the cluster was stopped, or this notebook let go of it",
                    do="%cluster start or %cluster connect, then run the cell again",
                )
            )
        super().close(linger=linger)
