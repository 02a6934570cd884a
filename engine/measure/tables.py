"""What was measured, in tables and in words, and as rows for programs."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import attrs
import numpy as np

from ..tables import Table
from ..units import number_text, size_label, time_text
from .fit import Fit
from .outliers import Outlier, standing_out
from .record import Measurement, Pair, Sweep

# Of more pairs, a table shows the slowest.
MOST_PAIRS = 28
RINGS = ("ring", "jaccl-ring")

Metric = Literal["latency", "latency_p99", "jitter", "bandwidth", "crowded", "part_of_rate"]
METRICS: dict[Metric, str] = {
    "latency": "latency p50",
    "latency_p99": "latency p99",
    "jitter": "jitter",
    "bandwidth": "bandwidth",
    "crowded": "bandwidth while all pairs send",
    "part_of_rate": "part of the negotiated rate",
}
TIMES: tuple[Metric, ...] = ("latency", "latency_p99", "jitter")


def title(m: Measurement) -> str:
    """ "ring, 4 ranks on 2 hosts, 2026-10-08 14:03 UTC, 12.4 s"."""
    hosts = len({each.host for each in m.ranks})
    ranks = f"{m.size} rank{'s' if m.size != 1 else ''} on {hosts} host{'s' if hosts != 1 else ''}"
    parts = [m.backend, ranks, _moment(m.taken), time_text(m.seconds) if m.seconds else ""]
    return ", ".join(part for part in parts if part)


def _moment(taken: str) -> str:
    try:
        return f"{datetime.fromisoformat(taken):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return taken


# -- pairs -----------------------------------------------------------------------------------------


def by_ranks(m: Measurement) -> dict[tuple[int, int], Pair]:
    """The pair of (a, b) and of (b, a), MLX's own before a plain socket."""
    found: dict[tuple[int, int], Pair] = {}
    for each in sorted(m.pairs, key=lambda each: each.via != "tcp"):
        found[each.a, each.b] = found[each.b, each.a] = each
    return found


def plain_sockets(m: Measurement) -> dict[tuple[int, int], Pair]:
    """What plain sockets do where MLX's own way was measured, too; the lower rank first."""
    own = {(each.a, each.b) for each in m.pairs if each.via != "tcp"}
    return {
        (each.a, each.b): each for each in m.pairs if each.via == "tcp" and (each.a, each.b) in own
    }


def value(pair: Pair, metric: Metric, a: int, rate: float | None = None) -> float | None:
    """What was measured from rank `a` of a pair to the other, in seconds, bytes/s or percent.

    `rate` is the negotiated rate in bits/s. None where it was not measured, or is not known.
    """
    if metric in TIMES:
        time = pair.latency
        return {"latency": time.p50, "latency_p99": time.p99, "jitter": time.jitter}[metric]
    sent = (pair.forward if a == pair.a else pair.backward).p50
    if metric == "bandwidth":
        return sent
    if metric == "crowded":
        return pair.crowded.p50 if pair.crowded is not None and a == pair.a else None
    return 100 * 8 * sent / rate if rate else None


def why_missing(m: Measurement, pair: Pair | None, metric: Metric, a: int, b: int) -> str:
    """Why there is no value from rank `a` to rank `b`."""
    if a == b:
        return "the same rank"
    if pair is None:
        apart = (a - b) % m.size not in (1, m.size - 1)
        return "not neighbours on this ring" if m.backend in RINGS and apart else "not measured"
    if metric == "crowded":
        return "measured from the lower rank to the higher" if pair.crowded else "no other pair"
    return "the negotiated rate is not known"


def outliers(m: Measurement) -> list[Outlier]:
    """Pairs that stand out among those that are like them: see `standing_out`.

    Ranks of one host are linked by no cable, so these pairs are compared with each other only.
    """
    apart = [each for each in m.pairs if m.ranks[each.a].host != m.ranks[each.b].host]
    together = [each for each in m.pairs if m.ranks[each.a].host == m.ranks[each.b].host]
    return standing_out(apart) + standing_out(together)


