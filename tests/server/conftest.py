"""A Jupyter server with our extension, and clusters that are what a test says."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
import pytest
from tornado.httpclient import HTTPResponse
from tornado.websocket import WebSocketClientConnection
from traitlets.config import Config

from macluster.engine.errors import ClusterNotFound
from macluster.engine.topology.topology import Node, Topology
from macluster.server import extension

TIMEOUT = 60.0  # seconds


def pytest_configure(config: pytest.Config) -> None:
    # The loop of the server is pytest-jupyter's, and so are the tests: pytest-asyncio, which runs
    # all other coroutines, would run them in a loop of its own.
    config.option.asyncio_mode = "strict"


Fetch = Callable[..., Awaitable[HTTPResponse]]


def cluster(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "state": "idle", "words": "", "since": 5.0, "busy": None, "models": {},
            "measured": "", "backend": "ring", "size": 0, "ranks": {}, **more}  # fmt: skip


class StandIn:
    """A fleet. What was asked of it is in `asked`; `errors` has what a method raises."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self.clusters: dict[str, Any] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.wants: list[tuple[float, str | None]] = []
        self.errors: dict[str, Exception] = {}
        # A method that has an event in here waits for it.
        self.gates: dict[str, threading.Event] = {}
        self.begun = threading.Semaphore(0)
        self.threads: set[str] = set()
        self.made = 0
        self.refreshed = 0
        self.closed = False

    def make(self, on_change: Callable[[], None]) -> StandIn:
        if "make" in self.errors:
            raise self.errors["make"]
        self.made += 1
        self.on_change = on_change
        return self

    def add(self, name: str, **fields: Any) -> None:
        self.clusters[name] = cluster(name, **fields)
        self.on_change()

    def state(self) -> dict[str, Any]:
        return {"clusters": dict(self.clusters), "default_name": "macluster"}

    def want(self, period: float, chosen: str | None) -> None:
        self.wants.append((period, chosen))

    def refresh(self) -> None:
        self.refreshed += 1

    def _asked(self, what: str, *arguments: Any) -> None:
        self.asked.append((what, *arguments))
        self.threads.add(threading.current_thread().name)
        self.begun.release()
        if what in self.gates:
            assert self.gates[what].wait(TIMEOUT)
        if what in self.errors:
            raise self.errors[what]

    def _of(self, what: str, name: str) -> str:
        self._asked(what, name)
        if name not in self.clusters:
            raise ClusterNotFound(f"No cluster named {name!r} runs.", why="gone", do="start one")
        return f"{what} of {name}"

    def choice(self, hosts: Any, backend: str | None) -> dict[str, Any]:
        self._asked("choice", hosts, backend)
        return {"size": 2, "hosts": ["a", "b"], "backend": "ring", "reason": "r", "backends": []}

    def start(self, hosts: Any, backend: str | None, name: str | None, checked: bool) -> str:
        self._asked("start", hosts, backend, name, checked)
        return name or "macluster"

    def stop(self, name: str) -> str:
        return self._of("stop", name)

    def restart(self, name: str) -> str:
        return self._of("restart", name)

    def interrupt(self, name: str) -> str:
        return self._of("interrupt", name)

    def abort(self, name: str) -> str:
        return self._of("abort", name)

    def dismiss(self, name: str) -> str:
        return self._of("dismiss", name)

    def measure(self, name: str) -> str:
        words = self._of("measure", name)
        self.add(name, measured="2026-11-21T10:00:00+00:00")
        return words

    def stacks(self, name: str) -> str:
        return self._of("stacks", name)

    def logs(self, name: str) -> list[dict[str, str]]:
        return [{"name": "rank 0", "text": self._of("logs", name)}]

    def topology(self, name: str) -> Topology:
        self._of("topology", name)
        return Topology((Node(0, "studio-0"), Node(1, "studio-1")), (), "ring")

    def measurement(self, name: str) -> None:
        self._of("measurement", name)

    def close(self) -> None:
        self._asked("close")
        self.closed = True


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """What the server takes for the clusters of this user."""
    standin = StandIn()
    monkeypatch.setattr(extension, "make_fleet", standin.make)
    return standin


@pytest.fixture
def jp_server_config() -> Config:
    return Config({"ServerApp": {"jpserver_extensions": {"macluster": True}}})


@attrs.frozen
class Answer:
    status: int
    body: dict[str, Any]


@pytest.fixture
def ask(jp_fetch: Fetch) -> Callable[..., Awaitable[Answer]]:
    """Ask for a path below macluster/api; a body makes it a POST."""

    async def ask(*path: str, body: Any = None, **more: Any) -> Answer:
        if body is not None:
            text = body if isinstance(body, str | bytes) else json.dumps(body)
            more = {"method": "POST", "body": text, **more}
        response = await jp_fetch("macluster", "api", *path, raise_error=False, **more)
        return Answer(response.code, json.loads(response.body))

    return ask


@pytest.fixture
def login(jp_serverapp: Any, jp_fetch: Fetch) -> Callable[[], Awaitable[tuple[Any, str]]]:
    """Log in as a browser does: the headers that it sends from then on, and the XSRF token."""

    async def login() -> tuple[dict[str, str], str]:
        response = await jp_fetch(
            "lab", "nothing", headers={"Authorization": ""},
            params={"token": jp_serverapp.identity_provider.token}, raise_error=False,
        )  # fmt: skip
        cookies = [each.partition(";")[0] for each in response.headers.get_list("Set-Cookie")]
        assert len(cookies) == 2
        xsrf = next(each for each in cookies if each.startswith("_xsrf="))
        headers = {"Authorization": "", "Cookie": "; ".join(cookies)}
        return headers, xsrf.removeprefix("_xsrf=")

    return login


class Socket:
    """A page's websocket."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection = connection

    async def say(self, **wish: Any) -> None:
        await self.connection.write_message(json.dumps(wish))

    async def hear(self) -> dict[str, Any]:
        """The next message, without the server's clock."""
        text = await asyncio.wait_for(self.connection.read_message(), TIMEOUT)
        assert text is not None, f"closed: {self.connection.close_reason}"
        message: dict[str, Any] = json.loads(text)
        assert isinstance(message.pop("now"), float)
        return message

    async def hear_until(self, wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Pass over messages until one is as it should be."""
        while not wanted(message := await self.hear()):
            pass
        return message

    async def end(self) -> tuple[int | None, str | None]:
        """Wait until the server closes it; the code and the reason."""
        while await asyncio.wait_for(self.connection.read_message(), TIMEOUT) is not None:
            pass
        return self.connection.close_code, self.connection.close_reason


@pytest.fixture
def connect(
    jp_ws_fetch: Callable[..., Awaitable[WebSocketClientConnection]],
    jp_asyncio_loop: asyncio.AbstractEventLoop,
) -> Iterator[Callable[..., Awaitable[Socket]]]:
    """Open websockets, which are closed at the end."""
    opened: list[WebSocketClientConnection] = []

    async def connect(**more: Any) -> Socket:
        opened.append(await jp_ws_fetch("macluster", "api", "live", **more))
        return Socket(opened[-1])

    async def close() -> None:
        for each in opened:
            each.close()

    yield connect
    jp_asyncio_loop.run_until_complete(close())
