"""The REST interface of the sidebar: what it answers, and whom it refuses."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from jupyter_server.auth import AllowAllAuthorizer
from jupyter_server.utils import url_path_join
from tornado.httpclient import HTTPClientError

from macluster.engine.errors import (
    BackendError,
    ClusterExists,
    ClusterNotFound,
    HostfileError,
    StartError,
    UsageError,
)
from macluster.server.hub import SLOW

from .conftest import TIMEOUT, StandIn, cluster

ACTIONS = ("stop", "restart", "interrupt", "abort", "dismiss", "measure")
READS = ("stacks", "logs", "connect")
# Every path, and what is sent to it.
ALL: list[tuple[tuple[str, ...], Any]] = [
    (("clusters",), None),
    (("clusters",), {"hosts": 2}),
    (("choice",), {"hosts": 2}),
    *((("clusters", "a", verb), {}) for verb in ACTIONS),
    *((("clusters", "a", what), None) for what in READS),
]
NAMES = [f"{'GET' if body is None else 'POST'} {'/'.join(path)}" for path, body in ALL]
every_path = pytest.mark.parametrize(("path", "body"), ALL, ids=NAMES)


async def test_the_extension_is_valid_and_costs_nothing(jp_serverapp: Any, fleet: StandIn) -> None:
    [package] = [
        package
        for name, package in jp_serverapp.extension_manager.extensions.items()
        if name == "macluster"
    ]
    assert package.validate()
    assert package.version
    assert jp_serverapp.web_app.settings["macluster"]._hub is None
    assert fleet.made == 0


# -- what they answer ------------------------------------------------------------------------------


async def test_clusters_are_listed(ask: Any, fleet: StandIn) -> None:
    fleet.add("a")
    answer = await ask("clusters")
    assert answer.status == 200
    assert isinstance(answer.body.pop("now"), float)
    assert answer.body == {"clusters": {"a": cluster("a")}, "default_name": "macluster"}
    # Somebody has asked: what is known is kept up to date for a while.
    assert fleet.wants == [(1.0, None)]


async def test_a_start_is_answered_at_once(ask: Any, fleet: StandIn, jp_root_dir: Path) -> None:
    answer = await ask("clusters", body={"hosts": 4})
    assert (answer.status, answer.body) == (202, {"name": "macluster"})
    more = {"backend": "ring", "name": "x", "checked": True}
    answer = await ask("clusters", body={"hosts": ["one", "two"], **more})
    assert (answer.status, answer.body) == (202, {"name": "x"})
    await ask("clusters", body={"hosts": "desk/hosts.json", "backend": None})
    assert fleet.asked == [
        ("start", 4, None, None, False),
        ("start", ["one", "two"], "ring", "x", True),
        ("start", str(jp_root_dir / "desk" / "hosts.json"), None, None, False),
    ]


async def test_what_a_cluster_would_be(ask: Any, fleet: StandIn) -> None:
    answer = await ask("choice", body={"hosts": "/etc/hosts.json", "backend": "jaccl"})
    assert answer.status == 200
    assert answer.body["reason"] == "r"
    assert fleet.asked == [("choice", "/etc/hosts.json", "jaccl")]


@pytest.mark.parametrize("verb", ACTIONS)
async def test_each_action_answers_in_words(verb: str, ask: Any, fleet: StandIn) -> None:
    fleet.add("a")
    answer = await ask("clusters", "a", verb, body={})
    assert (answer.status, answer.body) == (200, {"words": f"{verb} of a"})
    assert fleet.asked == [(verb, "a")]
    # Never in the thread of the server's loop.
    assert all(name.startswith("macluster-") for name in fleet.threads)
    # An empty body is as good.
    assert (await ask("clusters", "a", verb, body="")).status == 200
    assert (await ask("clusters", "a", verb, body={"x": 1})).status == 400


async def test_stacks_logs_and_code(ask: Any, fleet: StandIn) -> None:
    fleet.add("a")
    assert (await ask("clusters", "a", "stacks")).body == {"text": "stacks of a"}
    logs = [{"name": "rank 0", "text": "logs of a"}]
    assert (await ask("clusters", "a", "logs")).body == {"logs": logs}
    code = "%load_ext macluster\n%cluster connect a"
    assert (await ask("clusters", "a", "connect")).body == {"code": code}


@pytest.mark.parametrize("name", ["größe", "two words", "a/b", "100%", "a?b=c#d", "日本", "+"])
async def test_names_are_percent_encoded(
    name: str, http_server_client: Any, jp_auth_header: Any, jp_base_url: str, fleet: StandIn
) -> None:
    fleet.add(name)
    at = url_path_join(jp_base_url, "macluster/api/clusters", quote(name, safe=""))
    response = await http_server_client.fetch(f"{at}/stacks", headers=jp_auth_header)
    assert json.loads(response.body) == {"text": f"stacks of {name}"}
    response = await http_server_client.fetch(
        f"{at}/stop", headers=jp_auth_header, method="POST", body="{}"
    )
    assert json.loads(response.body) == {"words": f"stop of {name}"}
    response = await http_server_client.fetch(f"{at}/connect", headers=jp_auth_header)
    # The magic reads it as one word again.
    from macluster.magics.cluster import CONNECT

    line = json.loads(response.body)["code"].splitlines()[1]
    assert CONNECT.read(line.removeprefix("%cluster connect ")).name == name


async def test_they_are_below_the_base_url(http_server_client: Any, jp_auth_header: Any) -> None:
    with pytest.raises(HTTPClientError) as found:
        await http_server_client.fetch("/macluster/api/clusters", headers=jp_auth_header)
    assert found.value.code == 404


# -- what they refuse ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        (("clusters",), "nonsense", "JSON"),
        (("clusters",), b"\xff", "JSON"),
        (("clusters",), "[]", "object"),
        (("clusters",), {}, "hosts"),
        (("clusters",), {"hosts": -1}, "hosts"),
        (("clusters",), {"hosts": 2, "name": "../../x"}, "name"),
        (("clusters",), {"hosts": 2, "wish": 1}, "fields"),
        (("choice",), {"hosts": None}, "hosts"),
        (("choice",), {"hosts": 2, "backend": 1}, "backend"),
        (("choice",), " " * 70_000, "bytes"),
        (("clusters", "a", "stop"), "5", "object"),
    ],
)
async def test_a_wrong_request_is_refused_in_words(
    path: tuple[str, ...], body: Any, word: str, ask: Any, fleet: StandIn
) -> None:
    answer = await ask(*path, body=body)
    assert answer.status == 400
    assert word in answer.body["message"]
    assert answer.body["why"]
    assert answer.body["do"]
    assert fleet.asked == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("u"), 400),
        (HostfileError("h"), 400),
        (BackendError("b"), 400),
        (ClusterNotFound("n"), 404),
        (ClusterExists("e"), 409),
        (StartError("s"), 500),
    ],
)
async def test_an_error_keeps_its_words(
    error: Exception, status: int, ask: Any, fleet: StandIn
) -> None:
    error.why, error.do = "the cause", "the remedy"  # type: ignore[attr-defined]
    fleet.errors = dict.fromkeys(("start", "choice", "stacks", "restart"), error)
    for path, body in [
        (("clusters",), {"hosts": 2}),
        (("choice",), {"hosts": 2}),
        (("clusters", "a", "restart"), {}),
        (("clusters", "a", "stacks"), None),
    ]:
        answer = await ask(*path, body=body)
        assert answer.status == status
        assert answer.body == {
            "message": str(error.args[0]),
            "why": "the cause",
            "do": "the remedy",
        }


async def test_busy_ranks_are_in_conflict_with_measuring(ask: Any, fleet: StandIn) -> None:
    fleet.errors["measure"] = UsageError("The ranks are busy.", do="wait")
    answer = await ask("clusters", "a", "measure", body={})
    assert (answer.status, answer.body["message"]) == (409, "The ranks are busy.")


@pytest.mark.parametrize("what", [*ACTIONS, *READS])
async def test_there_is_no_such_cluster(what: str, ask: Any, fleet: StandIn) -> None:
    answer = await ask("clusters", "nobody", what, body={} if what in ACTIONS else None)
    assert answer.status == 404
    assert "'nobody'" in answer.body["message"]
    assert answer.body["do"]


async def test_there_is_no_such_path(ask: Any, fleet: StandIn) -> None:
    for path, body in [(("nothing",), None), (("clusters", "a", "explode"), {})]:
        answer = await ask(*path, body=body)
        assert answer.status == 404
        assert answer.body["do"]
    answer = await ask("clusters", "a", "stop")
    assert answer.status == 405


async def test_a_fault_of_ours_is_told_and_nothing_of_the_request_is_logged(
    ask: Any, fleet: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fleet.errors["start"] = ValueError("secret-host cannot be")
    answer = await ask("clusters", body={"hosts": ["secret-host"]})
    assert answer.status == 500
    assert answer.body["why"] == "ValueError: secret-host cannot be"
    fleet.errors["start"] = StartError("secret-host is not there")
    assert (await ask("clusters", body={"hosts": ["secret-host"]})).status == 500
    assert (
        await ask("clusters", body={"hosts": "secret-host", "more": "secret-host"})
    ).status == 400
    assert "ValueError" in caplog.text
    assert "conftest.py" in caplog.text  # where it was raised
    assert "secret-host" not in caplog.text


async def test_a_fleet_that_cannot_be_made_is_tried_again(ask: Any, fleet: StandIn) -> None:
    fleet.errors["make"] = ImportError("no ipyparallel")
    answer = await ask("clusters")
    assert (answer.status, answer.body["why"]) == (500, "ImportError: no ipyparallel")
    fleet.errors.clear()
    assert (await ask("clusters")).status == 200


# -- at the same time ------------------------------------------------------------------------------


async def begun(fleet: StandIn, times: int = 1) -> None:
    for _ in range(times):
        assert await asyncio.to_thread(fleet.begun.acquire, timeout=TIMEOUT)


async def test_a_way_out_is_open_while_everything_waits(ask: Any, fleet: StandIn) -> None:
    gate = fleet.gates["restart"] = threading.Event()
    # One more than there are threads for what takes long; the client has ten connections.
    names = [f"c{n}" for n in range(SLOW + 1)]
    for name in names:
        fleet.add(name)
    waiting = [asyncio.ensure_future(ask("clusters", name, "restart", body={})) for name in names]
    await begun(fleet, SLOW)
    assert (await ask("clusters", "c1", "abort", body={})).body == {"words": "abort of c1"}
    assert (await ask("clusters", "c2", "interrupt", body={})).status == 200
    assert (await ask("clusters", "c3", "stacks")).status == 200
    assert (await ask("clusters")).status == 200
    gate.set()
    assert [(await each).status for each in waiting] == [200] * (SLOW + 1)


async def test_two_browsers_that_stop_a_cluster_stop_it_once(ask: Any, fleet: StandIn) -> None:
    gate = fleet.gates["stop"] = threading.Event()
    fleet.add("a")
    both = [asyncio.ensure_future(ask("clusters", "a", "stop", body={})) for _ in range(2)]
    await begun(fleet)
    # The second one is there too by the time that a third one is answered.
    assert (await ask("clusters")).status == 200
    gate.set()
    assert [(await each).body for each in both] == [{"words": "stop of a"}] * 2
    assert fleet.asked.count(("stop", "a")) == 1
    await ask("clusters", "a", "stop", body={})
    assert fleet.asked.count(("stop", "a")) == 2


# -- who may ---------------------------------------------------------------------------------------


@every_path
async def test_without_a_login_nothing_is_answered(
    path: tuple[str, ...], body: Any, ask: Any, fleet: StandIn
) -> None:
    fleet.add("a")
    for token in ("", "token wrong"):
        answer = await ask(*path, body=body, headers={"Authorization": token})
        assert answer.status == 403
        assert answer.body["do"]
    assert fleet.made == 0


@every_path
async def test_a_login_by_cookie_needs_the_xsrf_token_to_change_anything(
    path: tuple[str, ...], body: Any, ask: Any, fleet: StandIn, login: Any
) -> None:
    fleet.add("a")
    header, xsrf = await login()
    answer = await ask(*path, body=body, headers=dict(header))
    if body is None:
        assert answer.status == 200
        return
    assert answer.status == 403
    assert fleet.made == 0
    # With it, the same is done.
    answer = await ask(*path, body=body, headers={**header, "X-XSRFToken": xsrf})
    assert answer.status in (200, 202)
    # Another site's page has the cookie, too, but cannot hide where it comes from.
    foreign = {**header, "X-XSRFToken": xsrf, "Origin": "http://other.example"}
    assert (await ask(*path, body=body, headers=foreign)).status == 404


@every_path
async def test_the_authorizer_has_the_last_word(
    path: tuple[str, ...], body: Any, ask: Any, fleet: StandIn, jp_serverapp: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fleet.add("a")
    asked: list[tuple[str, str]] = []

    def refuse(self: Any, handler: Any, user: Any, action: str, resource: str) -> bool:
        asked.append((action, resource))
        return False

    monkeypatch.setattr(AllowAllAuthorizer, "is_authorized", refuse)
    answer = await ask(*path, body=body)
    assert answer.status == 403
    assert answer.body["do"]
    action = "read" if body is None else "write" if path[-1] == "dismiss" else "execute"
    assert asked == [(action, "macluster")]
    assert fleet.made == 0


# -- the end ---------------------------------------------------------------------------------------


async def test_a_server_that_ends_lets_go_of_the_fleet(
    ask: Any, fleet: StandIn, jp_serverapp: Any
) -> None:
    fleet.add("a")
    gate = fleet.gates["restart"] = threading.Event()
    stuck = asyncio.ensure_future(ask("clusters", "a", "restart", body={}))
    await begun(fleet)
    # It does not wait for what is under way.
    await asyncio.wait_for(jp_serverapp.extension_manager.stop_all_extensions(), TIMEOUT)
    assert fleet.closed
    answer = await ask("clusters")
    assert (answer.status, answer.body["message"]) == (503, "The server is being stopped.")
    gate.set()
    await stuck