def wrong_results(m: Measurement) -> list[str]:
    """Results of collectives that were not what they should be, in words."""
    return [
        f"{sweep.op}, {size_label(point.size)}: {point.wrong:,} wrong"
        for sweep in m.sweeps
        for point in sweep.points
        if point.wrong
    ]


def pairs_table(m: Measurement, pairs: Sequence[Pair] | None = None) -> Table:
    """The pairs of a measurement: times in us, rates in GB/s."""
    rows = [
        (
            f"{each.a} - {each.b}",
            each.via,
            number_text(1e6 * each.latency.p50),
            f"{number_text(1e6 * each.latency.p5)} - {number_text(1e6 * each.latency.p95)}",
            number_text(1e6 * each.latency.p99),
            number_text(1e6 * each.latency.jitter),
            f"{each.latency.count:,}",
            number_text(each.forward.p50 / 1e9),
            number_text(each.backward.p50 / 1e9),
            number_text(each.crowded.p50 / 1e9) if each.crowded else "-",
            f"{each.forward.count:,}",
        )
        for each in (m.pairs if pairs is None else pairs)
    ]
    heading = (
        "ranks", "via", "latency us", "p5 - p95", "p99", "jitter", "runs",
        "there GB/s", "back GB/s", "crowded", "runs",
    )  # fmt: skip
    empty = "no pair was measured"
    return Table(heading, rows, right=range(2, 11), empty=empty, unbroken=range(11))


def sweeps_table(m: Measurement, op: str) -> Table:
    """The sweep of one collective, in the columns of nccl-tests.

    `runs` is how often a size was timed; nccl-tests has the number of elements there.
    """
    sweep = m.sweep(op)
    if sweep is None:
        return Table(("size",), [], empty=f"{op} was not measured")
    if not any(point.busbw for point in sweep.points):
        # A barrier carries no bytes.
        times = [
            (f"{p.time.count:,}", _time(sweep, n), str(p.wrong)) for n, p in enumerate(sweep.points)
        ]
        return Table(("runs", "time us (p99)", "wrong"), times, (0, 1, 2), title=op)
    rows = [
        (
            size_label(p.size),
            f"{p.time.count:,}",
            _time(sweep, n),
            number_text(p.algbw / 1e9),
            number_text(p.busbw / 1e9),
            str(p.wrong),
        )
        for n, p in enumerate(sweep.points)
    ]
    mean = number_text(float(np.mean([point.busbw for point in sweep.points])) / 1e9)
    return Table(
        ("size", "runs", "time us (p99)", "algbw GB/s", "busbw GB/s", "wrong"),
        rows,
        right=range(6),
        title=op,
        last=("", "", "", "average", mean, str(sum(point.wrong for point in sweep.points))),
    )


def _time(sweep: Sweep, index: int) -> str:
    time = sweep.points[index].time
    return f"{number_text(1e6 * time.p50)} ({number_text(1e6 * time.p99)})"


# -- all of it -------------------------------------------------------------------------------------


def _parts(m: Measurement) -> tuple[list[str], list[tuple[Table, list[str]]]]:
    """Lines of words, and the tables with the lines that follow each."""
    lines = [f"WRONG RESULTS: {each}" for each in wrong_results(m)]
    lines += [f"simulated, nothing was measured: {m.simulated}"] if m.simulated else []
    lines += m.notes
    tables: list[tuple[Table, list[str]]] = []
    if m.pairs:
        pairs, rest = m.pairs, 0
        if len(pairs) > MOST_PAIRS:
            order = sorted(pairs, key=lambda each: (each.bandwidth, -each.latency.p50))
            pairs, rest = tuple(order[:MOST_PAIRS]), len(pairs) - MOST_PAIRS
        after = [f"the slowest; {rest:,} more pairs are in .pairs"] if rest else []
        after += [f"stands out: {each.words}" for each in outliers(m)[:MOST_PAIRS]]
        tables.append((pairs_table(m, pairs), after))
    for sweep in m.sweeps:
        fit = [f"{sweep.op}: {sweep.fit.verdict}"] if sweep.fit else []
        tables.append((sweeps_table(m, sweep.op), fit))
    if not tables:
        lines.append("nothing was measured")
    return lines, tables


