"""What clients send and get: the part of OpenAI's HTTP API that is about making text.

https://platform.openai.com/docs/api-reference: chat completions, completions, models.
"""

from __future__ import annotations

import functools
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

Kind = Literal["chat", "text"]

SEEDS = 1 << 53  # so that a seed survives as a JSON number in any language

# What both endpoints take. Anything that is not named here or in REFUSED is ignored.
COMMON: dict[str, Any] = {
    "model": {"type": "string"},
    "max_tokens": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "top_k": {"type": "integer", "minimum": 0},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 16},
    "seed": {"type": "integer"},
    "stop": {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "maxItems": 16, "items": {"type": "string", "minLength": 1}},
        ]
    },
    "stream": {"type": "boolean"},
    "stream_options": {
        "type": "object",
        "properties": {"include_usage": {"type": ["boolean", "null"]}},
    },
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "repetition_penalty": {"type": "number", "exclusiveMinimum": 0},
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]+$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    },
}
TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "null"},
                {"type": "array", "items": TEXT_PART},
            ]
        },
    },
    "required": ["role"],
}
TOKENS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
SCHEMAS: dict[Kind, dict[str, Any]] = {
    "chat": {
        "type": "object",
        "properties": {
            **COMMON,
            "messages": {"type": "array", "minItems": 1, "items": MESSAGE},
            "max_completion_tokens": {"type": "integer", "minimum": 1},
            "logprobs": {"type": "boolean"},
            "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
            "chat_template_kwargs": {"type": "object"},
        },
        "required": ["messages"],
    },
    "text": {
        "type": "object",
        "properties": {
            **COMMON,
            "prompt": {
                "anyOf": [
                    {"type": "string"},
                    TOKENS,
                    {"type": "array", "minItems": 1, "items": {"type": "string"}},
                    {"type": "array", "minItems": 1, "items": TOKENS},
                ]
            },
            "logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
        },
        "required": ["prompt"],
    },
}
# Values that leave something open, beside null.
OPEN = {"max_tokens": -1, "max_completion_tokens": -1, "top_k": -1, "stop": "", "logprobs": False}
# What those that can be of several types have to be.
WORDS = {
    "content": "must be a text, or a list of parts of type text: this server reads nothing else",
    "prompt": "must be a text, a list of token ids, or a list of either",
    "stop": "must be a text that is not empty, or a list of up to 16",
}
# What changes the answer, and is not done here: better refused than ignored.
REFUSED = ("tools", "functions", "audio", "suffix", "echo", "use_beam_search")


