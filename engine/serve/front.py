"""The HTTP server of rank 0, in a thread of its own, and the figures about it.

The main thread asks it what to do next (`decide`) and hands it what was computed (`deliver`). The
server's thread never touches MLX.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from .room import Room
from .scheduler import WAITING, Answer, Scheduler
from .text import Writer

PACE = 0.05  # seconds between two rounds: how often clients get text
MOST_STEPS = 8  # of a round: an answer that is given up goes on for so many tokens at most
IDLE = 0.02  # seconds that the ranks rest when there is nothing to do
ASLEEP = 0.1  # the same when there has been nothing for LONG seconds
LONG = 2.0
STALLED = 60.0  # seconds without a round after which the server counts as ill
ORPHANED = 900.0  # seconds that requests wait for the ranks: a large model is loaded again in less
BODY = 8 << 20  # bytes of a request
BODY_TIME = 60.0  # seconds in which it must arrive
SPEED = 10.0  # seconds over which the speed is counted
FAILED = "The ranks failed again and again on this request, so it is refused from now on."
UNAVAILABLE = "The server has stopped, and could not finish the answer."


@attrs.frozen
class Settings:
    """How a model is served. `owner` tells one `Serving` from another; "" for none."""

    owner: str
    name: str
    host: str
    port: int
    key: str | None
    max_tokens: int
    concurrency: int


@attrs.define(eq=False)
class Request:
    """One request and its answers. `inbox` has lists of tokens of an answer, or an error."""

    number: int
    kind: Kind
    prompt: int
    inbox: asyncio.Queue[tuple[Answer, list[Token]] | RequestError]
    answers: list[Answer] = attrs.field(factory=list)
    writers: list[Writer] = attrs.field(factory=list)
    counts: list[int] = attrs.field(factory=list)  # tokens that each answer consists of
    began: float = attrs.field(factory=time.monotonic)
    first: float | None = None  # seconds to the first token


class Front:
    """The server, and what clients wait for. Raises ModelError when it cannot listen."""

    def __init__(self, loaded: LoadedModel, settings: Settings, room: Room) -> None:
        self.loaded: LoadedModel | None = loaded
        self.settings = settings
        self.scheduler = Scheduler(room, settings.concurrency)
        self.defaults = _defaults(loaded.path)
        self.ending = False
        self._end_at: float | None = None
        self._suspended_at: float | None = None
        self._round = self._busy = time.monotonic()  # the last round, and the last with answers
        self._step = PACE  # seconds; a guess until the first one
        self.began = time.time()
        self._numbers, self._requests = itertools.count(), itertools.count(1)
        self._counts = {"requests": 0, "failed": 0, "given_up": 0, "tokens": 0}
        self._counting = threading.Lock()  # both threads count, and a third one asks
        self._recent: deque[dict[str, Any]] = deque(maxlen=100)
        self._speed: deque[tuple[float, int]] = deque()
        # One at a time: tokenizers are not made for more.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="macluster-tokenize")
        self._open(settings.host, settings.port)

    # -- the server's thread -------------------------------------------------------------------

    def _open(self, host: str, port: int) -> None:
        try:
            sockets = bind_sockets(port, host)
        except OSError as error:
            raise ModelError(
                f"{socket.gethostname()} cannot serve at {host}:{port}: {error.strerror}.",
                why="another program listens there, the host has no such address, or a port below "
                "1024 needs an administrator",
                do="choose another port, such as --port 8081 (--port 0 takes a free one), or an "
                "address of this host",
            ) from error
        self.port = sockets[0].getsockname()[1]
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
        server = HTTPServer(
            application(self), max_body_size=BODY, max_buffer_size=2 * BODY, body_timeout=BODY_TIME
        )
        server.add_sockets(sockets)
        watching = asyncio.ensure_future(self._watch())
        await self._closed.wait()
        watching.cancel()
        server.stop()
        # What clients are told at the end has yet to leave.
        for _ in range(100):
            if not self.scheduler.answers:
                break
            await asyncio.sleep(0.01)
        await server.close_all_connections()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        # A stopped server must not keep a model in memory.
        self.loaded = None

    async def _watch(self) -> None:
        """Close when the ranks do not come back."""
        while True:
            await asyncio.sleep(1)
            if self._suspended_at and time.monotonic() > self._suspended_at + ORPHANED:
                self._close(UNAVAILABLE)

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.settings.name

    @property
    def url(self) -> str:
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self.port}/v1"

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed.is_set()

    # -- for the main thread -------------------------------------------------------------------

    def decide(self, batch: Batch) -> dict[str, Any]:
        """What all ranks do in the next round; plain values.

        `cancel` these answers, `add` those, then take so many `steps`, or rest for `pause`
        seconds when there is nothing to do; or `end`. `digest` is of rank 0's tokens so far.
        """
        now = self._round = time.monotonic()
        cancel, begin = self.scheduler.decide(batch.works)
        if begin or len(batch.works) > len(cancel):
            self._busy = now
        over = self._end_at is not None and (now >= self._end_at or not self.scheduler.answers)
        return {
            "cancel": cancel,
            "add": [attrs.asdict(work) for work in begin],
            "steps": max(1, min(MOST_STEPS, int(PACE / self._step))),
            "pause": IDLE if now < self._busy + LONG else ASLEEP,
            "digest": batch.digest,
            "end": over or not self.alive,
        }

    def deliver(self, tokens: Sequence[Token], reused: Mapping[int, int], step: float) -> None:
        """Pass on what was computed; `step` are the seconds that one step took."""
        now = time.monotonic()
        self._step = step
        with self._counting:
            self._counts["tokens"] += len(tokens)
            self._speed.append((now, len(tokens)))
            while self._speed[0][0] < now - SPEED:
                self._speed.popleft()
        deliveries = self.scheduler.deliver(tokens, reused)
        if deliveries:
            self._in_loop(self._hand_out, deliveries, now)

    def _in_loop(self, call: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            pass  # it has closed: nobody waits any more

    def _hand_out(self, deliveries: Sequence[tuple[Answer, list[Token]]], now: float) -> None:
        for answer, part in deliveries:
            request: Request = answer.request
            if request.first is None:
                request.first = now - request.began
            request.inbox.put_nowait((answer, part))

    def suspend(self) -> None:
        """The ranks have failed. What is under way waits for them to come back."""
        self._suspended_at = time.monotonic()

    def resume(self, loaded: LoadedModel, settings: Settings, room: Room) -> bool:
        """The ranks are back, and know nothing of what was under way.

        False when this server is not theirs, or has closed.
        """
        same = attrs.evolve(settings, port=self.settings.port) == self.settings
        at_home = settings.port in (self.settings.port, self.port)
        if not (self.alive and same and at_home and settings.owner):
            return False
        self.loaded = loaded
        condemned, crowded = self.scheduler.resume(room, settings.concurrency)
        for answer in condemned:
            error = RequestError(FAILED, status=500)
            self._in_loop(answer.request.inbox.put_nowait, error)
        for answer in crowded:
            error = RequestError("The ranks have no memory for this answer any more.", status=503)
            self._in_loop(answer.request.inbox.put_nowait, error)
        self._suspended_at = None
        return True

    def stop(self, drain: float) -> None:
        """Take no more requests, and end when those under way have, at most after `drain` s."""
        self.ending = True
        self._end_at = time.monotonic() + drain

    def close(self, why: str = UNAVAILABLE) -> None:
        """End the server; whoever still waits is told why. Returns when its port is free."""
        if self._thread.is_alive():
            self._in_loop(self._close, why)
            self._thread.join(timeout=5)

    def _close(self, why: str) -> None:
        self.ending = True
        waiting = {each.request.number: each.request for each in self.scheduler.answers.values()}
        for request in waiting.values():
            request.inbox.put_nowait(RequestError(why, status=503))
        self._closed.set()

    # -- for the handlers ----------------------------------------------------------------------

    async def begin(self, wanted: Wanted) -> Request:
        """Queue what a request asks for. Raises RequestError."""
        loaded = self._model()
        if wanted.model not in (None, "default", self.name, str(loaded.source)):
            raise RequestError(
                f"The model {wanted.model!r} does not exist here; this server has {self.name!r}.",
                status=404,
                param="model",
                code="model_not_found",
            )
        count = len(wanted.prompts) * wanted.n
        if count > WAITING:
            raise RequestError(f"{count} answers in one request: {WAITING} are the most.")
        self._check_tokens(map(int, wanted.penalties.get("logit_bias", ())), "logit_bias")
        prompts = await self._loop.run_in_executor(
            self._tokenizing,
            lambda: [self._tokens(loaded, wanted, each) for each in wanted.prompts],
        )
        works = self._works(wanted, prompts)
        if any(map(self.scheduler.is_condemned, works)):
            raise RequestError(FAILED, status=500)
        request = Request(
            next(self._requests), wanted.kind, sum(map(len, prompts)), asyncio.Queue()
        )
        request.answers = [Answer(work, request) for work in works]
        request.writers = [Writer(loaded.tokenizer, wanted.stop) for _ in works]
        request.counts = [0] * len(works)
        self._model()  # it may have begun to end meanwhile
        if not self.scheduler.submit(request.answers):
            raise RequestError(
                "Too many requests wait already; try again later.", status=429, code="queue_full"
            )
        with self._counting:
            self._counts["requests"] += 1
        return request

    def _model(self) -> LoadedModel:
        if self.ending or self.loaded is None:
            raise RequestError("The server is stopping.", status=503)
        return self.loaded

    def _works(self, wanted: Wanted, prompts: Sequence[list[int]]) -> list[Work]:
        sampling = {"temperature": 1.0, **self.defaults, **wanted.sampling}
        if sampling.get("top_k", 0) >= (self._vocabulary or 1 << 60):
            del sampling["top_k"]  # that is all of them, and mlx-lm refuses it
        seed = secrets.randbelow(SEEDS) if wanted.seed is None else wanted.seed
        return [
            Work(
                number=next(self._numbers),
                tokens=tokens,
                max_tokens=self._max_tokens(wanted, len(tokens)),
                seed=(seed + copy) % SEEDS,
                sampling=sampling,
                penalties=wanted.penalties,
                top=wanted.logprobs,
            )
            for tokens in prompts
            for copy in range(wanted.n)
        ]

    def _tokens(self, loaded: LoadedModel, wanted: Wanted, prompt: Any) -> list[int]:
        """A prompt as token ids. Raises RequestError."""
        param = "messages" if wanted.kind == "chat" else "prompt"
        tokenizer = loaded.tokenizer
        try:
            if wanted.kind == "chat" and wanted.template:
                _check_template(wanted.template)
                tokens = tokenizer.apply_chat_template(
                    prompt, add_generation_prompt=True, **wanted.template
                )
            elif isinstance(prompt, str):
                tokens = tokenizer.encode(prompt)  # a completion goes on with the text as it is
            else:
                tokens = prompt_tokens(loaded, prompt)
        except RequestError:
            raise
        except Exception as error:
            what = error.what if isinstance(error, ModelError) else f"{error}"
            raise RequestError(f"The prompt cannot be used: {what}", param=param) from error
        if not tokens:
            raise RequestError("The prompt is empty.", param=param)
        self._check_tokens(tokens, param)
        return list(tokens)

    @property
    def _vocabulary(self) -> int | None:
        size = self._model().text_config.get("vocab_size")
        return size if isinstance(size, int) else None

    def _check_tokens(self, tokens: Iterable[int], param: str) -> None:
        """Raise RequestError for tokens that the model does not have: MLX would not check them."""
        size = self._vocabulary
        if size is not None and any(token >= size for token in tokens):
            raise RequestError(f"{param} has a token that is not below {size}.", param=param)

    def _max_tokens(self, wanted: Wanted, prompt: int) -> int:
        """How many tokens an answer may have. Raises RequestError when there is no room for it."""
        limits = [
            (context_limit(self._model()), "the model's context has {} tokens"),
            (self.scheduler.room.most(), "the memory of the ranks holds {} tokens"),
        ]
        most = self.settings.max_tokens
        room, why = min(
            ((limit - prompt, text.format(limit)) for limit, text in limits if limit is not None),
            default=(most, ""),
        )
        asked = wanted.max_tokens or min(most, max(room, 1))
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
        self.scheduler.leave(request.answers)
        with self._counting:
            if finish in ("failed", "given_up"):
                self._counts[finish] += 1
            self._recent.append(
                {
                    "number": request.number,
                    "time": time.time(),
                    "kind": request.kind,
                    "prompt": request.prompt,
                    "reused": sum(answer.reused for answer in request.answers),
                    "tokens": sum(request.counts),
                    "first": request.first,
                    "seconds": time.monotonic() - request.began,
                    "finish": finish,
                }
            )

    # -- how it is -----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Figures: seconds, tokens, counts since the start; `speed` in tokens/s over 10 s."""
        now = time.monotonic()
        with self._counting:
            recent = [count for at, count in self._speed if at > now - SPEED]
            counts, requests = dict(self._counts), list(self._recent)
        return {
            "owner": self.settings.owner,
            "url": self.url,
            "model": self.name,
            "health": self.health,
            "age": now - self._round,
            "up": time.time() - self.began,
            "active": self.scheduler.active,
            "waiting": self.scheduler.waiting,
            "condemned": self.scheduler.condemned,
            "speed": sum(recent) / min(SPEED, max(time.time() - self.began, 1.0)),
            **counts,
            "recent": requests,
        }

    @property
    def health(self) -> str:
        """ "ok", "stopping", "recovering", or "stalled": no round for STALLED seconds."""
        if self.ending:
            return "stopping"
        if self._suspended_at is not None:
            return "recovering"
        return "stalled" if time.monotonic() - self._round > STALLED else "ok"


def _check_template(given: Mapping[str, Any]) -> None:
    """Raise RequestError for anything but variables of the template."""
    from transformers import PreTrainedTokenizerBase

    own = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
    wrong = [name for name in given if name in own or name == "messages"]
    if wrong:
        param = f"chat_template_kwargs.{wrong[0]}"
        raise RequestError(f"{param} is no variable of the template.", param=param)


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
