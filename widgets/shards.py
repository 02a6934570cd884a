"""The sharding map as a picture: layers × ranks, and the memory of each rank.

Everything is laid out here, once. `shards.js` puts the same shapes on the page, where they can be
walked through, and `static_svg` writes them into the saved notebook.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

import anywidget
import attrs
import traitlets

from ..engine.models.shards import Piece, Place, Room, ShardMap
from ..engine.units import bytes_text
from .picture import figure, number, script

# All lengths in pixels.
LEFT = 58  # for the names of the ranks
TOP = 34  # for the title of the columns and the numbers of the layers
GRID = 600  # for the layers
WIDEST, NARROWEST = 64, 4  # a layer
OUTSIDE = 26  # the columns before and behind the layers
UPPER, LOWER, GAP = 11, 16, 1  # the two bands of a cell
ROW = 38
BAR, BAR_HEIGHT = 230, 12
LEGEND = 640  # at least, for the legend
LEGEND_LINE = 20

FAR = 0.02  # of its limit: with less, a bar to scale would show nothing

HOLDINGS = {
    "split": "split: every rank has a slice of it",
    "experts-split": "split experts: a slice of each",
    "whole": "whole, on this rank only",
    "experts-whole": "whole experts, on this rank only",
    "copy": "replicated: the same on several ranks",
    "none": "another rank has it",
}
WORDS = {
    "split": "a slice",
    "whole": "whole, here only",
    "copy": "replicated",
    "none": "on another rank",
}
# Colours that can be told apart by people who see few of them, on white and on black.
COLOURS = {
    "split": "#2f6fd0",
    "experts-split": "#8a4fc7",
    "experts-thin": "#8a4fc7",
    "whole": "#128a7d",
    "experts-whole": "#8a4fc7",
    "copy": "#d08a1d",
    "none": "#8b949e",
    "cache": "#6e7781",
    "room": "#8b949e",
    "text": "#24292f",
    "faint": "#57606a",
}

Shape = list[Any]  # [class, x, y, width, height]
Text = list[Any]  # [class, x, y, anchor, words]


@attrs.define
class Scene:
    """What is drawn: plain values, as the page gets them.

    `rows` are {"label", "cells"}; a cell is {"label", "detail", "x", "y", "w", "h", "shapes"}.
    """

    width: float
    height: float
    label: str
    texts: list[Text]
    shapes: list[Shape]
    rows: list[dict[str, Any]]


def scene(shown: ShardMap) -> Scene:
    """Lay out the picture of a map."""
    places = shown.places()
    columns, right = _columns(places)
    totals = shown.totals()
    texts: list[Text] = list(_headings(places, columns))
    rows = []
    used: set[str] = set()
    full = _fullest(shown)
    for rank in range(shown.size):
        top = TOP + rank * ROW
        texts.append(["text", LEFT - 8, top + 19, "end", f"rank {rank}"])
        cells = []
        for place, (x, width) in zip(places, columns, strict=True):
            cell = _cell(place, rank, shown.size, x, top, width)
            used.update(shape[0].removesuffix("-tint") for shape in cell["shapes"])
            cells.append(cell)
        room = shown.rooms[rank] if shown.rooms else Room()
        bar = _bar(places, rank, totals[rank], room, full, right, top)
        used.update(shape[0] for shape in bar["shapes"])
        texts.append(["small", right, top + 27, "start", bar.pop("words")])
        cells.append(bar)
        rows.append({"label": f"rank {rank}", "cells": cells})
    bottom = TOP + shown.size * ROW + 8
    shapes: list[Shape] = []
    height = _legend(shown, used, _split_bands(places), bottom, texts, shapes, right + BAR)
    texts.append(["small", right, TOP - 10, "start", _bar_heading(shown)])
    label = f"{shown.title}. {shown.size} ranks, {sum(p.layer is not None for p in places)} layers."
    return Scene(max(right + BAR, LEFT + LEGEND) + 6, height, label, texts, shapes, rows)


def _columns(places: Sequence[Place]) -> tuple[list[tuple[float, float]], float]:
    """(x, width) of each place, and where the bars begin."""
    layers = sum(place.layer is not None for place in places)
    pitch = max(NARROWEST, min(WIDEST, GRID // max(layers, 1)))
    columns: list[tuple[float, float]] = []
    x = float(LEFT)
    for before, place in zip([None, *places], places, strict=False):
        if before is not None and (before.layer is None) != (place.layer is None):
            x += 5
        step = OUTSIDE if place.layer is None else pitch
        columns.append((x, step - (1 if pitch < 8 else 2)))
        x += step
    return columns, x + 18


def _headings(places: Sequence[Place], columns: Sequence[tuple[float, float]]) -> Iterator[Text]:
    layers = [
        (place.layer, x, width)
        for place, (x, width) in zip(places, columns, strict=True)
        if place.layer is not None
    ]
    for place, (x, width) in zip(places, columns, strict=True):
        if place.layer is None:
            word = "in" if layers and x < layers[0][1] else "out"
            yield ["small", x + width / 2, TOP - 10, "middle", word]
    if not layers:
        return
    first, last = layers[0][1], layers[-1][1] + layers[-1][2]
    yield ["text", (first + last) / 2, 10, "middle", f"{len(layers)} layers"]
    step = next(n for n in (1, 2, 5, 10, 20, 50, 100) if n * (layers[0][2] + 1) >= 18)
    for layer, x, width in layers:
        if layer % step == 0:
            yield ["small", x + width / 2, TOP - 10, "middle", str(layer)]


# -- cells -----------------------------------------------------------------------------------------


def _kind(piece: Piece) -> str:
    if piece.family == "experts" and piece.holding in ("split", "whole"):
        return f"experts-{piece.holding}"
    return piece.holding


def _bands(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces that a cell shows: what mixes tokens above, the feed-forward part below.

    Experts speak for their layer, of others the largest; norms only where there is nothing else.
    """
    upper = [piece for piece in pieces if piece.family in ("attention", "other")]
    lower = [piece for piece in pieces if piece.family in ("MLP", "experts")]
    found = [max(each, key=_weight) for each in (upper, lower) if each]
    return found or [max(pieces, key=_weight)]


