"""What was measured, as a record: to show, to save, to compare."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from .. import records
from ..errors import UsageError
from .fit import Fit
from .samples import Rate, Timing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..topology.topology import Topology
    from .tables import Metric

FORMAT = "macluster measurement 1"
OPS = ("all_sum", "all_gather", "sendrecv", "barrier")
LEAST = 4  # bytes of the smallest collective
# What takes seconds, and says whether the wires are well.
QUICK = {"ops": ("all_sum", "barrier"), "most": 1 << 20}
QUICK_HELP = "all_sum up to 1MiB, a barrier, and the links"


@attrs.frozen
class Point:
    """One size of a curve: `size` bytes took `time`."""

    size: int
    time: Timing


@attrs.frozen
class Pair:
    """The way between two ranks, `a` < `b`.

    `via` says what carried the bytes: "ring", "jaccl", "jaccl-ring" or "mpi" are MLX's own send and
    recv, "tcp" is a plain socket between the two processes, without MLX.

    `latency` is one way, in seconds: half of the time that a message of a few bytes takes there and
    back. `forward` and `backward` are the bytes/s from a to b and from b to a, while no other pair
    sends; `crowded` those from a to b while as many disjoint pairs as possible send at once, None
    where there is no other pair. `curve` holds the one-way time by size (half of there and back),
    `fit` the line through it.
    """

    a: int
    b: int
    via: str
    latency: Timing
    forward: Rate
    backward: Rate
    crowded: Rate | None = None
    curve: tuple[Point, ...] = ()
    fit: Fit | None = None

    @property
    def bandwidth(self) -> float:
        """Bytes/s in the slower direction."""
        return min(self.forward.p50, self.backward.p50)


@attrs.frozen
class SweepPoint:
    """One size of a collective, in the terms of nccl-tests.

    `time` is that of the slowest rank, `algbw` = size / time and `busbw` = algbw x a factor of the
    operation, both in bytes/s of the median time; both are 0 for a barrier. `wrong` counts the
    results that were not what they should be.
    """

    size: int
    time: Timing
    algbw: float
    busbw: float
    wrong: int


@attrs.frozen
class Sweep:
    """One collective over all ranks at many sizes. `op` is one of OPS."""

    op: str
    ranks: int
    points: tuple[SweepPoint, ...]
    fit: Fit | None = None


@attrs.frozen
class MeasuredRank:
    """A rank that took part: its host's name, and what it is."""

    host: str
    device: str = ""  # "Apple M3 Ultra", "CPU"