def as_text(m: Measurement) -> str:
    """A measurement as text for a terminal."""
    lines, tables = _parts(m)
    blocks = ["\n".join([title(m), *lines])]
    blocks += ["\n".join([table.text(), *after]) for table, after in tables]
    return "\n\n".join(blocks)


def as_html(m: Measurement) -> str:
    """A measurement as tables for a notebook, without end tags that HTML does not need: small."""
    lines, tables = _parts(m)
    alarm = ' style="color:#b3261e;font-weight:600"'
    words = "".join(
        f"<p{alarm if each.startswith('WRONG') else ''}>{html.escape(each)}</p>"
        for each in [title(m), *lines]
    )
    for table, after in tables:
        caption = f"<caption>{html.escape(table.title)}</caption>" if table.title else ""
        body = "".join(_row(row, "td") for row in table.rows)
        foot = f"<tfoot>{_row(table.last, 'th')}</tfoot>" if table.last else ""
        words += (
            f'<table style="text-align:right">{caption}<thead>{_row(table.heading, "th")}</thead>'
            f"<tbody>{body}</tbody>{foot}</table>"
        )
        words += "".join(f"<p>{html.escape(each)}</p>" for each in after)
    return words


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}" for cell in cells) + "</tr>"


def as_rows(m: Measurement) -> dict[str, list[dict[str, Any]]]:
    """Flat records for a data frame: seconds, bytes, bytes/s.

    "pairs" has one for each pair, "curves" one for each size of a pair, "sweeps" one for each size
    of a collective: `pandas.DataFrame(as_rows(m)["pairs"])`. Each has a column "simulated": the
    hosts that were simulated, "" for what was measured.
    """
    pairs, curves, sweeps = [], [], []
    whose = {"simulated": m.simulated}
    for each in m.pairs:
        who = {"a": each.a, "b": each.b, "via": each.via}
        row: dict[str, Any] = {
            **who,
            "host_a": m.ranks[each.a].host,
            "host_b": m.ranks[each.b].host,
            **_named("latency", attrs.asdict(each.latency)),
            **_named("forward", attrs.asdict(each.forward)),
            **_named("backward", attrs.asdict(each.backward)),
        }
        crowded: dict[str, Any] = dict.fromkeys(RATE_FIELDS)
        if each.crowded:
            crowded = attrs.asdict(each.crowded)
        pairs.append(row | _named("crowded", crowded) | _fit_row(each.fit) | whose)
        curves += [
            {**who, "size": point.size, **_named("time", attrs.asdict(point.time)), **whose}
            for point in each.curve
        ]
    for sweep in m.sweeps:
        sweeps += [
            {
                "op": sweep.op,
                "ranks": sweep.ranks,
                "size": point.size,
                **_named("time", attrs.asdict(point.time)),
                "algbw": point.algbw,
                "busbw": point.busbw,
                "wrong": point.wrong,
                **whose,
            }
            for point in sweep.points
        ]
    return {"pairs": pairs, "curves": curves, "sweeps": sweeps}


RATE_FIELDS = ("p50", "p5", "p95", "count")


def _named(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}_{field}": each for field, each in fields.items()}


def _fit_row(fit: Fit | None) -> dict[str, Any]:
    names = ("latency", "bandwidth", "half_size", "residual", "r2")
    return {f"fit_{name}": None if fit is None else getattr(fit, name) for name in names}
