"""A plan as a picture: does a model fit, how fast would it be, and what would make it fit.

The context can be chosen on the page. The kernel then plans again, in a thread, and the newest
choice counts.
"""

from __future__ import annotations

import html
import textwrap
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import anywidget
import attrs
import traitlets

from ..engine.errors import MaclusterError
from ..engine.hostfile import describe_ranks
from ..engine.plan.planner import Option, Plan, RankNeed
from ..engine.plan.speed import Prediction
from ..engine.units import bytes_text
from .picture import SMALL_LETTER, Picture, legend, saved, script

# All lengths in pixels.
LEFT = 70  # for the names of the ranks
TOP = 24
BAR, BAR_HEIGHT = 290, 12
ROW = 20
RIGHT = 710  # where the predictions begin
RANGE, RANGE_HEIGHT = 220, 8
FIGURE = 34  # one prediction: its words and its range
WIDTH = RIGHT + RANGE + 10
HEADING = 20
LINE = 15
LETTER = 7.2  # about the width of a letter in strong texts
GAP = 14  # between two strategies

ONE_EACH = 8  # ranks; of more, those that need the same share a bar
SHORTEST, LONGEST = 1024, 131_072  # tokens; the longest of a model that does not say its own

FORMULA = {
    "tensor": (
        "A token over tensor: the slowest rank reads its weights and its cache (bytes / reached "
        "memory bandwidth), each layer takes a little beyond that, and each collective its latency "
        "and bytes / bandwidth of the link."
    ),
    "pipeline": (
        "A token over pipeline: weights, cache, layers and collectives of all ranks are added up, "
        "because it passes one after the other."
    ),
    "one rank": (
        "A token: the weights and the cache are read (bytes / reached memory bandwidth), and each "
        "layer takes a little beyond that."
    ),
    "prompt": (
        "The first token: 2 x active parameters x tokens of the prompt / FLOP/s, shared by the "
        "ranks of tensor, added up over those of pipeline, and the collectives."
    ),
}


@attrs.frozen
class Scale:
    """What whole bars stand for: bytes, tokens/s, and seconds to the first token."""

    memory: float = 0.0
    rate: float = 0.0
    first: float = 0.0

    def around(self, plan: Plan) -> Scale:
        """Large enough for this plan, too."""
        needs = [rank for option in plan.options for rank in option.ranks]
        rates = [each.tokens_per_second for each in plan.options if each.tokens_per_second]
        firsts = [each.first_token for each in plan.options if each.first_token]
        return Scale(
            max([self.memory, *(max(each.need, each.limit or 0) for each in needs)]),
            max([self.rate, *(each.high for each in rates)]),
            max([self.first, *(each.high for each in firsts)]),
        )


# -- the picture -----------------------------------------------------------------------------------


def scene(plan: Plan, scale: Scale | None = None) -> Picture:
    """Lay out the picture of a plan."""
    scale = (scale or Scale()).around(plan)
    drawn = Picture(WIDTH, 0, _label(plan), [], [])
    known = any(rank.limit is not None for option in plan.options for rank in option.ranks)
    of = ", of what the GPU may use" if known else ""
    drawn.texts.append(("small", LEFT, 10, "start", f"memory: weights + cache{of}"))
    if any(option.tokens_per_second for option in plan.options):
        drawn.texts.append(("small", RIGHT, 10, "start", "predicted; the bars begin at 0"))
    y = float(TOP)
    for option in plan.options:
        y = _option(plan, option, scale, y, drawn) + GAP
    entries = [("weights", "weights"), ("cache", f"cache of {plan.context:,} tokens")]
    used = {shape[0] for shape in drawn.shapes}
    entries += [("room", "headroom")] if known else []
    entries += [("over", "more than there is")] if "over" in used else []
    entries += [("range", "from lowest to highest")] if "range" in used else []
    legend(entries, LEFT, y, drawn)
    drawn.height = y + 18
    return drawn


def _option(plan: Plan, option: Option, scale: Scale, top: float, drawn: Picture) -> float:
    """One strategy. Returns where it ends."""
    kind = "alarm" if option.fits is False else "small"
    name, verdict = _name(plan, option), _verdict(plan, option)
    drawn.texts.append(("strong", 8, top + 11, "start", name))
    drawn.texts.append((kind, 8 + 7 * len(name) + 10, top + 11, "start", verdict))
    at = top + HEADING
    for ranks, need in _alike(option.ranks):
        label = f"rank {ranks[0]}" if len(ranks) == 1 else describe_ranks(ranks)
        drawn.texts.append(("text", LEFT - 8, at + 10, "end", label))
        _memory(need, scale.memory, at, drawn)
        at += ROW
    side = top + HEADING
    if option.fits is False and option.tokens_per_second is not None:
        drawn.texts.append(("small", RIGHT, top + 11, "start", "if it fitted:"))
    if option.tokens_per_second is not None:
        _range(option.tokens_per_second, "tokens/s", scale.rate, side, drawn)
        side += FIGURE
    if option.first_token is not None:
        _range(option.first_token, "s to the first token", scale.first, side, drawn)
        side += FIGURE
    for kind, words in _said(plan, option):
        letter = SMALL_LETTER if kind == "small" else LETTER
        for line in textwrap.wrap(words, int((RIGHT - LEFT) / letter)):
            drawn.texts.append((kind, LEFT, at + 9, "start", line))
            at += LINE
    return max(at, side)