@attrs.frozen(repr=False)
class Measurement:
    """What `measure` found, the same on every rank.

    `taken` is the time of day in ISO 8601 with its zone, `seconds` how long it took, `backend` the
    backend of the world. `simulated` describes the hosts when nothing was measured at all, but
    computed by the simulator. `notes` say what could not be measured, and why.
    """

    backend: str
    ranks: tuple[MeasuredRank, ...]
    pairs: tuple[Pair, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    taken: str = ""
    seconds: float = 0.0
    simulated: str = ""
    versions: dict[str, str] = attrs.field(factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.ranks)

    def pair(self, a: int, b: int) -> Pair | None:
        """What was measured between two ranks, in any order; MLX's own before a plain socket."""
        found = [each for each in self.pairs if {each.a, each.b} == {a, b}]
        return min(found, key=lambda each: each.via == "tcp", default=None)

    def sweep(self, op: str) -> Sweep | None:
        """The sweep of one collective."""
        return next((each for each in self.sweeps if each.op == op), None)

    # -- looking at it -----------------------------------------------------------------------------

    def __repr__(self) -> str:
        # Late: a rank that measures has no use for tables.
        from .tables import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from .tables import as_html

        return as_html(self)

    def plot(
        self,
        what: Literal["pairs", "curves", "all"] = "all",
        ax: Axes | Sequence[Axes] | None = None,
        metric: Metric = "bandwidth",
        topology: Topology | None = None,
    ) -> Figure:
        """A matplotlib figure for a paper; `macluster.engine.measure.plot.plot` says more."""
        from .plot import plot

        return plot(self, what, ax, metric, topology)

    # -- keeping it --------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """As JSON types; `from_json` reads it."""
        return records.as_json(self, FORMAT)

    @classmethod
    def from_json(cls, facts: Any) -> Measurement:
        """Raises UsageError for anything but what `as_json` writes.

        Names that a later version has added are passed over.
        """
        try:
            if not isinstance(facts, Mapping):
                raise ValueError(f"it is no object but {type(facts).__name__}")
            records.check_format(facts, FORMAT)
            found: Measurement = _read(cls, facts)
            _check(found)
        except (ValueError, OverflowError) as error:
            raise UsageError(
                "This is no measurement of macluster.",
                why=str(error),
                do="measure again: `%measure --save FILE`, or macluster.measure().save(path)",
            ) from None
        return found

    def save(self, path: str | Path) -> None:
        """Write it as JSON. Raises UsageError for a figure that JSON has not: NaN, infinity."""
        records.save(self.as_json(), path, "measurement")

    @classmethod
    def load(cls, path: str | Path) -> Measurement:
        """What `save` wrote. Raises UsageError when the file cannot be read, or is another one."""
        facts = records.load(path, "measurement", "write one: %measure --save FILE")
        return cls.from_json(facts)


def read_pair(facts: Mapping[str, Any]) -> Pair:
    """A Pair that came as JSON. Raises ValueError for anything else."""
    found: Pair = _read(Pair, facts)
    return found


def _read(record: type[Any], facts: Mapping[str, Any]) -> Any:
    found = records.structured(
        record, {key: each for key, each in facts.items() if key != "versions"}
    )
    if isinstance(found, Measurement):
        versions = facts.get("versions", {})
        if not isinstance(versions, Mapping) or not all(
            isinstance(each, str) for item in versions.items() for each in item
        ):
            raise ValueError("versions is no object of texts")
        found = attrs.evolve(found, versions=dict(versions))
    return found


def _check(found: Measurement) -> None:
    """Raise ValueError for what no measurement has."""
    if not found.ranks:
        raise ValueError("it has no ranks")
    ways = set()
    for at, pair in enumerate(found.pairs):
        if not 0 <= pair.a < pair.b < found.size:
            raise ValueError(f"pairs[{at}] is of ranks {pair.a} and {pair.b} of {found.size}")
        if (pair.a, pair.b, pair.via) in ways:
            raise ValueError(f"ranks {pair.a} and {pair.b} are there twice via {pair.via}")
        ways.add((pair.a, pair.b, pair.via))
    for at, sweep in enumerate(found.sweeps):
        if sweep.op not in OPS:
            raise ValueError(f"sweeps[{at}].op is {sweep.op!r}, none of {', '.join(OPS)}")
        if sweep.ranks != found.size:
            raise ValueError(f"sweeps[{at}] is of {sweep.ranks} ranks, not {found.size}")
        if sweep.op in [each.op for each in found.sweeps[:at]]:
            raise ValueError(f"{sweep.op} is there twice")
    for where, number in _numbers(attrs.asdict(found), ""):
        if not math.isfinite(number) or (number < 0 and not where.endswith(".r2")):
            raise ValueError(f"{where} is {number}")


def _numbers(each: Any, where: str) -> Iterator[tuple[str, float]]:
    """All numbers in it, and where they are."""
    if isinstance(each, Mapping):
        for name, part in each.items():
            yield from _numbers(part, f"{where}.{name}".lstrip("."))
    elif isinstance(each, list | tuple):
        for at, part in enumerate(each):
            yield from _numbers(part, f"{where}[{at}]")
    elif isinstance(each, int | float):
        yield where, each
