"""`python -m macluster.engine.controller`: ipyparallel's controller, without the book-keeping.

The stock hub reads a copy of every message, to keep results for clients that come back later. Here
nobody asks for them, and on a machine that runs ranks as well the reading takes a third of the
time of a small cell. The hub still hears what it needs: registrations and heartbeats.
"""

from __future__ import annotations

from typing import Any

import zmq
from ipyparallel.controller.app import IPController


class Controller(IPController):
    """A controller whose hub listens to heartbeats only."""

    name = "macluster-controller"

    def init_hub(self) -> None:
        super().init_hub()
        monitor: Any = self.hub.monitor
        monitor.socket.setsockopt(zmq.UNSUBSCRIBE, b"")
        monitor.socket.setsockopt(zmq.SUBSCRIBE, b"heartmonitor")


if __name__ == "__main__":
    Controller.launch_instance()