def _weight(piece: Piece) -> tuple[bool, int]:
    return piece.family == "experts", piece.bytes


def _split_bands(places: Sequence[Place]) -> bool:
    return any(len(_bands(pieces)) > 1 for place in places for pieces in place.pieces if pieces)


def _cell(place: Place, rank: int, size: int, x: float, top: float, width: float) -> dict[str, Any]:
    pieces = place.pieces[rank]
    bands = _bands(pieces) if pieces else [Piece("other", "none", 0, "")]
    heights = [UPPER, LOWER] if len(bands) > 1 else [UPPER + GAP + LOWER]
    shapes, y = [], top
    if all(band.holding == "none" for band in bands):
        shapes.append(["none", x, top, width, UPPER + GAP + LOWER])
        bands = []
    for band, height in zip(bands, heights, strict=False):
        shapes += _band(band, rank, size, x, y, width, height)
        y += height + GAP
    total = sum(piece.bytes for piece in pieces)
    label = f"{place.label}, rank {rank}: {bytes_text(total) if total else 'on another rank'}"
    detail = "; ".join(_said(piece, place, size) for piece in pieces if piece.bytes)
    return {
        "label": label,
        "detail": detail,
        "x": x,
        "y": top,
        "w": width,
        "h": UPPER + GAP + LOWER,
        "shapes": shapes,
    }


def _band(
    piece: Piece, rank: int, size: int, x: float, y: float, width: float, height: float
) -> Iterator[Shape]:
    kind = _kind(piece)
    if piece.holding == "none":
        yield ["none", x, y, width, height]
    elif piece.holding == "split":
        # The slice that this rank has, in its place.
        yield [f"{kind}-tint", x, y, width, height]
        share = max(width / size, min(2.0, width))
        start = x + (width - share) * rank / max(size - 1, 1)
        # A pattern would leave some of the narrow ones with a dot, and some without.
        drawn = "experts-thin" if kind == "experts-split" and share < 4 else kind
        yield [drawn, round(start, 2), y, round(share, 2), height]
    else:
        yield [kind, x, y, width, height]


def _said(piece: Piece, place: Place, size: int) -> str:
    """A piece in words: "attention 1.2 MB, a slice (axis 0)"."""
    what = "" if place.layer is None else f"{piece.family} {bytes_text(piece.bytes)}"
    how = WORDS[piece.holding] if size > 1 else ""
    if piece.holding == "split" or "," in piece.split:
        # A whole bias beside a split weight, and the like.
        mostly = "mostly " if "whole" in piece.split else ""
        how = f"{mostly}{how} ({piece.split})"
    return ", ".join(part for part in (what, how) if part)


