"""The HTTP server of rank 0, in a thread of its own, and the queue between it and the ranks.

The main thread asks it what to do next (`decide`) and hands it what was computed (`deliver`). The
server's thread never touches MLX.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from ..errors import ModelError
from ..models.chat import context_limit
from ..models.generate import prompt_tokens
from ..models.load import LoadedModel
from .batch import Batch, Token, Work
from .http import LOCAL, application
from .protocol import SEEDS, Kind, RequestError, Wanted
from .text import Writer

PACE = 0.05  # seconds between two rounds: how often clients get text
MOST_STEPS = 8  # of a round: an answer that is given up goes on for so many tokens at most
IDLE = 0.02  # seconds that the ranks rest when there is nothing to do
ASLEEP = 0.1  # the same when there has been nothing for LONG seconds
LONG = 2.0
STALLED = 60.0  # seconds without a round after which the server counts as ill
ORPHANED = 60.0  # seconds that requests wait for the ranks to come back after a failure
WAITING = 256  # answers that may wait for their turn
BODY = 32 << 20  # bytes of a request
UNAVAILABLE = "The server has stopped, and could not finish the answer."


@attrs.define(eq=False)
class Answer:
    """One answer of a request, on its way."""

    work: Work
    request: Request
    index: int
    writer: Writer
    made: list[int] = attrs.field(factory=list)
    reused: int = 0
    ended: bool = False
    failures: int = 0  # of the ranks, while it was under way

    @property
    def left(self) -> Work:
        """What is left to be made of it, for ranks that know nothing of it."""
        return attrs.evolve(
            self.work,
            tokens=[*self.work.tokens, *self.made],
            max_tokens=self.work.max_tokens - len(self.made),
            done=len(self.made),
        )


@attrs.define(eq=False)
class Request:
    """One request and its answers. `inbox` has lists of tokens of an answer, or an error."""

    kind: Kind
    prompt: int
    inbox: asyncio.Queue[tuple[Answer, list[Token]] | RequestError]
    answers: list[Answer] = attrs.field(factory=list)
    began: float = attrs.field(factory=time.monotonic)
    first: float | None = None  # seconds to the first token


class Front:
    """The server, and what clients wait for."""

    def __init__(
        self, loaded: LoadedModel, name: str, host: str, port: int, key: str | None, max_tokens: int
    ) -> None:
        self.loaded = loaded
        self.name = name
        self.key = key
        self.max_tokens = max_tokens
        self.defaults = _defaults(loaded.path)
        self.most: int | None = None  # tokens of a prompt with its answer
        self.ending = False
        self._numbers = itertools.count()
        self._answers: dict[int, Answer] = {}
        self._waiting: deque[int] = deque()
        self._given_up: set[int] = set()
        self._changing = threading.Lock()
        self._end_at: float | None = None
        self._suspended_at: float | None = None
        self._round = self._busy = time.monotonic()  # the last round, and the last with answers
        self._step = PACE  # seconds; a guess until the first one
        self.began = time.time()
        self._counts = {"requests": 0, "failed": 0, "given_up": 0, "tokens": 0}
        self._recent: deque[dict[str, Any]] = deque(maxlen=100)
        self._speed: deque[tuple[float, int]] = deque()
        self._open(host, port)

    # -- the server's thread -------------------------------------------------------------------

    def _open(self, host: str, port: int) -> None:
        try:
            sockets = bind_sockets(port, host)
        except OSError as error:
            raise ModelError(
                f"{socket.gethostname()} cannot serve at {host}:{port}: {error.strerror}.",
                why="another program listens there, or the host has no such address",
                do="choose another port, such as --port 8081; --port 0 takes a free one",
            ) from error
        self.host, self.port = host, sockets[0].getsockname()[1]
        self.local = all(each.getsockname()[0] in LOCAL for each in sockets)
        self._loop = asyncio.new_event_loop()
        self._closed = asyncio.Event()
        self._thread = threading.Thread(
            target=self._run, args=(sockets,), name="macluster-serve", daemon=True
        )
        self._thread.start()

    def _run(self, sockets: list[socket.socket]) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(sockets))
        self._loop.close()

    async def _serve(self, sockets: list[socket.socket]) -> None:
        server = HTTPServer(application(self), max_body_size=BODY, max_buffer_size=2 * BODY)
        server.add_sockets(sockets)
        watching = asyncio.ensure_future(self._watch())
        await self._closed.wait()
        watching.cancel()
        server.stop()
        # What clients are told at the end has yet to leave.
        for _ in range(100):
            if not self._answers:
                break
            await asyncio.sleep(0.01)
        await server.close_all_connections()

    async def _watch(self) -> None:
        """Close when the ranks do not come back."""
        while True:
            await asyncio.sleep(1)
            if self._suspended_at and time.monotonic() > self._suspended_at + ORPHANED:
                self._close(UNAVAILABLE)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"

    # -- for the main thread -------------------------------------------------------------------

    def decide(self, batch: Batch) -> dict[str, Any]:
        """What all ranks do in the next round; plain values.

        `cancel` these answers, `add` those, then take so many `steps`, or rest for `pause`
        seconds when there is nothing to do; or `end`.
        """
        now = self._round = time.monotonic()
        with self._changing:
            cancel = [number for number in self._given_up if number in batch.works]
            self._given_up.clear()
            lengths = [work.length for number, work in batch.works.items() if number not in cancel]
            add = []
            while self._waiting:
                work = self._answers[self._waiting[0]].left
                if not batch.fits([*lengths, work.length]):
                    break
                self._waiting.popleft()
                lengths.append(work.length)
                add.append(attrs.asdict(work))
            if lengths:
                self._busy = now
            over = self._end_at is not None and (now >= self._end_at or not self._answers)
        return {
            "cancel": cancel,
            "add": add,
            "steps": max(1, min(MOST_STEPS, int(PACE / self._step))),
            "pause": IDLE if now < self._busy + LONG else ASLEEP,
            "end": over,
        }

    def deliver(self, tokens: Sequence[Token], reused: Mapping[int, int], step: float) -> None:
        """Pass on what was computed; `step` are the seconds that one step took."""
        now = time.monotonic()
        self._step = step
        parts: dict[int, list[Token]] = {}
        with self._changing:
            for each in tokens:
                answer = self._answers.get(each.number)
                if answer is None:
                    continue
                if each.finish != "stop":
                    answer.made.append(each.token)
                answer.ended = answer.ended or each.finish is not None
                answer.reused = reused.get(each.number, answer.reused)
                if answer.request.first is None:
                    answer.request.first = now - answer.request.began
                parts.setdefault(each.number, []).append(each)
            deliveries = [(self._answers[number], part) for number, part in parts.items()]
            self._counts["tokens"] += len(tokens)
            self._speed.append((now, len(tokens)))
            while self._speed and self._speed[0][0] < now - 10:
                self._speed.popleft()
        if deliveries:
            self._loop.call_soon_threadsafe(self._hand_out, deliveries)

    def _hand_out(self, deliveries: Sequence[tuple[Answer, list[Token]]]) -> None:
        for answer, part in deliveries:
            answer.request.inbox.put_nowait((answer, part))

    def suspend(self) -> None:
        """The ranks have failed. What is under way waits for them to come back."""
        self._suspended_at = time.monotonic()

    def resume(self, loaded: LoadedModel) -> None:
        """The ranks are back, and know nothing of what was under way."""
        with self._changing:
            self.loaded, self._suspended_at = loaded, None
            for number in self._answers.keys() - set(self._waiting):
                self._answers[number].failures += 1
            # One that the ranks have failed with twice may be why they did.
            bad = {id(each.request): each for each in self._answers.values() if each.failures > 1}
            self._waiting = deque(
                number for number in sorted(self._answers) if not self._answers[number].ended
            )
        for each in bad.values():
            error = RequestError("The ranks failed twice while they made this answer.", status=500)
            self._loop.call_soon_threadsafe(each.request.inbox.put_nowait, error)

    def stop(self, drain: float) -> None:
        """Take no more requests, and end when those under way have, at most after `drain` s."""
        with self._changing:
            self.ending = True
            self._end_at = time.monotonic() + drain

    def close(self, why: str = UNAVAILABLE) -> None:
        """End the server; whoever still waits is told why. Returns when its port is free."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._close, why)
            self._thread.join(timeout=5)

    def _close(self, why: str) -> None:
        self.ending = True
        for request in {id(each.request): each.request for each in self._answers.values()}.values():
            request.inbox.put_nowait(RequestError(why, status=503))
        self._closed.set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    # -- for the handlers ----------------------------------------------------------------------

    def begin(self, wanted: Wanted) -> Request:
        """Queue what a request asks for. Raises RequestError."""
        if self.ending:
            raise RequestError("The server is stopping.", status=503)
        if wanted.model not in (None, "default", self.name, str(self.loaded.source)):
            raise RequestError(
                f"The model {wanted.model!r} does not exist here; this server has {self.name!r}.",
                status=404,
                param="model",
                code="model_not_found",
            )
        if len(self._waiting) + len(wanted.prompts) * wanted.n > WAITING:
            raise RequestError(
                "Too many requests wait already; try again later.", status=429, code="queue_full"
            )
        self._check_vocabulary(wanted)
        prompts = [self._tokens(wanted, prompt) for prompt in wanted.prompts]
        sampling = {"temperature": 1.0, **self.defaults, **wanted.sampling}
        seed = secrets.randbelow(SEEDS) if wanted.seed is None else wanted.seed
        request = Request(wanted.kind, sum(map(len, prompts)), asyncio.Queue())
        for place, tokens in enumerate(prompts):
            max_tokens = self._max_tokens(wanted, len(tokens))
            for copy in range(wanted.n):
                work = Work(
                    number=next(self._numbers),
                    tokens=tokens,
                    max_tokens=max_tokens,
                    seed=(seed + copy) % SEEDS,
                    sampling=sampling,
                    penalties=wanted.penalties,
                    top=wanted.logprobs,
                )
                writer = Writer(self.loaded.tokenizer, wanted.stop)
                request.answers.append(Answer(work, request, place * wanted.n + copy, writer))
        with self._changing:
            self._counts["requests"] += 1
            for answer in request.answers:
                self._answers[answer.work.number] = answer
                self._waiting.append(answer.work.number)
        return request

    def _tokens(self, wanted: Wanted, prompt: Any) -> list[int]:
        """A prompt as token ids. Raises RequestError."""
        tokenizer = self.loaded.tokenizer
        try:
            if wanted.kind == "chat" and wanted.template:
                tokens = tokenizer.apply_chat_template(
                    prompt, **{**wanted.template, "add_generation_prompt": True, "tokenize": True}
                )
            elif isinstance(prompt, str):
                tokens = tokenizer.encode(prompt)  # a completion goes on with the text as it is
            else:
                tokens = prompt_tokens(self.loaded, prompt)
        except Exception as error:
            what = error.what if isinstance(error, ModelError) else f"{error}"
            raise RequestError(f"The prompt cannot be used: {what}", param="messages") from error
        if not tokens or not all(isinstance(token, int) for token in tokens):
            raise RequestError("The prompt gives no tokens.", param="prompt")
        self._check_tokens(tokens, "prompt")
        return list(tokens)

    def _check_vocabulary(self, wanted: Wanted) -> None:
        """Raise RequestError for tokens that the model does not have: MLX would not check them."""
        self._check_tokens(map(int, wanted.penalties.get("logit_bias", ())), "logit_bias")
        # One less than all is the most that mlx-lm takes.
        self._check_tokens([int(wanted.sampling.get("top_k", 0))], "top_k")

    def _check_tokens(self, tokens: Iterable[int], param: str) -> None:
        size = self.loaded.text_config.get("vocab_size")
        if isinstance(size, int) and any(token >= size for token in tokens):
            raise RequestError(f"{param} has a number that is not below {size}.", param=param)

    def _max_tokens(self, wanted: Wanted, prompt: int) -> int:
        """How many tokens an answer may have. Raises RequestError when there is no room for it."""
        limits = [
            (context_limit(self.loaded), "the model's context has {} tokens"),
            (self.most, "the memory of the ranks holds {} tokens"),
        ]
        room, why = min(
            ((limit - prompt, text.format(limit)) for limit, text in limits if limit is not None),
            default=(self.max_tokens, ""),
        )
        asked = wanted.max_tokens or min(self.max_tokens, max(room, 1))
        if asked > room and why:
            raise RequestError(
                f"There is no room for a prompt of {prompt} tokens and an answer of {asked}: "
                f"{why}.",
                param="messages" if wanted.kind == "chat" else "prompt",
                code="context_length_exceeded",
            )
        return asked

    def leave(self, request: Request, finish: str) -> None:
        """A request is over: answered, failed, or its client has gone."""
        seconds = time.monotonic() - request.began
        with self._changing:
            for answer in request.answers:
                number = answer.work.number
                if self._answers.pop(number, None) is not None and not answer.ended:
                    self._given_up.add(number)
                    if number in self._waiting:
                        self._waiting.remove(number)
            if finish in ("failed", "given_up"):
                self._counts[finish] += 1
            self._recent.append(
                {
                    "number": self._counts["requests"],
                    "time": time.time(),
                    "kind": request.kind,
                    "prompt": request.prompt,
                    "reused": sum(answer.reused for answer in request.answers),
                    "tokens": sum(len(answer.made) for answer in request.answers),
                    "first": request.first,
                    "seconds": seconds,
                    "finish": finish,
                }
            )

    def give_up(self, answer: Answer) -> None:
        """No more tokens of this answer are wanted: a stop string has come."""
        with self._changing:
            if not answer.ended:
                answer.ended = True
                self._given_up.add(answer.work.number)

    # -- how it is -----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Figures: seconds, tokens, counts since the start; `speed` in tokens/s over 10 s."""
        now = time.monotonic()
        with self._changing:
            waiting = len(self._waiting)
            since = max(now - self._speed[0][0], 1.0) if self._speed else 1.0
            recent = [count for at, count in self._speed if at > now - 10]
            return {
                "url": self.url,
                "model": self.name,
                "health": self.health,
                "age": now - self._round,
                "up": time.time() - self.began,
                "active": len(self._answers) - waiting,
                "waiting": waiting,
                "speed": sum(recent) / since,
                **self._counts,
                "recent": list(self._recent),
            }

    @property
    def health(self) -> str:
        """ "ok", "stopping", "recovering", or "stalled": no round for STALLED seconds."""
        if self.ending:
            return "stopping"
        if self._suspended_at is not None:
            return "recovering"
        return "stalled" if time.monotonic() - self._round > STALLED else "ok"


def _defaults(folder: Path) -> dict[str, float]:
    """How the model's makers would draw from it, where they say so."""
    file = folder / "generation_config.json"
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if found.get("do_sample") is False:
        return {"temperature": 0.0}
    names = ("temperature", "top_p", "top_k", "min_p")
    return {name: found[name] for name in names if isinstance(found.get(name), (int, float))}
