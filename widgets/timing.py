"""Where the time of a token goes, as a picture: compute, wait and wire of each rank."""

from __future__ import annotations

import math
from typing import Any

import anywidget
import attrs
import traitlets

from ..engine.models.timing import PARTS, RankTime, TokenTime
from .picture import Picture, legend, saved, script

# All lengths in pixels.
LEFT = 76  # for the names of the ranks
TOP = 34
BAR, BAR_HEIGHT = 430, 12
ROW = 36
LANE = 4  # for a whisker
COLUMN = 104  # of numbers
MEANINGS = {
    "compute": "compute: between two collectives",
    "wait": "wait: for the other ranks",
    "wire": "wire: the collectives themselves",
}


def scene(found: TokenTime) -> Picture:
    """Lay out the picture of what was measured."""
    right = LEFT + BAR + 26
    width = right + len(PARTS) * COLUMN
    drawn = Picture(width, 0, _label(found), [], [])
    most = max(_ends(each)[-1] for each in found.ranks)
    bottom = TOP + ROW * len(found.ranks)
    step = _step(1e3 * most)
    full = step * math.ceil(1e3 * most / step)
    scale = BAR / full * 1e3  # pixels a second
    for number in range(round(full / step) + 1):
        x = LEFT + number * step / full * BAR
        words = f"{number * step:.4g}" + (" ms" if (number + 1) * step > full else "")
        drawn.texts.append(("small", x, TOP - 12, "middle", words))
        drawn.shapes.append(("tick", round(x - 0.5, 1), TOP - 7, 1, bottom - TOP + 4))
    for index, part in enumerate(PARTS):
        drawn.texts.append(
            ("small", right + (index + 1) * COLUMN - 8, TOP - 12, "end", f"{part}, ms")
        )
    for row, each in enumerate(found.ranks):
        _rank(each, TOP + row * ROW, scale, right, found.straggler == each.rank, drawn)
    entries = list(MEANINGS.items())
    legend(entries, LEFT, bottom + 8, drawn)
    drawn.texts.append(
        ("small", LEFT, bottom + 37, "start", "medians; the lines below: to the 90th percentile")
    )
    drawn.height = bottom + 46
    return drawn


def _ends(each: RankTime) -> list[float]:
    """How far what is drawn of a rank reaches, in seconds; the farthest last."""
    at, ends = 0.0, []
    for part in PARTS:
        median, high = getattr(each, part)
        at += median
        ends.append(at + max(high - median, 0.0))
    return sorted(ends)


def _step(most: float) -> float:
    """A round number of milliseconds, of which four to eight or so make a bar."""
    size = 10.0 ** math.floor(math.log10(max(most, 1e-6)))
    return next(n * size for n in (0.1, 0.2, 0.5, 1, 2) if most / (n * size) <= 8)


def _rank(
    each: RankTime, top: float, scale: float, right: float, late: bool, drawn: Picture
) -> None:
    drawn.texts.append(("text", LEFT - 8, top + 11, "end", f"rank {each.rank}"))
    at = float(LEFT)
    for index, part in enumerate(PARTS):
        median, high = getattr(each, part)
        width = median * scale
        drawn.shapes.append((part, round(at, 2), top, round(width, 2), BAR_HEIGHT))
        at += width
        reach = round((high - median) * scale, 2)
        if reach >= 1:
            # A lane for each: whiskers on a stacked bar would hide one another.
            y = top + BAR_HEIGHT + 3 + index * LANE
            drawn.shapes.append(("whisker", round(at, 2), y, reach, 1))
            drawn.shapes.append(("whisker", round(at + reach - 1, 2), y - 1.5, 1, 4))
        number = f"{1e3 * median:.2f} ({1e3 * high:.2f})"
        kind = "strong" if late and part == "compute" else "text"
        drawn.texts.append((kind, right + (index + 1) * COLUMN - 8, top + 11, "end", number))
    if late:
        drawn.texts.append(("alarm", LEFT - 8, top + 25, "end", "straggler"))
        width = each.compute[0] * scale
        drawn.shapes.append(("late", LEFT - 1.5, top - 1.5, round(width + 3, 2), BAR_HEIGHT + 3))


def _label(found: TokenTime) -> str:
    """The picture in words."""
    ranks = "; ".join(
        f"rank {each.rank}: "
        + ", ".join(f"{part} {1e3 * getattr(each, part)[0]:.2f} ms" for part in PARTS)
        for each in found.ranks
    )
    slow = "" if found.straggler is None else f" Rank {found.straggler} is the straggler."
    return f"Where the time of a token goes, {found.title}. {ranks}.{slow}"


class TimeView(anywidget.AnyWidget):
    """The picture in a notebook. `time` is what was measured, for programs."""

    _esm = script("dom.js", "picture.js", "timing.js")
    scene = traitlets.Dict().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    words: Any = traitlets.List().tag(sync=True)

    def __init__(self, time: TokenTime) -> None:
        self.time = time
        self._drawn = scene(time)
        words = [f"{time.verdict[:1].upper()}{time.verdict[1:]}.", time.cost]
        super().__init__(scene=attrs.asdict(self._drawn), title=time.title, words=words)

    def __repr__(self) -> str:
        return repr(self.time)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        found = super()._repr_mimebundle_(**kwargs)
        if found is None:
            return None
        # What is left when the kernel is gone: a picture, and the table.
        found[0]["text/plain"] = repr(self.time)
        found[0]["text/html"] = saved(self._drawn, self.title) + self.time._repr_html_()
        return found