# -- memory ----------------------------------------------------------------------------------------


def _needs(shown: ShardMap) -> list[int]:
    rooms = shown.rooms or (Room(),) * shown.size
    return [total + (room.cache or 0) for total, room in zip(shown.totals(), rooms, strict=True)]


def _fullest(shown: ShardMap) -> int:
    """The bytes that a whole bar stands for."""
    need = max(_needs(shown))
    limits = [room.limit for room in shown.rooms if room.limit is not None]
    most = max(limits, default=0)
    return max(most, need) if need >= FAR * most else round(1.25 * need)


def _bar_heading(shown: ShardMap) -> str:
    parts = "weights"
    if any(room.cache is not None for room in shown.rooms):
        parts += " + cache"
    if any(room.limit is not None for room in shown.rooms):
        parts += " · left"
    return f"memory: {parts}"


def _bar(
    places: Sequence[Place], rank: int, weights: int, room: Room, full: int, x: float, top: float
) -> dict[str, Any]:
    by_kind: dict[str, int] = {}
    for place in places:
        for piece in place.pieces[rank]:
            if piece.bytes:
                by_kind[_kind(piece)] = by_kind.get(_kind(piece), 0) + piece.bytes
    order = [kind for kind in HOLDINGS if kind in by_kind]
    scale = BAR / max(full, 1)
    y, at, shapes = top + 2, x, []
    width = min(room.limit or full, full) * scale
    shapes.append(["room", x, y, round(width, 2), BAR_HEIGHT])
    for kind in order:
        step = by_kind[kind] * scale
        shapes.append([kind, round(at, 2), y, round(step, 2), BAR_HEIGHT])
        at += step
    if room.cache:
        shapes.append(["cache", round(at, 2), y, round(room.cache * scale, 2), BAR_HEIGHT])
    words = bytes_text(weights)
    label = f"memory of rank {rank}: {bytes_text(weights)} of weights"
    if room.cache is not None:
        words += f" + {bytes_text(room.cache)}"
        label += f", {bytes_text(room.cache)} of cache"
    detail = ""
    if room.limit is not None:
        left = room.limit - weights - (room.cache or 0)
        words += f" · {bytes_text(left)} left" if left >= 0 else f" · {bytes_text(-left)} too much"
        label += (
            f", {bytes_text(left)} left" if left >= 0 else f", {bytes_text(-left)} more than it has"
        )
        detail = f"of {bytes_text(room.limit)}" + (f", {room.of}" if room.of else "")
    return {
        "label": label,
        "detail": detail,
        "words": words,
        "x": x,
        "y": top,
        "w": BAR,
        "h": UPPER + GAP + LOWER,
        "shapes": shapes,
    }


# -- legend ----------------------------------------------------------------------------------------


def _legend(
    shown: ShardMap,
    used: set[str],
    two_bands: bool,
    y: float,
    texts: list[Text],
    shapes: list[Shape],
    width: float,
) -> float:
    """Explain what occurs, below the grid. Returns where it ends."""
    entries = [(kind, words) for kind, words in HOLDINGS.items() if kind in used]
    if any(room.cache for room in shown.rooms):
        entries.append(("cache", f"cache of {shown.context:,} tokens"))
    if any(room.limit is not None for room in shown.rooms):
        entries.append(("room", "headroom"))
    x = float(LEFT)
    for kind, words in entries:
        step = 20 + 5.4 * len(words) + 20
        if x + step > max(width, LEFT + LEGEND) and x > LEFT:
            x, y = float(LEFT), y + LEGEND_LINE
        if kind in ("split", "experts-split"):
            shapes.append([f"{kind}-tint", x, y, 14, 12])
            shapes.append([kind, x, y, 5, 12])
        else:
            shapes.append([kind, x, y, 14, 12])
        texts.append(["small", x + 20, y + 10, "start", words])
        x += step
    y += LEGEND_LINE
    notes = ["in each cell: attention above, MLP or experts below"] if two_bands else []
    full, limits = _fullest(shown), [room.limit for room in shown.rooms if room.limit is not None]
    if limits and max(limits) > full:
        # The bars are drawn to another scale than the limit, which must not stay unsaid.
        notes.append(f"a whole bar is {bytes_text(full)}")
    if notes:
        texts.append(["small", LEFT, y + 10, "start", "; ".join(notes)])
        y += LEGEND_LINE
    return y + 2


