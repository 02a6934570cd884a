"""What was measured, as a picture: a matrix of all pairs of ranks, and curves of time by size.

Python says what each cell and each curve shows, in numbers and in words; `measure.js` draws them,
and the picture in the saved notebook is drawn here.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import anywidget
import attrs
import numpy as np
import traitlets

from ..engine.measure.cost import bus_factor
from ..engine.measure.fit import Fit
from ..engine.measure.record import Measurement, Pair, Sweep
from ..engine.measure.samples import Rate, Timing
from ..engine.measure.tables import (
    METRICS,
    MOST_PAIRS,
    RINGS,
    TIMES,
    Metric,
    as_html,
    by_ranks,
    outliers,
    pairs_table,
    title,
    value,
    why_missing,
    wrong_results,
)
from ..engine.topology.topology import Topology
from ..engine.units import number_text, rate_text, size_label, time_text
from .network import cut, printable, short_hosts
from .picture import ALARM, FAINT, INK, figure, number, script

PERIOD = 0.25  # seconds between two messages to the page, at least
LOGARITHMIC = 30.0  # the ratio of the largest value to the smallest from which shades are so
MOST_WORDS = 8  # pairs that stand out, and results that are wrong, in words
NUMBERED = 12  # ranks at most of a saved matrix with numbers; of more it has shades alone
MOST_FRAMES = 48  # cells with a frame in such a matrix
FEW_PAIRS = 8  # in the table that is saved with it
NO_VALUE = "#f3f4f6"
ONE_CABLE = ("sendrecv", "pair")  # what sends all that it carries through one cable

# Nearly even steps in lightness, and one hue: the order is seen without any colour.
SHADES = (
    "#f2f7fc", "#e0ecf7", "#cbdff1", "#b1d0ea", "#93bee0",
    "#74a9d5", "#5694c8", "#4388c2", "#2869a5",
)  # fmt: skip
# From here on, letters are white.
DEEP = 7.5
SERIES = {
    "all_sum": "#2f6fd0",
    "all_gather": "#128a7d",
    "sendrecv": "#b35c00",
    "barrier": "#8a4fc7",
    "pair": "#a8326e",
    "predicted": FAINT,
}
# As on the page: axes.js and measure.js.
MARKERS = {
    "all_sum": "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",
    "all_gather": "M-3.2-3.2h6.4v6.4h-6.4z",
    "sendrecv": "M0-4.4L4.2 3.2H-4.2z",
    "barrier": "M0-4.8L4.8 0L0 4.8L-4.8 0z",
    "pair": "M0 4.4L4.2-3.2H-4.2z",
}
DASHES = ("6 4", "1.5 3", "9 3 2 3")  # of what is predicted


@attrs.frozen
class Curve:
    """A predicted curve: `seconds` of `sizes` bytes of the collective `op`."""

    name: str
    sizes: Sequence[float]
    seconds: Sequence[float]
    op: str = "all_sum"


# -- the matrix ------------------------------------------------------------------------------------


@attrs.frozen
class Shading:
    """From a value to a shade: linear from 0, or logarithmic between two round numbers."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Shading:
        """For values of one metric."""
        most = max(values, default=0.0)
        least = min((each for each in values if each > 0), default=most)
        if most <= 0:
            return cls(0.0, 1.0)
        if most / least < LOGARITHMIC:
            return cls(0.0, _round_up(most))
        return cls(1 / _round_up(1 / least), _round_up(most))

    def level(self, each: float) -> float:
        """The shade of a value: 0 is the first one of SHADES, 7.5 is between the last two."""
        if self.low:
            part = math.log(max(each, self.low) / self.low) / math.log(self.high / self.low)
        else:
            part = each / self.high
        return round((len(SHADES) - 1) * min(max(part, 0.0), 1.0), 1)


