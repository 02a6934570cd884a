"""The view of a measurement: what the page gets, and what a saved notebook keeps."""

from __future__ import annotations

import html
import json
import random
import re
import time
import xml.etree.ElementTree as ET
import zlib
from base64 import b64decode
from itertools import pairwise

import attrs
import pytest

from macluster.engine.measure.record import MeasuredRank, Measurement, Pair
from macluster.engine.measure.samples import Timing
from macluster.engine.measure.tables import METRICS, outliers, title
from macluster.engine.topology.topology import Link, Node, Topology
from macluster.engine.units import number_text, rate_text
from macluster.widgets.measure import (
    DASHES,
    DEEP,
    MARKERS,
    NO_VALUE,
    PERIOD,
    SERIES,
    SHADES,
    Curve,
    MeasureView,
    Shading,
    cells,
    curves_svg,
    line_rate,
    matrix_svg,
    page_data,
    shade,
)
from tests.unit.test_measure_tables import measured, ring, slow

TIMEOUT = 20
PREDICTED = (Curve("ring", (4, 1 << 20), (5e-5, 2e-4)), Curve("mesh", (4, 1 << 20), (2e-5, 3e-4)))


def topology(ranks: int, rate: float | None = 80e9) -> Topology:
    links = tuple(
        Link(a, b, "rdma", negotiated=rate) for a in range(ranks) for b in range(a + 1, ranks)
    )
    return Topology(tuple(Node(rank, "host") for rank in range(ranks)), links)


# -- cells -----------------------------------------------------------------------------------------


def test_a_cell_has_the_value_from_row_to_column() -> None:
    m = slow(8)
    found = cells(m, "bandwidth")
    there, back = m.pair(2, 5).forward.p50, m.pair(2, 5).backward.p50
    assert found.unit == "GB/s"
    assert found.texts[2 * 8 + 5] == number_text(there / 1e9) == "0.915"
    assert found.texts[5 * 8 + 2] == number_text(back / 1e9)
    assert found.levels[2 * 8 + 5] < 1
    assert found.levels[5 * 8 + 2] > 6
    assert found.summary == "median 7.79 GB/s, lowest 0.915 (2 to 5), highest 8.20 (1 to 3)"


def test_cells_that_stand_out_are_those_of_the_metric() -> None:
    m = slow(8)
    assert cells(m, "bandwidth").alarms == cells(m, "crowded").alarms == [2 * 8 + 5]
    assert cells(m, "latency").alarms == cells(m, "jitter").alarms == [2 * 8 + 5, 5 * 8 + 2]


def test_a_cell_without_a_value_says_why() -> None:
    found = cells(ring(6), "bandwidth")

    def why(a: int, b: int) -> str:
        level = found.levels[6 * a + b]
        return found.reasons[-1 - int(level)] if level < 0 else ""

    assert why(0, 0) == "the same rank"
    assert why(1, 3) == "not neighbours on this ring"
    assert why(0, 2) == why(5, 0) == ""
    crowded = cells(measured(4), "crowded")
    assert crowded.levels[1] >= 0 > crowded.levels[4]
    assert crowded.reasons[-1 - int(crowded.levels[4])] == (
        "measured from the lower rank to the higher"
    )


def test_the_part_of_the_rate_is_shown_where_one_is_known() -> None:
    m = measured(4)
    keys = [each["key"] for each in page_data(m)["metrics"]]
    assert keys == [each for each in METRICS if each != "part_of_rate"]
    data = page_data(m, topology(4))
    last = data["metrics"][-1]
    assert (last["key"], last["unit"], last["low"], last["high"]) == (
        "part_of_rate", "%", "0", "100 %",
    )  # fmt: skip
    assert last["texts"][1] == number_text(m.pairs[0].forward.p50 / 1e8)
    assert any("% of the negotiated 80.0 Gb/s" in line for line in data["pairs"][0]["lines"])
    unknown = page_data(m, topology(4, None))
    assert "part_of_rate" not in [each["key"] for each in unknown["metrics"]]


