"""Before anybody loads anything: does a model fit on these Macs, and how fast will it be?"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import attrs

from ..errors import ModelError, UsageError
from ..hostfile import Hostfile, describe_ranks
from ..models.dry import DryRun
from ..models.splitting import Strategy
from ..models.trial import BLOCK
from ..tables import Table
from ..units import bytes_text
from . import speed
from .hosts import Hosts, PlannedHost, parse
from .measured import Measured
from .model import BITS, PlannedModel, find
from .speed import MEASURED_SPREAD, NOTHING, Calibration, Prediction, Terms, Work, digits

# macOS lets the GPU use about this part of the memory: recommendedMaxWorkingSetSize as in
# gpustack#1375; 0.67 on small Macs (exo#1672), 0.84 on 128 GB with macOS 26 (ds4#893).
GPU_SHARE = 0.75
# How far iogpu.wired_limit_mb can go: 58 of 64 GB in omlx#1533.
MOST_SHARE = 0.90
LEAST_CONTEXT = 1024  # tokens; a shorter one is no remedy
FEWEST_BITS = 4  # with fewer, the answers of most models suffer: no remedy
MORE_HOSTS = 4  # how many more to try
WIDTH = 100  # characters


@attrs.frozen
class RankNeed:
    """What one rank needs of its memory: bytes of weights and of the cache of the whole context.

    `limit` is what it may use, None when the host's memory is not known.
    """

    rank: int
    host: str
    weights: int
    cache: int
    limit: int | None

    @property
    def need(self) -> int:
        return self.weights + self.cache

    @property
    def headroom(self) -> int | None:
        return None if self.limit is None else self.limit - self.need


@attrs.frozen
class Change:
    """The cheapest single change after which a model fits: `plan(**arguments)` shows it."""

    kind: Literal["limit", "context", "bits", "hosts"]
    text: str
    arguments: dict[str, Any]


@attrs.frozen(eq=False)
class Option:
    """One way to divide the model.

    `fits` is None when the memory of a host is not known. `terms` are those of the expected time of
    a token, with half of the context in the cache; `tokens_per_second` and `first_token` (seconds)
    are predicted, and None where a host's speed is not known. `why_not` is set when mlx-lm cannot
    divide the model so, and then there is nothing else.
    """

    strategy: Strategy
    reason: str = ""
    ranks: tuple[RankNeed, ...] = ()
    fits: bool | None = None
    terms: Terms | None = None
    tokens_per_second: Prediction | None = None
    first_token: Prediction | None = None
    change: Change | None = None
    why_not: ModelError | None = None


@attrs.frozen(eq=False, repr=False)
class Plan:
    """The answer of `plan`. Prints as tables; `options` and `best` are for programs."""

    model: str
    model_bytes: int
    hosts: Hosts
    context: int
    prompt: int
    gpu_share: float
    options: tuple[Option, ...]
    calibrated: tuple[str, ...] = ()
    measured: Measured | None = None
    longest: int | None = None  # tokens of context that the model was made for, where it says
    planner: _Planner | None = None

    def at(self, context: int) -> Plan:
        """The same plan for another context, in tokens; a prompt that is longer is cut to it.

        The model is not divided again, so this takes a fraction of a second; where nothing fits,
        looking for the cheapest change may take longer the first time.

        Raises:
            UsageError: when the context is below 1.
        """
        if context < 1 or self.planner is None:
            raise UsageError(
                f"This plan cannot be made for a context of {context} tokens.",
                why="it is below 1" if context < 1 else "the plan was not made by plan()",
                do="give 1 token or more, or make a new plan",
            )
        again = attrs.evolve(self.planner, context=context)
        return again.plan(tuple(option.strategy for option in self.options))

    @property
    def best(self) -> Option:
        """The fastest option that fits; else the first that can be divided so."""
        able = [option for option in self.options if option.why_not is None]
        fitting = [option for option in able if option.fits is not False]

        def rate(option: Option) -> float:
            return option.tokens_per_second.value if option.tokens_per_second else 0.0

        # max takes the first of equals, and tensor comes first.
        return max(fitting, key=rate) if fitting else able[0]

    @property
    def fits(self) -> bool | None:
        return self.best.fits

    def compare(
        self,
        measured_tokens_per_second: float | None = None,
        *,
        measured_first_token: float | None = None,
        strategy: Strategy | None = None,
    ) -> Comparison:
        """Set what was predicted beside what was measured.

        Args:
            measured_tokens_per_second: of generating, without the prompt.
            measured_first_token: seconds from the request to the first token.
            strategy: how the model was divided; the best option by default.

        Raises:
            UsageError: when nothing was measured, or this was not predicted.
        """
        chosen = [each for each in self.options if strategy in (None, each.strategy)]
        option = self.best if strategy is None else chosen[0] if chosen else None
        if option is None or option.why_not is not None:
            raise UsageError(
                f"There is no plan for {strategy}.",
                why=f"{self.model} was planned for "
                + " and ".join(each.strategy for each in self.options if each.why_not is None),
                do="leave strategy out, or make a plan with it",
            )
        pairs = (
            ("tokens/s", option.tokens_per_second, measured_tokens_per_second),
            ("first token, s", option.first_token, measured_first_token),
        )
        rows = []
        for figure, predicted, measured in pairs:
            if measured is None:
                continue
            if predicted is None or not measured > 0:
                raise UsageError(
                    f"{figure} of {measured} cannot be compared.",
                    why="it is not above 0" if predicted else "the speed of a host is not known",
                    do="measure it again, or plan for Macs that are named, with a calibration",
                )
            rows.append(Compared(figure, predicted, measured))
        if not rows:
            raise UsageError(
                "Nothing was measured to compare with.",
                why="compare takes measured_tokens_per_second or measured_first_token",
                do="plan.compare(28.3)",
            )
        return Comparison(f"{self.model} on {self.hosts}, {option.strategy}", tuple(rows))

    def to_json(self) -> dict[str, Any]:
        """All that the tables show, and the ranges, as JSON types: bytes, seconds and tokens/s."""
        return {
            "model": self.model,
            "model_bytes": self.model_bytes,
            "hosts": str(self.hosts),
            "link": None if self.hosts.link is None else self.hosts.link.name,
            "context": self.context,
            "prompt": self.prompt,
            "gpu_share": self.gpu_share,
            "best": self.best.strategy,
            "fits": self.fits,
            "options": [_option_json(option) for option in self.options],
            "measured": None if self.measured is None else self.measured.to_json(),
            "notes": self._notes(),
        }

    # -- showing it --------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """The model, its bytes and the hosts."""
        return f"{self.model} ({bytes_text(self.model_bytes)}) on {self.hosts}"

    def _memory(self) -> Table:
        rows = []
        for option in self.options:
            alike: dict[tuple[str, int, int, int | None], list[int]] = {}
            for each in option.ranks:
                key = (each.host, each.weights, each.cache, each.limit)
                alike.setdefault(key, []).append(each.rank)
            for (host, weights, cache, limit), ranks in alike.items():
                left = None if limit is None else limit - weights - cache
                rows.append(
                    [
                        self._name(option),
                        f"{describe_ranks(ranks)}: {host}",
                        bytes_text(weights),
                        bytes_text(cache),
                        "unknown" if limit is None else bytes_text(limit),
                        "unknown" if left is None else _signed(left),
                        {True: "yes", False: "no", None: "unknown"}[_fits(left)],
                    ]
                )
        heading = ("strategy", "each of", "weights", "cache", "GPU may use", "left", "fits")
        return Table(heading, rows, right=range(2, 6), title=self.title, unbroken=(0, *range(2, 7)))

    def _speeds(self) -> Table:
        rows = []
        for option in self.options:
            if option.terms is None or option.tokens_per_second is None:
                continue
            first = option.first_token
            terms = option.terms
            rows.append(
                [
                    self._name(option),
                    option.tokens_per_second.text(),
                    "unknown" if first is None else first.text("s"),
                    *(
                        f"{1000 * each:.1f} ms"
                        for each in (terms.weights, terms.cache, terms.layers, terms.wire)
                    ),
                ]
            )
        heading = (
            "strategy", "predicted tokens/s", "predicted first token",
            "weights", "cache", "layers", "wire",
        )  # fmt: skip
        return Table(heading, rows, right=range(1, 7), unbroken=range(7))

    def _name(self, option: Option) -> str:
        return option.strategy if len(self.hosts) > 1 else "one rank"

    def _notes(self) -> list[str]:
        return [*self._verdicts(), *self.remarks]

    def _verdicts(self) -> list[str]:
        notes = []
        for option in self.options:
            if option.why_not is not None:
                notes.append(f"{option.strategy}: {option.why_not.what} {option.why_not.why}.")
            elif option.fits is False:
                notes.append(
                    f"{self._name(option)} does not fit. "
                    + (
                        f"The cheapest change: {option.change.text}."
                        if option.change
                        else "No single change is enough: take fewer bits and more hosts."
                    )
                )
        fitting = [option for option in self.options if option.fits]
        if len(fitting) > 1 and self.best.tokens_per_second:
            notes.append(f"Best: {self.best.strategy}.")
        return notes

    @property
    def remarks(self) -> list[str]:
        """What the figures rest on, in sentences."""
        notes = []
        if any(option.tokens_per_second for option in self.options):
            measured = f", with measured {' and '.join(self.calibrated)}" if self.calibrated else ""
            notes.append(
                "Predicted, not measured (lowest-highest in brackets)" + measured + ": "
                f"cache of {self.context} tokens, half of it filled, prompt of {self.prompt}."
            )
            if self.measured is not None:
                notes += self.measured.said(len(self.hosts))
            elif len(self.hosts) > 1 and self.hosts.fast_synch:
                notes.append(
                    "With MLX_METAL_FAST_SYNCH=1; without it each collective takes "
                    f"{speed.SLOW_FENCE * 1e6:.0f} us more."
                )
        elif any(option.ranks for option in self.options):
            notes.append("Speed: unknown, because the memory bandwidth of a host is not known.")
        if self.hosts.link is not None and self.hosts.reason:
            notes.append(f"Link: {self.hosts.link.name}, {self.hosts.reason}.")
        return notes

    def __repr__(self) -> str:
        tables = [self._memory(), self._speeds()]
        texts = [table.text(WIDTH) for table in tables if table.rows]
        notes = "\n".join(textwrap.fill(note, WIDTH) for note in self._notes())
        return "\n\n".join([*texts, notes])

    def _repr_html_(self) -> str:
        tables = "".join(t._repr_html_() for t in (self._memory(), self._speeds()) if t.rows)
        return tables + "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())


def _option_json(option: Option) -> dict[str, Any]:
    ranks = [{**attrs.asdict(rank), "headroom": rank.headroom} for rank in option.ranks]
    records = {
        name: None if value is None else attrs.asdict(value)
        for name, value in (
            ("terms", option.terms),
            ("tokens_per_second", option.tokens_per_second),
            ("first_token", option.first_token),
        )
    }
    change, error = option.change, option.why_not
    return {
        "strategy": option.strategy,
        "reason": option.reason,
        "ranks": ranks,
        "fits": option.fits,
        **records,
        "change": None if change is None else {"kind": change.kind, "text": change.text},
        "why_not": None if error is None else {"what": error.what, "why": error.why},
    }


@attrs.frozen
class Compared:
    """One figure, predicted and measured."""

    figure: str
    predicted: Prediction
    measured: float
    unit: Literal["", "bytes"] = ""

    @property
    def error(self) -> float:
        """Percent of the measured figure: positive when too much was predicted."""
        return 100 * (self.predicted.value - self.measured) / self.measured

    @property
    def ratio(self) -> float:
        """What was predicted, divided by what was measured."""
        return self.predicted.value / self.measured

    @property
    def inside(self) -> bool:
        """Whether the measured figure lies in the predicted range."""
        return self.predicted.low <= self.measured <= self.predicted.high


@attrs.frozen(repr=False)
class Comparison:
    """What was predicted beside what was measured. Prints as a table, with `notes` below."""

    title: str
    rows: tuple[Compared, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        rows = [
            {**attrs.asdict(row), "ratio": row.ratio, "error": row.error, "inside": row.inside}
            for row in self.rows
        ]
        return {"title": self.title, "rows": rows, "notes": list(self.notes)}

    def _table(self) -> Table:
        rows = [
            [
                row.figure,
                bytes_text(row.predicted.value) if row.unit else row.predicted.text(),
                bytes_text(row.measured)
                if row.unit
                else f"{row.measured:.{digits(row.measured)}f}",
                f"{row.ratio:.2f}",
                f"{row.error:+.0f} %",
                "yes" if row.inside else "no",
            ]
            for row in self.rows
        ]
        heading = ("figure", "predicted", "measured", "ratio", "error", "in the range")
        return Table(heading, rows, right=(1, 2, 3, 4), title=self.title)

    def __repr__(self) -> str:
        notes = [textwrap.fill(note, WIDTH) for note in self.notes]
        return "\n".join([self._table().text(WIDTH), *([""] if notes else []), *notes])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return self._table()._repr_html_() + notes


# -- making it -------------------------------------------------------------------------------------


def plan(
    model: str | Path | dict[str, Any],
    hosts: str | int | Hostfile | Hosts | None = None,
    *,
    strategy: Strategy | Literal["auto"] = "auto",
    context: int = 8192,
    prompt: int = 512,
    calibration: Calibration | None = None,
    measured: Measured | str | Path | None = None,
    gpu_share: float = GPU_SHARE,
    macs_are: str | None = None,
) -> Plan:
    """Say whether a model fits on some Macs, and how fast it will be. Nothing is loaded.

    Bytes are exact, from a dry run of the model; speeds are predicted (`engine/plan/speed.py`).

    Args:
        model: a folder with config.json, such a file, a configuration as a dict, or a name like
            "DeepSeek-V3.1 4-bit" (`model.catalogue()` lists them).
        hosts: "4 x M3 Ultra 512GB, mesh", a number of ranks on this machine, or a Hostfile; see
            `hosts.parse`. Without them, the ranks that `measured` is of.
        strategy: "tensor", "pipeline", or both.
        context: tokens of prompt and answer that there must be memory for. Half of them are taken
            to be in the cache while a token is generated.
        prompt: tokens of the prompt, for the time to the first token.
        calibration: figures that you measured, in place of constants.
        measured: what `calibrate` found on running ranks, or the file that it was saved in. It
            takes the place of bandwidth, time of a layer and speed of a prompt, and of the link
            where it is of as many ranks.
        gpu_share: the part of a Mac's memory that the GPU may use. It is raised with
            `sudo sysctl iogpu.wired_limit_mb=N`.
        macs_are: for a Hostfile, what its hosts are: "4 x M3 Ultra 512GB".

    Raises:
        UsageError: for hosts or numbers that make no sense.
        ModelError: when there is no such model, or mlx-lm can divide it in none of these ways.
    """
    if strategy not in ("auto", "tensor", "pipeline"):
        raise UsageError(
            f"There is no strategy {strategy!r}.",
            why="it is misspelt, or meant for another library",
            do='use strategy="tensor" (split by width), "pipeline" (by depth) or "auto"',
        )
    if context < 1 or not 1 <= prompt <= context or not 0 < gpu_share <= 1:
        raise UsageError(
            f"context={context}, prompt={prompt}, gpu_share={gpu_share} cannot be planned for.",
            why="the prompt is a part of the context, and the GPU's share a part of the memory",
            do="give 1 <= prompt <= context, and 0 < gpu_share <= 1",
        )
    if isinstance(measured, str | Path):
        measured = Measured.load(measured)
    if measured is not None and calibration is not None:
        raise UsageError(
            "A plan takes measured or calibration, not both.",
            why="both take the place of the same constants",
            do="leave one of them out",
        )
    if hosts is None:
        if measured is None:
            raise UsageError(
                "A plan needs hosts.",
                why="only with measured are they known: the ranks that it was measured on",
                do='for example: plan(model, "4 x M3 Ultra 512GB, mesh")',
            )
        hosts = measured.hosts()
    found, on = find(model), parse(hosts, macs_are=macs_are)
    if measured is not None and len(on) > 1 and on.link is None and len(on) != measured.size:
        raise UsageError(
            f"A calibration of {describe_ranks(range(measured.size))} is none of {len(on)} ranks.",
            why="sums of another number of ranks take another time, and these have no known link",
            do=f"calibrate on %cluster start {len(on)}, or name Macs with a link",
        )
    made = _Planner(found, on, context, prompt, calibration or NOTHING, gpu_share, measured)
    ways: tuple[Strategy, ...] = ("tensor", "pipeline") if strategy == "auto" else (strategy,)
    if len(on) == 1:
        # One rank holds the whole model, whatever it is called.
        ways = ways[:1]
    return made.plan(ways)


@attrs.frozen
class _Planner:
    model: PlannedModel
    hosts: Hosts
    context: int
    prompt: int
    calibration: Calibration
    share: float
    measured: Measured | None = None
    # What was divided before, by bits, ranks, strategy and memory. None of it knows the context.
    tried: dict[Any, DryRun | ModelError] = attrs.field(factory=dict, repr=False)

    def plan(self, ways: tuple[Strategy, ...]) -> Plan:
        knows_speed = any(host.bandwidth is not None for host in self.hosts.hosts)
        knows_speed |= self.calibration.effective_bandwidth is not None
        knows_speed |= self.measured is not None
        # Each dry run is a process of its own, so they can run at the same time.
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(self._try, way) for way in ways]
            counting = pool.submit(self.model.active_parameters) if knows_speed else None
            results = [each.result() for each in runs]
            parameters = None if counting is None else _or_none(counting.result)
        made = [result for result in results if isinstance(result, DryRun)]
        if not made:
            error = results[0]
            assert isinstance(error, ModelError)
            raise error
        options = [
            self._option(result, parameters)
            if isinstance(result, DryRun)
            else Option(way, why_not=result)
            for way, result in zip(ways, results, strict=True)
        ]
        if not any(option.fits in (True, None) and option.ranks for option in options):
            options = [
                attrs.evolve(option, change=next(self._changes(option, result), None))
                if isinstance(result, DryRun)
                else option
                for option, result in zip(options, results, strict=True)
            ]
        given = attrs.asdict(self.calibration)
        return Plan(
            model=self.model.name,
            model_bytes=made[0].shards.whole_bytes,
            hosts=self.hosts,
            context=self.context,
            prompt=self._prompt,
            gpu_share=self.share,
            options=tuple(options),
            calibrated=tuple(name.replace("_", " ") for name, value in given.items() if value),
            measured=self.measured,
            longest=self._longest(),
            planner=self,
        )

    @property
    def _prompt(self) -> int:
        return min(self.prompt, self.context)

    def _longest(self) -> int | None:
        config = self.model.config
        most = {**config, **config.get("text_config", {})}.get("max_position_embeddings")
        return int(most) if most else None

    def _try(self, way: Strategy, hosts: Hosts | None = None) -> DryRun | ModelError:
        hosts = hosts or self.hosts
        memory = tuple(host.memory for host in hosts.hosts)
        key = (self.model.bits, way, memory)
        if key not in self.tried:
            try:
                self.tried[key] = self.model.run(len(hosts), way, memory)
            except ModelError as error:
                self.tried[key] = error
        return self.tried[key]

    def _option(self, run: DryRun, parameters: int | None) -> Option:
        needs = _needs(run, self.hosts, self.context, self.share)
        fits: bool | None = None
        if all(need.limit is not None for need in needs):
            fits = all((need.headroom or 0) >= 0 for need in needs)
        work = Work(run, self.hosts, self.calibration, measured=self.measured)
        if self.calibration.tokens_per_second:
            work = self._calibrated(work, self.calibration.tokens_per_second)
        terms, rate, first = predict(work, max(self.context // 2, 1), self._prompt, parameters)
        return Option(run.split.strategy, run.split.reason, needs, fits, terms, rate, first)

    def _calibrated(self, work: Work, measured: float) -> Work:
        """Scale weights, cache and layers so that one rank alone would be as fast as measured."""
        alone = self.model.run(1, "tensor")
        slowest = min(self.hosts.hosts, key=lambda host: host.bandwidth or math.inf)
        if slowest.bandwidth is None:
            # Without a bandwidth there is nothing to scale: all of the time goes to the weights.
            read = alone.ranks[0].active + alone.ranks[0].cache.bytes(1)
            bandwidth = read * measured
            calibration = attrs.evolve(work.calibration, effective_bandwidth=bandwidth)
            return attrs.evolve(work, calibration=calibration)
        single = Work(alone, Hosts((slowest,)))
        expected = speed.token(single, 1, speed.EXPECTED)
        assert expected is not None
        return attrs.evolve(work, scale=1 / measured / expected.total)

    # -- what would make it fit ------------------------------------------------------------------

    def _changes(self, option: Option, run: DryRun) -> Iterator[Change]:
        """The single changes after which this option fits, cheapest first. Each was tried."""
        yield from self._raised_limit(option)
        yield from self._shorter_context(run)
        yield from self._fewer_bits(option)
        yield from self._more_hosts(option)

    def _fit(self, run: DryRun | ModelError, hosts: Hosts, context: int, share: float) -> bool:
        if isinstance(run, ModelError):
            return False
        return all((need.headroom or 0) >= 0 for need in _needs(run, hosts, context, share))

    def _raised_limit(self, option: Option) -> Iterator[Change]:
        pairs = list(zip(option.ranks, self.hosts.hosts, strict=True))
        if any(host.share is not None or not host.memory for _, host in pairs):
            return
        share = max(need.need / (host.memory or 1) for need, host in pairs)
        share = math.ceil(100 * share) / 100
        if not self.share < share <= MOST_SHARE:
            return
        least = {host.name: math.ceil(share * (host.memory or 0) / 2**20) for _, host in pairs}
        commands = " and ".join(
            f"sudo sysctl iogpu.wired_limit_mb={limit}" + (f" on {name}" if len(least) > 1 else "")
            for name, limit in least.items()
        )
        text = f"let the GPU use {share:.0%} of the memory, not {self.share:.0%}: {commands}"
        yield Change("limit", text, self._arguments(gpu_share=share))

    def _shorter_context(self, run: DryRun) -> Iterator[Change]:
        # The longest in whole blocks that fits, by bisection: the need grows with the context.
        low, high = LEAST_CONTEXT // BLOCK, (self.context - 1) // BLOCK
        if low > high or not self._fit(run, self.hosts, low * BLOCK, self.share):
            return
        while low < high:
            middle = (low + high + 1) // 2
            if self._fit(run, self.hosts, middle * BLOCK, self.share):
                low = middle
            else:
                high = middle - 1
        context = low * BLOCK
        text = f"a context of {context} tokens, not {self.context}"
        yield Change(
            "context", text, self._arguments(context=context, prompt=min(self.prompt, context))
        )

    def _fewer_bits(self, option: Option) -> Iterator[Change]:
        for bits in BITS:
            # A try takes seconds; where even the bits alone are too many, it is not worth one.
            hopeless = any(
                need.limit is not None and need.weights * bits / (self.model.bits + 1) > need.limit
                for need in option.ranks
            )
            if not FEWEST_BITS <= bits < self.model.bits or hopeless:
                continue
            smaller = self.model.with_bits(bits)
            tried = attrs.evolve(self, model=smaller)._try(option.strategy)
            if self._fit(tried, self.hosts, self.context, self.share):
                yield Change("bits", f"{bits} bits a weight", self._arguments(model=smaller.config))

    def _more_hosts(self, option: Option) -> Iterator[Change]:
        more = self.hosts
        total = sum(need.weights for need in option.ranks)
        for count in range(1, MORE_HOSTS + 1):
            try:
                more = more.with_one_more()
            except UsageError:
                return
            room = sum(_limit(host, self.share) or 0 for host in more.hosts)
            if total > room * 1.2:
                continue
            tried = self._try(option.strategy, more)
            if self._fit(tried, more, self.context, self.share):
                plural = "s" if count > 1 else ""
                text = f"{count} more host{plural}: {more}"
                yield Change("hosts", text, self._arguments(hosts=more, measured=None))

    def _arguments(self, **changed: Any) -> dict[str, Any]:
        same = {
            "model": self.model.source,
            "hosts": self.hosts,
            "context": self.context,
            "prompt": self._prompt,
            "gpu_share": self.share,
            "measured": self.measured,
        }
        return {**same, **changed}


def predict(
    work: Work, cached: int, prompt: int, parameters: int | None
) -> tuple[Terms | None, Prediction | None, Prediction | None]:
    """The time of a token behind `cached` others, tokens/s, and seconds to the first token.

    `parameters` are those that a token visits. None where nobody knows.
    """
    terms = speed.token(work, cached, speed.EXPECTED)
    rate = first = None
    if terms is not None:
        times = [speed.token(work, cached, each) for each in (speed.WORST, speed.BEST)]
        rate = _range(1 / terms.total, [1 / each.total for each in times if each])
    if parameters is not None:
        expected, *rest = (
            speed.first_token(work, prompt, parameters, each)
            for each in (speed.EXPECTED, speed.WORST, speed.BEST)
        )
        if expected is not None:
            first = _range(expected, [each for each in rest if each is not None])
    return terms, rate, first


def _needs(run: DryRun, hosts: Hosts, context: int, share: float) -> tuple[RankNeed, ...]:
    return tuple(
        RankNeed(
            rank,
            host.name,
            part.weights,
            part.cache.bytes(context),
            _limit(host, share),
        )
        for rank, (part, host) in enumerate(zip(run.ranks, hosts.hosts, strict=True))
    )


def _limit(host: PlannedHost, share: float) -> int | None:
    if host.memory is None:
        return None
    return int(host.memory * (share if host.share is None else host.share))


def _fits(left: int | None) -> bool | None:
    return None if left is None else left >= 0


def _signed(count: int) -> str:
    return f"-{bytes_text(-count)}" if count < 0 else bytes_text(count)


def _range(value: float, others: list[float]) -> Prediction:
    """A prediction whose range reaches to the others, and at least a little to both sides."""
    low = min([*others, value * (1 - MEASURED_SPREAD)])
    high = max([*others, value * (1 + MEASURED_SPREAD)])
    return Prediction(value, low, high)


def _or_none(call: Callable[[], int]) -> int | None:
    """A result, or None where mlx-lm cannot make the model in bfloat16: some formats are packed."""
    try:
        return call()
    except ModelError:
        return None
