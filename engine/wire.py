"""A ZeroMQ socket in an asyncio loop, without the cost of a ZMQStream.

A `zmq.eventloop.zmqstream.ZMQStream` runs several loop callbacks for each message. On the path of
small cells that is a third of the time, so the one socket that carries them is served by this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import zmq

Frames = list[Any]

log = logging.getLogger(__name__)


class Wire:
    """Takes a socket over from its ZMQStream: calls `on_message(frames)` for each message.

    The stream can still be used to send. Must be made, and used, in the loop's own thread.
    """

    def __init__(self, stream: Any, on_message: Callable[[Frames], Any]) -> None:
        self._socket: zmq.Socket[bytes] = stream.socket
        self._on_message = on_message
        self._loop: asyncio.AbstractEventLoop = stream.io_loop.asyncio_loop
        stream.io_loop.remove_handler(self._socket)
        # The stream's own sends can use up an edge as well, see `send`.
        stream.on_send(lambda *_: self._loop.call_soon(self._drain))
        self._loop.add_reader(self._socket.FD, self._drain)
        self._loop.call_soon(self._drain)

    def send(self, *messages: Sequence[Any]) -> None:
        """Send messages now."""
        for frames in messages:
            self._socket.send_multipart(frames, copy=True)
        # The descriptor signals edges, and a send can use up the one that announced a message.
        self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        readable = zmq.POLLIN.value
        while not self._socket.closed and int(self._socket.getsockopt(zmq.EVENTS)) & readable:
            frames = self._socket.recv_multipart(copy=False)
            try:
                self._on_message(frames)
            except Exception:
                # What is still in the queue would not be announced again.
                log.exception("a message could not be handled")
