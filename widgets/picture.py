"""Pictures of bars that the views of a plan and of a token's time share.

Python lays a picture out as rectangles and texts. `picture.js` puts them on the page in the colours
of its theme, and `saved` writes the same into the notebook.
"""

from __future__ import annotations

import base64
import html
from pathlib import Path

import attrs

# All lengths in pixels.
TITLE = 24  # the line above a saved picture
SMALL_LETTER = 5.5  # about the width of a letter in small texts


def script(*names: str) -> str:
    """Files of this folder as one: anywidget takes one for each view."""
    folder = Path(__file__).parent
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


Shape = tuple[str, float, float, float, float]  # class, x, y, width, height
Text = tuple[str, float, float, str, str]  # class, x, y, anchor, words

INK, FAINT, ALARM = "#24292f", "#57606a", "#b3261e"
# Where colours are not seen, patterns tell the kinds apart.
FILLS = {
    "weights": "#2f6fd0",
    "compute": "#2f6fd0",
    "cache": "url(#hatch)",
    "wait": "url(#stripes)",
    "wire": "url(#dots)",
    "over": "url(#over)",
    "range": "#c9dbf5",
    "value": INK,
    "limit": INK,
    "whisker": INK,
    "tick": "#d8dee4",
}
OUTLINES = {"room": "#b1bac4", "over": ALARM, "late": ALARM}
PATTERNS = (
    '<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse">'
    '<rect width="5" height="5" fill="#fff"/>'
    '<path d="M-1 6L6 -1" stroke="#6e7781" stroke-width="1.6"/></pattern>'
    '<pattern id="stripes" width="4" height="4" patternUnits="userSpaceOnUse">'
    '<rect width="4" height="4" fill="#d08a1d"/>'
    '<path d="M0 2H4" stroke="#fff" stroke-width="1.2"/></pattern>'
    '<pattern id="dots" width="4" height="4" patternUnits="userSpaceOnUse">'
    '<rect width="4" height="4" fill="#128a7d"/><circle cx="2" cy="2" r=".8" fill="#fff"/>'
    "</pattern>"
    '<pattern id="over" width="6" height="6" patternUnits="userSpaceOnUse">'
    f'<rect width="6" height="6" fill="#fff"/><path d="M0 0L6 6M6 0L0 6" stroke="{ALARM}" '
    'stroke-width="1.3"/></pattern>'
)
LETTERS = {
    "text": f'font-size="12" fill="{INK}"',
    "strong": f'font-size="12" font-weight="600" fill="{INK}"',
    "small": f'font-size="10.5" fill="{FAINT}"',
    "alarm": f'font-size="10.5" font-weight="600" fill="{ALARM}"',
}


@attrs.define
class Picture:
    """What is drawn: plain values, as the page gets them. `label` is the same in words."""

    width: float
    height: float
    label: str
    texts: list[Text]
    shapes: list[Shape]


def legend(entries: list[tuple[str, str]], x: float, y: float, drawn: Picture) -> None:
    """Explain classes of shapes, in a row."""
    for kind, words in entries:
        drawn.shapes.append((kind, x, y, 14, 11))
        drawn.texts.append(("small", x + 20, y + 9.5, "start", words))
        x += 20 + SMALL_LETTER * len(words) + 18


def saved(drawn: Picture, title: str) -> str:
    """HTML of the picture for a notebook that is opened without its kernel."""
    return figure(_svg(drawn, title), drawn.label)


def figure(svg: str, label: str) -> str:
    """HTML with an SVG file in it; `label` is the same in words."""
    picture = base64.b64encode(svg.encode()).decode()
    return (
        f'<figure style="margin:0"><img alt="{html.escape(label)}" '
        f'style="max-width:100%" src="data:image/svg+xml;base64,{picture}"></figure>'
    )


def _svg(drawn: Picture, title: str) -> str:
    """A file of its own, on white: it cannot know the colours of the page."""
    shapes = "".join(
        f'<rect x="{number(x)}" y="{number(y)}" width="{number(w)}" height="{number(h)}" '
        f'fill="{FILLS.get(kind, "none")}"'
        + (f' stroke="{OUTLINES[kind]}"/>' if kind in OUTLINES else "/>")
        for kind, x, y, w, h in drawn.shapes
    )
    words = "".join(
        f'<text x="{number(x)}" y="{number(y)}" text-anchor="{anchor}" {LETTERS[kind]}>'
        f"{html.escape(text)}</text>"
        for kind, x, y, anchor, text in drawn.texts
    )
    width, height = number(drawn.width), number(drawn.height + TITLE)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui,sans-serif">'
        f"<title>{html.escape(drawn.label)}</title><defs>{PATTERNS}</defs>"
        f'<rect width="{width}" height="{height}" rx="6" fill="#fff"/>'
        f'<text x="8" y="17" {LETTERS["strong"]}>{html.escape(title)}</text>'
        f'<g transform="translate(0 {TITLE})">{shapes}{words}</g></svg>'
    )


def number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
