"""Where the time of a token goes: computing, waiting for other ranks, moving data."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import attrs

from ..hostfile import describe_ranks
from ..steps import steps
from ..tables import Table
from .agree import exchange
from .generate import decoding_stream
from .load import LoadedModel

if TYPE_CHECKING:
    import mlx.core as mx

WARM_UP = 3  # tokens that do not count: the first ones compile and allocate
STRAGGLES = 1.15  # a rank that computes so many times longer than the median is named
WIDTH = 100  # characters

# The parts of a token's time.
PARTS = ("compute", "wait", "wire")


@attrs.frozen
class RankTime:
    """One rank's seconds per token, for each of PARTS: (median, 90th percentile) over the tokens.

    `compute` is everything between two collectives, the work of Python included, `wait` what the
    other ranks took longer, and `wire` the collectives themselves, once all ranks were there. A
    rank of a pipeline cannot tell waiting for the one before it from receiving: that is `wait`.
    """

    rank: int
    compute: tuple[float, float]
    wait: tuple[float, float]
    wire: tuple[float, float]
    collectives: int
    bytes: int


@attrs.frozen(repr=False)
class TokenTime:
    """What `token_time` found. `plain` and `timed` are seconds per token, without and with it."""

    ranks: tuple[RankTime, ...]
    tokens: int
    plain: float
    timed: float
    title: str

    @property
    def straggler(self) -> int | None:
        """The rank that the others wait for, when there is one."""
        works = [each.compute[0] for each in self.ranks]
        slowest = max(self.ranks, key=lambda each: each.compute[0])
        if len(works) > 1 and slowest.compute[0] > STRAGGLES * statistics.median_low(works):
            return slowest.rank
        return None

    @property
    def verdict(self) -> str:
        """In words."""
        shares = {
            part: statistics.mean(getattr(each, part)[0] for each in self.ranks) for part in PARTS
        }
        total = sum(shares.values())
        words = ", ".join(f"{100 * value / total:.0f} % {part}" for part, value in shares.items())
        if self.straggler is None:
            return f"{words}; no rank is slower than the others"
        slow = self.ranks[self.straggler].compute[0]
        rest = [each.rank for each in self.ranks if each.rank != self.straggler]
        theirs = statistics.median(self.ranks[rank].compute[0] for rank in rest)
        waits, they = ("waits", "it") if len(rest) == 1 else ("wait", "they")
        return (
            f"{words}; {describe_ranks(rest)} {waits} for rank {self.straggler}, which computes "
            f"{1e3 * slow:.2f} ms of each token, and {they} {1e3 * theirs:.2f} ms"
        )

    @property
    def cost(self) -> str:
        """What a token takes, and what taking it apart costs, in words."""
        cost = 100 * (self.timed / self.plain - 1)
        return (
            f"{1e3 * self.plain:.2f} ms a token ({1 / self.plain:.1f} tokens/s); while it was "
            f"timed {1e3 * self.timed:.2f} ms ({cost:+.0f} %). Medians of {self.tokens} tokens, "
            "90th percentile in brackets."
        )

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON types: seconds and bytes. `read_time` reads it."""
        return attrs.asdict(self)

    def _table(self) -> Table:
        heading = ("rank", *(f"{part} (ms)" for part in PARTS), "collectives", "bytes")
        rows = [
            (
                str(each.rank),
                *(_milliseconds(getattr(each, part)) for part in PARTS),
                str(each.collectives),
                f"{each.bytes:,}",
            )
            for each in self.ranks
        ]
        return Table(heading, rows, right=(0, 1, 2, 3, 4, 5), title=self.title)

    def _ending(self) -> str:
        return f"{self.verdict}.\n{self.cost}"

    def __repr__(self) -> str:
        return f"{self._table().text(WIDTH)}\n\n{self._ending()}"

    def _repr_html_(self) -> str:
        return f"{self._table()._repr_html_()}<p>{self._ending()}</p>".replace("\n", "<br>")


def read_time(data: dict[str, Any]) -> TokenTime:
    """A TokenTime that came as JSON."""
    ranks = []
    for each in data["ranks"]:
        spreads: dict[str, Any] = {part: tuple(each[part]) for part in PARTS}
        ranks.append(RankTime(**{**each, **spreads}))
    return TokenTime(**{**data, "ranks": tuple(ranks)})


def _milliseconds(spread: tuple[float, float]) -> str:
    return f"{1e3 * spread[0]:.2f} ({1e3 * spread[1]:.2f})"


