"""Figures of a measurement for a paper. Imports matplotlib, so it is itself imported late."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from ..errors import UsageError
from ..topology.topology import Topology
from ..units import number_text, size_label, time_text
from .fit import Fit
from .record import Measurement
from .samples import Timing
from .tables import METRICS, TIMES, Metric, by_ranks, value, why_missing

# Okabe and Ito's colours; markers and dashes are enough without them.
STYLES = {
    "all_sum": ("#0072b2", "o", "-"),
    "all_gather": ("#009e73", "s", "--"),
    "sendrecv": ("#d55e00", "^", "-."),
    "barrier": ("#7b3f9d", "D", ":"),
    "pair": ("#555555", "v", (0, (4, 1, 1, 1))),
}
# One hue, from light to deep: the order survives grey printing, and black letters stay readable.
SHADES = LinearSegmentedColormap.from_list(
    "macluster", ["#f2f7fc", "#cbdff1", "#93bee0", "#5694c8", "#2869a5"]
)
NUMBERS = 16  # ranks; the cells of more have no room for them

Matrix = NDArray[np.float64]


class Drawing(Figure):
    """A figure that a notebook shows by itself, whether or not pyplot was ever imported."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=110)
        return out.getvalue()


def plot(
    m: Measurement,
    what: Literal["pairs", "curves", "all"] = "all",
    ax: Axes | Sequence[Axes] | None = None,
    metric: Metric = "bandwidth",
    topology: Topology | None = None,
) -> Figure:
    """Draw a measurement with matplotlib. pyplot and its settings are left alone.

    Args:
        m: what to draw.
        what: the matrix of all "pairs", the "curves" of the collectives over the size (of the first
            pair when there are none), or "all" of it, side by side.
        ax: where to draw; two axes for "all". A figure of its own without it.
        metric: what the matrix shows: "latency", "latency_p99", "jitter" (seconds), "bandwidth",
            "crowded" (bytes/s) or "part_of_rate" (percent).
        topology: knows the negotiated rates, for "part_of_rate".

    Returns the figure, for `.savefig("wires.pdf")`. Points are medians, bands reach from the 5th to
    the 95th percentile, thin lines are the fits, and a ring marks n1/2, the size at which half of
    a good fit's bandwidth is reached. A simulation is labelled as one, in `ax`, too. Raises
    UsageError for an unknown `what` or `metric`, and for what was not measured.
    """
    if what not in ("pairs", "curves", "all") or metric not in METRICS:
        raise UsageError(
            f"There is no plot of {what!r} with the metric {metric!r}.",
            why="what is pairs, curves or all, and the metric is one of " + ", ".join(METRICS),
            do='for example: measurement.plot("pairs", metric="latency")',
        )
    curves = bool(m.sweeps or any(pair.curve for pair in m.pairs))
    wanted = [
        name
        for name, there in (("pairs", bool(m.pairs)), ("curves", curves))
        if what == name or (what == "all" and there)
    ]
    if not wanted or (what == "pairs" and not m.pairs) or (what == "curves" and not curves):
        alone = m.size == 1
        missing = {"pairs": "pair", "curves": "curve"}.get(what, "pair and no curve")
        raise UsageError(
            "There is nothing to draw.",
            why="a link takes two ranks, and there was one" if alone
            else f"no {missing} was measured",
            do="measure two ranks or more: %cluster start 2, then %measure" if alone
            else "measure again without leaving it out: %measure",
        )  # fmt: skip
    grid = _grid(m, metric, topology) if "pairs" in wanted else None
    if ax is None:
        widths = [max(3.4, min(7.0, 1.4 + 0.46 * m.size)) if w == "pairs" else 5.2 for w in wanted]
        drawing = Drawing(
            figsize=(sum(widths), max(3.3, min(6.2, 1.3 + 0.4 * m.size))), layout="constrained"
        )
        FigureCanvasAgg(drawing)
        given = drawing.subplots(1, len(wanted), squeeze=False, width_ratios=widths)[0]
    else:
        given = np.atleast_1d(np.asarray(ax, object))
    if len(given) != len(wanted):
        raise UsageError(
            f"There are {len(given)} axes for {len(wanted)} pictures.",
            why=f"drawn are: {' and '.join(wanted)}",
            do=f"hand over ax with {len(wanted)} axes, or none",
        )
    for axes, name in zip(given, wanted, strict=True):
        if grid is not None and name == "pairs":
            _pairs(m, axes, metric, grid)
        else:
            _curves(m, axes)
        if m.simulated and ax is not None:
            _label(axes, name)
    drawn = given[0].figure
    while isinstance(drawn, SubFigure):
        drawn = drawn.figure
    if m.simulated and ax is None:
        drawn.suptitle(f"simulated: {m.simulated}", fontsize=9)
    assert isinstance(drawn, Figure)
    return drawn


def _label(axes: Axes, name: str) -> None:
    """Say that it was simulated, where nothing is drawn: below a matrix, or under the curves."""
    x, y, across, up = (0.0, -0.02, "left", "top") if name == "pairs" else (
        0.99, 0.02, "right", "bottom"
    )  # fmt: skip
    axes.text(x, y, "simulated", ha=across, va=up, fontsize=7, transform=axes.transAxes)


