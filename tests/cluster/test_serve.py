"""What clients of a served model get."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

import macluster
from tests.cluster.clients import (
    FRANCE,
    LONG,
    PARIS,
    ask,
    client_of,
    counted,
    idle,
    said,
    served,
    status,
    streamed,
)
from tests.cluster.faults import until
from tests.cluster.models import start
from tests.cluster.processes import PATIENCE


@pytest.fixture(scope="module")
def two() -> Iterator[macluster.World]:
    yield from start(2)


@pytest.fixture(scope="module", params=["tensor", "pipeline"])
def serving(two: macluster.World, request: pytest.FixtureRequest) -> Iterator[macluster.Serving]:
    with served(two, request.param) as serving:
        yield serving


def refused(
    serving: macluster.Serving, body: Any, path: str = "/chat/completions", **how: Any
) -> tuple[int, str]:
    """Status and error of a request that cannot be served; afterwards others can."""
    if not isinstance(body, (str, bytes)):
        body = json.dumps(body)
    headers = {"Content-Type": "application/json", **how}
    answer = httpx.post(serving.url + path, content=body, headers=headers, timeout=PATIENCE)
    assert said(client_of(serving)) == PARIS
    return answer.status_code, answer.json()["error"]["message"]


# -- what clients get ------------------------------------------------------------------------------


def test_the_client_of_openai_is_answered(serving: macluster.Serving) -> None:
    client = client_of(serving)
    assert [each.id for each in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").owned_by == "macluster"
    answer = ask(client)
    assert answer.choices[0].message.content == PARIS
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    used = answer.usage
    assert used.total_tokens == used.prompt_tokens + used.completion_tokens
    assert used.prompt_tokens == 10
    short = ask(client, "Count from 1 to 15.", max_tokens=6)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 6
    whole = client.completions.create(model="toy", prompt="The capital of", max_tokens=4)
    assert whole.object == "text_completion"
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 4


def test_a_stream_says_what_the_whole_answer_says(serving: macluster.Serving) -> None:
    client = client_of(serving)
    chunks = list(ask(client, "Count from 1 to 15.", stream=True,
                      stream_options={"include_usage": True}))  # fmt: skip
    parts = [each.choices[0] for each in chunks if each.choices]
    assert "".join(each.delta.content or "" for each in parts) == counted(15)
    assert parts[0].delta.role == "assistant"
    assert [each.finish_reason for each in parts if each.finish_reason] == ["stop"]
    assert len(parts) > 5
    assert chunks[-1].usage.completion_tokens == 50
    assert len({each.id for each in chunks}) == 1


@pytest.mark.parametrize("stop", [", 5", [" 8,", ", 5"], "5", ["nothing of it"]])
def test_a_stop_string_ends_an_answer_wherever_tokens_begin(
    serving: macluster.Serving, stop: Any
) -> None:
    client = client_of(serving)
    found = [counted(15).find(each) for each in ([stop] if isinstance(stop, str) else stop)]
    expected = counted(15)[: min((at for at in found if at >= 0), default=None)]
    assert said(client, "Count from 1 to 15.", stop=stop) == expected
    assert "".join(streamed(client, "Count from 1 to 15.", stop=stop)) == expected
    idle(serving)


def test_a_template_can_be_told_things(serving: macluster.Serving) -> None:
    told = {"extra_body": {"chat_template_kwargs": {"thinking": True}}}
    answer = client_of(serving).chat.completions.create(
        model="toy", messages=[{"role": "user", "content": FRANCE}], temperature=0, **told
    )  # type: ignore[call-overload]
    assert answer.choices[0].message.content == PARIS


def test_many_prompts_and_choices_come_back_in_order(serving: macluster.Serving) -> None:
    client = client_of(serving)
    texts = [f"<|user|>Count from 1 to {to}.<|assistant|>" for to in (3, 6)]
    prompts = client.completions.create(model="toy", prompt=texts, n=2, temperature=0)
    assert [each.index for each in prompts.choices] == [0, 1, 2, 3]
    assert prompts.choices[0].text == prompts.choices[1].text
    assert prompts.choices[2].text == prompts.choices[3].text
    drawn = client.completions.create(
        model="toy", prompt="The", n=4, temperature=1.5, max_tokens=12, seed=1
    )
    assert len({each.text for each in drawn.choices}) > 1


def test_probabilities_are_those_of_the_tokens(serving: macluster.Serving) -> None:
    answer = ask(client_of(serving), logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert "".join(each.token for each in tokens) == PARIS
    for each in tokens:
        assert each.logprob <= 0
        assert len(each.top_logprobs) == 3
        # The likeliest was taken.
        assert each.top_logprobs[0].token == each.token
        assert each.top_logprobs[0].logprob == each.logprob


def test_a_seed_gives_the_same_answer_whatever_else_is_under_way(
    serving: macluster.Serving,
) -> None:
    client = client_of(serving)
    options = {"temperature": 1.2, "top_p": 0.95, "max_tokens": 24}
    alone = said(client, "Hello", seed=7, **options)
    assert said(client, "Hello", seed=7, **options) == alone
    others = {said(client, "Hello", seed=seed, **options) for seed in range(8, 14)}
    assert len(others) > 1
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda seed: said(client, "Hello", seed=seed, **options), [7, *range(20, 27)])
        )
    assert found[0] == alone


def test_eight_at_once_are_answered_as_each_alone(serving: macluster.Serving) -> None:
    client = client_of(serving)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda to: said(client, f"Count from 1 to {to}."), range(3, 19)))
    assert found == [counted(to) for to in range(3, 19)]


def test_a_conversation_computes_only_what_is_new(serving: macluster.Serving) -> None:
    client = client_of(serving)
    messages: Any = [{"role": "user", "content": "Count from 1 to 12."}]
    for _ in range(2):
        answer = client.chat.completions.create(model="toy", messages=messages, temperature=0)
        messages += [
            {"role": "assistant", "content": answer.choices[0].message.content},
            {"role": "user", "content": FRANCE},
        ]
    assert answer.choices[0].message.content == PARIS
    details = answer.usage
    assert details is not None
    assert details.prompt_tokens_details is not None
    kept = details.prompt_tokens_details.cached_tokens or 0
    assert kept > 40
    assert kept < details.prompt_tokens


def test_what_cannot_be_served_is_said_and_hurts_nobody(serving: macluster.Serving) -> None:
    hello = [{"role": "user", "content": "Hello"}]
    assert refused(serving, '{"messages": [')[0] == 400
    assert "not JSON" in refused(serving, '{"messages": [')[1]
    assert refused(serving, {"messages": []}) == (400, "messages must contain at least 1 items.")
    assert "max_tokens" in refused(serving, {"messages": hello, "max_tokens": 0})[1]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert "reads nothing else" in refused(serving, {"messages": image})[1]
    assert "tools" in refused(serving, {"messages": hello, "tools": [{"type": "function"}]})[1]
    code, text = refused(serving, {"messages": hello, "model": "gpt"})
    assert (code, "'toy'" in text) == (404, True)
    code, text = refused(serving, {"prompt": "Hello " * 3000}, "/completions")
    assert (code, "context has" in text) == (400, True)
    assert "context has" in refused(serving, {"messages": hello, "max_tokens": 10**6})[1]
    assert refused(serving, {"prompt": [9999]}, "/completions")[0] == 400
    # MLX would write beyond the end of an array, or raise on the ranks.
    assert "not below 512" in refused(serving, {"messages": hello, "logit_bias": {"512": 1}})[1]
    told = {"tokenize": False, "chat_template": "{% for i in range(9999999) %}{% endfor %}"}
    for name, value in told.items():
        body = {"messages": hello, "chat_template_kwargs": {name: value}}
        assert "no variable of the template" in refused(serving, body)[1]
    assert "257 answers" in refused(serving, {"prompt": ["a"] * 257}, "/completions")[1]
    # More than the vocabulary is all of it.
    assert said(client_of(serving), top_k=600) == PARIS
    assert refused(serving, {"prompt": ""}, "/completions")[0] == 400
    assert refused(serving, {"messages": hello}, **{"Content-Type": "text/plain"})[0] == 415
    assert refused(serving, {"messages": hello}, Host="evil.example")[0] == 403
    assert refused(serving, {}, "/embeddings")[0] == 404
    assert httpx.get(serving.url + "/chat/completions").status_code == 405


def test_nothing_behind_a_stop_string_is_counted(serving: macluster.Serving) -> None:
    client = client_of(serving)
    found = [ask(client, "Count from 1 to 15.", stop=", 5", logprobs=True) for _ in range(4)]
    # Whatever the ranks had computed beyond it by then.
    assert len({each.usage.completion_tokens for each in found}) == 1
    tokens = found[0].choices[0].logprobs.content
    assert len(tokens) == found[0].usage.completion_tokens
    assert "".join(each.token for each in tokens).startswith("1, 2, 3, 4, 5")


def test_health_is_the_age_of_the_last_round(serving: macluster.Serving) -> None:
    health = serving.url.removesuffix("/v1") + "/health"
    found = httpx.get(health)
    assert found.status_code == 200
    assert found.json()["status"] == "ok"
    assert 0 <= found.json()["age"] < PATIENCE
    # It only grows, but for a new round.
    ages = [found.json()["age"]]

    def younger() -> bool:
        ages.append(httpx.get(health).json()["age"])
        return ages[-1] < ages[-2]

    until(younger, "a round has begun since", time.sleep)


# -- clients that go, and ranks that fail ----------------------------------------------------------


def test_a_client_that_goes_ends_its_answer_on_all_ranks(serving: macluster.Serving) -> None:
    before = status(serving)["given_up"]
    stream = streamed(client_of(serving), "Hello", max_tokens=400, **LONG)
    for _ in range(3):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    idle(serving)
    # It was given up long before its end, and without waiting for the rest of it.
    after = status(serving)
    assert after["given_up"] == before + 1
    assert after["recent"][-1]["tokens"] < 400
    assert said(client_of(serving)) == PARIS


def test_many_requests_of_which_some_go(serving: macluster.Serving) -> None:
    """Seeded ones, streams that are left, ones that wait, wrong ones: all ranks stay in step."""
    client = client_of(serving)

    def one(number: int) -> bool:
        kind = number % 4
        if kind == 0:
            return said(client, f"Count from 1 to {number % 7 + 3}.") == counted(number % 7 + 3)
        if kind == 1:
            stream = streamed(client, "Hello", max_tokens=200, **{**LONG, "seed": number})
            next(stream)
            stream.close()  # type: ignore[attr-defined]
            return True
        if kind == 2:
            return len(said(client, "Hello", max_tokens=5, seed=number, temperature=1)) > 0
        with pytest.raises(openai.BadRequestError):
            ask(client, "Hello", max_tokens=10**6)
        return True

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, range(80)))
    idle(serving)
    assert said(client) == PARIS
