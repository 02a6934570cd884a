"""What the Jupyter server loads. It costs nothing until a page asks for clusters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from jupyter_server.extension.application import ExtensionApp

from .handlers import HANDLERS
from .hub import Hub

if TYPE_CHECKING:
    from ..engine.monitor.fleet import Fleet


def make_fleet(on_change: Callable[[], None]) -> Fleet:
    # ipyparallel and what it brings: a second, which no server should wait for.
    from ..engine.monitor.fleet import Fleet

    return Fleet(on_change)


class ServerExtension(ExtensionApp):
    """The clusters of this user, for the sidebar."""

    name = "macluster"
    _hub: Hub | None = None

    @property
    def hub(self) -> Hub:
        """The hub, made at the first need, in the loop of the server."""
        if self._hub is None:
            self._hub = Hub(asyncio.get_running_loop(), make_fleet, self.log)
        return self._hub

    def initialize_handlers(self) -> None:
        self.handlers.extend(HANDLERS)

    async def stop_extension(self) -> None:
        if self._hub is not None:
            await self._hub.close()
