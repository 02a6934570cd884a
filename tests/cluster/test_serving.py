"""Serving as the notebook has it in hand: through failures, beside cells, and to its end."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

import macluster
from macluster.engine.files import running
from macluster.engine.models import tiny
from tests.cluster.clients import (
    LONG,
    PARIS,
    TOY,
    client_of,
    in_step,
    said,
    served,
    status,
)
from tests.cluster.faults import until
from tests.cluster.models import ENV, TIMEOUT, answers, start
from tests.cluster.notebook import Notebook
from tests.cluster.processes import PATIENCE

WITH_SIGINT = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('macluster', run_name='__main__')"
)


@pytest.fixture(scope="module")
def two() -> Iterator[macluster.World]:
    yield from start(2)


# -- ranks that fail -------------------------------------------------------------------------------


def is_up(health: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(health).status_code == 200
    return False


@pytest.fixture
def long(two: macluster.World) -> Iterator[tuple[macluster.Serving, Callable[[], str]]]:
    """A model that is served, and a long answer which it gives."""
    with served(two) as serving:
        client = client_of(serving)
        options = {"max_tokens": 300, **LONG}
        expected = said(client, "Hello", **options)

        def answer() -> str:
            found = said(client, "Hello", **options)
            assert found == expected
            return found

        yield serving, answer


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_an_answer_goes_on_after_another_rank_has_died(
    long: tuple[macluster.Serving, Callable[[], str]], sign: signal.Signals
) -> None:
    serving, answer = long
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        begun = status(serving)["tokens"]
        running = pool.submit(answer)
        until(lambda: status(serving)["tokens"] > begun + 20, "an answer under way", time.sleep)
        os.kill(serving.world.client.pids[1], sign)
        # The client notices a pause, and nothing else.
        assert len(running.result(2 * PATIENCE)) > 100
    assert len(serving.failures) == 1
    assert "Rank 1" in serving.failures[0][1]
    assert said(client_of(serving)) == PARIS


def test_serving_goes_on_at_the_same_address_after_rank_0_has_died(
    long: tuple[macluster.Serving, Callable[[], str]],
) -> None:
    serving, answer = long
    url, old = serving.url, serving.world.client.pids[0]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        begun = status(serving)["tokens"]
        running = pool.submit(answer)
        until(lambda: status(serving)["tokens"] > begun + 20, "an answer under way", time.sleep)
        os.kill(old, signal.SIGKILL)
        with pytest.raises(openai.APIConnectionError):
            running.result(PATIENCE)
    health = url.removesuffix("/v1") + "/health"
    until(lambda: is_up(health), "the server is back", time.sleep)
    assert serving.url == url
    assert answer()


def test_ranks_that_draw_different_tokens_end_it(two: macluster.World) -> None:
    with served(two) as serving:
        serving.stop()
        # As a rank of another kind would do: its logits differ a little.
        two.run(
            "whole = type(model.model).__call__\n"
            "def other(self, *args, **options):\n"
            "    hidden = whole(self, *args, **options)\n"
            "    return hidden + rank * mx.random.normal(hidden.shape, key=mx.random.key(1))\n"
            "type(model.model).__call__ = other"
        ).result(TIMEOUT)
        try:
            serving.start()
            with pytest.raises(openai.InternalServerError):
                said(client_of(serving), "Hello", max_tokens=200, **LONG)
            assert serving.wait(PATIENCE)
            assert serving.error is not None
            assert "Rank 1 has drawn another token than rank 0" in str(serving.error)
        finally:
            serving.stop()
            two.run("type(model.model).__call__ = whole").result(TIMEOUT)


def test_a_pipeline_of_different_layers_keeps_the_same_prompts_on_all_ranks(
    two: macluster.World, tmp_path: Path
) -> None:
    """Some layers of this model cannot forget the end of what they have read, and rank 0 has none
    of these: left to itself, it would begin with a cache that the other rank does not have."""
    folder = tiny.make("qwen3_next", tmp_path / "model")
    code = f"model = macluster.load({str(folder)!r}, split=[1, 3])"
    two.run(code).result(TIMEOUT)
    prompts = [list(range(5, 60)), list(range(5, 40)), list(range(5, 60)), list(range(5, 45))]

    def drawn(serving: macluster.Serving) -> list[str]:
        client = client_of(serving)
        return [
            str(client.completions.create(
                model="model", prompt=prompt, max_tokens=6, temperature=0
            ).choices[0].text)
            for prompt in prompts
        ]  # fmt: skip

    with macluster.Serving(two, port=0, prompt_caches=0) as serving:
        expected = drawn(serving)
    with macluster.Serving(two, port=0) as serving:
        assert drawn(serving) == expected
        assert not serving.failures
    in_step(two)


def test_an_abort_ends_it(long: tuple[macluster.Serving, Callable[[], str]]) -> None:
    serving, _ = long
    serving.world.abort("somebody wanted it")
    until(lambda: not serving.running, "serving has ended", time.sleep)
    assert serving.status() is None
    in_step(serving.world)
    serving.start()
    assert said(client_of(serving)) == PARIS


def test_a_server_that_has_ended_keeps_no_model(two: macluster.World) -> None:
    with served(two) as serving:
        assert said(client_of(serving)) == PARIS
    gone = "import gc, weakref\nseen = weakref.ref(model)\ndel model\ngc.collect()\n"
    assert answers(two, f"{gone}print(json.dumps(seen() is None))") == [True, True]


def test_a_restart_ends_it(two: macluster.World) -> None:
    with served(two) as serving:
        two.cluster.restart_sync()
        assert serving.wait(PATIENCE)
        assert (serving.error, list(serving.failures)) == (None, [])
        with pytest.raises(macluster.CellError, match="There is no model named 'model'"):
            serving.start()


def test_what_fails_again_and_again_is_given_up(two: macluster.World) -> None:
    """A request that makes the model fail is refused at last, and the others are served."""
    with served(two) as serving:
        serving.stop()
        # It cannot read the token 77 behind 5.
        two.run(
            "inner = type(model.model).__call__\n"
            "def outer(self, inputs, *args, **options):\n"
            "    if ((inputs[:, :-1] == 5) & (inputs[:, 1:] == 77)).any().item():\n"
            "        raise ValueError('77')\n"
            "    return inner(self, inputs, *args, **options)\n"
            "type(model.model).__call__ = outer"
        ).result(TIMEOUT)
        try:
            serving.start()
            client = client_of(serving)
            # As users make it: it tries again what it thinks may go well next time.
            stubborn = client.with_options(max_retries=2)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                beside = pool.submit(said, client, "Hello", max_tokens=400, **LONG)
                with pytest.raises(openai.InternalServerError, match="failed again and again"):
                    stubborn.completions.create(model="toy", prompt=[5, 77, 5], max_tokens=3)
                assert len(beside.result(2 * PATIENCE)) > 100
            assert len(serving.failures) == 3
            # It is known now, and no rank hears of it.
            with pytest.raises(openai.InternalServerError, match="failed again and again"):
                client.completions.create(model="toy", prompt=[5, 77, 5], max_tokens=3)
            assert len(serving.failures) == 3
            assert said(client) == PARIS
        finally:
            serving.stop()
            two.run("type(model.model).__call__ = inner").result(TIMEOUT)
            serving.start()


# -- cells, keys, other notebooks ------------------------------------------------------------------


def test_serving_and_cells_exclude_each_other(two: macluster.World) -> None:
    with served(two) as serving:
        for attempt in (
            lambda: two.run("1"),
            lambda: two.call("variables.list"),
            lambda: macluster.Serving(two).start(),
        ):
            with pytest.raises(macluster.WorldError, match="serve a model at") as caught:
                attempt()
            assert "%serve stop" in caught.value.do
        serving.stop()
        in_step(two)
        assert answers(two, "print(json.dumps(model.strategy))") == ["tensor"] * 2
        serving.start()
        assert said(client_of(serving)) == PARIS


def test_answers_under_way_are_finished_before_the_end(two: macluster.World) -> None:
    with served(two) as serving, concurrent.futures.ThreadPoolExecutor(2) as pool:
        client = client_of(serving)
        # Far longer than it takes to say stop.
        whole = said(client, "Hello", max_tokens=400, **LONG)
        begun = status(serving)["tokens"]
        finished = pool.submit(said, client, "Hello", max_tokens=400, **LONG)
        until(lambda: status(serving)["tokens"] > begun, "an answer under way", time.sleep)
        stopping = pool.submit(serving.stop, PATIENCE)
        until(lambda: status(serving)["health"] == "stopping", "it is to end", time.sleep)
        with pytest.raises(openai.InternalServerError, match="is stopping"):
            said(client)
        assert finished.result(PATIENCE) == whole
        stopping.result(PATIENCE)
        in_step(two)
        serving.start()
        begun = status(serving)["tokens"]
        cut = pool.submit(said, client_of(serving), "Hello", max_tokens=400, **LONG)
        until(lambda: status(serving)["tokens"] > begun, "an answer under way", time.sleep)
        serving.stop(drain=0)
        with pytest.raises(openai.InternalServerError, match="could not finish"):
            cut.result(PATIENCE)
        serving.start()


def test_a_key_is_needed_where_others_can_come(two: macluster.World) -> None:
    two.run(f"model = macluster.load({TOY!r})").result(TIMEOUT)
    with pytest.raises(macluster.CellError, match="needs a key"):
        macluster.Serving(two, host="0.0.0.0", port=0).start()
    with served(two, host="0.0.0.0", api_key="a secret") as serving:
        url = serving.url.replace("0.0.0.0", "127.0.0.1")
        for key, right in (("a secret", True), ("a secre", False), ("x", False)):
            headers = {"Authorization": f"Bearer {key}"}
            found = httpx.get(f"{url}/models", headers=headers).status_code
            assert found == (200 if right else 401)
        health = url.removesuffix("/v1") + "/health"
        assert httpx.get(health).status_code == 200
        assert "a secret" not in json.dumps(two.stacks())
        # Its successor needs it, too.
        os.kill(two.client.pids[0], signal.SIGKILL)
        until(lambda: is_up(health) and len(serving.failures) == 1, "it is back", time.sleep)
        assert httpx.get(f"{url}/models").status_code == 401
        headers = {"Authorization": "Bearer a secret"}
        assert httpx.get(f"{url}/models", headers=headers).status_code == 200
    with pytest.raises(macluster.CellError, match="needs a key"):
        macluster.Serving(two, host="0.0.0.0", port=0, api_key=" ").start()


def test_a_port_that_is_taken_is_said(two: macluster.World) -> None:
    with served(two) as serving:
        port = int(serving.url.rpartition(":")[2].removesuffix("/v1"))
        single = macluster.Cluster(1, name=f"test-serve-{os.getpid()}", env=ENV)
        try:
            world = single.start_sync()
            world.run(f"model = macluster.load({TOY!r})").result(TIMEOUT)
            with pytest.raises(macluster.CellError, match="cannot serve at") as caught:
                macluster.Serving(world, port=port).start()
            assert "another port" in str(caught.value)
            in_step(world)
        finally:
            single.stop_sync()


def test_another_process_is_told_and_can_end_it(two: macluster.World) -> None:
    with served(two) as serving:
        other = macluster.Cluster.connect(two.cluster.name)
        try:
            waits: list[str] = []
            told = threading.Event()
            cell = other.running_world.run("print(rank)")
            cell.on_wait = lambda text: (waits.append(text), told.set())
            waiter = threading.Thread(target=cell.wait)
            waiter.start()
            assert told.wait(PATIENCE)
            assert f"the ranks serve a model at {serving.url} until %serve stop" in waits[0]
            other.running_world.ask("serving.stop", {"drain": 0})
            waiter.join(PATIENCE)
            assert [cell.runs[rank].text() for rank in (0, 1)] == ["0\n", "1\n"]
        finally:
            other.disconnect()
        until(lambda: not serving.running, "the notebook that began it knows", time.sleep)
        serving.start()


def test_one_rank_serves_too() -> None:
    yielded = start(1)
    world = next(yielded)
    try:
        with served(world) as serving:
            assert said(client_of(serving)) == PARIS
    finally:
        with contextlib.suppress(StopIteration):
            next(yielded)


# -- in a notebook, and in a terminal --------------------------------------------------------------


def test_serving_has_a_magic() -> None:
    notebook = Notebook(**ENV)
    try:
        notebook.ok("%load_ext macluster")
        notebook.ok("%cluster start 2 --name serve-notebook")
        assert "There is no model named" in notebook.run("%serve start").evalue
        notebook.ok(f"%model load {TOY}")
        text = notebook.ok("%serve start --port 0 --as tiny").result
        assert "model is served at http://127.0.0.1:" in text
        url = text.split(" at ")[1].split(";")[0]
        with openai.OpenAI(base_url=url, api_key="x", timeout=PATIENCE) as client:
            assert [each.id for each in client.models.list()] == ["tiny"]
        ran = notebook.run("%%distributed\n1")
        assert "The ranks serve a model at" in ran.evalue
        assert "no requests yet" in notebook.ok("%serve status").result
        assert "the ranks are free" in notebook.ok("%serve stop").text()
        assert notebook.ok("%%distributed\nrprint(model.strategy)").text() == "tensor\n"
        assert "serve nothing" in notebook.run("%serve stop").evalue
        assert "serve nothing" in notebook.ok("%serve status").text()
        assert "%serve has no verb" in notebook.run("%serve now").evalue
        # With the kernel everything goes, also while a model is served.
        notebook.ok("%serve start --port 0")
    finally:
        notebook.close()
    assert [each for each in running() if each.name == "serve-notebook"] == []


def answers_again(url: str) -> bool:
    client = openai.OpenAI(base_url=url, api_key="x", timeout=PATIENCE, max_retries=0)
    with contextlib.suppress(openai.APIConnectionError), client:
        return said(client) == PARIS
    return False


def test_serving_in_a_terminal() -> None:
    process = subprocess.Popen(
        # A background shell makes its children ignore it.
        [
            sys.executable,
            "-c",
            WITH_SIGINT,
            "serve",
            "--model",
            TOY,
            "-n",
            "2",
            "--port",
            "0",
        ],
        env={**os.environ, **ENV},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        url = next(line for line in lines if line.startswith("serving at")).split()[2].rstrip(";")
        with openai.OpenAI(base_url=url, api_key="x", timeout=PATIENCE) as client:
            assert said(client) == PARIS
        assert "9 tokens in" in next(lines)
        # A failure is no end of it.
        [cluster] = [each for each in running() if each.name.startswith("serve-toy-")]
        connected = macluster.Cluster.connect(cluster.name)
        os.kill(connected.running_world.client.pids[0], signal.SIGKILL)
        connected.disconnect()
        until(lambda: answers_again(url), "it serves again", time.sleep)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert "and the ranks serve again: Rank 0 died." in errors
    assert [each for each in running() if each.name.startswith("serve-toy-")] == []
