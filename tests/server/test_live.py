"""The websocket of a page. `tests/unit/test_live_hub.py` has what it is sent, and when."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from jupyter_server.auth import AllowAllAuthorizer
from tornado.httpclient import HTTPClientError
from tornado.iostream import IOStream

from .conftest import TIMEOUT, StandIn, cluster


async def test_a_page_that_looks_hears_of_changes(connect: Any, fleet: StandIn) -> None:
    fleet.add("a")
    page = await connect()
    await page.say(visible=True, chosen="a", period=0.25, views=[])
    state = {"clusters": {"a": cluster("a")}, "default_name": "macluster"}
    assert await page.hear() == {"state": state}
    fleet.add("a", state="busy", busy={"since": 1.0, "ranks": [0]})
    busy = {"state": "busy", "busy": {"since": 1.0, "ranks": [0]}}
    assert await page.hear() == {"patch": {"clusters": {"a": busy}}}
    assert fleet.wants[0] == (0.25, "a")


async def test_a_view_comes_with_its_traits(connect: Any, fleet: StandIn) -> None:
    fleet.add("a")
    page = await connect()
    view = {"cluster": "a", "kind": "topology", "model": None}
    await page.say(visible=False, views=[view])
    message = await page.hear()
    assert message["view"] == view
    assert set(message["traits"]) == {"scene", "figures", "link_figures", "status"}
    assert message["traits"]["scene"]["title"]
    missing = {"cluster": "b", "kind": "measurement", "model": None}
    await page.say(visible=False, views=[missing])
    message = await page.hear()
    assert message["view"] == missing
    assert "No cluster named 'b' runs." in message["traits"]["error"]


async def test_a_measurement_is_shown_when_it_was_made(
    connect: Any, ask: Any, fleet: StandIn
) -> None:
    fleet.add("a")
    page = await connect()
    view = {"cluster": "a", "kind": "measurement", "model": None}
    await page.say(visible=False, period=0.25, views=[view])
    assert (await page.hear())["traits"] == {"data": None}
    assert fleet.begun.acquire(blocking=False)
    assert (await ask("clusters", "a", "measure", body={})).status == 200
    # By the action, and then by the view.
    for _ in range(2):
        assert await asyncio.to_thread(fleet.begun.acquire, timeout=TIMEOUT)
    assert [what for what, *_ in fleet.asked] == ["measurement", "measure", "measurement"]


async def test_two_pages_hear_of_what_each_looks_at(connect: Any, fleet: StandIn) -> None:
    fleet.add("a")
    one, two = await connect(), await connect()
    await one.say(visible=True, period=0.25)
    await two.say(visible=True, period=0.25)
    assert "state" in await one.hear()
    assert "state" in await two.hear()
    fleet.add("b")
    assert list((await one.hear())["patch"]["clusters"]) == ["b"]
    assert list((await two.hear())["patch"]["clusters"]) == ["b"]
    await one.say(visible=False)
    one.connection.close()
    fleet.add("c")
    assert list((await two.hear())["patch"]["clusters"]) == ["c"]
    assert fleet.made == 1


async def test_a_reader_that_stops_reading_gets_one_patch_in_the_end(
    connect: Any, fleet: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.add("a")
    page = await connect()
    await page.say(visible=True, period=0.25)
    assert "state" in await page.hear()
    # What has been written is said to be on its way only when the test says so.
    gate = asyncio.Event()
    write = IOStream.write

    def held(self: Any, data: Any) -> Any:
        written = write(self, data)

        async def later() -> None:
            await written
            await gate.wait()

        return asyncio.ensure_future(later()) if b'"patch"' in bytes(data) else written

    monkeypatch.setattr(IOStream, "write", held)
    fleet.add("a", words="1")
    assert await page.hear() == {"patch": {"clusters": {"a": {"words": "1"}}}}
    for count in range(2, 10):
        fleet.add("a", words=str(count), since=count)
        # A page that has just come hears of it at once: so the hub knows of it.
        other = await connect()
        await other.say(visible=True)
        assert (await other.hear())["state"]["clusters"]["a"]["words"] == str(count)
        other.connection.close()
    gate.set()
    assert await page.hear() == {"patch": {"clusters": {"a": {"words": "9", "since": 9}}}}


@pytest.mark.parametrize("message", ["nonsense", '{"visible": 5}', "[]", b"\x00"])
async def test_what_no_page_says_ends_the_connection_in_words(
    message: Any, connect: Any, fleet: StandIn
) -> None:
    page = await connect()
    await page.connection.write_message(message, binary=isinstance(message, bytes))
    code, reason = await page.end()
    assert code == 1008
    assert reason
    # Others go on.
    other = await connect()
    await other.say(visible=True)
    assert "state" in await other.hear()


async def test_a_message_may_not_be_large(connect: Any, fleet: StandIn) -> None:
    page = await connect()
    await page.connection.write_message(json.dumps({"chosen": "x" * 100_000}))
    code, _ = await page.end()
    assert code == 1009


async def test_a_fleet_that_cannot_be_made_ends_the_connection(
    connect: Any, fleet: StandIn
) -> None:
    fleet.errors["make"] = ImportError("secret")
    page = await connect()
    await page.say(visible=True)
    assert await page.end() == (1011, "cannot look at clusters: ImportError")
    fleet.errors.clear()
    page = await connect()
    await page.say(visible=True)
    assert "state" in await page.hear()


async def test_a_server_that_ends_says_goodbye(
    connect: Any, fleet: StandIn, jp_serverapp: Any
) -> None:
    page = await connect()
    await page.say(visible=True)
    await page.hear()
    await asyncio.wait_for(jp_serverapp.extension_manager.stop_all_extensions(), TIMEOUT)
    assert await page.end() == (1001, "the server is being stopped")
    assert fleet.closed


# -- who may ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "token wrong"])
async def test_without_a_login_there_is_no_websocket(
    token: str, connect: Any, fleet: StandIn
) -> None:
    with pytest.raises(HTTPClientError) as found:
        await connect(headers={"Authorization": token})
    assert found.value.code == 403
    assert fleet.made == 0


async def test_another_site_gets_no_websocket_from_a_browser_that_is_logged_in(
    connect: Any, fleet: StandIn, login: Any, jp_http_port: int
) -> None:
    headers, _ = await login()
    # The cookie's name has the host's in it.
    headers["Host"] = f"127.0.0.1:{jp_http_port}"
    with pytest.raises(HTTPClientError) as found:
        await connect(headers={**headers, "Origin": "http://other.example"})
    assert found.value.code == 403
    page = await connect(headers=dict(headers))
    await page.say(visible=True)
    assert "state" in await page.hear()


async def test_the_authorizer_has_the_last_word(
    connect: Any, fleet: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def refuse(self: Any, handler: Any, user: Any, action: str, resource: str) -> bool:
        asked.append((action, resource))
        return False

    monkeypatch.setattr(AllowAllAuthorizer, "is_authorized", refuse)
    with pytest.raises(HTTPClientError) as found:
        await connect()
    assert found.value.code == 403
    assert asked == [("read", "macluster")]
    assert fleet.made == 0
