"""The answers that are under way: what every rank computes, in step with the others."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from ..counters import counters
from ..models.agree import exchange
from ..models.load import LoadedModel, forgets
from .room import Prefixes, Room

# Odd, so that different seeds stay different modulo 2^64 (2^64 divided by the golden ratio).
SPREAD = 0x9E3779B97F4A7C15


@attrs.frozen
class Work:
    """One answer to be made, as all ranks are told of it: plain values only.

    `done` tokens at the end of `tokens` are of the answer itself, which was under way when a rank
    failed. `top` alternatives are wanted at each token, None without probabilities.
    """

    number: int
    tokens: Sequence[int]
    max_tokens: int
    seed: int
    sampling: Mapping[str, Any]
    penalties: Mapping[str, Any]
    done: int = 0
    top: int | None = None

    @property
    def length(self) -> int:
        """The most tokens that its cache will hold."""
        return len(self.tokens) + self.max_tokens


@attrs.frozen
class Token:
    """One token of an answer. `finish` is "stop", and then the token is not a part of it, "length",
    or None. `logprob` and `top`, pairs of token and logarithmic probability, where wanted."""

    number: int
    token: int
    finish: str | None
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class Batch:
    """Answers under way. All ranks add and remove the same ones before the same steps.

    To make one is a collective.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        room: Room,
        *,
        concurrency: int,
        kept: int,
        prefill_step_size: int,
        stream: Any,
    ) -> None:
        self.loaded = loaded
        self.room = room
        self.works: dict[int, Work] = {}
        self.reused: dict[int, int] = {}  # tokens of the prompt that were in a kept cache
        self.digest = 0  # of all tokens so far: the same on all ranks, or something is wrong
        # The ranks of a pipeline may have layers of different kinds, and must do the same.
        kinds = exchange([merges(loaded.model), forgets(loaded.model)])
        merge, forget = (all(each) for each in zip(*kinds, strict=True))
        self.prefixes = Prefixes(kept, forget)
        ends = sorted(loaded.tokenizer.eos_token_ids)
        make = _Many if merge else _OneByOne
        self._run = make(loaded.model, ends, concurrency, prefill_step_size, stream)

    def add(self, work: Work) -> None:
        """Begin an answer at the next step."""
        cache, reused = self.prefixes.take(work.tokens)
        self.works[work.number] = work
        self.reused[work.number] = reused
        lengths = [each.length for each in self.works.values()]
        while not self.room.fits(lengths, self.prefixes.lengths) and self.prefixes.drop():
            pass
        self._run.add(work, cache, reused, _sampler(work), _processors(work))

    def remove(self, number: int) -> None:
        """Give an answer up; what was computed of it is kept for a prompt that goes on from it."""
        if self.works.pop(number, None) is not None:
            self.reused.pop(number)
            self._keep(self._run.remove(number))

    def step(self, *, details: bool) -> list[Token]:
        """Compute one token of each answer that is far enough, or the next part of prompts.

        `details`: also the probabilities that were asked for, on the rank that sends them on.
        """
        tokens = []
        for number, token, finish, logprobs, ended in self._run.step():
            counters.tokens += 1
            work = self.works[number]
            logprob: float | None = None
            top: list[tuple[int, float]] = []
            if details and work.top is not None:
                logprob, top = _details(logprobs, token, work.top)
            tokens.append(Token(number, token, finish, logprob, top))
            self.digest = zlib.crc32(b"%d %d" % (number, token), self.digest)
            if finish is not None:
                del self.works[number]
                self.reused.pop(number)
                self._keep(ended)
        return tokens

    def _keep(self, ended: tuple[Sequence[int], list[Any]] | None) -> None:
        if ended is not None and len(ended[0]) and self.prefixes.most:
            self.prefixes.put(*ended)

    def close(self) -> None:
        """Give the memory back."""
        self._run.close()


# What a backend of `Batch` gives for each token: the work's number, the token, how it finished, the
# probabilities, and at the end the tokens of the cache with the cache itself.
Step = tuple[int, int, str | None, Any, tuple[Sequence[int], list[Any]] | None]


class _Many:
    """All answers at once, by mlx-lm's continuous batching."""

    def __init__(
        self, model: Any, ends: list[int], concurrency: int, prefill: int, stream: Any
    ) -> None:
        from mlx_lm.generate import BatchGenerator

        self._stream = stream
        self._generator = BatchGenerator(
            model,
            stop_tokens=[[token] for token in ends],
            completion_batch_size=concurrency,
            prefill_batch_size=min(8, concurrency),
            prefill_step_size=prefill,
            stream=stream,
        )
        self._numbers: dict[int, int] = {}  # of works, by mlx-lm's numbers
        self._begun: set[int] = set()

    def add(self, work: Work, cache: Any, reused: int, sampler: Any, processors: list[Any]) -> None:
        (uid,) = self._generator.insert(
            [list(work.tokens[reused:])],
            max_tokens=[work.max_tokens],
            caches=[cache],
            all_tokens=[list(work.tokens[:reused])],
            samplers=[sampler],
            logits_processors=[processors],
        )
        self._numbers[uid] = work.number

    def remove(self, number: int) -> tuple[Sequence[int], list[Any]] | None:
        uid = next(uid for uid, each in self._numbers.items() if each == number)
        del self._numbers[uid]
        # The cache of a prompt that is still being read is not whole.
        whole = uid in self._begun
        self._begun.discard(uid)
        caches = self._generator.remove([uid], return_prompt_caches=whole)
        if not whole:
            return None
        cache, tokens = caches[uid]
        return tokens or [], cache

    def step(self) -> Iterator[Step]:
        _, responses = self._generator.next()
        for each in responses:
            number = self._numbers[each.uid]
            ended = None
            self._begun.add(each.uid)
            if each.finish_reason is not None:
                del self._numbers[each.uid]
                self._begun.discard(each.uid)
                ended = (each.all_tokens or [], each.prompt_cache or [])
            yield number, each.token, each.finish_reason, each.logprobs, ended

    def close(self) -> None:
        import mlx.core as mx

        self._generator.close()
        mx.synchronize(self._stream)