def test_shades_are_linear_from_0_until_values_are_far_apart() -> None:
    near = Shading.of([2.0, 8.0])
    assert (near.low, near.high) == (0, 8)
    assert (near.level(8), near.level(4), near.level(0)) == (8, 4, 0)
    far = Shading.of([0.01, 1.0, 100.0])
    assert (far.low, far.high) == (pytest.approx(0.01), pytest.approx(100))
    assert far.level(1) == pytest.approx(4)
    assert Shading.of([]).level(0) == Shading.of([0.0]).level(0) == 0
    values = [10.0**power for power in range(-9, 10)]
    levels = [Shading.of(values).level(each) for each in values]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, 8)


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ramps() -> list[list[str]]:
    found = re.findall(r"--s\d: (#[0-9a-f]{6})", str(MeasureView._esm))
    return [found[:9], found[9:]]


def test_shades_are_in_order_and_letters_on_them_can_be_read() -> None:
    light, dark = ramps()
    assert light == list(SHADES)
    for ramp, sign in ((light, -1), (dark, 1)):
        steps = [sign * (luminance(b) - luminance(a)) for a, b in pairwise(ramp)]
        assert min(steps) > 0
    for tenth in range(81):
        bright = luminance(shade(tenth / 10))
        letters = 1.0 if tenth / 10 >= DEEP else 0.0
        contrast = (max(bright, letters) + 0.05) / (min(bright, letters) + 0.05)
        assert contrast >= 4.5, tenth


# -- curves ----------------------------------------------------------------------------------------


def test_what_is_no_line_has_no_half_size() -> None:
    figures = {each["key"]: each["fit"]["figures"] for each in page_data(slow(8))["series"][:3]}
    assert figures["all_gather"][2] == "-"
    assert "-" not in figures["all_sum"]
    # A circle marks it, in the saved picture, too.
    assert [curves_svg(each).count("<circle") for each in (measured(4), slow(8))] == [3, 2]


def test_the_page_gets_points_factors_and_fits() -> None:
    m = measured(4)
    data = page_data(m, topology(4), PREDICTED, 4096)
    sums, gathers, sends, barrier, *predicted = data["series"]
    assert [each["name"] for each in predicted] == ["ring, predicted", "mesh, predicted"]
    assert sums["factor"] == predicted[0]["factor"] == 1.5
    assert (gathers["factor"], sends["factor"]) == (0.75, 1)
    first = m.sweeps[0].points[0]
    assert sums["points"][0] == [4, pytest.approx(first.time.p50, rel=1e-3),
                                 pytest.approx(first.time.p5, rel=1e-3),
                                 pytest.approx(first.time.p95, rel=1e-3), 64, 0]  # fmt: skip
    assert sums["fit"]["figures"] == ["25.6 us", "4.37 GB/s", "109 KiB", "2 %", "0.999"]
    assert sums["fit"]["ranges"] == ["25.1 us - 26.4 us", "4.33 GB/s - 4.42 GB/s"]
    # It carries nothing, so it has no size.
    assert [point[0] for point in barrier["points"]] == [0]
    assert data["rate"] == 10e9
    assert data["rateText"] == "one cable: 10.0 GB/s"
    assert data["crossingText"] == "ring = mesh at 4 KiB"
    assert json.loads(json.dumps(data)) == data


def test_the_roof_is_the_slowest_link_in_use() -> None:
    links = topology(4).links
    slower = tuple(
        attrs.evolve(each, negotiated=1e9) if (each.a, each.b) == (0, 2) else each
        for each in links
    )  # fmt: skip
    mixed = attrs.evolve(topology(4), links=slower)
    assert line_rate(measured(4), mixed) == (1e9 / 8, "slowest link: 125 MB/s")
    # A ring does not use the link across.
    assert line_rate(ring(4), mixed) == (80e9 / 8, "one cable: 10.0 GB/s")
    double = tuple(attrs.evolve(each, ports=(("a", "b"), ("c", "d"))) for each in links)
    two = attrs.evolve(topology(4), links=double)
    assert line_rate(measured(4), two) == (80e9 / 8, "one link: 10.0 GB/s")
    assert line_rate(measured(4), None) is None
    assert line_rate(measured(4), topology(4, None)) is None


