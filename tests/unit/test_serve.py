"""What a served model speaks, and what it keeps: without ranks and without HTTP."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from macluster.engine.models import tiny
from macluster.engine.models.trial import CacheSize
from macluster.engine.serve.loop import RECORD
from macluster.engine.serve.protocol import (
    SEEDS,
    Kind,
    Piece,
    Reply,
    RequestError,
    TokenProb,
    Wanted,
    error_object,
    event,
    parse,
    usage,
)
from macluster.engine.serve.room import Prefixes, Room
from macluster.engine.serve.text import Writer

HELLO = [{"role": "user", "content": "Hello"}]


def wanted(kind: Kind = "chat", **body: Any) -> Wanted:
    body = {**({"messages": HELLO} if kind == "chat" else {"prompt": "Hello"}), **body}
    return parse(kind, json.dumps(body).encode())


def refused(kind: Kind = "chat", **body: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        wanted(kind, **body)
    return caught.value


# -- requests --------------------------------------------------------------------------------------


def test_a_request_that_says_nothing_leaves_everything_open() -> None:
    found = wanted()
    assert found.prompts == [HELLO]
    assert (found.n, found.max_tokens, found.seed, found.stop) == (1, None, None, [])
    assert (found.stream, found.usage, found.logprobs) == (False, False, None)
    assert found.sampling == found.penalties == {}


def test_null_is_as_good_as_nothing() -> None:
    assert wanted(temperature=None, stop=None, n=None, logprobs=None) == wanted()


def test_what_is_asked_for_is_read() -> None:
    found = wanted(
        model="m", temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, n=2, seed=-1, stop="end",
        stream=True, stream_options={"include_usage": True}, max_tokens=3, max_completion_tokens=4,
        presence_penalty=1, frequency_penalty=-1, repetition_penalty=1.1, logit_bias={"7": 2},
        logprobs=True, top_logprobs=5, user="somebody", chat_template_kwargs={"think": False},
    )  # fmt: skip
    assert found.sampling == {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1}
    assert found.penalties == {
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.1,
        "logit_bias": {"7": 2},
    }
    assert (found.max_tokens, found.stop, found.logprobs) == (4, ["end"], 5)
    assert found.seed == SEEDS - 1
    assert found.usage
    assert found.template == {"think": False}


def test_parts_of_text_are_put_together_and_developers_are_systems() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": parts}, {"role": "assistant", "content": None}]
    assert wanted(messages=messages).prompts == [
        [{"role": "system", "content": "ab"}, {"role": "assistant", "content": ""}]
    ]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2]], [[1], [2]])],
)
def test_a_prompt_comes_in_four_forms(prompt: Any, prompts: list[Any]) -> None:
    assert wanted("text", prompt=prompt).prompts == prompts


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"content": "x"}]}, "messages.0", "role"),
        ({"messages": [{"role": "nobody", "content": ""}]}, "messages.0.role", "one of"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "a text"),
        ({"max_tokens": 0}, "max_tokens", "bigger than or equal to 1"),
        ({"max_tokens": "3"}, "max_tokens", "integer"),
        ({"temperature": 3}, "temperature", "smaller than or equal to 2"),
        ({"stop": [""]}, "stop", "not empty"),
        ({"n": 17}, "n", "16"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "plain text"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], param: str, words: str) -> None:
    error = refused(**body)
    assert (error.status, error.param) == (400, param)
    assert words in str(error)
    assert error_object(error)["error"]["type"] == "invalid_request_error"


def test_lists_of_nothing_are_not_refused() -> None:
    assert wanted(tools=[], response_format={"type": "text"}) == wanted()


def test_values_of_no_meaning_leave_things_open() -> None:
    assert (
        wanted(max_tokens=-1, top_k=-1, stop="", stream_options={"include_usage": None}) == wanted()
    )
    assert wanted("text", logprobs=False, best_of=1) == wanted("text")
    assert refused("text", best_of=2).param == "best_of"


def test_numbers_are_whole_where_they_have_to_be() -> None:
    found = wanted(seed=5.0, n=2.0, max_tokens=7.0, logprobs=True, top_logprobs=3.0)
    assert [type(each) for each in (found.seed, found.n, found.max_tokens)] == [int] * 3
    assert type(found.logprobs) is int
    assert refused(max_tokens=7.5).param == "max_tokens"


def test_a_message_of_calls_has_no_text() -> None:
    calls = {"role": "assistant", "tool_calls": []}
    assert wanted(messages=[*HELLO, calls]).prompts[0][1] == {"role": "assistant", "content": ""}
    empty = {"role": "user", "content": []}
    assert wanted(messages=[empty]).prompts[0][0]["content"] == ""


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"messages": [], "temperature": NaN}', b"[" * 100_000],
)
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(RequestError):
        parse("chat", data)


# -- answers ---------------------------------------------------------------------------------------


def test_a_chunk_has_what_is_new() -> None:
    reply = Reply(wanted(stream=True, n=2), "m")
    opening = reply.opening()
    assert [each["choices"][0]["index"] for each in opening] == [0, 1]
    chunk = reply.chunk(Piece(1, "text"))
    assert chunk["object"] == "chat.completion.chunk"
    assert chunk["choices"][0] == {
        "index": 1,
        "delta": {"content": "text"},
        "logprobs": None,
        "finish_reason": None,
    }
    assert reply.chunk(Piece(0, "", "stop"))["choices"][0]["delta"] == {}
    assert "usage" not in chunk
    assert event(chunk).startswith('data: {"id": "chatcmpl-')


def test_a_whole_answer_has_all_choices_and_what_it_took() -> None:
    piece = Piece(0, "é", "length", [TokenProb("é", -0.5, [("é", -0.5), ("e", -1.5)])])
    chat = Reply(wanted(logprobs=True, top_logprobs=2), "m").whole([piece], usage(3, 1, 1))
    assert chat["choices"][0]["message"] == {"role": "assistant", "content": "é"}
    content = chat["choices"][0]["logprobs"]["content"][0]
    assert content["bytes"] == [195, 169]
    assert [each["token"] for each in content["top_logprobs"]] == ["é", "e"]
    assert chat["usage"]["total_tokens"] == 4
    assert chat["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    text = Reply(wanted("text", logprobs=2), "m").whole([piece], usage(3, 0, 1))
    assert text["choices"][0]["text"] == "é"
    assert text["choices"][0]["logprobs"]["top_logprobs"] == [{"é": -0.5, "e": -1.5}]


# -- text ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from mlx_lm.utils import load_tokenizer

    return load_tokenizer(tiny.toy_path())


def written(tokenizer: Any, text: str, stop: list[str], size: int) -> tuple[str, bool]:
    tokens = tokenizer.encode(text)
    writer = Writer(tokenizer, stop)
    parts = [writer.add(tokens[at : at + size]) for at in range(0, len(tokens), size)]
    return "".join(parts) + writer.finish(), writer.stopped


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ([], "The capital of France is Paris."),
        (["France"], "The capital of "),
        (["pital o"], "The ca"),
        (["nothing", "is"], "The capital of France "),
        (["Paris", "France"], "The capital of "),
        (["Paris.?"], "The capital of France is Paris."),
        (["."], "The capital of France is Paris"),
    ],
)
def test_text_ends_before_a_stop_string(
    tokenizer: Any, stop: list[str], expected: str, size: int
) -> None:
    text = "The capital of France is Paris."
    assert written(tokenizer, text, stop, size) == (expected, expected != text)


def test_half_a_stop_string_is_held_back_and_comes_later(tokenizer: Any) -> None:
    writer = Writer(tokenizer, ["France!"])
    text = "The capital of France is Paris."
    tokens = tokenizer.encode(text)
    seen = ""
    for token in tokens:
        seen += writer.add([token])
        assert not seen.endswith("F")
    assert seen + writer.finish() == text


# -- memory ----------------------------------------------------------------------------------------


def test_a_batch_is_as_long_as_its_longest_answer() -> None:
    room = Room([(CacheSize(token=10), 1000), (CacheSize(token=5), 1000)])
    assert room.fits([50, 50])
    assert room.fits([50, 1])
    assert not room.fits([50, 1, 1])
    assert not room.fits([50], kept=[51])
    assert room.most() == 100


def test_what_is_not_known_is_not_limited() -> None:
    room = Room([(CacheSize(), 1000)])
    assert room.most() is None
    assert room.fits([10**9])


def test_a_window_makes_no_limit() -> None:
    assert Room([(CacheSize(windows=((1, 100),)), 1000)]).most() is None


def cache_of(length: int) -> list[Any]:
    """A cache that has read so many tokens; its values are their places."""
    import mlx.core as mx
    from mlx_lm.models.cache import KVCache

    cache = KVCache()
    values = mx.arange(length).reshape(1, 1, length, 1).astype(mx.float32)
    cache.update_and_fetch(values, values)
    return [cache]


def offset(cache: list[Any] | None) -> int:
    assert cache is not None
    return int(cache[0].offset)


def test_a_conversation_that_goes_on_takes_its_cache_along() -> None:
    kept = Prefixes(4, forgets=True)
    kept.put(list(range(20)), cache_of(20))
    cache, reused = kept.take([*range(20), 99, 98])
    assert (reused, offset(cache), kept.lengths) == (20, 20, [])


def test_a_prompt_with_the_same_beginning_gets_a_copy() -> None:
    kept = Prefixes(4, forgets=True)
    kept.put(list(range(20)), cache_of(20))
    cache, reused = kept.take([*range(12), 99, 98])
    assert (reused, offset(cache), kept.lengths) == (12, 12, [20])
    # The same prompt once more: its last token must be computed again.
    again, reused = kept.take(list(range(20)))
    assert (reused, offset(again)) == (19, 19)
    assert kept.take([5, 6, 7]) == (None, 0)
    assert kept.take([*range(4), 99]) == (None, 0)  # not worth a copy


def test_the_one_used_longest_ago_goes_first() -> None:
    kept = Prefixes(2, forgets=True)
    kept.put([1] * 20, cache_of(20))
    kept.put([2] * 21, cache_of(21))
    kept.take([*[1] * 12, 9])
    kept.put([3] * 22, cache_of(22))
    assert kept.lengths == [20, 22]
    assert kept.drop()
    assert kept.drop()
    assert not kept.drop()


def test_what_a_longer_one_contains_is_not_kept_twice() -> None:
    kept = Prefixes(4, forgets=True)
    kept.put(list(range(20)), cache_of(20))
    kept.put(list(range(30)), cache_of(30))
    assert kept.lengths == [30]


def test_a_cache_that_cannot_be_cut_serves_only_what_begins_with_all_of_it() -> None:
    from mlx_lm.models.cache import ArraysCache

    kept = Prefixes(4, forgets=False)
    kept.put(list(range(20)), [ArraysCache(1)])
    assert kept.take([*range(19), 99, 98]) == (None, 0)
    assert kept.take([*range(20), 99])[1] == 20


def test_most_decisions_fit_into_one_message() -> None:
    usual = {"cancel": [], "add": [], "steps": 8, "pause": 0.1, "end": False}
    assert len(json.dumps(usual)) < RECORD / 2


def test_work_goes_through_json() -> None:
    from macluster.engine.serve.batch import Work

    work = Work(3, [1, 2], 5, 7, {"temperature": 1.0}, {"logit_bias": {"7": 2.0}}, 1, 2)
    assert Work(**json.loads(json.dumps(attrs.asdict(work)))) == work
