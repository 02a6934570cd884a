"""What was measured on running ranks, to take the place of the planner's constants."""

from __future__ import annotations

import json
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from .. import records
from ..errors import UsageError
from ..tables import Table
from .hosts import Hosts, PlannedHost

FORMAT = "macluster calibration 1"
WIDTH = 100  # characters

# Which end of what was measured a prediction takes.
Case = Literal["best", "usual", "worst"]


@attrs.frozen
class Spread:
    """A measured quantity: the median of `count` measurements, and the quartiles around it."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of two values or more."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    def speed(self, case: Case) -> float:
        """The value in this case, of a quantity of which more is better."""
        return {"best": self.high, "usual": self.median, "worst": self.low}[case]

    def time(self, case: Case) -> float:
        """The value in this case, of a quantity of which less is better."""
        return {"best": self.low, "usual": self.median, "worst": self.high}[case]

    def text(self, scale: float, unit: str = "") -> str:
        """ "11.2 GB/s (10.9-11.5)", in units of `scale`."""
        median, low, high = (_short(each / scale) for each in (self.median, self.low, self.high))
        return f"{median} {unit}".strip() + f" ({low}-{high})"


@attrs.frozen
class RankSpeed:
    """One rank's speed, while all ranks worked.

    `bandwidth` in bytes/s is how fast a matrix-vector product reads weights, `plain` the same where
    they are not quantised, as a cache is read, `layer` the seconds
    that a layer takes beyond reading them, `token` the seconds of a token outside of its layers,
    `prefill` the FLOP/s of a matrix product. `memory` is what the rank's host has for it in bytes.
    """

    host: str
    memory: int | None
    bandwidth: Spread
    plain: Spread
    layer: Spread
    token: Spread
    prefill: Spread


@attrs.frozen(repr=False)
class Measured:
    """What `calibrate` found. Give it to `plan(model, measured=...)`; `save` keeps it.

    `weights` says in which form weights were read, `architecture` of which kind the layers were,
    and `model` what was calibrated for. `latency` is the seconds of an all_sum of one token's
    hidden state of `hidden` numbers, in a chain of dependent ones; `sums` the bytes/s that one rank
    puts into a large all_sum. Both are None for one rank.
    """

    model: str
    weights: str
    architecture: str
    hidden: int
    device: str
    ranks: tuple[RankSpeed, ...]
    latency: Spread | None = None
    sums: Spread | None = None

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.ranks)

    @property
    def slowest(self) -> RankSpeed:
        """The rank that reads weights slowest."""
        return min(self.ranks, key=lambda rank: rank.bandwidth.median)

    def rank(self, rank: int, size: int) -> RankSpeed:
        """What to expect of a rank in a world of `size`: in another one, the slowest of ours."""
        return self.ranks[rank] if size == self.size else self.slowest

    def hosts(self) -> Hosts:
        """The ranks that were measured, to plan for."""
        # Only macOS keeps a part of the memory from the GPU.
        share = None if self.device == "metal" else 1.0
        found = [PlannedHost(rank.host, rank.memory, share=share) for rank in self.ranks]
        return Hosts(tuple(found))

    def said(self, size: int) -> list[str]:
        """What a plan for `size` ranks says about the figures that it took from here."""
        slow = self.slowest
        names = ", ".join(dict.fromkeys(rank.host for rank in self.ranks))
        whose = f"one rank ({names})"
        if self.size > 1:
            whose = f"{self.size} ranks ({names}), here the slowest"
        parts = [
            f"bandwidth {_quartiles(slow.bandwidth, 1e9, 'GB/s')}, reading {self.weights}",
            f"a cache {_quartiles(slow.plain, 1e9, 'GB/s')}",
            f"{_quartiles(slow.layer, 1e-6, 'us')} a layer of {self.architecture}",
            f"{_quartiles(slow.token, 1e-6, 'us')} a token besides",
            f"prompt {_quartiles(slow.prefill, 1e9, 'GFLOP/s')}",
        ]
        if self.latency is not None and size == self.size:
            latency = _quartiles(self.latency, 1e-6, "us")
            parts.append(f"all_sum of {self.hidden} numbers {latency}")
        return [f"Measured on {whose}: " + "; ".join(parts) + "."]

    # -- keeping it --------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """As JSON types. `from_json` reads it."""
        return {"format": FORMAT, **attrs.asdict(self)}

    @classmethod
    def from_json(cls, facts: Any) -> Measured:
        """Raises UsageError for anything that `to_json` did not write."""
        try:
            if facts["format"] != FORMAT:
                raise ValueError(f"its format is {facts['format']!r}, not {FORMAT!r}")
            rest = {key: value for key, value in facts.items() if key != "format"}
            ranks = tuple(RankSpeed(**_spreads(rank)) for rank in rest.pop("ranks"))
            return cls(**_spreads(rest), ranks=ranks)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                "This is no calibration of macluster.",
                why=f"{type(error).__name__}: {error}",
                do="measure it again: macluster.calibrate(model).save(path) on the ranks",
            ) from None

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).expanduser().write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Measured:
        """What `save` wrote. Raises UsageError when the file cannot be read, or is another one."""
        do = "write one: macluster.calibrate(model).save(path) on the ranks"
        return cls.from_json(records.load(path, "calibration", do))

    # -- showing it --------------------------------------------------------------------------------

    def _table(self) -> Table:
        heading = ("rank", "weights GB/s", "cache GB/s", "layer us", "besides us", "GFLOP/s")
        rows = [
            (
                f"{number}, {rank.host}",
                rank.bandwidth.text(1e9),
                rank.plain.text(1e9),
                rank.layer.text(1e-6),
                rank.token.text(1e-6),
                rank.prefill.text(1e9),
            )
            for number, rank in enumerate(self.ranks)
        ]
        title = f"{self.model}: {self.weights}, layers of {self.architecture}, on {self.device}"
        return Table(heading, rows, right=range(1, 6), title=title)

    def _ending(self) -> str:
        count = self.ranks[0].bandwidth.count
        text = f"Medians of {count}, quartiles in brackets; all ranks worked at the same time."
        if self.latency is None or self.sums is None:
            return text
        return (
            f"all_sum of {self.hidden} numbers {self.latency.text(1e-6, 'us')}, in a chain; large "
            f"ones {self.sums.text(1e9, 'GB/s')}; the sums were right.\n{text}"
        )

    def __repr__(self) -> str:
        lines = [textwrap.fill(line, WIDTH) for line in self._ending().splitlines()]
        return "\n".join([self._table().text(WIDTH), "", *lines])

    def _repr_html_(self) -> str:
        return f"{self._table()._repr_html_()}<p>{self._ending()}</p>".replace("\n", "<br>")


def _spreads(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: Spread(**value) if isinstance(value, dict) else value for name, value in facts.items()
    }


def _quartiles(spread: Spread, scale: float, unit: str) -> str:
    """ "11.2 GB/s (n=15, IQR 10.9-11.5)"."""
    median, low, high = (_short(each / scale) for each in (spread.median, spread.low, spread.high))
    return f"{median} {unit} (n={spread.count}, IQR {low}-{high})"


def _short(value: float) -> str:
    """Three digits: "1,230", "0.0493"."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def host_memory(sharing: int, on_gpu: bool) -> int | None:
    """The bytes of this machine's memory for each of the ranks that share it.

    None where models lie in a memory of their own, of which nobody here knows the size.
    """
    import psutil

    if on_gpu and sys.platform != "darwin":
        return None
    return int(psutil.virtual_memory().total) // sharing
