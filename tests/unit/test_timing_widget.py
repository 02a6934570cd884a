"""The picture of where a token's time goes."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from base64 import b64decode

import attrs
import pytest

from macluster.engine.models.timing import PARTS, RankTime, TokenTime, read_time
from macluster.widgets.picture import FILLS, LETTERS, OUTLINES
from macluster.widgets.plan import PlanView
from macluster.widgets.timing import BAR, LEFT, TimeView, scene


def measured(*computes: float) -> TokenTime:
    """Ranks that compute so many milliseconds of each token, and wait for the slowest."""
    slowest = max(computes)
    ranks = tuple(
        RankTime(rank, (each / 1e3, each / 9e2), ((slowest - each) / 1e3, slowest / 1e3),
                 (0.001, 0.0015), 8, 4096)
        for rank, each in enumerate(computes)
    )  # fmt: skip
    return TokenTime(ranks, 32, 0.010, 0.0125, f"toy, tensor over {len(computes)} ranks")


def test_a_time_comes_back_from_json_as_it_was() -> None:
    before = measured(4, 9)
    after = read_time(json.loads(json.dumps(before.as_json())))
    assert after == before
    assert repr(after) == repr(before)


def test_parts_are_stacked_to_scale() -> None:
    found = measured(4, 9)
    drawn = scene(found)
    by_rank = [
        [shape for shape in drawn.shapes if shape[0] in PARTS and shape[4] == 12 and shape[2] == y]
        for y in sorted({shape[2] for shape in drawn.shapes if shape[4] == 12})
    ]
    assert [[shape[0] for shape in row] for row in by_rank] == [list(PARTS)] * 2
    pixels = by_rank[1][0][3] / 0.009
    for row, each in zip(by_rank, found.ranks, strict=True):
        at = LEFT
        for shape, part in zip(row, PARTS, strict=True):
            assert shape[1] == pytest.approx(at, abs=0.05)
            assert shape[3] == pytest.approx(getattr(each, part)[0] * pixels, abs=0.05)
            at += shape[3]


def test_whiskers_reach_from_the_median_to_the_90th_percentile() -> None:
    found = measured(4, 9)
    drawn = scene(found)
    compute = next(shape for shape in drawn.shapes if shape[0] == "compute")
    whisker = next(shape for shape in drawn.shapes if shape[0] == "whisker")
    pixels = compute[3] / 0.004
    median, high = found.ranks[0].compute
    assert whisker[1] == pytest.approx(compute[1] + compute[3], abs=0.05)
    assert whisker[3] == pytest.approx((high - median) * pixels, abs=0.05)


def test_the_straggler_is_marked_and_named() -> None:
    slow = scene(measured(4, 9, 4))
    [mark] = [shape for shape in slow.shapes if shape[0] == "late"]
    alarms = [text for text in slow.texts if text[0] == "alarm"]
    assert [text[4] for text in alarms] == ["straggler"]
    [name] = [text for text in slow.texts if text[4] == "rank 1"]
    assert name[2] < alarms[0][2] < name[2] + 20
    assert mark[2] < name[2] < mark[2] + mark[4]
    assert "Rank 1 is the straggler." in slow.label
    even = scene(measured(4, 4, 4))
    assert not any(shape[0] == "late" for shape in even.shapes)
    assert not any(text[0] == "alarm" for text in even.texts)
    assert "straggler" not in even.label


def test_the_figures_stand_beside_the_bars() -> None:
    found = [text[4] for text in scene(measured(4, 9)).texts]
    assert "9.00 (10.00)" in found
    assert "5.00 (9.00)" in found
    assert found.count("1.00 (1.50)") == 2


@pytest.mark.parametrize("size", [1, 2, 8, 64])
@pytest.mark.parametrize("scale", [1e-6, 0.07, 1.0, 12_345.0])
def test_nothing_lies_outside(size: int, scale: float) -> None:
    drawn = scene(measured(*(scale * (1 + rank % 3) for rank in range(size))))
    for _, x, y, width, height in drawn.shapes:
        assert 0 <= x <= x + width <= drawn.width
        assert 0 <= y <= y + height <= drawn.height
    assert all(0 < text[2] <= drawn.height for text in drawn.texts)
    assert {text[0] for text in drawn.texts} <= set(LETTERS)
    assert {shape[0] for shape in drawn.shapes} <= set(FILLS) | set(OUTLINES)
    bars = [s for s in drawn.shapes if s[0] in (*PARTS, "whisker") and s[4] != 11]
    reach = max(shape[1] + shape[3] for shape in bars)
    # The longest fills at least half of what is there for it.
    assert LEFT + BAR / 2 <= reach <= LEFT + BAR + 0.1
    ticks = [shape for shape in drawn.shapes if shape[0] == "tick"]
    assert 3 <= len(ticks) <= 10


def test_the_saved_notebook_has_a_picture_and_a_table() -> None:
    found = measured(4, 9)
    view = TimeView(found)
    assert view.scene == attrs.asdict(scene(found))
    verdict, cost = view.words
    assert verdict.endswith(
        "rank 0 waits for rank 1, which computes 9.00 ms of each token, and it 4.00 ms."
    )
    assert cost.startswith("10.00 ms a token (100.0 tokens/s); while it was timed 12.50 ms (+25 %)")
    bundle = view._repr_mimebundle_()
    assert bundle is not None
    data = bundle[0]
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
    assert data["text/plain"] == repr(found) == repr(view)
    assert found._repr_html_() in data["text/html"]
    [encoded] = re.findall(r"base64,([^\"]+)", data["text/html"])
    root = ET.fromstring(b64decode(encoded))
    assert "straggler" in "".join(root.itertext())


@pytest.mark.parametrize("view", [PlanView, TimeView])
def test_a_page_makes_no_html_of_text_and_fetches_nothing(
    view: type[PlanView | TimeView],
) -> None:
    code = str(view._esm)
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function"
    assert re.findall(forbidden, code) == []
    # The name space of SVG is no address that is asked.
    assert set(re.findall(r"https?://[^\"']+", code)) == {"http://www.w3.org/2000/svg"}
    assert re.findall(r"\bfetch\(|\bimport\b|XMLHttpRequest", code) == []
    assert code.count("export default { render }") == 1
    assert len(code) < 20_000  # it travels with every view