def test_what_is_wrong_or_stands_out_is_said() -> None:
    data = page_data(slow(8))
    assert data["wrong"] == ["all_sum, 256 KiB: 2 wrong"]
    assert len(data["outliers"]) == 2
    many = slow(8)
    late = tuple(
        attrs.evolve(each, forward=attrs.evolve(each.forward, p50=1e6)) if each.a < 2 else each
        for each in many.pairs
    )  # fmt: skip
    words = page_data(attrs.evolve(many, pairs=late))["outliers"]
    assert len(words) == 9
    assert words[-1] == "and 7 more, marked in the matrix"


def test_nothing_at_all_can_be_shown() -> None:
    nothing = Measurement("ring", (MeasuredRank("here"),))
    data = page_data(nothing)
    assert (data["pairs"], data["series"], data["wrong"]) == ([], [], [])
    bundle = MeasureView(nothing)._repr_mimebundle_()
    assert bundle is not None
    assert "<img" not in bundle[0]["text/html"]
    assert "nothing was measured" in bundle[0]["text/html"]


# -- the saved notebook ----------------------------------------------------------------------------


def test_the_saved_notebook_has_two_pictures_and_the_tables() -> None:
    m = attrs.evolve(slow(8), simulated="8 Macs <mesh>")
    view = MeasureView(m, topology(8), PREDICTED, 1 << 19)
    bundle = view._repr_mimebundle_()
    assert bundle is not None
    data = bundle[0]
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
    assert data["text/plain"] == repr(m) == repr(view)
    page = data["text/html"]
    assert m._repr_html_() in page
    # What must not be missed is not folded away.
    before = page[: page.index("<details>")]
    assert "Wrong results: all_sum, 256 KiB: 2 wrong." in before
    assert "Stands out: rank 2 to rank 5" in before
    assert "simulated: 8 Macs &lt;mesh&gt;" in before
    pictures = re.findall(r'<img alt="([^"]+)" .*? src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert [alt.split(",")[0] for alt, _ in pictures] == ["Pairs of ranks", "Time by size"]
    assert "bandwidth: median 7.79 GB/s, lowest 0.915 (2 to 5)" in pictures[0][0]
    assert "all_sum: 25.6 us of 4 B to 71.6 ms of 256 MiB" in pictures[1][0]
    for _, encoded in pictures:
        ET.fromstring(b64decode(encoded))
    words = " ".join("".join(ET.fromstring(b64decode(each)).itertext()) for _, each in pictures)
    assert "ring, predicted" in words
    assert "ring = mesh at 512 KiB" in words
    assert "one cable: 10.0 GB/s" in words


def varied(ranks: int) -> Measurement:
    """No two pairs alike."""
    m, spread = slow(ranks), random.Random(ranks)

    def other(pair: Pair) -> Pair:
        late, sent = spread.uniform(0.7, 2), spread.uniform(0.4, 1)
        return attrs.evolve(
            pair,
            latency=attrs.evolve(pair.latency, p50=late * pair.latency.p50),
            forward=attrs.evolve(pair.forward, p50=sent * pair.forward.p50),
            backward=attrs.evolve(pair.backward, p50=late * pair.backward.p50 / 2),
        )

    return attrs.evolve(m, pairs=tuple(other(each) for each in m.pairs))


@pytest.mark.parametrize("ranks", [8, 16, 64])
def test_what_is_saved_is_small(ranks: int) -> None:
    m = varied(ranks)
    bundle = MeasureView(m, topology(ranks), PREDICTED, 1 << 19)._repr_mimebundle_()
    assert bundle is not None
    assert len(json.dumps(bundle[0], ensure_ascii=False).encode()) < 40_000
    # Of many pairs the slowest, and what stands out among all of them.
    page = bundle[0]["text/html"]
    assert f"Stands out: {outliers(m)[0].words}" in html.unescape(page)
    assert ranks == 8 or f"the slowest; {len(m.pairs) - 8:,} more pairs are in .pairs" in page


def degenerate() -> list[Measurement]:
    """Measurements of which some or all has no place on a logarithmic axis."""
    m = measured(4)
    none = attrs.evolve(m.sweeps[0], points=(), fit=None)
    empty = attrs.evolve(m, pairs=(), sweeps=(none,))

    def stopped(time: Timing) -> Timing:
        return attrs.evolve(time, p50=0.0, p5=0.0, p95=0.0)

    zeros = tuple(
        attrs.evolve(each, points=tuple(attrs.evolve(p, time=stopped(p.time)) for p in each.points))
        for each in m.sweeps
    )  # fmt: skip
    first = m.sweeps[0].points[0]
    low = attrs.evolve(first, time=attrs.evolve(first.time, p5=0.0))
    some = attrs.evolve(m.sweeps[0], points=(low, zeros[0].points[1], *m.sweeps[0].points[2:]))
    curves = tuple(
        attrs.evolve(each, curve=tuple(attrs.evolve(p, time=stopped(p.time)) for p in each.curve))
        for each in m.pairs
    )  # fmt: skip
    alone = attrs.evolve(measured(2), ranks=m.ranks[:1], pairs=())
    alone = attrs.evolve(alone, sweeps=tuple(attrs.evolve(s, ranks=1) for s in alone.sweeps))
    return [
        empty,
        attrs.evolve(m, sweeps=(none, *m.sweeps[1:])),
        attrs.evolve(m, pairs=(), sweeps=zeros),
        attrs.evolve(m, sweeps=(some,)),
        attrs.evolve(m, pairs=curves, sweeps=()),
        attrs.evolve(m, sweeps=m.sweeps[3:]),
        alone,
        Measurement("ring", m.ranks[:1]),
    ]


def test_nothing_and_zeros_can_be_saved() -> None:
    for m in degenerate():
        drawn = curves_svg(m, PREDICTED, 1 << 19, (10e9, "one cable"))
        assert "nan" not in drawn
        assert "inf" not in drawn
        if drawn:
            ET.fromstring(drawn)
        bundle = MeasureView(m, topology(m.size))._repr_mimebundle_()
        assert bundle is not None
        assert bundle[0]["text/html"]
    assert curves_svg(degenerate()[2], PREDICTED) == ""


def test_control_characters_do_not_break_a_picture() -> None:
    bad = Curve("a\x00\x1b\ud800<b", (4, 1 << 20), (5e-5, 2e-4))
    texts = "".join(ET.fromstring(curves_svg(measured(4), [bad])).itertext())
    assert "a<b, predicted" in texts


def test_curves_look_the_same_on_the_page_and_in_the_notebook() -> None:
    code = str(MeasureView._esm)
    shapes = dict(re.findall(r'^  (\w+): "(M[^"]+z)"', code, re.M))
    known = re.search(r"const SHAPES = \{(.*?)\}", code, re.S)
    assert known is not None
    ops = dict(re.findall(r'(\w+): "(\w+)"', known[1]))
    assert {op: shapes[shape] for op, shape in ops.items()} == MARKERS
    dashes = re.search(r"const DASHES = (\[.*\]);", code)
    assert dashes is not None
    assert tuple(json.loads(dashes[1])) == DASHES
    light = code.split("[data-jp-theme-light", maxsplit=1)[0]
    assert (
        dict(re.findall(r"--([a-z_]+): (#[0-9a-f]{6})", light)).items()
        >= {op: colour for op, colour in SERIES.items() if op != "predicted"}.items()
    )


def pixels(png: bytes) -> tuple[int, list[str]]:
    """The width of an image with a palette, and its colours, row after row."""
    chunks, at = {}, 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert int.from_bytes(png[at + 8 + size : at + 12 + size], "big") == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + size
    width = int.from_bytes(chunks[b"IHDR"][:4], "big")
    rows, palette = zlib.decompress(chunks[b"IDAT"]), chunks[b"PLTE"].hex()
    found = [n for at, n in enumerate(rows) if at % (width + 1)]
    return width, ["#" + palette[6 * n : 6 * n + 6] for n in found]


@pytest.mark.parametrize("ranks", [2, 8, 12, 16, 64])
def test_the_saved_matrix_has_a_cell_for_each_pair(ranks: int) -> None:
    m = slow(ranks) if ranks > 2 else measured(2)
    root = ET.fromstring(matrix_svg(m))
    width, height = (float(root.attrib[each]) for each in ("width", "height"))
    name = "{http://www.w3.org/2000/svg}"
    texts = [each.text for each in root.iter(f"{name}text")]
    if ranks <= 12:
        numbers = [text for text in texts if text and re.fullmatch(r"\d+\.\d+", text)]
        assert len(numbers) == 2 * ranks * (ranks - 1)
    images = [each.attrib["href"] for each in root.iter(f"{name}image")]
    for image, metric in zip(images, ("latency", "bandwidth"), strict=True):
        levels = cells(m, metric).levels
        shades = [shade(round(2 * n) / 2) if n >= 0 else NO_VALUE for n in levels]
        assert pixels(b64decode(image.partition("base64,")[2])) == (ranks, shades)
    assert width < 1000
    assert height < 600


def test_the_saved_curves_lie_within_the_picture() -> None:
    m = slow(8)
    root = ET.fromstring(curves_svg(m, PREDICTED, 1 << 19, (10e9, "one cable")))
    width, height = (float(root.attrib[each]) for each in ("width", "height"))
    name = "{http://www.w3.org/2000/svg}"
    for path in root.iter(f"{name}path"):
        for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.attrib["d"]):
            inside = 0 <= float(x) <= width and 0 <= float(y) <= height
            assert inside or path.attrib.get("id")
    marks = list(root.iter(f"{name}use"))
    assert len(marks) == 3 * 14 + 3  # those of the legend, too
    strokes = {each.attrib.get("stroke") for each in root.iter(f"{name}path")}
    assert {SERIES[op] for op in ("all_sum", "all_gather", "sendrecv", "barrier")} <= strokes
    assert "#b3261e" in strokes
    sums_only = curves_svg(attrs.evolve(measured(4), sweeps=()))
    assert "ranks 0 and 1" in sums_only
    # It is of one cable, and these send through several.
    assert "one cable" in curves_svg(m, rate=(10e9, "one cable"))
    sums = attrs.evolve(m, sweeps=m.sweeps[:2])
    assert "one cable" not in curves_svg(sums, rate=(10e9, "one cable"))
    bare = tuple(attrs.evolve(each, curve=()) for each in m.pairs)
    assert curves_svg(attrs.evolve(m, pairs=bare, sweeps=())) == ""