def shade(level: float) -> str:
    """The colour of a level, on white."""
    first = min(int(level), len(SHADES) - 2)
    ends = [[int(SHADES[n][at : at + 2], 16) for at in (1, 3, 5)] for n in (first, first + 1)]
    mixed = (round(a + (b - a) * (level - first)) for a, b in zip(*ends, strict=True))
    return "#" + "".join(f"{each:02x}" for each in mixed)


def _round_up(most: float) -> float:
    size = 10.0 ** math.floor(math.log10(most) + 1e-9)
    return next(n * size for n in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if n * size >= 0.9999 * most)


def _unit(metric: Metric, values: Sequence[float]) -> tuple[str, float]:
    """One unit for all cells, and what it is worth."""
    usual = float(np.median(values)) if len(values) else 0.0
    if metric == "part_of_rate":
        return "%", 1.0
    if metric in TIMES:
        units = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
    else:
        units = (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3))
    # Bandwidth stays in GB/s for long: that is what is compared.
    enough = 0.9995 if metric in TIMES else 0.1
    return next((each for each in units if usual >= enough * each[1]), units[-1])


@attrs.frozen
class Cells:
    """One metric of all pairs, row after row, as the page gets it.

    `levels` are shades; below 0 there is no value, and `reasons[-1 - level]` says why. `alarms`
    are the places of those that stand out.
    """

    key: str
    label: str
    unit: str
    better: str
    low: str
    high: str
    logarithmic: bool
    levels: list[float]
    texts: list[str]
    reasons: list[str]
    alarms: list[int]
    summary: str


def cells(m: Measurement, metric: Metric, topology: Topology | None = None) -> Cells:
    """The cells of a metric: from rank to rank."""
    pairs = by_ranks(m)
    rates = {} if topology is None else {(x.a, x.b): x.negotiated for x in topology.links}
    found: dict[tuple[int, int], float] = {}
    for (a, b), pair in pairs.items():
        each = value(pair, metric, a, rates.get((pair.a, pair.b)))
        if each is not None:
            found[a, b] = each
    values = list(found.values())
    shading = Shading.of([*values, 100.0] if metric == "part_of_rate" else values)
    unit, scale = _unit(metric, values)
    reasons: list[str] = []
    levels: list[float] = []
    texts = []
    for a in range(m.size):
        for b in range(m.size):
            each = found.get((a, b))
            if each is None:
                why = why_missing(m, pairs.get((a, b)), metric, a, b)
                if why not in reasons:
                    reasons.append(why)
                levels.append(-1 - reasons.index(why))
                texts.append("")
            else:
                levels.append(shading.level(each))
                texts.append(number_text(each / scale))
    return Cells(
        metric,
        METRICS[metric],
        unit,
        "lower is better" if metric in TIMES else "higher is better",
        number_text(shading.low / scale),
        f"{number_text(shading.high / scale)} {unit}",
        shading.low > 0,
        levels,
        texts,
        reasons,
        _alarms(m, metric),
        _summary(metric, found, unit, scale),
    )


def _alarms(m: Measurement, metric: Metric) -> list[int]:
    kind = "latency" if metric in TIMES else "bandwidth"
    apart = [each for each in outliers(m) if each.metric == kind]
    found = {each.a * m.size + each.b for each in apart}
    if kind == "latency":
        found.update(each.b * m.size + each.a for each in apart)
    return sorted(found)


def _summary(metric: Metric, found: dict[tuple[int, int], float], unit: str, scale: float) -> str:
    """The median and the ends of what the cells show, in words."""
    if not found:
        return f"{METRICS[metric]}: not measured"

    def where(end: tuple[int, int]) -> str:
        joint = "and" if metric in TIMES else "to"
        return f"{number_text(found[end] / scale)} ({end[0]} {joint} {end[1]})"

    least, most = min(found, key=lambda at: found[at]), max(found, key=lambda at: found[at])
    middle = number_text(float(np.median(list(found.values()))) / scale)
    return f"median {middle} {unit}, lowest {where(least)}, highest {where(most)}"


