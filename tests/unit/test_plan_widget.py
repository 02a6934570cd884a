"""A plan for several contexts, and the picture of it."""

from __future__ import annotations

import json
import re
import threading
import xml.etree.ElementTree as ET
from base64 import b64decode
from pathlib import Path
from typing import Any

import attrs
import pytest

import macluster
from macluster.engine.errors import ModelError, UsageError
from macluster.engine.plan import model as models
from macluster.engine.plan.hosts import Hosts, PlannedHost
from macluster.engine.plan.planner import Option, Plan, RankNeed, plan
from macluster.engine.plan.speed import Prediction
from macluster.engine.units import bytes_text
from macluster.widgets.picture import FILLS, LETTERS, OUTLINES, Picture
from macluster.widgets.plan import (
    BAR,
    LEFT,
    RANGE,
    RIGHT,
    PlanView,
    Scale,
    contexts,
    formula,
    scene,
)

TIMEOUT = 60  # seconds
MEMORY = 5_000_000  # bytes: enough for 8192 tokens, and not for 16384


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a small model, made for a length that is no power of two."""
    folder = tmp_path_factory.mktemp("small")
    config = json.loads((macluster.toy_path() / "config.json").read_text())
    config["max_position_embeddings"] = 40_960
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def small(folder: Path) -> Plan:
    host = PlannedHost("a host", MEMORY, bandwidth=1e9, prefill=1e12, share=1.0)
    return plan(folder, Hosts((host, host)), prompt=2048)


def words(drawn: Picture) -> str:
    return "\n".join(text[4] for text in drawn.texts)


def widths(drawn: Picture, kind: str) -> list[float]:
    return [shape[3] for shape in drawn.shapes if shape[0] == kind]


# -- another context -------------------------------------------------------------------------------


def test_a_plan_for_another_context_is_the_same_as_a_new_one(small: Plan, folder: Path) -> None:
    again = small.at(16_384)
    fresh = plan(folder, small.hosts, context=16_384, prompt=2048)
    assert again.to_json() == fresh.to_json()
    assert [option.fits for option in small.options] == [True, True]
    assert [option.fits for option in again.options] == [False, False]
    assert again.options[0].change is not None
    assert again.options[0].change.kind == "context"


def test_the_model_is_not_divided_again(small: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def divide(*_: Any, **__: Any) -> None:
        raise AssertionError("it was divided again")

    monkeypatch.setattr(models, "dry_run", divide)
    caches = [small.at(context).options[0].ranks[0].cache for context in (1024, 4096)]
    assert caches[1] == 4 * caches[0]


def test_a_prompt_is_cut_to_the_context_and_comes_back(small: Plan) -> None:
    cut = small.at(1024)
    assert (cut.prompt, cut.at(8192).prompt) == (1024, 2048)
    assert cut.options[0].first_token is not None
    assert small.options[0].first_token is not None
    assert cut.options[0].first_token.value < small.options[0].first_token.value


def test_a_context_that_cannot_be_is_refused(small: Plan) -> None:
    with pytest.raises(UsageError, match="it is below 1"):
        small.at(0)


def test_the_choice_goes_to_the_limit_of_the_model(small: Plan) -> None:
    assert contexts(small) == [1024, 2048, 4096, 8192, 16_384, 32_768, 40_960]
    assert contexts(attrs.evolve(small, context=5000))[3:5] == [5000, 8192]
    unknown = contexts(attrs.evolve(small, longest=None))
    assert unknown[-1] == 131_072
    assert contexts(attrs.evolve(small, longest=512, context=512)) == [512]


# -- the picture -----------------------------------------------------------------------------------


def test_bars_are_to_scale(small: Plan) -> None:
    drawn = scene(small)
    ranks = [rank for option in small.options for rank in option.ranks]
    assert widths(drawn, "weights")[:4] == pytest.approx(
        [rank.weights / MEMORY * BAR for rank in ranks], abs=0.01
    )
    assert widths(drawn, "cache")[:4] == pytest.approx(
        [rank.cache / MEMORY * BAR for rank in ranks], abs=0.01
    )
    assert not widths(drawn, "over")
    assert "fits, and is the fastest" in words(drawn)
    assert "does not fit" not in words(drawn)


def test_what_is_too_much_is_marked_and_said(small: Plan) -> None:
    large = small.at(16_384)
    drawn = scene(large)
    need = large.options[0].ranks[0]
    scale = BAR / max(rank.need for option in large.options for rank in option.ranks)
    assert widths(drawn, "over")[0] == pytest.approx((need.need - MEMORY) * scale, abs=0.01)
    held = widths(drawn, "weights")[0] + widths(drawn, "cache")[0]
    assert held == pytest.approx(MEMORY * scale, abs=0.02)
    # One line at the limit for each bar.
    assert len(widths(drawn, "limit")) == len(widths(drawn, "over")) - 1 == 4
    said = words(drawn)
    assert "does not fit: ranks 0-1 need" in said
    assert f"5.0 MB: {bytes_text(need.need - MEMORY)} too much" in said
    assert re.search(r"The cheapest change: a context of \d+ tokens, not 16384", said)
    assert "if it fitted:" in said


def test_a_strategy_that_does_not_fit_beside_one_that_does(small: Plan) -> None:
    full = small.at(16_384).options[0]
    mixed = attrs.evolve(small, options=(attrs.evolve(full, change=None), small.options[1]))
    assert "Use pipeline, which fits." in words(scene(mixed))
    none = attrs.evolve(small, options=(attrs.evolve(full, change=None),))
    assert "No single change is enough" in words(scene(none))


def test_predictions_have_a_marker_in_their_range(small: Plan) -> None:
    drawn = scene(small)
    bands = [shape for shape in drawn.shapes if shape[0] == "range" and shape[1] >= RIGHT]
    markers = [shape for shape in drawn.shapes if shape[0] == "value"]
    found = [
        figure for option in small.options
        for figure in (option.tokens_per_second, option.first_token) if figure
    ]  # fmt: skip
    assert len(bands) == len(markers) == len(found) == 4
    fastest = max(each.high for each in found[::2])
    assert bands[0][1] == pytest.approx(RIGHT + found[0].low / fastest * RANGE, abs=0.01)
    for band, marker in zip(bands, markers, strict=True):
        assert band[1] <= marker[1] + 1.5 <= band[1] + band[3]
        assert band[1] + band[3] <= RIGHT + RANGE + 0.01


def test_the_terms_of_a_token_are_added_up_in_words(small: Plan) -> None:
    terms = small.options[0].terms
    assert terms is not None
    assert (
        f"A token: weights {1e3 * terms.weights:.1f} + cache {1e3 * terms.cache:.1f} + "
        f"layers {1e3 * terms.layers:.1f} + wire 0.0 = {1e3 * terms.total:.1f} ms"
    ) in words(scene(small))
    assert [text.split(":")[0] for text in formula(small)] == [
        "A token over tensor", "A token over pipeline", "The first token",
    ]  # fmt: skip


def test_a_bar_keeps_its_scale_from_plan_to_plan(small: Plan) -> None:
    large = small.at(40_960)
    scale = Scale().around(large)
    assert scale.around(small).memory == scale.memory > MEMORY
    assert widths(scene(small, scale), "weights")[0] == widths(scene(large), "weights")[0]


def synthetic(small: Plan, needs: list[RankNeed], **more: Any) -> Plan:
    figure = Prediction(1234.5, 1000.4, 2000.6)
    given = {"fits": False, "tokens_per_second": figure, "first_token": figure, **more}
    option = Option("tensor", "tensor, as asked for", tuple(needs), **given)
    hosts = Hosts((PlannedHost("a host"),) * len(needs))
    return attrs.evolve(small, options=(option,), hosts=hosts)


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_nothing_lies_outside_and_no_figure_in_another(small: Plan, size: int) -> None:
    needs = [RankNeed(n, "a host", 999 * 10**9 + n, 99 * 10**9, 10**9) for n in range(size)]
    drawn = scene(synthetic(small, needs))
    for _, x, y, width, height in drawn.shapes:
        assert 0 <= x <= x + width <= drawn.width
        assert 0 <= y <= y + height <= drawn.height
        assert width >= 0
    for kind, x, y, anchor, text in drawn.texts:
        letter = 6.4 if kind == "alarm" else 5.5
        assert 0 < y <= drawn.height
        if anchor == "start" and LEFT < x < RIGHT:
            assert x + letter * len(text) <= RIGHT, text
    assert {text[0] for text in drawn.texts} <= set(LETTERS)
    assert {shape[0] for shape in drawn.shapes} <= set(FILLS) | set(OUTLINES)


def test_many_ranks_that_need_the_same_share_a_bar(small: Plan) -> None:
    needs = [RankNeed(n, "a host", 5 if n else 6, 1, 100) for n in range(9)]
    drawn = synthetic(small, needs, fits=True)
    labels = [text[4] for text in scene(drawn).texts if text[3] == "end"]
    assert labels == ["rank 0", "ranks 1-8"]


def test_what_nobody_knows_is_said(small: Plan) -> None:
    unknown = synthetic(
        small, [RankNeed(0, "x", 5, 1, None), RankNeed(1, "x", 5, 1, None)],
        fits=None, tokens_per_second=None, first_token=None,
    )  # fmt: skip
    drawn = scene(unknown)
    assert "unknown, because the memory of a host is not known" in words(drawn)
    assert not widths(drawn, "range")
    assert not widths(drawn, "room")
    assert "predicted" not in words(drawn)


def test_why_a_model_cannot_be_divided_is_said(small: Plan) -> None:
    error = ModelError("It cannot be split.", why="3 does not divide 4", do="take 4")
    refused = attrs.evolve(small, options=(small.options[0], Option("pipeline", why_not=error)))
    said = words(scene(refused))
    assert "cannot be divided so\nIt cannot be split. 3 does not divide 4." in said
    assert "A token over pipeline" not in " ".join(formula(refused))


# -- the widget ------------------------------------------------------------------------------------


def test_the_saved_notebook_has_a_picture_and_the_tables(small: Plan) -> None:
    view = PlanView(small)
    bundle = view._repr_mimebundle_()
    assert bundle is not None
    data = bundle[0]
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
    assert data["text/plain"] == repr(small) == repr(view)
    assert small._repr_html_() in data["text/html"]
    found = re.search(r'<img alt="([^"]+)" .* src="data:image/svg\+xml;base64,([^"]+)"',
                      data["text/html"])  # fmt: skip
    assert found is not None
    assert "tensor: fits" in found[1]
    assert "with a context of 8,192 tokens" in found[1]
    picture = b64decode(found[2]).decode()
    ET.fromstring(picture)
    patterns = set(re.findall(r'<pattern id="(\w+)"', picture))
    assert set(re.findall(r"url\(#(\w+)\)", picture)) <= patterns
    assert len(picture) < 20_000


def test_a_choice_on_the_page_makes_another_plan(small: Plan) -> None:
    view = PlanView(small)
    view._on_page(None, {"do": "plan", "context": 16_384}, [])
    assert view.wait(TIMEOUT)
    assert view.plan.context == view.answer["context"] == 16_384
    assert view.answer["summary"].startswith("16,384 tokens: tensor does not fit: ")
    assert view.status == ""
    for junk in ({"do": "plan", "context": 12_345}, {"do": "plan", "context": "1024"}, {}):
        view._on_page(None, junk, [])
        assert view.wait(TIMEOUT)
    assert view.plan.context == 16_384
    assert repr(view) == repr(view.plan)


def test_only_the_newest_choice_is_planned_for(
    small: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    asked: list[int] = []
    at = Plan.at

    def slowly(self: Plan, context: int) -> Plan:
        asked.append(context)
        begun.set()
        assert go_on.wait(TIMEOUT)
        return at(self, context)

    monkeypatch.setattr(Plan, "at", slowly)
    view = PlanView(small)
    view.choose(1024)
    assert begun.wait(TIMEOUT)
    assert view.status == "computing the plan for 1,024 tokens"
    view.choose(2048)
    view.choose(4096)
    assert view.answer["context"] == 8192
    go_on.set()
    assert view.wait(TIMEOUT)
    assert asked == [1024, 4096]
    assert view.answer["context"] == 4096


def test_what_goes_wrong_is_told_and_the_next_choice_works(
    small: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Plan, context: int) -> Plan:
        raise ModelError("It is gone.", why="the folder was deleted", do="plan again")

    view = PlanView(small)
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "at", fail)
        view.choose(1024)
        assert view.wait(TIMEOUT)
    assert view.status == "It is gone.\n  Why: the folder was deleted\n  Do:  plan again"
    view.choose(2048)
    assert view.wait(TIMEOUT)
    assert (view.status, view.answer["context"]) == ("", 2048)
