"""Models that are served, and clients of them."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any

import openai

import macluster
from macluster.engine.models import tiny
from tests.cluster.faults import until
from tests.cluster.models import TIMEOUT, answers
from tests.cluster.processes import PATIENCE

TOY = str(tiny.toy_path())
FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
# It never ends by itself.
LONG = {"logit_bias": {"0": -100}, "temperature": 1.0, "seed": 5}


def counted(to: int) -> str:
    return ", ".join(map(str, range(1, to + 1))) + "."


@contextlib.contextmanager
def served(
    world: macluster.World, strategy: str = "auto", **options: Any
) -> Iterator[macluster.Serving]:
    world.run(f"model = macluster.load({TOY!r}, {strategy!r})").result(TIMEOUT)
    with macluster.Serving(world, port=0, **options) as serving:
        yield serving
    in_step(world)


def in_step(world: macluster.World) -> None:
    """The ranks are free, and their next collective is right."""
    code = "print(json.dumps(mx.distributed.all_sum(mx.array(rank + 1)).item()))"
    assert answers(world, code) == [sum(range(1, world.size + 1))] * world.size


def client_of(serving: macluster.Serving) -> openai.OpenAI:
    return client_at(serving.url)


@functools.cache
def client_at(url: str) -> openai.OpenAI:
    # Making one takes longer than many an answer: it reads all certificates.
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE)


def ask(client: openai.OpenAI, text: str = FRANCE, **options: Any) -> Any:
    """One turn of a chat; the likeliest tokens, unless told otherwise."""
    extra = {name: options.pop(name) for name in ("top_k", "min_p") if name in options}
    messages: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(
        model="toy", messages=messages, extra_body=extra, **{"temperature": 0, **options}
    )


def said(client: openai.OpenAI, text: str = FRANCE, **options: Any) -> str:
    return str(ask(client, text, **options).choices[0].message.content)


def streamed(client: openai.OpenAI, text: str, **options: Any) -> Iterator[str]:
    with ask(client, text, stream=True, **options) as chunks:
        for chunk in chunks:
            if chunk.choices:
                yield chunk.choices[0].delta.content or ""


def status(serving: macluster.Serving) -> dict[str, Any]:
    found = serving.status()
    assert found is not None
    return found


def idle(serving: macluster.Serving) -> None:
    """Return when nothing is under way."""

    def nothing() -> bool:
        now = status(serving)
        return now["active"] == now["waiting"] == 0

    until(nothing, "all answers ended", time.sleep)