def token_time(loaded: LoadedModel, *, prompt: int = 64, tokens: int = 32) -> TokenTime:
    """Measure where the time of a token goes. Every rank must call it.

    Generates `tokens` tokens behind `prompt` random ones twice: plainly, and with every collective
    taken apart: what goes into it is computed first, then all ranks wait for each other, then it
    runs. Taken apart, nothing overlaps, so a token takes longer; by how much is said. When this is
    not running it costs nothing.

    Raises nothing of its own.
    """
    plain, _ = _generate(loaded, prompt, tokens, None)
    clock = _Clock()
    timed, per_token = _generate(loaded, prompt, tokens, clock)
    found = exchange(
        {
            "plain": statistics.median(plain),
            "timed": statistics.median(timed),
            "parts": [_spread([each[at] for each in per_token]) for at in range(len(PARTS))],
            "collectives": clock.calls // (tokens + WARM_UP),
            "bytes": clock.bytes // (tokens + WARM_UP),
        }
    )
    kind = loaded.config["model_type"]
    ranks = []
    for rank, each in enumerate(found):
        compute, wait, wire = ((median, high) for median, high in each["parts"])
        ranks.append(RankTime(rank, compute, wait, wire, each["collectives"], each["bytes"]))
    return TokenTime(
        ranks=tuple(ranks),
        tokens=tokens,
        plain=max(each["plain"] for each in found),
        timed=max(each["timed"] for each in found),
        title=f"{kind}, {loaded.strategy} over {loaded.size} ranks",
    )


@attrs.frozen
class Generated:
    """One timed generation on this rank: seconds to the first token, and of each token after it."""

    first: float
    token: float


def timed_generation(loaded: LoadedModel, prompt: int, tokens: int) -> Generated:
    """Generate `tokens` tokens behind `prompt` others, as `generate` does, and time it.

    Every rank must call it. Whatever the tokens are, they cost the same, and an end token does not
    end it. An interrupt stops all ranks after the same token.
    """
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    stream = decoding_stream()
    ones = mx.ones((prompt,), mx.int32)
    # Nobody starts before all are ready: waiting for a rank is no part of its first token.
    exchange(None)
    began = time.perf_counter()
    parts = generate_step(ones, loaded.model, stream, max_tokens=tokens)
    times = []
    try:
        for _ in steps(parts):
            times.append(time.perf_counter() - began)
    finally:
        parts.close()
        mx.synchronize(stream)
    return Generated(times[0], (times[-1] - times[0]) / (tokens - 1))


def _spread(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[int(0.9 * (len(ordered) - 1))]


class _Clock:
    """Adds up the parts of a token's time on this rank."""

    def __init__(self) -> None:
        self.parts = [0.0] * len(PARTS)
        self.calls = self.bytes = 0
        self._last = 0.0

    def begin(self) -> None:
        self.parts = [0.0] * len(PARTS)
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """What has passed since the last lap belongs to `part`."""
        now = time.perf_counter()
        self.parts[PARTS.index(part)] += now - self._last
        self._last = now


def _generate(
    loaded: LoadedModel, prompt: int, tokens: int, clock: _Clock | None
) -> tuple[list[float], list[list[float]]]:
    """Seconds of each token, and of its parts where there is a clock."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    model: Any = loaded.model
    cache = make_prompt_cache(model)
    # Whatever the tokens are, they cost the same.
    mx.eval(model(mx.ones((1, prompt), mx.int32), cache=cache))
    whole, parts = [], []
    apart = contextlib.nullcontext() if clock is None else _taken_apart(clock)
    last = mx.array([[1]])
    with apart:
        for number in range(WARM_UP + tokens):
            began = time.perf_counter()
            if clock is not None:
                clock.begin()
            last = model(last, cache=cache)[:, -1].argmax(axis=-1, keepdims=True)
            mx.eval(last)
            if clock is not None:
                clock.lap("compute")
            if number >= WARM_UP:
                whole.append(time.perf_counter() - began)
                parts.append(list(clock.parts) if clock is not None else [])
    return whole, parts


@contextlib.contextmanager
def _taken_apart(clock: _Clock) -> Iterator[None]:
    """Have every collective computed on the spot, and its parts timed."""
    import mlx.core as mx

    before = {
        name: getattr(mx.distributed, name)
        for name in ("all_sum", "all_max", "all_min", "all_gather", "send", "recv_like")
    }

    def together(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def call(value: Any, *args: Any, **options: Any) -> mx.array:
            array = value if isinstance(value, mx.array) else mx.array(value)
            mx.eval(array)
            clock.lap("compute")
            group = {key: each for key, each in options.items() if key == "group"}
            mx.eval(before["all_sum"](mx.array(1), **group))
            clock.lap("wait")
            result = function(array, *args, **options)
            mx.eval(result)
            clock.lap("wire")
            clock.calls += 1
            clock.bytes += array.nbytes
            return result

        return call

    def send(array: mx.array, *args: Any, **options: Any) -> mx.array:
        mx.eval(array)
        clock.lap("compute")
        result: mx.array = before["send"](array, *args, **options)
        mx.eval(result)
        clock.lap("wire")
        clock.calls += 1
        clock.bytes += array.nbytes
        return result

    def recv_like(*args: Any, **options: Any) -> mx.array:
        clock.lap("compute")
        result: mx.array = before["recv_like"](*args, **options)
        mx.eval(result)
        clock.lap("wait")
        return result

    stand_ins = {name: together(function) for name, function in before.items()}
    stand_ins |= {"send": send, "recv_like": recv_like}
    try:
        for name, stand_in in stand_ins.items():
            setattr(mx.distributed, name, stand_in)
        yield
    finally:
        for name, function in before.items():
            setattr(mx.distributed, name, function)
