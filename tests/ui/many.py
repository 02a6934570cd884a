"""Clusters of many ranks for the sidebar, from a server that is only a websocket of the page."""

from __future__ import annotations

import json
import time
from typing import Any

from playwright.sync_api import Page, WebSocketRoute

import macluster
from macluster.widgets.topology import Drawing

GB = 1 << 30


def rank(number: int, turn: int = 0) -> dict[str, Any]:
    """A rank that is busy; another `turn`, other figures."""
    memory = dict.fromkeys(("wired", "peak", "cache", "limit"))
    memory |= {"total": 64 * GB, "used": (20 + (number + turn) % 30) * GB, "process": 12 * GB}
    memory["arrays"] = (number + turn) % 11 * GB
    return {
        "rank": number, "host": f"studio-{number}", "pid": 100 + number, "state": "busy",
        "doing": f"line {1 + turn % 9}: `loss = step(batch)`", "since": 1000.0, "heard": None,
        "memory": memory, "cpu": 10.0 + (number + turn) % 80, "host_cpu": 50.0,
        "gpu": float((number + turn) % 100), "tokens": 20.0 + turn,
        "collectives": {"count": turn, "bytes": turn << 20, "rate": turn << 18},
    }  # fmt: skip


def cluster(name: str, size: int) -> dict[str, Any]:
    ranks = {str(number): rank(number) for number in range(size)}
    part = {"bytes": GB, "layers": None, "share": 1 / size}
    model = {"name": "model", "source": "folder", "strategy": "tensor", "layers": 61,
             "ranks": dict.fromkeys(ranks, part)}  # fmt: skip
    return {
        "name": name, "backend": "ring", "reason": "asked for", "size": size, "state": "busy",
        "words": "", "since": 1000.0, "owner": "process 1", "kept": True, "checked": False,
        "serving": "", "busy": {"since": 1000.0, "ranks": list(range(size))}, "failure": None,
        "ranks": ranks, "models": {"model": model}, "measured": "",
    }  # fmt: skip


class Server:
    """Takes the place of the server's websocket on a page, and says what it is told to say."""

    def __init__(self, page: Page, clusters: dict[str, dict[str, Any]]) -> None:
        self.clusters = clusters
        self._page: WebSocketRoute | None = None
        page.route_web_socket("**/macluster/api/live", self._connect)

    def _connect(self, page: WebSocketRoute) -> None:
        self._page = page
        page.on_message(self._answer)
        self.say(state={"clusters": self.clusters, "default_name": "macluster"})

    def _answer(self, message: str | bytes) -> None:
        for view in json.loads(message).get("views", []):
            size = self.clusters[view["cluster"]]["size"]
            drawn = macluster.simulate(f"{size} x M3 Ultra, ring").topology()
            self.say(view=view, traits=Drawing().traits(drawn))

    def say(self, **message: Any) -> None:
        assert self._page is not None
        self._page.send(json.dumps({"now": time.time(), **message}))

    def change(self, name: str, ranks: dict[str, Any]) -> None:
        self.say(patch={"clusters": {name: {"ranks": ranks}}})