# -- the saved picture -----------------------------------------------------------------------------


def static_svg(drawn: Scene, title: str) -> str:
    """The picture as a file of its own, on white: it cannot know the colours of the page."""
    by_class: dict[str, list[Shape]] = {}
    for shape in [
        *drawn.shapes,
        *(shape for row in drawn.rows for cell in row["cells"] for shape in cell["shapes"]),
    ]:
        by_class.setdefault(shape[0], []).append(shape)
    # What lies below comes first: tints and rooms, then slices.
    order = sorted(by_class, key=lambda kind: not (kind.endswith("-tint") or kind == "room"))
    paths = "".join(_path(kind, by_class[kind]) for kind in order)
    words = "".join(
        f'<text x="{number(x)}" y="{number(y + 24)}" text-anchor="{anchor}" '
        f'font-size="{12 if kind == "text" else 10.5}" '
        f'fill="{COLOURS["text" if kind == "text" else "faint"]}">{html.escape(text)}</text>'
        for kind, x, y, anchor, text in drawn.texts
    )
    width, height = number(drawn.width), number(drawn.height + 24)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui,sans-serif">'
        f"<title>{html.escape(drawn.label)}</title><defs>{_patterns()}</defs>"
        f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>'
        f'<text x="8" y="17" font-size="12" font-weight="600" fill="{COLOURS["text"]}">'
        f"{html.escape(title)}</text>"
        f'<g transform="translate(0 24)">{paths}</g>{words}</svg>'
    )


def _patterns() -> str:
    copy, white = COLOURS["copy"], 'stroke="#fff" stroke-width="1.2"'
    experts, cache = COLOURS["experts-split"], COLOURS["cache"]
    return (
        '<pattern id="copy" width="4" height="4" patternUnits="userSpaceOnUse">'
        f'<rect width="4" height="4" fill="{copy}"/><path d="M0 2H4" {white}/></pattern>'
        '<pattern id="experts" width="4" height="4" patternUnits="userSpaceOnUse">'
        f'<rect width="4" height="4" fill="{experts}"/><circle cx="2" cy="2" r=".8" fill="#fff"/>'
        "</pattern>"
        '<pattern id="cache" width="5" height="5" patternUnits="userSpaceOnUse">'
        f'<rect width="5" height="5" fill="#fff"/><path d="M-1 6L6 -1" stroke="{cache}" '
        'stroke-width="1.6"/></pattern>'
    )


def _path(kind: str, shapes: Sequence[Shape]) -> str:
    """All shapes of a kind as one path, which keeps the notebook small."""
    base = kind.removesuffix("-tint")
    colour = COLOURS[base]
    d = "".join(
        f"M{number(x)} {number(y)}h{number(w)}v{number(h)}h-{number(w)}z"
        for _, x, y, w, h in shapes
    )
    if kind.endswith("-tint"):
        return f'<path d="{d}" fill="{colour}" fill-opacity=".22"/>'
    if kind in ("none", "room"):
        return f'<path d="{d}" fill="none" stroke="{colour}" stroke-opacity=".45"/>'
    fills = {"copy": "copy", "experts-whole": "experts", "experts-split": "experts",
             "cache": "cache"}  # fmt: skip
    return f'<path d="{d}" fill="{f"url(#{fills[kind]})" if kind in fills else colour}"/>'


def traits(shown: ShardMap) -> dict[str, Any]:
    """What a page gets of a map: the traits of a ShardView."""
    return {"scene": attrs.asdict(scene(shown)), "title": shown.title}


class ShardView(anywidget.AnyWidget):
    """The sharding map in a notebook. `map` is the map itself, for programs."""

    _esm = script("dom.js", "shards.js")
    scene = traitlets.Dict().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)

    def __init__(self, map: ShardMap) -> None:  # noqa: A002 - what it is called everywhere
        self.map = map
        super().__init__(**traits(map))

    def __repr__(self) -> str:
        return repr(self.map)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        found = super()._repr_mimebundle_(**kwargs)
        if found is None:
            return None
        # What is left when the kernel is gone: a picture, and the table.
        drawn = Scene(**self.scene)
        found[0]["text/plain"] = repr(self.map)
        picture = figure(static_svg(drawn, self.title), drawn.label)
        found[0]["text/html"] = picture + self.map._repr_html_()
        return found
