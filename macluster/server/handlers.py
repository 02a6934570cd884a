"""The REST interface and the websocket, all below `macluster/api/`.

Every one of them wants a login, and asks the server's authorizer for "read", "write" or "execute"
of the resource "macluster". Tornado checks the XSRF token of whatever is not only read.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import shlex
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import authorized, ws_authenticated
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado import web
from tornado.websocket import WebSocketHandler

from ..engine.errors import (
    BackendError,
    ClusterExists,
    ClusterNotFound,
    HostfileError,
    MaclusterError,
    UsageError,
)
from . import requests
from .faults import report
from .hub import Hub, Page

if TYPE_CHECKING:
    from ..engine.monitor.fleet import Fleet

T = TypeVar("T")

RESOURCE = "macluster"
STATUSES: dict[type[MaclusterError], int] = {
    ClusterNotFound: 404,
    ClusterExists: 409,
    UsageError: 400,
    HostfileError: 400,
    BackendError: 400,
}
# What Jupyter refuses by itself: what, the probable cause, the remedy.
_OTHER = "the page and the server are of different versions of macluster"
REFUSALS = {
    403: (
        "The Jupyter server refuses this request.",
        "the login has expired, or this user may not do that",
        "reload the page and log in again",
    ),
    404: (
        "The Jupyter server knows no such request.",
        _OTHER,
        "restart the Jupyter server and reload the page",
    ),
    405: (
        "The Jupyter server knows no such request.",
        _OTHER,
        "restart the Jupyter server and reload the page",
    ),
}


class Refused(web.HTTPError):
    """An answer other than a success, in words."""

    def __init__(self, status: int, error: MaclusterError) -> None:
        super().__init__(status)
        self.error = error


class Handler(APIHandler):
    """What all of them share."""

    auth_resource = RESOURCE

    @property
    def hub(self) -> Hub:
        hub: Hub = self.settings["macluster"].hub
        return hub

    async def ask(
        self,
        work: Callable[[Fleet], T],
        *,
        quick: bool = False,
        status: dict[type[MaclusterError], int] = STATUSES,
    ) -> T:
        """Ask something of the fleet, in a thread. Raises Refused."""
        return await self.answer(asyncio.wrap_future(self.hub.call(work, quick=quick)), status)

    async def answer(
        self, work: Awaitable[T], status: dict[type[MaclusterError], int] = STATUSES
    ) -> T:
        try:
            return await work
        except MaclusterError as error:
            kind = next((kind for kind in status if isinstance(error, kind)), None)
            raise Refused(500 if kind is None else status[kind], error) from None
        except asyncio.CancelledError:
            words = MaclusterError("The server is being stopped.", do="start it again")
            raise Refused(503, words) from None
        except Exception as error:
            report(self.log, "a request failed", error)
            words = MaclusterError(
                "Something went wrong in the server.",
                why=f"{type(error).__name__}: {error}",
                do="the log of the Jupyter server says where",
            )
            raise Refused(500, words) from None

    def body(self, kind: str) -> dict[str, Any]:
        """The checked body of the request. Raises Refused."""
        try:
            return requests.read_body(kind, self.request.body)
        except UsageError as error:
            raise Refused(400, error) from None

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Errors are JSON: what, why, and what to do."""
        error = kwargs.get("exc_info", (None, None))[1]
        if isinstance(error, Refused):
            words = {"message": error.error.what, "why": error.error.why, "do": error.error.do}
        else:
            said = error.log_message if isinstance(error, web.HTTPError) else None
            message, why, do = REFUSALS.get(status_code) or (
                http.client.responses.get(status_code, "Unknown error"), "", ""
            )  # fmt: skip
            words = {"message": message, "why": said or why, "do": do}
        self.finish(json.dumps(words))


class ClustersHandler(Handler):
    """All clusters, and starting one."""

    @web.authenticated
    @authorized("read", RESOURCE)
    async def get(self) -> None:
        state = await self.ask(self.hub.look, quick=True)
        self.finish(json.dumps({"now": time.time(), **state}))

    @web.authenticated
    @authorized("execute", RESOURCE)
    async def post(self) -> None:
        body = self.body("start")
        hosts = requests.on_server(body["hosts"], self.settings.get("server_root_dir", "."))
        name = await self.ask(
            lambda fleet: fleet.start(
                hosts, body.get("backend"), body.get("name"), body.get("checked", False)
            )
        )
        self.set_status(202)
        self.finish(json.dumps({"name": name}))


class ChoiceHandler(Handler):
    """What a cluster would be. To look at hosts is more than reading."""

    @web.authenticated
    @authorized("execute", RESOURCE)
    async def post(self) -> None:
        body = self.body("choice")
        hosts = requests.on_server(body["hosts"], self.settings.get("server_root_dir", "."))
        choice = await self.ask(lambda fleet: fleet.choice(hosts, body.get("backend")))
        self.finish(json.dumps(choice))


