"""The engine application of a rank: ipyparallel's, with macluster's requests answered too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipyparallel.engine.app import IPEngine

from .service import Service
from .streams import RankStream


class RankApp(IPEngine):
    """An ipyparallel engine that answers macluster's requests once it is registered."""

    name = "macluster-rank"
    out_stream_factory = RankStream

    async def complete_registration(
        self, msg: Any, connect: Callable[..., Any], maybe_tunnel: Callable[..., Any]
    ) -> None:
        await super().complete_registration(msg, connect, maybe_tunnel)
        Service(self.kernel).install()