class RequestError(Exception):
    """A request that cannot be served. Has what OpenAI's error object has."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


@attrs.frozen
class Wanted:
    """What a client asks for, once it is known to be well formed.

    `prompts` are texts, lists of token ids, or for a chat the one list of messages. `logprobs` is
    the number of alternatives at each token, None without any; `seed` None means any.
    """

    kind: Kind
    model: str | None
    prompts: Sequence[Any]
    template: Mapping[str, Any]
    n: int
    max_tokens: int | None
    sampling: Mapping[str, float]
    penalties: Mapping[str, Any]
    seed: int | None
    stop: Sequence[str]
    stream: bool
    usage: bool
    logprobs: int | None


def parse(kind: Kind, data: bytes) -> Wanted:
    """Read a request's body. Raises RequestError."""
    try:
        body = json.loads(data, parse_constant=_no_number, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not JSON: {error}.") from None
    if isinstance(body, Mapping):
        # Many clients send null, or a number of no meaning, for what they leave open.
        body = {
            name: value
            for name, value in body.items()
            if value is not None and not (name in OPEN and value == OPEN[name])
        }
        if body.get("best_of") not in (None, body.get("n", 1)):
            raise RequestError("best_of is not supported by this server.", param="best_of")
        refused = [name for name in REFUSED if body.get(name)]
        if refused:
            raise RequestError(f"{refused[0]} is not supported by this server.", param=refused[0])
        if (form := body.get("response_format")) not in (None, {"type": "text"}):
            raise RequestError(
                f"response_format {form} is not supported by this server: it gives plain text.",
                param="response_format",
            )
    _validate(kind, body)
    logprobs = body.get("logprobs")
    if kind == "chat":
        logprobs = body.get("top_logprobs", 0) if logprobs else None
    stop = body.get("stop", [])
    return Wanted(
        kind=kind,
        model=body.get("model"),
        prompts=[_plain_messages(body["messages"])] if kind == "chat" else _prompts(body["prompt"]),
        template=body.get("chat_template_kwargs", {}),
        n=body.get("n", 1),
        max_tokens=body.get("max_completion_tokens", body.get("max_tokens")),
        sampling={
            name: body[name] for name in ("temperature", "top_p", "top_k", "min_p") if name in body
        },
        penalties={
            **{
                f"{name}_penalty": body[f"{name}_penalty"]
                for name in ("presence", "frequency", "repetition")
                if f"{name}_penalty" in body
            },
            **({"logit_bias": body["logit_bias"]} if body.get("logit_bias") else {}),
        },
        seed=body["seed"] % SEEDS if "seed" in body else None,
        stop=[stop] if isinstance(stop, str) else stop,
        stream=body.get("stream", False),
        usage=bool(body.get("stream_options", {}).get("include_usage")),
        logprobs=logprobs,
    )


def _number(text: str) -> float:
    """5.0 is as good as 5, and the ranks need whole numbers."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _validate(kind: Kind, body: Any) -> None:
    from fastjsonschema import JsonSchemaValueException

    try:
        _validator(kind)(body)
    except JsonSchemaValueException as error:
        path = ".".join(error.path[1:])
        message = str(error.message).replace("data.", "", 1).replace("data ", "The body ", 1)
        if "any definition" in message:
            words = WORDS.get(error.path[-1], "is not of a type that is known here")
            message = f"{message.partition(' ')[0]} {words}"
        message = message if len(message) < 300 else f"{message[:300]}..."
        raise RequestError(f"{message}.", param=path or None) from None


@functools.cache
def _validator(kind: Kind) -> Any:
    import fastjsonschema

    return fastjsonschema.compile(
        {"$schema": "http://json-schema.org/draft-07/schema", **SCHEMAS[kind]}
    )


def _plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose content is one text, as chat templates want it."""
    plain = []
    for message in messages:
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "".join(part["text"] for part in content)
        role = "system" if message["role"] == "developer" else message["role"]
        plain.append({"role": role, "content": content})
    return plain


def _prompts(prompt: Any) -> list[Any]:
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


# -- what clients get ------------------------------------------------------------------------------


@attrs.frozen
class TokenProb:
    """A token as text, its logarithmic probability, and those of the likeliest alternatives."""

    text: str
    logprob: float
    top: Sequence[tuple[str, float]]


@attrs.define
class Piece:
    """What is new of one choice. `finish` is "stop", "length" or None while it goes on."""

    index: int
    text: str
    finish: str | None = None
    logprobs: list[TokenProb] = attrs.field(factory=list)


class Reply:
    """Writes the objects that one request is answered with."""

    def __init__(self, wanted: Wanted, model: str) -> None:
        self.wanted = wanted
        self.prefix = "chatcmpl" if wanted.kind == "chat" else "cmpl"
        self.head: dict[str, Any] = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "object": "",
            "created": int(time.time()),
            "model": model,
        }

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before the first token of a stream."""
        if self.wanted.kind == "text":
            return []
        delta = {"role": "assistant", "content": ""}
        return [
            self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
            for index in range(self.wanted.n)
        ]

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A chunk of a stream."""
        choice: dict[str, Any] = {"index": piece.index}
        if self.wanted.kind == "chat":
            choice["delta"] = {"content": piece.text} if piece.text else {}
        else:
            choice["text"] = piece.text
        choice["logprobs"] = self._logprobs(piece)
        choice["finish_reason"] = piece.finish
        return self._chunk([choice])

    def usage_chunk(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """The last chunk of a stream, for clients that want to know what it took."""
        return {**self._chunk([]), "usage": usage}

    def whole(self, pieces: Sequence[Piece], usage: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request without stream; a piece is a whole choice."""
        choices = []
        for piece in pieces:
            choice: dict[str, Any] = {"index": piece.index}
            if self.wanted.kind == "chat":
                choice["message"] = {"role": "assistant", "content": piece.text}
            else:
                choice["text"] = piece.text
            choice["logprobs"] = self._logprobs(piece)
            choice["finish_reason"] = piece.finish
            choices.append(choice)
        kind = "chat.completion" if self.wanted.kind == "chat" else "text_completion"
        return {**self.head, "object": kind, "choices": choices, "usage": usage}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.wanted.kind == "chat" else "text_completion"
        chunk = {**self.head, "object": kind, "choices": choices}
        return {**chunk, "usage": None} if self.wanted.usage else chunk

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self.wanted.logprobs is None:
            return None
        if self.wanted.kind == "chat":
            return {
                "content": [
                    {
                        **_token_prob(each.text, each.logprob),
                        "top_logprobs": [_token_prob(*one) for one in each.top],
                    }
                    for each in piece.logprobs
                ]
            }
        return {
            "tokens": [each.text for each in piece.logprobs],
            "token_logprobs": [each.logprob for each in piece.logprobs],
            "top_logprobs": [dict(each.top) for each in piece.logprobs],
        }


def _token_prob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def usage(prompt: int, reused: int, completion: int) -> dict[str, Any]:
    """Tokens of a request: of its prompts, those of them that were in a cache, and of answers."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": reused},
    }


def error_object(error: RequestError) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {
            "message": str(error),
            "type": kind,
            "param": error.param,
            "code": error.code,
        }
    }


def event(data: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"