def _rate(rate: Rate) -> str:
    return f"{rate_text(rate.p50)} (p5-p95 {rate_text(rate.p5)} - {rate_text(rate.p95)})"


def pair_lines(pair: Pair, rate: float | None = None) -> list[str]:
    """All that is known of a pair, in words; `rate` is the negotiated rate in bits/s."""
    a, b, late = pair.a, pair.b, pair.latency
    lines = [
        (
            f"latency {time_text(late.p50)} (p5-p95 {time_text(late.p5)} - {time_text(late.p95)}), "
            f"p99 {time_text(late.p99)}, jitter {time_text(late.jitter)}, {late.count:,} times"
        ),
        (
            f"{a} to {b} {_rate(pair.forward)}, {b} to {a} {_rate(pair.backward)}, "
            f"{pair.forward.count:,} times"
            + (f"; while all pairs send {rate_text(pair.crowded.p50)}" if pair.crowded else "")
        ),
    ]
    if rate:
        part = 100 * 8 * pair.bandwidth / rate
        lines.append(f"{part:.0f} % of the negotiated {number_text(rate / 1e9)} Gb/s")
    if pair.fit:
        lines.append(pair.fit.verdict)
    return lines


# -- the curves ------------------------------------------------------------------------------------


def _short(each: float) -> float:
    return float(f"{each:.4g}")


def _fit(fit: Fit | None) -> dict[str, Any] | None:
    if fit is None:
        return None

    def span(ends: tuple[float, float], text: Callable[[float], str]) -> str:
        return f"{text(ends[0])} - {text(ends[1])}" if any(ends) else ""

    return {
        "latency": fit.latency,
        "bandwidth": fit.bandwidth,
        "half": fit.half_size,
        "good": fit.good,
        "figures": [
            time_text(fit.latency),
            rate_text(fit.bandwidth),
            size_label(fit.half_size) if fit.good else "-",
            f"{100 * fit.residual:.0f} %",
            f"{fit.r2:.3f}",
        ],
        "ranges": [
            span(fit.latency_range, time_text),
            span(fit.bandwidth_range, rate_text),
        ],
    }


def _timed(size: int, time: Timing) -> list[float]:
    p5, p95 = (each if _drawable(each) else time.p50 for each in (time.p5, time.p95))
    return [size, _short(time.p50), _short(p5), _short(p95), time.count]


def _drawable(seconds: float) -> bool:
    """Whether there is a place for it on a logarithmic axis."""
    return math.isfinite(seconds) and seconds > 0


def _sweep(sweep: Sweep) -> dict[str, Any]:
    """Points are [size, p50, p5, p95, count, wrong]; what carries nothing has no size."""
    return {
        "key": sweep.op,
        "name": sweep.op,
        "kind": sweep.op,
        "factor": bus_factor(sweep.op, sweep.ranks),
        "points": [
            [*_timed(point.size if point.algbw else 0, point.time), point.wrong]
            for point in sweep.points if _drawable(point.time.p50)
        ],
        "fit": _fit(sweep.fit) if any(point.algbw for point in sweep.points) else None,
    }  # fmt: skip


def _pair(pair: Pair, rate: float | None) -> dict[str, Any]:
    return {
        "a": pair.a,
        "b": pair.b,
        "via": pair.via,
        "lines": pair_lines(pair, rate),
        "points": [_timed(p.size, p.time) for p in pair.curve if _drawable(p.time.p50)],
        "fit": _fit(pair.fit),
    }


def line_rate(m: Measurement, topology: Topology | None) -> tuple[float, str] | None:
    """Bytes/s of the slowest link that is in use, and its name; None where a rate is not known.

    It limits what goes through one link, between two neighbours or in a sendrecv. The other
    collectives send through several links at once.
    """
    if topology is None:
        return None
    links = [each for each in topology.links if each.kind != "loopback"]
    if m.backend in RINGS:
        links = [each for each in links if (each.b - each.a) in (1, m.size - 1)]
    if not links or not all(each.negotiated for each in links):
        return None
    rates = {each.negotiated or 0.0 for each in links}
    one = len(rates) == 1 and all(each.cables == 1 for each in links)
    name = "one cable" if one else "one link" if len(rates) == 1 else "slowest link"
    return min(rates) / 8, f"{name}: {rate_text(min(rates) / 8)}"