class ActionHandler(Handler):
    """Doing something to a cluster; answers when it is done."""

    verb = ""
    # In the threads that are kept free for it: a way out must be open at all times.
    quick = False
    status = STATUSES

    @web.authenticated
    @authorized("execute", RESOURCE)
    async def post(self, name: str) -> None:
        await self.act(name)

    async def act(self, name: str) -> None:
        self.body("nothing")
        verb = self.verb
        words = await self.answer(
            self.hub.once((verb, name), lambda fleet: getattr(fleet, verb)(name), quick=self.quick),
            self.status,
        )
        self.finish(json.dumps({"words": words}))


class StopHandler(ActionHandler):
    verb = "stop"


class RestartHandler(ActionHandler):
    verb = "restart"


class InterruptHandler(ActionHandler):
    verb = "interrupt"
    quick = True


class AbortHandler(ActionHandler):
    verb = "abort"
    quick = True


class MeasureHandler(ActionHandler):
    verb = "measure"
    # There is nothing to be wrong in the request: the ranks are busy.
    status = STATUSES | {UsageError: 409}


class DismissHandler(ActionHandler):
    verb = "dismiss"
    quick = True

    @web.authenticated
    @authorized("write", RESOURCE)
    async def post(self, name: str) -> None:
        await self.act(name)


class StacksHandler(Handler):
    """Where every rank stands, also while a cell runs."""

    @web.authenticated
    @authorized("read", RESOURCE)
    async def get(self, name: str) -> None:
        text = await self.ask(lambda fleet: fleet.stacks(name), quick=True)
        self.finish(json.dumps({"text": text}))


class LogsHandler(Handler):
    """What the processes have printed."""

    @web.authenticated
    @authorized("read", RESOURCE)
    async def get(self, name: str) -> None:
        logs = await self.ask(lambda fleet: fleet.logs(name), quick=True)
        self.finish(json.dumps({"logs": logs}))


class ConnectHandler(Handler):
    """The code that connects a notebook."""

    @web.authenticated
    @authorized("read", RESOURCE)
    async def get(self, name: str) -> None:
        state = await self.ask(self.hub.look, quick=True)
        if name not in state["clusters"]:
            raise Refused(
                404,
                ClusterNotFound(
                    f"There is no cluster named {name!r}.",
                    why="it was stopped meanwhile",
                    do="choose another one",
                ),
            )
        code = f"%load_ext macluster\n%cluster connect {shlex.quote(name)}"
        self.finish(json.dumps({"code": code}))


class UnknownHandler(Handler):
    """Whatever else is asked for: not found, in JSON."""

    @web.authenticated
    async def get(self, *_: str) -> None:
        raise web.HTTPError(404)

    post = put = patch = delete = get


class LiveHandler(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """One page that is told what changes. It reads; what is done goes the other way."""

    auth_resource = RESOURCE
    page: Page | None = None

    @property
    def hub(self) -> Hub:
        hub: Hub = self.settings["macluster"].hub
        return hub

    @property
    def max_message_size(self) -> int:
        return requests.LONGEST

    def get_compression_options(self) -> dict[str, Any] | None:
        return self.settings.get("websocket_compression_options", None)

    @ws_authenticated
    async def get(self, *args: Any, **kwargs: Any) -> None:
        user = self.current_user
        if not await ensure_async(self.authorizer.is_authorized(self, user, "read", RESOURCE)):
            raise web.HTTPError(403)
        await super().get(*args, **kwargs)

    def open(self, *args: Any, **kwargs: Any) -> None:
        super().open(*args, **kwargs)
        self.page = Page(self.write_message, self.close)
        self.hub.join(self.page)

    def on_message(self, message: str | bytes) -> None:
        try:
            wish = requests.read_wish(message)
        except UsageError as error:
            # 123 bytes are what a closing frame has room for.
            self.close(1008, error.what[:100])
            return
        if self.page is not None:
            self.hub.hear(self.page, wish)

    def on_close(self) -> None:
        if self.page is not None:
            self.hub.leave(self.page)


API = r"/macluster/api"
NAME = r"/clusters/([^/]+)"
HANDLERS: list[tuple[str, type[JupyterHandler]]] = [
    (rf"{API}/clusters", ClustersHandler),
    (rf"{API}/choice", ChoiceHandler),
    *(
        (rf"{API}{NAME}/{kind.verb}", kind)
        for kind in (
            StopHandler,
            RestartHandler,
            InterruptHandler,
            AbortHandler,
            DismissHandler,
            MeasureHandler,
        )
    ),
    (rf"{API}{NAME}/stacks", StacksHandler),
    (rf"{API}{NAME}/logs", LogsHandler),
    (rf"{API}{NAME}/connect", ConnectHandler),
    (rf"{API}/live", LiveHandler),
    (rf"{API}/.*", UnknownHandler),
]
