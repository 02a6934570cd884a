"""A cluster of real processes, from the first click to the last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import macluster
from macluster.engine.files import running
from tests.cluster.processes import still_there, with_children
from tests.patches import merged

from .conftest import TIMEOUT

NAME = "from-the-sidebar"
HANGS = """import threading
print("begun")
threading.Event().wait(600)
"""

pytestmark = pytest.mark.slow


class Screen:
    """What a page shows: the state, put together from what it hears."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.state: dict[str, Any] = {"clusters": {}}
        self.views: list[dict[str, Any]] = []

    @property
    def cluster(self) -> dict[str, Any]:
        found: dict[str, Any] = self.state["clusters"].get(NAME, {})
        return found

    async def until(self, seen: Callable[[dict[str, Any]], Any]) -> None:
        """Wait until the cluster is shown as it should be."""
        while not seen(self.cluster):
            await self._hear()

    async def until_view(self) -> dict[str, Any]:
        while not self.views:
            await self._hear()
        return self.views.pop()

    async def _hear(self) -> None:
        message = await self.page.hear()
        if "state" in message:
            self.state = message["state"]
        elif "patch" in message:
            self.state = merged(self.state, message["patch"])
        elif "traits" in message:
            self.views.append(message["traits"])


def ranks(cluster: dict[str, Any], state: str) -> bool:
    found = [rank.get("state") for rank in cluster.get("ranks", {}).values()]
    return found == [state, state]


async def test_a_cluster_from_start_to_stop(
    ask: Any, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLX would call a C++ compiler where there is no GPU.
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")
    screen = Screen(await connect())
    await screen.page.say(visible=True, chosen=NAME, period=0.25)
    answer = await ask("clusters", body={"hosts": 2, "name": NAME})
    assert (answer.status, answer.body) == (202, {"name": NAME})
    try:
        await screen.until(lambda cluster: cluster.get("state") == "starting")
        assert (await ask("clusters", body={"hosts": 2, "name": NAME})).status == 409
        await screen.until(lambda cluster: cluster.get("state") == "idle")
        await screen.until(lambda cluster: ranks(cluster, "idle"))
        assert screen.cluster["backend"] == "ring"
        assert screen.cluster["reason"]
        processes = with_children([rank["pid"] for rank in screen.cluster["ranks"].values()])
        assert len(processes) >= 2
        await use(ask, screen)
        answer = await ask("clusters", NAME, "stop", body={}, request_timeout=TIMEOUT)
        assert (answer.status, list(answer.body)) == (200, ["words"])
        await screen.until(lambda cluster: not cluster)
        assert await asyncio.to_thread(still_there, processes) == []
    finally:
        if any(each.name == NAME for each in running()):
            await ask("clusters", NAME, "stop", body={}, request_timeout=TIMEOUT)


async def use(ask: Any, screen: Screen) -> None:
    """A cell of a notebook that hangs, seen and ended from the sidebar."""
    cluster = await asyncio.to_thread(macluster.Cluster.connect, NAME)
    try:
        cell = cluster.running_world.run(HANGS)
        await screen.until(lambda cluster: ranks(cluster, "busy"))
        await screen.until(lambda cluster: "line 3" in cluster["ranks"]["0"]["doing"])
        assert screen.cluster["state"] == "busy"
        assert screen.cluster["busy"]["ranks"] == [0, 1]
        answer = await ask("clusters", NAME, "stacks", request_timeout=TIMEOUT)
        assert "threading.Event().wait(600)" in answer.body["text"]
        assert (await ask("clusters", NAME, "measure", body={})).status == 409
        view = {"cluster": NAME, "kind": "topology", "model": None}
        await screen.page.say(visible=True, chosen=NAME, period=0.25, views=[view])
        assert set(await screen.until_view()) == {"scene", "figures", "link_figures", "status"}
        answer = await ask("clusters", NAME, "abort", body={}, request_timeout=TIMEOUT)
        assert answer.status == 200, answer.body
        with pytest.raises(macluster.MaclusterError):
            await asyncio.to_thread(cell.result, TIMEOUT)
        await screen.until(lambda cluster: ranks(cluster, "idle"))
        logs = (await ask("clusters", NAME, "logs", request_timeout=TIMEOUT)).body["logs"]
        assert [each["name"] for each in logs][:2] == ["rank 0", "rank 1"]
    finally:
        await asyncio.to_thread(cluster.disconnect)