def page_data(
    m: Measurement,
    topology: Topology | None = None,
    predicted: Sequence[Curve] = (),
    crossing: float | None = None,
    words: str = "",
) -> dict[str, Any]:
    """All that the page draws."""
    pairs = by_ranks(m)
    rates = {} if topology is None else {(x.a, x.b): x.negotiated for x in topology.links}
    metrics: list[Metric] = [each for each in METRICS if each != "part_of_rate"]
    if any(rates.values()):
        metrics.append("part_of_rate")
    apart = outliers(m)
    standing = [each.words for each in apart[:MOST_WORDS]]
    if len(apart) > MOST_WORDS:
        standing.append(f"and {len(apart) - MOST_WORDS} more, marked in the matrix")
    rate, rate_words = line_rate(m, topology) or (None, "")
    hosts = short_hosts(each.host for each in m.ranks)
    return {
        "title": title(m),
        "simulated": m.simulated,
        "notes": [*m.notes, *filter(None, [words])],
        "wrong": wrong_results(m),
        "ranks": [each.host for each in m.ranks],
        "names": [cut(hosts[each.host], 16) for each in m.ranks],
        "devices": [each.device for each in m.ranks],
        "metrics": [attrs.asdict(cells(m, each, topology)) for each in metrics],
        "pairs": [
            _pair(pair, rates.get((pair.a, pair.b)))
            for (a, _), pair in sorted(pairs.items()) if a == pair.a
        ],
        "outliers": standing,
        "series": [each for each in map(_sweep, m.sweeps) if each["points"]]
        + [
            {
                "key": f"predicted-{n}",
                "name": f"{each.name}, predicted",
                "kind": "predicted",
                "factor": bus_factor(each.op, m.size),
                "points": [
                    [int(size), _short(seconds)]
                    for size, seconds in zip(each.sizes, each.seconds, strict=True)
                    if _drawable(seconds)
                ],
                "fit": None,
            }
            for n, each in enumerate(predicted)
        ],
        "rate": rate,
        "rateText": rate_words,
        "crossing": crossing,
        "crossingText": f"{' = '.join(each.name for each in predicted)} at {size_label(crossing)}"
        if crossing
        else "",
    }  # fmt: skip


# -- the saved picture -----------------------------------------------------------------------------

CHART = (720, 300)
PLOT = (62, 12, 700, 258)  # left, top, right, bottom