class _OneByOne:
    """One answer after another, for a model whose caches cannot be put together."""

    def __init__(
        self, model: Any, ends: list[int], concurrency: int, prefill: int, stream: Any
    ) -> None:
        self._model, self._ends, self._prefill, self._stream = model, ends, prefill, stream
        self._waiting: deque[tuple[Work, Any, list[Any]]] = deque()
        self._now: tuple[Work, Iterator[Any]] | None = None
        self._made: list[int] = []

    def add(self, work: Work, cache: Any, reused: int, sampler: Any, processors: list[Any]) -> None:
        # There is no cache: none is ever kept, see `step`.
        self._waiting.append((work, sampler, processors))

    def remove(self, number: int) -> tuple[Sequence[int], list[Any]] | None:
        if self._now is not None and self._now[0].number == number:
            self._leave()
        self._waiting = deque(each for each in self._waiting if each[0].number != number)
        return None

    def step(self) -> Iterator[Step]:
        if self._now is None and self._waiting:
            self._now = self._begin(*self._waiting.popleft())
            self._made = []
        if self._now is None:
            return
        work, generation = self._now
        token, logprobs = next(generation)
        self._made.append(token)
        finish = "length" if len(self._made) >= work.max_tokens else None
        finish = "stop" if token in self._ends else finish
        if finish is not None:
            self._leave()
        # Its cache is one token ahead by now, and cannot always be cut.
        yield work.number, token, finish, logprobs, None

    def _begin(self, work: Work, sampler: Any, processors: list[Any]) -> tuple[Work, Iterator[Any]]:
        import mlx.core as mx
        from mlx_lm.generate import generate_step
        from mlx_lm.sample_utils import greedy_sampler

        with mx.stream(self._stream):
            generation = generate_step(
                mx.array(list(work.tokens)),
                self._model,
                max_tokens=work.max_tokens,
                sampler=sampler or greedy_sampler,
                logits_processors=processors,
                prefill_step_size=self._prefill,
                stream=self._stream,
            )
        return work, generation

    def _leave(self) -> None:
        import mlx.core as mx

        if self._now is not None:
            self._now[1].close()  # type: ignore[attr-defined]
            self._now = None
            # It computes one token ahead.
            mx.synchronize(self._stream)

    def close(self) -> None:
        self._leave()


def merges(model: Any) -> bool:
    """Whether mlx-lm can put caches of this model together with others of their kind."""
    from mlx_lm.models.cache import make_prompt_cache

    def all_merge(cache: Any) -> bool:
        if hasattr(cache, "caches"):
            return all(map(all_merge, cache.caches))
        return hasattr(cache, "merge")

    return all(map(all_merge, make_prompt_cache(model)))


def _sampler(work: Work) -> Any:
    """How its tokens are drawn; None for the likeliest, which a batch finds in one go.

    Each token has a seed of its own, so what is drawn does not depend on what else is under way.
    """
    import mlx.core as mx
    from mlx_lm.sample_utils import make_sampler

    options = dict(work.sampling)
    temperature = options.pop("temperature")
    if temperature == 0:
        return None
    draw = make_sampler(temp=temperature, **options)
    count = work.done

    def sampler(logprobs: mx.array) -> mx.array:
        nonlocal count
        mx.random.seed((work.seed * SPREAD + count) % 2**64)
        count += 1
        return draw(logprobs)

    return sampler


def _processors(work: Work) -> list[Any]:
    from mlx_lm.sample_utils import make_logits_processors

    options = dict(work.penalties)
    if bias := options.pop("logit_bias", None):
        options["logit_bias"] = {int(token): value for token, value in bias.items()}
    # OpenAI counts all that was said so far.
    for name in ("presence", "frequency"):
        if f"{name}_penalty" in options:
            options[f"{name}_context_size"] = 1 << 30
    return list(make_logits_processors(**options))


def _details(logprobs: Any, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """A token's logarithmic probability, and the `top` likeliest tokens with theirs."""
    import mlx.core as mx
    import numpy as np

    values = np.array(logprobs.astype(mx.float32))
    likeliest = np.argpartition(values, -top)[-top:] if top else np.array([], int)
    likeliest = likeliest[np.argsort(values[likeliest])[::-1]]
    return float(values[token]), [(int(each), float(values[each])) for each in likeliest]