def _memory(need: RankNeed, full: float, top: float, drawn: Picture) -> None:
    scale = BAR / max(full, 1)
    limit = need.limit
    ends = need.need if limit is None else min(need.need, limit)
    weights = min(need.weights, ends)
    if limit is not None:
        drawn.shapes.append(("room", LEFT, top, round(limit * scale, 2), BAR_HEIGHT))
    drawn.shapes.append(("weights", LEFT, top, round(weights * scale, 2), BAR_HEIGHT))
    x = LEFT + weights * scale
    drawn.shapes.append(("cache", round(x, 2), top, round((ends - weights) * scale, 2), BAR_HEIGHT))
    words = f"{bytes_text(need.weights)} + {bytes_text(need.cache)}"
    kind = "small"
    if limit is None:
        words += ", of unknown"
    elif need.need > limit:
        x = LEFT + limit * scale
        width = max(round((need.need - limit) * scale, 2), 3.0)
        drawn.shapes.append(("over", round(x, 2), top, width, BAR_HEIGHT))
        drawn.shapes.append(("limit", round(x - 1, 2), top - 2, 2, BAR_HEIGHT + 4))
        words += f" of {bytes_text(limit)}: {bytes_text(need.need - limit)} too much"
        kind = "alarm"
    else:
        words += f" of {bytes_text(limit)}: {bytes_text(limit - need.need)} left"
    drawn.texts.append((kind, LEFT + BAR + 12, top + 10, "start", words))


def _range(found: Prediction, unit: str, full: float, top: float, drawn: Picture) -> None:
    scale = RANGE / max(full, 1e-12)
    drawn.texts.append(("small", RIGHT, top + 9, "start", _figure(found, unit)))
    y = top + 14
    drawn.shapes.append(("room", RIGHT, y, RANGE, RANGE_HEIGHT))
    low, high = RIGHT + found.low * scale, RIGHT + found.high * scale
    drawn.shapes.append(("range", round(low, 2), y, round(high - low, 2), RANGE_HEIGHT))
    value = RIGHT + found.value * scale
    drawn.shapes.append(("value", round(value - 1.5, 2), y - 2, 3, RANGE_HEIGHT + 4))


# -- in words --------------------------------------------------------------------------------------


def _name(plan: Plan, option: Option) -> str:
    return option.strategy if len(plan.hosts) > 1 else "one rank"


def _alike(needs: Sequence[RankNeed]) -> list[tuple[list[int], RankNeed]]:
    """The ranks that share a bar, and what each of them needs."""
    if len(needs) <= ONE_EACH:
        return [([need.rank], need) for need in needs]
    found: dict[RankNeed, list[int]] = {}
    for need in needs:
        found.setdefault(attrs.evolve(need, rank=0), []).append(need.rank)
    return [(ranks, need) for need, ranks in found.items()]


def _verdict(plan: Plan, option: Option) -> str:
    """Whether it fits."""
    if option.why_not is not None:
        return "cannot be divided so"
    if option.fits is None:
        return "fits or not: unknown, because the memory of a host is not known"
    if option.fits:
        fitting = [each for each in plan.options if each.fits]
        return "fits, and is the fastest" if len(fitting) > 1 and option is plan.best else "fits"
    left = {need.rank: need.headroom or 0 for need in option.ranks}
    over = {rank: -headroom for rank, headroom in left.items() if headroom < 0}
    needs = "need" if len(over) > 1 else "needs"
    up = "up to " if len(set(over.values())) > 1 else ""
    most = bytes_text(max(over.values()))
    return f"does not fit: {describe_ranks(list(over))} {needs} {up}{most} more"


def _said(plan: Plan, option: Option) -> list[tuple[str, str]]:
    """What is said below a strategy, and in which letters."""
    if option.why_not is not None:
        return [("small", f"{option.why_not.what} {option.why_not.why}.")]
    lines = []
    if option.fits is False and option.change is not None:
        lines.append(("strong", f"The cheapest change: {option.change.text}"))
    elif option.fits is False and any(each.fits for each in plan.options):
        lines.append(("small", f"Use {plan.best.strategy}, which fits."))
    elif option.fits is False:
        lines.append(("strong", "No single change is enough: take fewer bits and more hosts."))
    if option.terms is not None:
        parts = {
            name: value for name, value in attrs.asdict(option.terms).items() if name != "wire"
        }
        if len(plan.hosts) > 1:
            parts["wire"] = option.terms.wire
        added = " + ".join(f"{name} {1e3 * value:.1f}" for name, value in parts.items())
        lines.append(("small", f"A token: {added} = {1e3 * option.terms.total:.1f} ms"))
    # A plan asks for every strategy, so that is no reason.
    reason = option.reason.removeprefix(f"{option.strategy}, as asked for").lstrip("; ")
    if reason and len(plan.hosts) > 1:
        lines.append(("small", f"{reason[:1].upper()}{reason[1:]}."))
    return lines