# -- while it is measured --------------------------------------------------------------------------


def test_at_most_four_messages_a_second_and_the_newest_in_the_end() -> None:
    whole = measured(4)
    view = MeasureView(attrs.evolve(whole, pairs=(), sweeps=()))
    seen: list[int] = []
    view.observe(lambda change: seen.append(len(change["new"]["pairs"])), "data")
    began = time.monotonic()
    for count in range(1, 7):
        for seconds in range(40):
            view.update(attrs.evolve(whole, pairs=whole.pairs[:count], seconds=seconds))
    assert view.wait(TIMEOUT)
    took = time.monotonic() - began
    assert 1 <= len(seen) <= took / PERIOD + 1
    assert seen[-1] == 6
    assert view.data["title"] == title(view.measurement)
    view.update(whole)
    assert view.wait(TIMEOUT)
    assert len(view.data["series"]) == 4
    assert repr(view) == repr(whole)


def test_the_page_makes_no_html_of_text_and_fetches_nothing() -> None:
    code = str(MeasureView._esm)
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function"
    assert re.findall(forbidden, code) == []
    assert set(re.findall(r"https?://[^\"']+", code)) == {"http://www.w3.org/2000/svg"}
    assert re.findall(r"\bfetch\(|\bimport\b|XMLHttpRequest", code) == []
    assert code.count("export default { render }") == 1
    assert len(code) < 48_000  # it travels with every view


def test_a_pair_says_all_that_is_known_of_it() -> None:
    m = measured(4)
    first = m.pairs[0]
    lines = page_data(m)["pairs"][0]["lines"]
    assert re.match(r"latency 8.72 us \(p5-p95 .*\), p99 .*, jitter 0.523 us, 400 times", lines[0])
    assert f"0 to 1 {rate_text(first.forward.p50)} (p5-p95 " in lines[1]
    assert f"1 to 0 {rate_text(first.backward.p50)} (p5-p95 " in lines[1]
    assert lines[1].endswith(f"while all pairs send {rate_text(first.crowded.p50)}")
    assert lines[2] == first.fit.verdict