def matrix_svg(m: Measurement, metrics: Sequence[Metric] = ("latency", "bandwidth")) -> str:
    """Matrices side by side, as a file of their own, on white."""
    n = m.size
    numbered = n <= NUMBERED
    wide, high = (52, 30) if n <= 8 else (36, 24) if numbered else (max(4, 380 // n),) * 2
    left, top = 34, 46
    step = left + n * wide + 24
    parts = []
    pairs = by_ranks(m)
    for index, metric in enumerate(metrics):
        drawn = cells(m, metric)
        parts.append(f'<g transform="translate({index * step} 0)">')
        parts.append(
            f'<text x="{left}" y="16" font-weight="600" font-size="12">{drawn.label}, '
            f'{drawn.unit}</text><g font-size="10" fill="{FAINT}" text-anchor="middle">'
        )
        every = 1 if n <= 16 else 8
        for rank in range(0, n, every):
            x, y = number(left + (rank + 0.5) * wide), number(top + (rank + 0.5) * high + 3.5)
            parts.append(f'<text x="{x}" y="{top - 5}">{rank}</text>')
            parts.append(f'<text x="{left - 12}" y="{y}">{rank}</text>')
        parts.append("</g>")
        parts += _shades(drawn, n, left, top, wide, high)
        if numbered:
            for dark in (False, True):
                fill = "#fff" if dark else "#000"
                parts.append(f'<g font-size="11" text-anchor="middle" fill="{fill}">')
                for at, (level, text) in enumerate(zip(drawn.levels, drawn.texts, strict=True)):
                    if text and (level >= DEEP) == dark:
                        x = number(left + (at % n + 0.5) * wide)
                        y = number(top + (at // n + 0.5) * high + 4)
                        parts.append(f'<text x="{x}" y="{y}">{text}</text>')
                parts.append("</g>")
        marks = "".join(
            f"M{left + at % n * wide + 1} {top + at // n * high + 1}h{wide - 2}v{high - 2}"
            f"h{2 - wide}z" for at in (drawn.alarms if numbered else drawn.alarms[:MOST_FRAMES])
        )  # fmt: skip
        parts.append(f'<path d="{marks}" fill="none" stroke="{ALARM}" stroke-width="2"/>')
        plain = "".join(
            f"M{left + b * wide} {top + a * high}h7l-7 7z"
            for (a, b), pair in sorted(pairs.items()) if pair.via == "tcp" and numbered
        )  # fmt: skip
        parts.append(f'<path d="{plain}" fill="{INK}"/></g>')
    height = top + n * high + 26
    notes = ["from the rank of the row to that of the column"]
    sockets = sum(pair.via == "tcp" for pair in m.pairs)
    if sockets:
        notes.append("corner: a plain socket (tcp)" if numbered else f"{sockets:,} pairs by tcp")
    if not numbered:
        notes.append("the darker, the more")
    notes += ["red frame: stands out"] if outliers(m) else []
    parts.append(
        f'<text x="{left}" y="{height - 8}" font-size="10.5" fill="{FAINT}">'
        f"{'; '.join(notes)}</text>"
    )
    return _file(max(len(metrics) * step, 330), height, "".join(parts))


def _shades(drawn: Cells, n: int, left: int, top: int, wide: int, high: int) -> Iterable[str]:
    """The cells as a small image with a pixel for each, and white lines between them."""
    # Half a step is not seen, and fewer shades are a smaller image.
    levels = [round(2 * each) / 2 for each in drawn.levels]
    colours = [shade(level) if level >= 0 else NO_VALUE for level in levels]
    image = base64.b64encode(_png(colours, n)).decode()
    yield (
        f'<image x="{left}" y="{top}" width="{n * wide}" height="{n * high}" '
        f'preserveAspectRatio="none" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{image}"/>'
    )
    if n <= 32:
        across = "".join(f"M{left} {top + at * high - 0.5}h{n * wide}" for at in range(1, n))
        down = "".join(f"M{left + at * wide - 0.5} {top}v{n * high}" for at in range(1, n))
        yield f'<path d="{across}{down}" stroke="#fff"/>'


def _png(colours: Sequence[str], n: int) -> bytes:
    """An image of n x n pixels, row after row, with a palette (PNG, ISO/IEC 15948)."""
    palette = sorted(set(colours))
    index = {colour: bytes([place]) for place, colour in enumerate(palette)}
    rows = b"".join(
        b"\0" + b"".join(index[each] for each in colours[row * n : (row + 1) * n])
        for row in range(n)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", n, n, 8, 3, 0, 0, 0)
    colour_bytes = bytes.fromhex("".join(each[1:] for each in palette))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"PLTE", colour_bytes)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def curves_svg(
    m: Measurement, predicted: Sequence[Curve] = (), crossing: float | None = None,
    rate: tuple[float, str] | None = None,
) -> str:  # fmt: skip
    """Time by size, as a file of its own, on white."""
    series: list[tuple[str, str, list[tuple[float, ...]], Fit | None]] = [
        (s.op, s.op,
         [(p.size if p.algbw else 0, p.time.p50, p.time.p5, p.time.p95) for p in s.points], s.fit)
        for s in m.sweeps
    ]  # fmt: skip
    if not any(points for _, _, points, _ in series):
        first = next((pair for pair in m.pairs if pair.curve), None)
        if first is None:
            return ""
        series.append((
            "pair", f"ranks {first.a} and {first.b}",
            [(p.size, p.time.p50, p.time.p5, p.time.p95) for p in first.curve], first.fit,
        ))  # fmt: skip
    for each in predicted:
        series.append((
            "predicted", f"{each.name}, predicted",
            [(n, t, t, t) for n, t in zip(each.sizes, each.seconds, strict=True)], None,
        ))  # fmt: skip
    series = [
        (kind, name, [p for p in points if _drawable(p[1])], fit)
        for kind, name, points, fit in series
    ]
    series = [each for each in series if each[2]]
    if not any(kind != "predicted" for kind, *_ in series):
        return ""
    sizes = [p[0] for _, _, points, _ in series for p in points if p[0] > 0] or [1.0, 1024.0]
    times = [t for _, _, points, _ in series for p in points for t in p[1:] if _drawable(t)]
    low, high = min(sizes) / 1.5, max(sizes) * 1.5
    least, most = min(times) / 1.4, max(times) * 1.4
    left, top, right, bottom = PLOT

    def x(size: float) -> float:
        return left + math.log(size / low) / math.log(high / low) * (right - left)

    def y(seconds: float) -> float:
        seconds = min(max(seconds, least), most)
        return bottom - math.log(seconds / least) / math.log(most / least) * (bottom - top)

    parts = [f'<g font-size="10.5" fill="{FAINT}">']
    grid = ""
    for power in range(math.ceil(math.log10(least)), math.floor(math.log10(most)) + 1):
        grid += f"M{left} {number(y(10.0**power))}H{right}"
        words = time_text(10.0**power).replace(".00 ", " ").replace(".0 ", " ")
        parts.append(f'<text x="{left - 7}" y="{number(y(10.0**power) + 3.5)}" '
                     f'text-anchor="end">{words}</text>')  # fmt: skip
    for power in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1):
        if power % 4 == 0:
            grid += f"M{number(x(2.0**power))} {top}V{bottom}"
            parts.append(f'<text x="{number(x(2.0**power))}" y="{bottom + 16}" '
                         f'text-anchor="middle">{size_label(2**power)}</text>')  # fmt: skip
    parts.append(f'</g><path d="{grid}" stroke="#e5e9ed"/>')
    if rate and any(kind in ONE_CABLE for kind, *_ in series):
        speed, name = rate
        ends = [max(low, least * speed), min(high, most * speed)]
        if ends[0] < ends[1]:
            d = _polyline([(x(size), y(size / speed)) for size in ends])
            parts.append(f'<path d="{d}" fill="none" stroke="{INK}" stroke-dasharray="12 5"/>')
            parts.append(f'<text x="{number(x(ends[0]) + 16)}" y="{bottom - 6}" font-size="10.5" '
                         f'fill="{FAINT}">{name}</text>')  # fmt: skip
    if crossing and low < crossing < high:
        at = number(x(crossing))
        words = f"{' = '.join(html.escape(each.name) for each in predicted)} at "
        parts.append(f'<path d="M{at} {top}V{bottom}" stroke="{FAINT}" stroke-dasharray="2 3"/>'
                     f'<text x="{number(x(crossing) + 5)}" y="{top + 10}" font-size="10.5" '
                     f'fill="{FAINT}">{words}{size_label(crossing)}</text>')  # fmt: skip
    wrong = []
    legend_x, legend = float(left), []
    guessed = 0
    for kind, name, points, fit in series:
        colour = SERIES[kind]
        carried = [p for p in points if p[0] > 0]
        if not carried and points:
            # A barrier has no size: a line across.
            at = number(y(points[0][1]))
            parts.append(f'<path d="M{left} {at}H{right}" stroke="{colour}" stroke-width="1.6"/>')
        band = [(x(p[0]), y(p[3])) for p in carried] + [(x(p[0]), y(p[2])) for p in carried[::-1]]
        if kind != "predicted" and len(carried) > 1:
            parts.append(f'<path d="{_polyline(band)}z" fill="{colour}" fill-opacity=".15"/>')
        dash = ""
        if kind == "predicted":
            dash = f' stroke-dasharray="{DASHES[guessed % len(DASHES)]}"'
            guessed += 1
        main = _polyline([(x(p[0]), y(p[1])) for p in carried])
        parts.append(f'<path d="{main}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        if kind in MARKERS and carried:
            marks = "".join(f'<use href="#{kind}" x="{number(x(p[0]))}" y="{number(y(p[1]))}"/>'
                            for p in carried)  # fmt: skip
            parts.append(f'<defs><path id="{kind}" d="{MARKERS[kind]}"/></defs>'
                         f'<g fill="{colour}">{marks}</g>')  # fmt: skip
        if fit and fit.good and low < fit.half_size < high:
            cx, cy = x(fit.half_size), y(fit.time(fit.half_size))
            parts.append(f'<circle cx="{number(cx)}" cy="{number(cy)}" r="6" fill="none" '
                         f'stroke="{colour}" stroke-width="1.4"/>')  # fmt: skip
        legend.append(
            f'<path d="M{number(legend_x)} 288h24" stroke="{colour}" stroke-width="1.6"{dash}/>'
        )
        if kind in MARKERS and carried:
            at = number(legend_x + 12)
            legend.append(f'<use href="#{kind}" x="{at}" y="288" fill="{colour}"/>')
        legend.append(f'<text x="{number(legend_x + 30)}" y="291.5">{html.escape(name)}</text>')
        legend_x += 30 + 5.8 * len(name) + 18
    for sweep in m.sweeps:
        wrong += [
            (x(p.size), y(p.time.p50)) for p in sweep.points
            if p.wrong and p.algbw and _drawable(p.time.p50)
        ]  # fmt: skip
    if wrong:
        d = "".join(f"M{number(a - 6)} {number(b - 6)}l12 12m0-12l-12 12" for a, b in wrong)
        parts.append(f'<path d="{d}" stroke="{ALARM}" stroke-width="2.4"/>')
    ring = "circle: n½ of the fit" if any(s[3] and s[3].good for s in series) else ""
    legend.append(f'<text x="{number(legend_x)}" y="291.5" fill="{FAINT}">{ring}</text>')
    parts.append(f'<g font-size="11" fill="{INK}">{"".join(legend)}</g>')
    return _file(max(CHART[0], legend_x + 5.6 * len(ring)), CHART[1], "".join(parts))


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{number(a)} {number(b)}" for a, b in points) if points else ""


def _file(width: float, height: float, content: str) -> str:
    return printable(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {number(width)} {number(height)}" '
        f'width="{number(width)}" height="{number(height)}" font-family="system-ui,sans-serif">'
        f'<rect width="100%" height="100%" rx="6" fill="#fff"/><g fill="{INK}">{content}</g></svg>'
    )


def matrix_label(m: Measurement) -> str:
    """The matrices in words."""
    said = "; ".join(
        f"{METRICS[each]}: {cells(m, each).summary}" for each in ("latency", "bandwidth")
    )
    apart = "".join(f" {each.words}." for each in outliers(m)[:MOST_WORDS])
    return f"Pairs of ranks, {title(m)}. {said}.{apart}"


def curves_label(m: Measurement) -> str:
    """The curves in words."""
    said = [
        f"{sweep.op}: {time_text(sweep.points[0].time.p50)}"
        + (
            f" of {size_label(sweep.points[0].size)} to {time_text(sweep.points[-1].time.p50)} "
            f"of {size_label(sweep.points[-1].size)}"
            if sweep.points[-1].size > sweep.points[0].size
            else ""
        )
        for sweep in m.sweeps
        if sweep.points
    ]
    return f"Time by size, {title(m)}. {'; '.join(said)}."


def _tables(m: Measurement) -> str:
    """The tables of a saved notebook, as HTML; the picture has many pairs already."""
    if len(m.pairs) <= MOST_PAIRS:
        return m._repr_html_()
    slowest = sorted(m.pairs, key=lambda each: (each.bandwidth, -each.latency.p50))[:FEW_PAIRS]
    found = as_html(attrs.evolve(m, pairs=())) if m.sweeps else ""
    if slowest:
        found += pairs_table(m, slowest)._repr_html_()
        found += f"<p>the slowest; {len(m.pairs) - len(slowest):,} more pairs are in .pairs</p>"
    return found


# -- the widget ------------------------------------------------------------------------------------


class MeasureView(anywidget.AnyWidget):
    """A measurement in a notebook. `measurement` is the newest one that was handed in.

    Args:
        measurement: what to show.
        topology: knows the negotiated rates, for the part of them that was reached.
        predicted: curves to draw beside the measured ones.
        crossing: the bytes at which the predicted curves cross.
        words: what follows from the predicted curves, in a sentence.
    """

    _esm = script("dom.js", "axes.js", "measure.js")
    data: Any = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        measurement: Measurement,
        topology: Topology | None = None,
        predicted: Sequence[Curve] = (),
        crossing: float | None = None,
        words: str = "",
    ) -> None:
        self.measurement = measurement
        self._more = (topology, tuple(predicted), crossing, words)
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._sent = time.monotonic()
        super().__init__(data=page_data(measurement, *self._more))

    def __repr__(self) -> str:
        return repr(self.measurement)

    def update(self, measurement: Measurement) -> None:
        """Show what has been measured so far. The page gets at most 4 messages a second, and
        always the newest state in the end."""
        with self._lock:
            self.measurement = measurement
            if self._timer is not None:
                return
            due = self._sent + PERIOD - time.monotonic()
            self._timer = threading.Timer(max(due, 0.0), self._show_newest)
            self._timer.daemon = True
            self._timer.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the newest state is shown, at most `timeout` seconds. Says if it is."""
        timer = self._timer
        if timer is not None:
            timer.join(timeout)
        return timer is None or not timer.is_alive()

    def _show_newest(self) -> None:
        with self._lock:
            self._sent = time.monotonic()
            self.data = page_data(self.measurement, *self._more)
            self._timer = None

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        found = super()._repr_mimebundle_(**kwargs)
        if found is None:
            return None
        # What is left when the kernel is gone: pictures, and the tables.
        m, (topology, predicted, crossing, _) = self.measurement, self._more
        parts = []
        if m.pairs:
            parts.append(figure(matrix_svg(m), matrix_label(m)))
        drawn = curves_svg(m, predicted, crossing, line_rate(m, topology))
        if drawn:
            parts.append(figure(drawn, curves_label(m)))
        found[0]["text/plain"] = repr(m)
        # What must not be missed stays outside of what is folded.
        wrong = wrong_results(m)
        said = [f"Wrong results: {each}." for each in wrong[:MOST_WORDS]]
        if len(wrong) > MOST_WORDS:
            said.append(f"Wrong results: {len(wrong) - MOST_WORDS} more.")
        said += [f"Stands out: {each.words}." for each in outliers(m)[:MOST_WORDS]]
        words = "".join(
            f'<p style="color:{ALARM};font-weight:600">{html.escape(each)}</p>' for each in said
        )
        heading = title(m) + (f" (simulated: {m.simulated})" if m.simulated else "")
        found[0]["text/html"] = (
            f"<p><b>{html.escape(heading)}</b></p>{words}{''.join(parts)}"
            f"<details><summary>Tables</summary>{_tables(m)}</details>"
        )
        return found