def _figure(found: Prediction, unit: str) -> str:
    """ "29.4 tokens/s (18.1-35.5)"."""
    value, _, spread = found.text().partition(" ")
    return f"{value} {unit} {spread}"


def _label(plan: Plan) -> str:
    """The picture in words."""
    parts = [f"Plan for {plan.title}, with a context of {plan.context:,} tokens."]
    for option in plan.options:
        figures = [f"{_name(plan, option)}: {_verdict(plan, option)}"]
        if option.tokens_per_second is not None:
            figures.append(f"predicted {_figure(option.tokens_per_second, 'tokens/s')}")
        if option.first_token is not None:
            figures.append(_figure(option.first_token, "s to the first token"))
        if option.change is not None:
            figures.append(f"the cheapest change: {option.change.text}")
        parts.append(", ".join(figures) + ".")
    return " ".join(parts)


def formula(plan: Plan) -> list[str]:
    """How the figures of a plan were found, in sentences."""
    timed = [option for option in plan.options if option.terms is not None]
    names = list(dict.fromkeys(_name(plan, option) for option in timed))
    names += ["prompt"] if any(option.first_token for option in timed) else []
    return [FORMULA[name] for name in names]


def contexts(plan: Plan) -> list[int]:
    """The contexts to choose from: powers of two from 1,024, the model's own limit, the plan's."""
    longest = plan.longest or max(LONGEST, plan.context)
    powers = {SHORTEST << n for n in range(20) if SHORTEST << n <= longest}
    return sorted(powers | {longest, plan.context})


# -- the widget ------------------------------------------------------------------------------------


class PlanView(anywidget.AnyWidget):
    """A plan in a notebook, whose context can be chosen. `plan` is the plan that is shown."""

    _esm = script("dom.js", "picture.js", "plan.js")
    title = traitlets.Unicode().tag(sync=True)
    contexts: Any = traitlets.List().tag(sync=True)  # tokens
    answer: Any = traitlets.Dict().tag(sync=True)  # {"context", "scene", "summary", "notes"}
    status = traitlets.Unicode().tag(sync=True)

    def __init__(self, plan: Plan) -> None:
        self.plan = self._first = plan
        self._scale = Scale().around(plan)
        self._lock = threading.Lock()
        self._wanted: int | None = None
        self._worker: threading.Thread | None = None
        super().__init__(title=plan.title, contexts=contexts(plan), answer=self._drawn())
        self.on_msg(self._on_page)

    def __repr__(self) -> str:
        return repr(self.plan)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        found = super()._repr_mimebundle_(**kwargs)
        if found is None:
            return None
        # What is left when the kernel is gone: a picture, and the tables.
        words = "".join(f"<p>{html.escape(each)}</p>" for each in formula(self.plan))
        found[0]["text/plain"] = repr(self.plan)
        found[0]["text/html"] = (
            saved(scene(self.plan, self._scale), self.title) + self.plan._repr_html_() + words
        )
        return found

    def _drawn(self) -> dict[str, Any]:
        plan = self.plan
        verdicts = [f"{_name(plan, option)} {_verdict(plan, option)}" for option in plan.options]
        return {
            "context": plan.context,
            "scene": attrs.asdict(scene(plan, self._scale)),
            "summary": f"{plan.context:,} tokens: {'; '.join(verdicts)}.",
            "notes": [*plan.remarks, *formula(plan)],
        }

    def _on_page(self, _: Any, content: Mapping[str, Any], __: Any) -> None:
        context = content.get("context")
        asked = content.get("do") == "plan"
        if asked and isinstance(context, int) and context in self.contexts:
            self.choose(context)

    def choose(self, context: int) -> None:
        """Plan for another context, in tokens, and return at once; the newest choice counts."""
        with self._lock:
            self._wanted = context
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, daemon=True)
                self._worker.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the newest choice is shown, at most `timeout` seconds. Says if it is."""
        worker = self._worker
        if worker is not None:
            worker.join(timeout)
        return worker is None or not worker.is_alive()

    def _newer(self) -> bool:
        with self._lock:
            return self._wanted is not None

    def _work(self) -> None:
        while True:
            with self._lock:
                wanted, self._wanted = self._wanted, None
                if wanted is None:
                    self._worker = None
                    return
            self.status = f"computing the plan for {wanted:,} tokens"
            try:
                plan = self._first.at(wanted)
            except MaclusterError as error:
                self.status = str(error)
                continue
            if self._newer():
                continue  # nobody asks for this one any more
            self.plan, self._scale = plan, self._scale.around(plan)
            self.answer = self._drawn()
            self.status = ""
