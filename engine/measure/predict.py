"""What a sum ought to take on a ring and on a mesh, from the links that were measured."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from .cost import crossover, steps
from .fit import Fit
from .record import Measurement

SHAPES = ("ring", "mesh")


@attrs.frozen
class Expected:
    """Seconds of an all_sum of each of `sizes` bytes, on a ring and on a mesh.

    `crossing` is the size in bytes from which on the ring is faster, None when it never is.
    """

    sizes: tuple[int, ...]
    ring: tuple[float, ...]
    mesh: tuple[float, ...]
    crossing: float | None
    link: Fit


def expected(found: Measurement, sizes: Sequence[int] | None = None) -> Expected | None:
    """From the slowest line of those that were fitted: a collective waits for the slowest link.

    A line of MLX's own send and recv counts before those of plain sockets. The formulas are those
    of `cost`, with one cable between two ranks that nobody else uses. None for less than three
    ranks, where both are the same, and without a line that is a good one.
    """
    pairs = [each for each in found.pairs if each.fit is not None and each.fit.good]
    native = [each for each in pairs if each.via != "tcp"]
    lines = [each.fit for each in native or pairs if each.fit is not None]
    if found.size < 3 or not lines:
        return None
    sweep = found.sweep("all_sum")
    if sizes is None:
        sizes = [] if sweep is None else [point.size for point in sweep.points]
    largest = max(sizes, default=1 << 20)
    link = max(lines, key=lambda line: line.time(largest))
    times = {
        shape: tuple(
            steps("all_sum", size, found.size, shape).time(link.latency, link.bandwidth)
            for size in sizes
        )
        for shape in SHAPES
    }
    crossing = crossover(link, found.size)
    return Expected(tuple(sizes), times["ring"], times["mesh"], crossing, link)
