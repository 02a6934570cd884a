"""What has changed since another measurement of the same ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, datetime

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
    differ by more than LOSS and the ranges between the 5th and the 95th percentile are apart.
    """

    what: str
    before: float
    now: float
    part: float
    real: bool
    text: str = ""


@attrs.frozen(repr=False)
class Changes:
    """All figures that both measurements have. `since` says in words when the first was taken."""

    changes: tuple[Change, ...]
    since: str
    missing: tuple[str, ...] = ()

    @property
    def worse(self) -> tuple[Change, ...]:
        """What got worse, the worst first."""
        return tuple(
            sorted((each for each in self.changes if each.real and each.part < 0),
                   key=lambda each: each.part)
        )  # fmt: skip

    @property
    def better(self) -> tuple[Change, ...]:
        """What got better, the best first."""
        return tuple(
            sorted((each for each in self.changes if each.real and each.part > 0),
                   key=lambda each: -each.part)
        )  # fmt: skip

    @property
    def sentences(self) -> list[str]:
        """What has changed, the worst first; one sentence when nothing has."""
        said = [each.text for each in (*self.worse, *self.better)] + list(self.missing)
        count = len(self.changes)
        return said or [f"Nothing has changed {self.since}: {count} figures are what they were."]

    def table(self) -> Table:
        """Every change that is one."""
        rows = [
            (each.what, _figure(each.what, each.before), _figure(each.what, each.now),
             f"{100 * (each.now / each.before - 1):+.0f} %")
            for each in (*self.worse, *self.better)
        ]  # fmt: skip
        return Table(
            ("figure", "then", "now", "change"), rows, right=(1, 2, 3), empty=self.sentences[0]
        )

    def __repr__(self) -> str:
        return "\n".join([*self.sentences, "", self.table().text()])

    def _repr_html_(self) -> str:
        return "<br>".join(self.sentences) + self.table()._repr_html_()


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
        names: what to call the link between two ranks, such as {(0, 1): "en4-en5"}; otherwise
            the ranks and their hosts are named.
        today: for "since Tuesday"; the date of `now` otherwise.

    Raises:
        UsageError: when they are of different ranks, hosts or backends, or one is simulated.
    """
    _check_same(now, before)
    since = _since(before.taken, today or _day(now.taken))
    changes: list[Change] = []
    missing: list[str] = []
    for old in before.pairs:
        name = (names or {}).get((old.a, old.b)) or _name(before, old)
        name += " (plain TCP)" if old.via == "tcp" else ""
        found = [
            each for each in now.pairs if (each.a, each.b, each.via) == (old.a, old.b, old.via)
        ]
        if not found:
            missing.append(f"{name} was measured {since}, and is not now.")
            continue
        changes += _pair(name, old, found[0], since)
    for sweep in before.sweeps:
        newer = now.sweep(sweep.op)
        times = {} if newer is None else {point.size: point.time for point in newer.points}
        for point in sweep.points:
            if point.size in times:
                what = (
                    sweep.op if sweep.op == "barrier" else f"{sweep.op} of {size_label(point.size)}"
                )
                changes.append(_time(what, point.time, times[point.size], since))
    return Changes(tuple(changes), since, tuple(missing))


def _check_same(now: Measurement, before: Measurement) -> None:
    if now.simulated or before.simulated:
        raise UsageError(
            "A simulation is no baseline.",
            why="nothing was measured in it",
            do="measure, and save that: %measure --save FILE",
        )
    for what, old, new in (
        ("ranks", before.size, now.size),
        ("backends", before.backend, now.backend),
        ("hosts", [rank.host for rank in before.ranks], [rank.host for rank in now.ranks]),
    ):
        if old != new:
            raise UsageError(
                f"The two measurements are of different {what}: {old} then, {new} now.",
                why="the baseline was taken on another cluster, or in another order",
                do="take a new baseline: %measure --save FILE",
            )


def _pair(name: str, old: Pair, new: Pair, since: str) -> Iterator[Change]:
    yield _time(f"latency of {name}", old.latency, new.latency, since)
    both = (
        _rate(name, old.forward, new.forward, since),
        _rate(name, old.backward, new.backward, since),
    )
    if all(each.real for each in both) and both[0].part * both[1].part > 0:
        # One sentence for both directions, about the worse one.
        yield min(both, key=lambda each: each.part)
        return
    for (source, target), change in zip(((old.a, old.b), (old.b, old.a)), both, strict=True):
        what = f"bandwidth of {name} from rank {source} to rank {target}"
        yield attrs.evolve(
            change,
            what=what,
            text=change.text.replace(name, f"{name}, from rank {source} to rank {target},", 1),
        )


def _rate(name: str, old: Rate, new: Rate, since: str) -> Change:
    part = new.p50 / old.p50 - 1
    real = abs(part) > LOSS and (new.p95 < old.p5 or new.p5 > old.p95)
    verb = "lost" if part < 0 else "gained"
    text = (
        f"{name} {verb} {abs(100 * part):.0f} % of its bandwidth {since}: "
        f"{rate_text(old.p50)} then, {rate_text(new.p50)} now."
    )
    return Change(f"bandwidth of {name}", old.p50, new.p50, part, real, text)


def _time(what: str, old: Timing, new: Timing, since: str) -> Change:
    part = 1 - new.p50 / old.p50
    real = abs(new.p50 / old.p50 - 1) > LOSS and (new.p5 > old.p95 or new.p95 < old.p5)
    how = f"{new.p50 / old.p50:.1f} times as long" if part < 0 else f"{100 * part:.0f} % less"
    name = what.replace("latency", "Latency", 1)
    text = f"{name} is {how} {since}: {time_text(old.p50)} then, {time_text(new.p50)} now."
    return Change(what, old.p50, new.p50, part, real, text)


def _name(found: Measurement, pair: Pair) -> str:
    hosts = found.ranks[pair.a].host, found.ranks[pair.b].host
    if hosts[0] == hosts[1]:
        return f"ranks {pair.a}-{pair.b}"
    return f"{hosts[0]}-{hosts[1]} (ranks {pair.a}-{pair.b})"


def _figure(what: str, value: float) -> str:
    return rate_text(value) if what.startswith("bandwidth") else time_text(value)


def _day(taken: str) -> date:
    return datetime.fromisoformat(taken).date()


def _since(taken: str, today: date) -> str:
    """ "since Tuesday", "since 2026-10-02", "since today, 14:05"."""
    then = datetime.fromisoformat(taken)
    days = (today - then.date()).days
    if days == 0:
        return f"since today, {then:%H:%M}"
    if days == 1:
        return "since yesterday"
    if 1 < days <= WEEK:
        return f"since {then:%A}"
    return f"since {then.date().isoformat()}"
