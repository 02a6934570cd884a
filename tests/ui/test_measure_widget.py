"""A measurement, as a person sees it on a page alone; test_wires.py has it in JupyterLab."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

import attrs
import pytest
from playwright.sync_api import Locator, Page, expect

from macluster.engine.measure.record import Measurement
from macluster.engine.units import number_text, rate_text, size_label, time_text
from macluster.widgets.measure import MeasureView, page_data
from tests.ui.test_widgets import ALONE
from tests.unit.test_measure_tables import measured, ring, slow
from tests.unit.test_measure_widget import PREDICTED, degenerate, topology

CODE = str(MeasureView._esm)
# What JupyterLab's dark theme says.
DARK = (
    "--jp-ui-font-color1: rgba(255,255,255,.87); --jp-ui-font-color2: rgba(255,255,255,.7);"
    "--jp-border-color1: #616161; --jp-border-color2: #424242; --jp-layout-color0: #111;"
    "--jp-layout-color2: #2a2a2a; background: #111"
)


def alone(page: Page, data: dict[str, Any]) -> None:
    """The view in a page without Jupyter."""
    page.set_content('<html lang="en"><title>measurement</title><body></body></html>')
    # As text: Playwright takes seconds for a large object.
    code = f"([code, text]) => ({ALONE})([code, JSON.parse(text)])"
    page.evaluate(code, [CODE, json.dumps({"data": data})])


THEME = """([light, style]) => {
  document.body.dataset.jpThemeLight = String(light);
  document.body.style.cssText = style;
}"""


def faults(page: Page, rules: list[str] | None = None) -> list[str]:
    """What axe-core finds wrong with the view; by some of its rules, or by all."""
    if not page.evaluate("() => window.axe !== undefined"):
        code = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
        page.evaluate(code)
    # To hand out all that is right, too, takes most of the time.
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = rules
    found = page.evaluate("(o) => window.axe.run('.macluster-measure', o)", options)
    assert len(found["passes"]) > (0 if rules else 5)  # it did look
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found["violations"]]


def here(page: Page) -> Locator:
    return page.locator("[role=gridcell]:focus")


@pytest.mark.parametrize("ranks", [8, 24, 64])
def test_every_size_is_clean_in_both_themes(page: Page, ranks: int) -> None:
    m = attrs.evolve(slow(ranks), simulated="some Macs")
    alone(page, page_data(m, topology(ranks), PREDICTED, 1 << 19))
    for theme in ("light", "dark"):
        page.evaluate(THEME, [theme == "light", DARK if theme == "dark" else ""])
        # A theme changes colours, and nothing else.
        rules = None if theme == "light" else ["color-contrast"]
        page.get_by_role("tab", name="Pairs").click()
        assert faults(page, rules) == []
        if ranks == 8:  # the curves are alike for all sizes
            page.get_by_role("tab", name="Curves").click()
            assert faults(page, rules) == []


@pytest.mark.parametrize("ranks", [8, 64])
def test_the_matrix_is_walked_through_with_the_keyboard(page: Page, ranks: int) -> None:
    data = page_data(slow(ranks))
    alone(page, data)
    texts = next(each for each in data["metrics"] if each["key"] == "bandwidth")["texts"]
    page.get_by_role("radio", name="bandwidth").focus()
    page.keyboard.press("Tab")
    last = ranks - 1
    for key, row, column in (
        (None, 0, 0),
        ("ArrowUp", 0, 0),
        ("ArrowRight", 0, 1),
        ("ArrowDown", 1, 1),
        ("End", 1, last),
        ("Control+End", last, last),
        ("Home", last, 0),
        ("ArrowDown", last, 0),
        ("Control+Home", 0, 0),
    ):
        if key:
            page.keyboard.press(key)
        value = texts[row * ranks + column]
        what = f"bandwidth {value} GB/s" if value else "the same rank"
        expect(here(page)).to_have_attribute("aria-label", f"rank {row} to rank {column}: {what}")
        expect(page.locator(".detail")).to_contain_text(f"rank {row} to rank {column}: {what}")
        expect(page.locator("[role=gridcell][tabindex='0']")).to_have_count(1)
    assert page.locator("canvas").count() == (1 if ranks > 32 else 0)
    if ranks == 64:
        points_at_the_canvas(page)


def points_at_the_canvas(page: Page) -> None:
    """A cell under the pointer is told on a canvas, too."""
    page.mouse.move(0, 0)
    page.locator(".macluster-measure").scroll_into_view_if_needed()
    canvas = page.locator("canvas")
    box = canvas.bounding_box()
    assert box is not None
    step = box["width"] / 64
    canvas.hover(position={"x": 5.5 * step, "y": 2.5 * step})
    expect(page.locator(".detail")).to_contain_text("rank 2 to rank 5: bandwidth 0.915 GB/s")
    canvas.click(position={"x": 7.5 * step, "y": 3.5 * step})
    expect(here(page)).to_have_attribute("aria-label", re.compile("^rank 3 to rank 7"))
    # The painted cell is where the cell for the keyboard is.
    found = here(page).bounding_box()
    assert found is not None
    assert abs(found["x"] - box["x"] - 7 * step) < 1.5
    assert abs(found["y"] - box["y"] - 3 * step) < 1.5
    # The shades follow the theme.
    shot = "() => document.querySelector('canvas').toDataURL()"
    before = page.evaluate(shot)
    page.evaluate("() => { document.body.dataset.jpThemeLight = 'false'; }")
    page.wait_for_function(f"(before) => ({shot})() !== before", arg=before)


def test_small_cells_have_numbers_and_larger_worlds_shades(page: Page) -> None:
    for ranks, count in ((2, 2), (16, 1), (24, 0)):
        data = page_data(measured(ranks))
        alone(page, data)
        texts = next(each for each in data["metrics"] if each["key"] == "bandwidth")["texts"]
        inside = page.get_by_role("gridcell").nth(1).locator("text")
        assert inside.all_text_contents() == [texts[1], "GB/s"][:count]


def test_metrics_outliers_and_wrong_results_are_said(page: Page) -> None:
    alone(page, page_data(slow(8), topology(8)))
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Wrong results. Do not trust this cluster")
    expect(alert).to_contain_text("all_sum, 256 KiB: 2 wrong")
    first = page.locator(".macluster-measure > div").first.locator(":scope > *").first
    expect(first).to_have_attribute("role", "alert")
    expect(page.locator("p.alarm").first).to_have_text(
        "Stands out: rank 2 to rank 5: 915 MB/s, 12 % of the median of 7.79 GB/s."
    )
    cell = page.get_by_role("gridcell").nth(2 * 8 + 5)
    expect(cell.locator("text")).to_have_text(["0.915", "GB/s", "!"])
    expect(cell).to_have_attribute("aria-label", re.compile("GB/s, stands out$"))
    page.get_by_role("radio", name="bandwidth").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="crowded")).to_be_focused()
    expect(page.get_by_role("radio", name="crowded")).to_be_checked()
    expect(page.locator(".legend")).to_contain_text("measured from the lower rank to the higher")
    page.get_by_role("radio", name="latency p99").click()
    expect(cell.locator("text")).to_have_text(["59.5", "us", "!"])
    expect(page.locator(".legend")).to_contain_text("lower is better")
    page.get_by_role("radio", name="% of line rate").click()
    expect(cell.locator("text")).to_have_text(["9.15", "%", "!"])
    expect(page.locator(".legend")).to_contain_text("100 %")


def test_what_is_a_plain_socket_is_said(page: Page) -> None:
    alone(page, page_data(ring(6)))
    legend = page.locator(".legend")
    expect(legend).to_contain_text("tcp: a plain socket, without MLX")
    expect(legend).to_contain_text("not neighbours on this ring")
    cell = page.get_by_role("gridcell").nth(2)
    expect(cell).to_have_attribute("aria-label", re.compile(r"plain socket \(tcp\)$"))
    expect(cell.locator(".plain")).to_have_count(1)
    page.get_by_role("gridcell").nth(3).hover()
    expect(page.locator(".detail")).to_have_text("rank 0 to rank 3: not neighbours on this ring")
    # Enter cannot show a curve that nobody measured.
    cell.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".detail")).to_contain_text("No curve of this pair was measured.")


def test_enter_shows_the_curve_of_the_pair(page: Page) -> None:
    alone(page, page_data(measured(4)))
    page.get_by_role("gridcell").nth(2 * 4 + 1).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("tab", name="Curves")).to_be_focused()
    expect(page.get_by_role("combobox", name="pair")).to_have_value("1-2")
    expect(page.get_by_role("row", name="ranks 1 and 2").first).to_be_attached()
    page.get_by_role("combobox", name="pair").select_option("none")
    expect(page.locator("svg [role=row]")).to_have_count(4)


def test_the_tabs_are_those_of_aria(page: Page) -> None:
    alone(page, page_data(measured(4)))
    pairs, curves = page.get_by_role("tab").all()
    pairs.focus()
    for key, chosen in (("ArrowRight", curves), ("ArrowRight", pairs), ("End", curves),
                        ("Home", pairs), ("ArrowLeft", curves)):  # fmt: skip
        page.keyboard.press(key)
        expect(chosen).to_be_focused()
        expect(chosen).to_have_attribute("aria-selected", "true")
        panel = page.get_by_role("tabpanel")
        expect(panel).to_have_count(1)
        assert panel.get_attribute("aria-labelledby") == chosen.get_attribute("id")
        assert chosen.get_attribute("aria-controls") == panel.get_attribute("id")
    expect(pairs).to_have_attribute("tabindex", "-1")


def test_curves_are_read_with_the_keyboard_and_the_pointer(page: Page) -> None:
    m = slow(8)
    alone(page, page_data(m, topology(8), PREDICTED, 1 << 19))
    page.get_by_role("tab", name="Curves").click()
    detail = page.locator(".detail")
    points = m.sweeps[0].points
    page.locator(".point").first.focus()

    def said(index: int) -> str:
        point = points[index]
        return (
            f"all_sum, {size_label(point.size)}: {time_text(point.time.p50)} "
            f"(p5-p95 {time_text(point.time.p5)} - {time_text(point.time.p95)}), "
            f"algbw {rate_text(point.algbw)}, busbw {rate_text(point.busbw)}, 64 times, "
            + (f"{point.wrong} WRONG" if point.wrong else "0 wrong")
        )

    for key, index in (("ArrowLeft", 0), ("ArrowRight", 1), ("End", 13), ("Home", 0)):
        page.keyboard.press(key)
        expect(detail).to_have_text(said(index))
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    expect(detail).to_have_text(said(8))
    expect(detail).to_have_class(re.compile("alarm"))
    # The next curve, at the same size.
    page.keyboard.press("ArrowDown")
    expect(detail).to_contain_text("all_gather, 256 KiB: ")
    expect(detail).not_to_have_class(re.compile("alarm"))
    page.locator(".point").nth(3).locator(".ring").hover(force=True)
    expect(detail).to_have_text(said(3))
    expect(page.locator(".point.near")).to_have_count(1)
    expect(page.locator("path.cross")).to_have_count(1)


def test_what_is_no_line_has_no_half_size(page: Page) -> None:
    alone(page, page_data(slow(8)))
    page.get_by_role("tab", name="Curves").click()
    chart = page.get_by_role("grid", name="time by size")
    expect(chart.locator("path.fit")).to_have_count(3)
    expect(chart.locator("circle.half")).to_have_count(2)


def test_the_curves_show_bandwidth_and_the_roof(page: Page) -> None:
    alone(page, page_data(measured(4), topology(4), PREDICTED, 1 << 19))
    page.get_by_role("tab", name="Curves").click()
    chart = page.get_by_role("grid", name="time by size")
    expect(chart.get_by_text("one cable: 10.0 GB/s")).to_be_visible()
    expect(chart.get_by_text("ring = mesh at 512 KiB")).to_be_visible()
    expect(chart.locator("path.fit")).to_have_count(3)
    expect(chart.locator("circle.half")).to_have_count(3)
    expect(chart.locator(".curve.predicted")).to_have_count(2)
    expect(chart.locator("[role=row]")).to_have_count(4)
    page.get_by_role("radio", name="busbw").click()
    chart = page.get_by_role("grid", name="busbw by size")
    # A barrier has no bandwidth, and a bus is not one cable.
    expect(chart.locator("[role=row]")).to_have_count(3)
    expect(chart.locator("path.roof")).to_have_count(0)
    page.get_by_role("radio", name="algbw").click()
    chart = page.get_by_role("grid", name="algbw by size")
    roof = chart.locator("path.roof").bounding_box()
    top = chart.locator(".point .ring").nth(2 * 14 + 13).bounding_box()
    assert roof is not None
    assert top is not None
    # sendrecv reaches 8.2 of 10 GB/s: a little below.
    assert 0 < top["y"] + 8 - roof["y"] < 30
    # The other collectives send through several cables.
    page.get_by_role("button", name="sendrecv").click()
    expect(chart.locator("path.roof")).to_have_count(0)


def test_the_legend_turns_curves_off_and_on(page: Page) -> None:
    alone(page, page_data(measured(4), None, PREDICTED))
    page.get_by_role("tab", name="Curves").click()
    button = page.get_by_role("button", name="all_sum")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "false")
    expect(button).to_be_focused()
    expect(page.locator(".curve.all_sum .band")).to_have_count(0)
    expect(page.locator("svg [role=row]")).to_have_count(3)
    page.keyboard.press(" ")
    expect(button).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".curve.all_sum .band")).to_have_count(1)
    # With all of them off, it is a picture of nothing, and says so.
    for each in page.locator(".toggle").all():
        each.click()
    expect(page.get_by_role("img", name="no measured curve is shown")).to_be_visible()
    assert faults(page) == []


def test_what_is_measured_meanwhile_is_shown_where_one_looks(page: Page) -> None:
    whole = page_data(measured(4))
    alone(page, whole | {"series": []})
    page.get_by_role("gridcell").nth(6).focus()
    change = "(data) => window.model.set('data', data)"
    page.evaluate(change, whole | {"title": "more"})
    expect(page.locator(".title")).to_have_text("more")
    expect(here(page)).to_have_attribute("aria-label", re.compile("^rank 1 to rank 2"))
    page.get_by_role("tab", name="Curves").click()
    page.get_by_role("radio", name="algbw").click()
    page.locator(".point").nth(20).focus()
    page.evaluate(change, whole | {"title": "most"})
    expect(page.get_by_role("radio", name="algbw")).to_be_checked()
    expect(here(page)).to_have_attribute("aria-label", re.compile("^all_gather, 16 KiB"))
    # A view that is taken away listens no more.
    page.evaluate("window.end()")
    assert page.evaluate("Object.values(window.listeners).flat().length") == 0


def test_names_are_text(page: Page) -> None:
    bad = "<img src=x onerror='window.bad = 1'>"
    m = measured(2)
    hosts = tuple(attrs.evolve(each, host=bad, device=bad) for each in m.ranks)
    m = attrs.evolve(m, ranks=hosts, backend=bad, simulated=bad, notes=(bad,))
    alone(page, page_data(m))
    page.get_by_role("gridcell").nth(1).focus()
    expect(page.locator(".detail")).to_contain_text(bad)
    expect(page.locator(".simulated")).to_contain_text(bad)
    expect(page.locator(".macluster-measure img")).to_have_count(0)
    assert page.evaluate("window.bad") is None


def test_what_was_left_out_is_said(page: Page) -> None:
    m = measured(4)
    alone(page, page_data(attrs.evolve(m, pairs=(), notes=("Pairs were left out.",))))
    expect(page.get_by_text("Pairs were left out.")).to_be_visible()
    expect(page.get_by_role("tab", name="Curves")).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name="Pairs").click()
    expect(page.get_by_text("No pair of ranks was measured.")).to_be_visible()
    alone(page, page_data(attrs.evolve(m, sweeps=())))
    page.get_by_role("tab", name="Curves").click()
    # The first pair instead.
    expect(page.get_by_role("combobox", name="pair")).to_have_value("0-1")
    alone(page, page_data(Measurement("ring", m.ranks)))
    page.get_by_role("tab", name="Curves").click()
    expect(page.get_by_text("No curve was measured.")).to_be_visible()


def test_quantities_are_written_as_in_the_tables(page: Page) -> None:
    steps = (1, 2.345, 4.996, 9.996, 9.9949)
    values = [step * 10.0**power for power in range(-8, 13) for step in steps]
    names = "numberText, timeText, rateText, sizeLabel"
    code = CODE.replace("export default", f"window.written = {{ {names} }};\nexport default")
    page.set_content("<body></body>")
    page.evaluate(ALONE, [code, {"data": page_data(measured(2))}])
    pairs = zip(names.split(", "), (number_text, time_text, rate_text, size_label), strict=True)
    for (name, ours), least in zip(pairs, (1e-4, 1e-9, 1, 1), strict=True):
        some = [each for each in values if each >= least]
        theirs = page.evaluate("([name, some]) => some.map(window.written[name])", [name, some])
        assert theirs == [ours(each) for each in some]


def test_what_does_not_fit_is_scrolled_to(page: Page) -> None:
    page.set_viewport_size({"width": 400, "height": 900})
    alone(page, page_data(measured(8), topology(8)))
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    letters = """() => [...document.querySelectorAll('.macluster-measure text')]
      .map((each) => each.getScreenCTM().a * parseFloat(getComputedStyle(each).fontSize))"""
    assert page.evaluate(wide) == 0
    assert min(page.evaluate(letters)) > 7.9
    # The keys bring what they are at into view.
    page.get_by_role("gridcell").first.focus()
    page.keyboard.press("End")
    found, box = here(page).bounding_box(), page.locator(".scroll").bounding_box()
    assert found is not None
    assert box is not None
    assert box["x"] <= found["x"]
    assert found["x"] + found["width"] <= box["x"] + box["width"] + 1
    page.get_by_role("tab", name="Curves").click()
    assert page.evaluate(wide) == 0
    assert min(page.evaluate(letters)) > 7.9
    assert faults(page) == []


def test_nothing_and_zeros_can_be_drawn(page: Page) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    for m in degenerate():
        alone(page, page_data(m, topology(m.size)))
        page.get_by_role("tab", name="Curves").click()
        for value in ("algbw", "busbw"):
            if page.get_by_role("radio", name=value).count():
                page.get_by_role("radio", name=value).click()
        assert "NaN" not in page.content()
    assert errors == []
