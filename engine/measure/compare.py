"""What has changed since another measurement of the same ranks."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from math import log

import attrs

from ..errors import UsageError
from ..tables import Table
from ..units import rate_text, size_label, time_text
from .record import Measurement, Pair
from .samples import Rate, Timing

LOSS = 0.2  # a part; smaller changes are not worth a sentence
WEEK = 6  # days in which the name of a weekday says which day is meant


@attrs.frozen
class Change:
    """One figure then and now, in the same unit, and whether that is a change at all.

    `part` is how much better it is now, negative for worse: of a bandwidth 0.5 means half as much
    again, of a time 0.5 means that it takes half of the time less. `real` is True when the medians
    differ by more than LOSS and the ranges between the 5th and the 95th percentile are apart. `op`
    is the collective, "" for a link, and `size` its bytes.
    """

    what: str
    before: float
    now: float
    part: float
    real: bool
    text: str = ""
    op: str = ""
    size: int = 0

    @property
    def distance(self) -> float:
        """|log(now / before)|: how far it is from what it was, in either direction."""
        return abs(log(self.now / self.before)) if self.now > 0 and self.before > 0 else 0.0


@attrs.frozen(repr=False)
class Changes:
    """All figures that both measurements have. `since` says in words when the first was taken.

    `wrong` are sentences about results that are wrong now, `missing` about what was measured then
    and is not now.
    """

    changes: tuple[Change, ...]
    since: str
    missing: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def worse(self) -> tuple[Change, ...]:
        """What got worse: links before collectives, and what changed most first."""
        return self._ordered([each for each in self.changes if each.real and each.part < 0])

    @property
    def better(self) -> tuple[Change, ...]:
        """What got better, in the same order."""
        return self._ordered([each for each in self.changes if each.real and each.part > 0])

    def _ordered(self, changes: Sequence[Change]) -> tuple[Change, ...]:
        return tuple(sorted(changes, key=lambda each: (bool(each.op), -each.distance)))

    @property
    def sentences(self) -> list[str]:
        """What has changed: wrong results, what is worse, what is missing, and what is better.

        Sizes of a collective that follow each other are one sentence. One sentence says so when
        nothing has changed, or nothing can be compared.
        """
        said = [*self.wrong, *self._said(self.worse), *self.missing, *self._said(self.better)]
        count = len(self.changes)
        if not (said or count):
            return ["Nothing can be compared: the two measurements have no figure in common."]
        return said or [f"Nothing has changed {self.since}: {count} figures are what they were."]

    def _said(self, changes: Sequence[Change]) -> list[str]:
        links = [each.text for each in changes if each.text and not each.op]
        runs: list[list[Change]] = []
        for op in dict.fromkeys(each.op for each in changes if each.op):
            open_run: list[Change] = []
            for each in self._sizes(op):
                if each in changes:
                    if not open_run:
                        runs.append(open_run)
                    open_run.append(each)
                else:
                    open_run = []
        runs.sort(key=lambda run: -max(each.distance for each in run))
        return links + [self._run(run) for run in runs]

    def _sizes(self, op: str) -> list[Change]:
        return sorted((each for each in self.changes if each.op == op), key=lambda each: each.size)

    def _run(self, run: Sequence[Change]) -> str:
        """Sizes of one collective that changed in the same direction."""
        # Of sizes that are alike, the largest one.
        worst = max(run, key=lambda each: (round(each.distance, 2), each.size))
        if len(run) == 1:
            return worst.text
        sizes = [each.size for each in self._sizes(worst.op)]
        low, high = run[0].size, run[-1].size
        if (low, high) == (sizes[0], sizes[-1]):
            where = "at all sizes"
        elif high == sizes[-1]:
            where = f"from {size_label(low)} on"
        elif low == sizes[0]:
            where = f"up to {size_label(high)}"
        else:
            where = f"from {size_label(low)} to {size_label(high)}"
        # "up to" where the sizes differ by more than a tenth.
        alike = min(each.distance for each in run) > worst.distance - 0.1
        return (
            f"{worst.op} {where} {_takes(worst.before, worst.now, '' if alike else 'up to ')} "
            f"{self.since}: at {size_label(worst.size)} {time_text(worst.before)} then, "
            f"{time_text(worst.now)} now."
        )

    def table(self) -> Table:
        """Every change that is one."""
        rows = [
            (each.what, _figure(each.what, each.before), _figure(each.what, each.now),
             f"{100 * (each.now / each.before - 1):+.0f} %")
            for each in (*self.worse, *self.better)
        ]  # fmt: skip
        return Table(
            ("figure", "then", "now", "change"), rows, right=(1, 2, 3), empty="no figure changed"
        )

    def __repr__(self) -> str:
        table = self.table()
        return "\n".join([*self.sentences, *(["", table.text()] if table.rows else [])])

    def _repr_html_(self) -> str:
        table = self.table()
        words = "<br>".join(html.escape(each) for each in self.sentences)
        return words + (table._repr_html_() if table.rows else "")


def compare(
    now: Measurement,
    before: Measurement,
    *,
    names: Mapping[tuple[int, int], str] | None = None,
    today: date | None = None,
) -> Changes:
    """Set a measurement beside an earlier one, the baseline.

    Args:
        now: the newer one.
        before: the baseline.
        names: what to call the link between two ranks, such as {(0, 1): "en4-en5"}, besides the
            ranks; otherwise their hosts are named.
        today: for "since Tuesday"; the date of `now` otherwise. A baseline that does not say when
            it was taken was so "then".

    Raises:
        UsageError: when they are of different ranks, hosts or backends, when one is simulated, and
            when the baseline was taken later.
    """
    check_comparable(now, before)
    since = _since(before.taken, today or _day(now.taken))
    changes: list[Change] = []
    missing: list[str] = []
    for old in before.pairs:
        name = _name(before, old, names or {})
        name += " (plain TCP)" if old.via == "tcp" else ""
        found = [
            each for each in now.pairs if (each.a, each.b, each.via) == (old.a, old.b, old.via)
        ]
        if not found:
            missing.append(f"{name} was measured then, and is not now.")
            continue
        changes += _pair(name, old, found[0], since)
    for sweep in before.sweeps:
        newer = now.sweep(sweep.op)
        if newer is None:
            missing.append(f"{sweep.op} was measured then, and is not now.")
            continue
        times = {point.size: point.time for point in newer.points}
        gone = [point.size for point in sweep.points if point.size not in times]
        if gone:
            sizes = size_label(gone[0]) if len(gone) == 1 else f"{len(gone)} sizes"
            missing.append(f"{sweep.op} of {sizes} was measured then, and is not now.")
        for point in sweep.points:
            if point.size in times:
                change = _time(_sized(sweep.op, point.size), point.time, times[point.size], since)
                changes.append(attrs.evolve(change, op=sweep.op, size=point.size))
    return Changes(tuple(changes), since, tuple(missing), tuple(_wrong(now, before, since)))


def _wrong(now: Measurement, before: Measurement, since: str) -> Iterator[str]:
    """Wrong results now, and whether that is new."""
    for sweep in now.sweeps:
        wrong = {point.size: point.wrong for point in sweep.points if point.wrong}
        if not wrong:
            continue
        where = sweep.op
        if sweep.op != "barrier":
            where += f" of {size_label(min(wrong))}"
            where += f" to {size_label(max(wrong))}" if len(wrong) > 1 else ""
        old = before.sweep(sweep.op)
        then = None if old is None else sum(point.wrong for point in old.points)
        told = "not measured then" if then is None else f"{then:,} then"
        new = f"new {since}, {told}" if not then else told
        yield f"WRONG RESULTS: {where} gave {sum(wrong.values()):,} wrong results ({new})."


def check_comparable(now: Measurement, before: Measurement) -> None:
    """Raise UsageError when two measurements cannot be compared: see `compare`."""
    if now.simulated:
        raise UsageError(
            f"Simulated hosts have no baseline: {now.simulated}.",
            why="nothing was measured on them",
            do="compare what was measured: %measure --against FILE on a running cluster",
        )
    check_measured_on(before, now.backend, [rank.host for rank in now.ranks])
    then, later = _moment(before.taken), _moment(now.taken)
    # A time without a zone is one of here.
    if then is not None and later is not None and then.astimezone() > later.astimezone():
        raise UsageError(
            "The baseline is the newer of the two measurements.",
            why=f"it was taken at {before.taken}, and the other one at {now.taken}",
            do="exchange them: %measure --load NEWER --against OLDER, or compare(newer, older)",
        )


def check_measured_on(found: Measurement, backend: str, hosts: Sequence[str]) -> None:
    """Raise UsageError unless it was measured on these hosts, one name for each rank.

    A host "" is one that is not known. macOS adds ".local" to its name, or not, as the network has
    it: that makes no difference.
    """
    if found.simulated:
        raise UsageError(
            f"This was simulated, and not measured: {found.simulated}.",
            why="figures of hosts that need not exist say nothing of these",
            do="measure these, and keep that: %measure --save FILE",
        )
    there = [rank.host.removesuffix(".local") for rank in found.ranks]
    here = [host.removesuffix(".local") for host in hosts]
    if len(there) == len(here):
        here = [new or old for old, new in zip(there, here, strict=True)]
    for what, old, new in (
        ("ranks", str(len(there)), str(len(here))),
        ("backends", found.backend, backend),
        ("hosts", ", ".join(there), ", ".join(here)),
    ):
        if old != new:
            raise UsageError(
                f"The measurement is of other {what}: {old} there, {new} here.",
                why="it was taken on another cluster, or with the ranks in another order",
                do="measure these, and keep that: %measure --save FILE",
            )


def _pair(name: str, old: Pair, new: Pair, since: str) -> Iterator[Change]:
    yield _time(f"latency of {name}", old.latency, new.latency, since)
    both = (
        _rate(name, old.forward, new.forward, since),
        _rate(name, old.backward, new.backward, since),
    )
    if all(each.real for each in both) and both[0].part * both[1].part > 0:
        # One sentence for both directions, about the one that changed more.
        yield max(both, key=lambda each: each.distance)
    else:
        for (source, target), change in zip(((old.a, old.b), (old.b, old.a)), both, strict=True):
            way = f"from rank {source} to rank {target}"
            text = change.text.replace(name, f"{name}, {way},", 1)
            yield attrs.evolve(change, what=f"{change.what} {way}", text=text)
    if old.crowded is not None and new.crowded is not None:
        change = _rate(name, old.crowded, new.crowded, since)
        text = change.text.replace("its bandwidth", "its bandwidth while all pairs send", 1)
        # A link that is slower alone is so with others, too: that is one sentence.
        if any(
            each.real and each.part * change.part > 0 and change.distance < each.distance + LOSS
            for each in both
        ):
            text = ""
        yield attrs.evolve(change, what=f"{change.what} while all pairs send", text=text)


def _rate(name: str, old: Rate, new: Rate, since: str) -> Change:
    what = f"bandwidth of {name}"
    if not (old.p50 > 0 and new.p50 > 0):
        return Change(what, old.p50, new.p50, 0.0, False)
    part = new.p50 / old.p50 - 1
    real = abs(part) > LOSS and (new.p95 < old.p5 or new.p5 > old.p95)
    verb = "lost" if part < 0 else "gained"
    text = (
        f"{name} {verb} {abs(100 * part):.0f} % of its bandwidth {since}: "
        f"{rate_text(old.p50)} then, {rate_text(new.p50)} now."
    )
    return Change(what, old.p50, new.p50, part, real, text)


def _time(what: str, old: Timing, new: Timing, since: str) -> Change:
    if not (old.p50 > 0 and new.p50 > 0):
        return Change(what, old.p50, new.p50, 0.0, False)
    part = 1 - new.p50 / old.p50
    real = abs(part) > LOSS and (new.p5 > old.p95 or new.p95 < old.p5)
    name = what.replace("latency", "Latency", 1)
    text = (
        f"{name} {_takes(old.p50, new.p50)} {since}: {time_text(old.p50)} then, "
        f"{time_text(new.p50)} now."
    )
    return Change(what, old.p50, new.p50, part, real, text)


def _takes(old: float, new: float, most: str = "") -> str:
    if new > old:
        return f"is {most}{new / old:.1f} times as long"
    return f"is {most}{100 * (1 - new / old):.0f} % shorter"


def _sized(op: str, size: int) -> str:
    return op if op == "barrier" else f"{op} of {size_label(size)}"


def _name(found: Measurement, pair: Pair, names: Mapping[tuple[int, int], str]) -> str:
    """ "en4-en5 (ranks 0-1)": several links may have ports of the same names."""
    ranks = f"ranks {pair.a}-{pair.b}"
    hosts = found.ranks[pair.a].host, found.ranks[pair.b].host
    name = names.get((pair.a, pair.b)) or ("-".join(hosts) if hosts[0] != hosts[1] else "")
    return f"{name} ({ranks})" if name else ranks


def _figure(what: str, value: float) -> str:
    return rate_text(value) if what.startswith("bandwidth") else time_text(value)


def _moment(taken: str) -> datetime | None:
    try:
        return datetime.fromisoformat(taken)
    except ValueError:
        return None


def _day(taken: str) -> date | None:
    moment = _moment(taken)
    return None if moment is None else moment.date()


def _since(taken: str, today: date | None) -> str:
    """ "since Tuesday", "since 2026-10-02", "since today, 14:05"; "since then" if nobody knows."""
    then = _moment(taken)
    if then is None:
        return "since then"
    days = -1 if today is None else (today - then.date()).days
    if days == 0:
        return f"since today, {then:%H:%M}"
    if days == 1:
        return "since yesterday"
    if 1 < days <= WEEK:
        return f"since {then:%A}"
    return f"since {then.date().isoformat()}"