def _grid(m: Measurement, metric: Metric, topology: Topology | None) -> Matrix:
    """A metric from rank to rank, NaN where there is none. Raises UsageError when there is none."""
    rates = {} if topology is None else {(x.a, x.b): x.negotiated for x in topology.links}
    grid = np.full((m.size, m.size), np.nan)
    pairs = by_ranks(m)
    for (a, b), pair in pairs.items():
        each = value(pair, metric, a, rates.get((pair.a, pair.b)))
        if each is not None:
            grid[a, b] = each
    if not np.isfinite(grid).any():
        (a, b), pair = next(iter(pairs.items()))
        rated = metric == "part_of_rate"
        raise UsageError(
            f"There is no {METRICS[metric]} to draw.",
            why=why_missing(m, pair, metric, a, b),
            do="hand over a topology whose links have a rate: "
            'plot("pairs", metric="part_of_rate", topology=world.topology())'
            if rated
            else "it takes four ranks or more: two pairs that share no rank",
        )
    return grid


def _pairs(m: Measurement, axes: Axes, metric: Metric, grid: Matrix) -> None:
    known = grid[np.isfinite(grid)]
    if metric == "part_of_rate":
        unit, scale = "%", 1.0
    elif metric in TIMES:
        slow = known.size and np.median(known) >= 1e-3
        unit, scale = ("ms", 1e-3) if slow else ("us", 1e-6)
    else:
        unit, scale = "GB/s", 1e9
    grid, known = grid / scale, known / scale
    most = float(known.max(initial=0.0)) or 1.0
    least = float(known[known > 0].min(initial=most))
    log = most / least > 30
    # Room above: the deepest shades are too dark for black letters.
    norm = LogNorm(least / 1.5, 2 * most) if log else Normalize(0, 1.3 * most)
    image = axes.imshow(grid, cmap=SHADES, norm=norm, interpolation="nearest")
    # A mark, not only an empty cell: white is a value on paper, too.
    for row, column in np.argwhere(~np.isfinite(grid)):
        if row != column and m.size <= NUMBERS:
            axes.text(column, row, "–", ha="center", va="center", color="#777777", fontsize=7)
    if m.size <= NUMBERS:
        for row, column in np.argwhere(np.isfinite(grid)):
            deep = norm(grid[row, column]) > 0.93
            axes.text(
                column, row, number_text(float(grid[row, column])), ha="center", va="center",
                fontsize=7 if m.size <= 8 else 5, color="white" if deep else "black",
            )  # fmt: skip
    for (a, b), pair in by_ranks(m).items():
        if pair.via == "tcp" and m.size <= NUMBERS:
            deep = norm(grid[a, b]) > 0.93
            axes.text(b, a + 0.42, "tcp", ha="center", va="bottom", fontsize=5,
                      color="white" if deep else "black")  # fmt: skip
    ticks = range(0, m.size, 1 if m.size <= NUMBERS else 8)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("to rank")
    axes.set_ylabel("from rank")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, pad=0.03)
    bar.set_label(f"{METRICS[metric]} ({unit})")
    bar.outline.set_visible(False)


def _curves(m: Measurement, axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    if m.sweeps:
        for sweep in m.sweeps:
            points = [(p.size, p.time) for p in sweep.points if p.algbw]
            if points:
                _curve(axes, sweep.op, sweep.op, points, sweep.fit)
            elif sweep.points:
                colour, _, dash = STYLES[sweep.op]
                time = sweep.points[0].time
                axes.axhspan(time.p5, time.p95, color=colour, alpha=0.15, linewidth=0)
                axes.axhline(time.p50, color=colour, linestyle=dash, label=sweep.op)
        wrong = [(p.size, p.time.p50) for s in m.sweeps for p in s.points if p.wrong]
        if wrong:
            axes.plot(*zip(*wrong, strict=True), "x", color="#b3261e", markersize=10,
                      markeredgewidth=2, zorder=5, label="wrong results")  # fmt: skip
    else:
        first = next(pair for pair in m.pairs if pair.curve)
        name = f"ranks {first.a} and {first.b}"
        _curve(axes, "pair", name, [(p.size, p.time) for p in first.curve], first.fit)
    low, high = axes.get_xlim()
    powers = [2.0**n for n in range(0, 60, 4) if low <= 2.0**n <= high]
    axes.xaxis.set_major_locator(FixedLocator(powers))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: size_label(size)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda t, _: time_text(t).replace(".00 ", " ")
                                                 .replace(".0 ", " ")))  # fmt: skip
    axes.set_xlabel("size")
    axes.set_ylabel("time, median and p5–p95")
    axes.grid(True, which="major", color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=7)


def _curve(
    axes: Axes, kind: str, name: str, points: Sequence[tuple[int, Timing]], fit: Fit | None
) -> None:
    colour, marker, dash = STYLES[kind]
    sizes = [size for size, _ in points]
    low, high = [time.p5 for _, time in points], [time.p95 for _, time in points]
    axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
    label = name
    if fit is not None:
        # What is no line has no such point.
        label += f", n½ {size_label(fit.half_size)}" if fit.good else " (not a line)"
    axes.plot(sizes, [time.p50 for _, time in points], color=colour, marker=marker, linestyle=dash,
              markersize=4, linewidth=1.2, label=label)  # fmt: skip
    if fit is None:
        return
    ends = np.geomspace(min(sizes), max(sizes), 60)
    axes.plot(ends, [fit.time(size) for size in ends], color=colour, linewidth=0.6,
              label=f"_fit of {name}")  # fmt: skip
    if fit.good and min(sizes) <= fit.half_size <= max(sizes):
        axes.plot([fit.half_size], [fit.time(fit.half_size)], "o", color=colour, markersize=8,
                  markerfacecolor="none", label=f"_half of {name}")  # fmt: skip
