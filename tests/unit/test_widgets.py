"""The views: what they draw from the data they are given, and what a saved notebook keeps."""

from __future__ import annotations

import base64
import itertools
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any

import attrs
import pytest

from macluster.engine.errors import CellError, ModelError, UsageError, WorldBroken
from macluster.engine.models.shards import Room, ShardMap, ShardRow, read_map
from macluster.widgets import turn
from macluster.widgets.chat import (
    DEFAULTS,
    ChatView,
    error_text,
    figures_text,
    read_settings,
)
from macluster.widgets.picture import script
from macluster.widgets.shards import GRID, LEFT, ShardView, scene, static_svg

MODULES = ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
EXPERTS = ("self_attn.q_proj", "mlp.switch_mlp.up_proj", "mlp.shared_experts.up_proj", "mlp.gate")


def rows(
    size: int, layers: int, strategy: str, modules: tuple[str, ...] = MODULES
) -> tuple[ShardRow, ...]:
    """The rows of a model whose parameters have 800 bytes each."""
    found = []
    names = [(None, "model.embed_tokens")]
    names += [(layer, module) for layer in range(layers) for module in modules]
    names += [(None, "model.norm"), (None, "lm_head")]
    for rank in range(size):
        for layer, module in names:
            path = module if layer is None else f"model.layers.{layer}.{module}"
            kind, bytes_, axis = "replicated", 800, None
            if layer is not None and strategy == "pipeline":
                # Rank 0 has the last ones.
                if layer * size // layers != size - 1 - rank:
                    kind, bytes_ = "absent", 0
            elif layer is not None and "norm" not in module and "gate" not in module:
                kind, bytes_, axis = "split", 800 // size, 0
            found.append(ShardRow(rank, layer, module, f"{path}.weight", bytes_, kind, axis))
    return tuple(found)


def drawn_map(size: int = 2, layers: int = 4, strategy: str = "tensor", **more: Any) -> ShardMap:
    modules = more.pop("modules", MODULES)
    return ShardMap(rows(size, layers, strategy, modules), "toy, 9 kB: why", size, 9000, **more)


def kinds(drawn: ShardMap, rank: int) -> list[set[str]]:
    """What each cell of a rank shows, without the bar."""
    cells = scene(drawn).rows[rank]["cells"][:-1]
    return [{shape[0] for shape in cell["shapes"]} for cell in cells]


# -- the facts -------------------------------------------------------------------------------------


def test_a_map_comes_back_from_json_as_it_was() -> None:
    before = drawn_map(3, 6, "pipeline", rooms=(Room(10, 99, "memory"),) * 3, context=77)
    after = read_map(json.loads(json.dumps(before.as_json())))
    assert after.rows == before.rows
    assert repr(after) == repr(before)
    assert (after.rooms, after.context) == (before.rooms, before.context)


def test_the_places_of_a_model_are_in_its_order() -> None:
    places = drawn_map(2, 3).places()
    assert [place.label for place in places] == [
        "embed_tokens", "layer 0", "layer 1", "layer 2", "norm, lm_head",
    ]  # fmt: skip
    families = {piece.family: piece for piece in places[1].pieces[0]}
    assert families["attention"].holding == "split"
    assert families["norms"].holding == "copy"
    assert families["MLP"].bytes == 400


def test_a_name_is_in_the_same_place_on_every_rank() -> None:
    odd = [attrs.evolve(row, module=row.module.replace("embed_tokens", "tok"),
                        parameter=row.parameter.replace("embed_tokens", "tok"))
           for row in rows(3, 2, "tensor")]  # fmt: skip
    places = ShardMap(tuple(odd), "", 3, 9000).places()
    assert [place.label for place in places] == ["tok", "layer 0", "layer 1", "norm, lm_head"]
    assert all(len(pieces) == 1 for pieces in places[0].pieces)


def test_what_one_rank_alone_has_leaves_the_others_empty() -> None:
    extra = ShardRow(1, None, "adapter", "adapter.weight", 8, "replicated", None)
    drawn = ShardMap((*rows(2, 2, "tensor")[:-2], extra), "", 2, 9000)
    places = drawn.places()
    assert places[-1].pieces[0] != places[-1].pieces[1]
    alone = ShardMap((extra,), "", 2, 8)
    assert kinds(alone, 0) == [{"none"}]
    assert kinds(alone, 1) == [{"whole"}]


def test_a_stage_of_a_pipeline_is_whole_on_one_rank() -> None:
    first = drawn_map(2, 4, "pipeline").places()[1]
    assert {piece.holding for piece in first.pieces[0]} == {"none"}
    assert {piece.holding for piece in first.pieces[1]} == {"whole"}


def test_shared_experts_are_not_counted_as_experts() -> None:
    place = drawn_map(2, 2, modules=EXPERTS).places()[1]
    families = {piece.family: piece for piece in place.pieces[0]}
    assert families["experts"].bytes == 400
    assert families["MLP"].bytes == 400 + 800  # shared experts, and the gate


# -- the picture -----------------------------------------------------------------------------------


def test_tensor_and_pipeline_look_different() -> None:
    tensor, pipeline = drawn_map(2, 4), drawn_map(2, 4, "pipeline")
    assert kinds(tensor, 0) == [{"copy"}, *[{"split", "split-tint"}] * 4, {"copy"}]
    assert kinds(pipeline, 0) == [{"copy"}, {"none"}, {"none"}, {"whole"}, {"whole"}, {"copy"}]
    assert kinds(pipeline, 1) == [{"copy"}, {"whole"}, {"whole"}, {"none"}, {"none"}, {"copy"}]


def test_each_rank_has_its_slice_in_another_place() -> None:
    lines = scene(drawn_map(4, 2)).rows
    slices = [
        [shape[1] for shape in line["cells"][1]["shapes"] if shape[0] == "split"] for line in lines
    ]
    assert len({tuple(each) for each in slices}) == 4
    assert slices == sorted(slices)


def test_experts_are_told_apart() -> None:
    assert kinds(drawn_map(2, 2, modules=EXPERTS), 0)[1] == {
        "split", "split-tint", "experts-split", "experts-split-tint",
    }  # fmt: skip
    assert "experts-whole" in kinds(drawn_map(2, 2, "pipeline", modules=EXPERTS), 1)[1]


@pytest.mark.parametrize("layers", [1, 4, 61, 126, 200])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_nothing_overlaps_and_nothing_lies_outside(size: int, layers: int) -> None:
    drawn = scene(drawn_map(size, layers))
    for line in drawn.rows:
        cells = line["cells"]
        for left, right in itertools.pairwise(cells):
            assert left["x"] + left["w"] <= right["x"]
        assert cells[-1]["x"] + cells[-1]["w"] <= drawn.width
        for cell in cells[:-1]:
            for _, x, y, width, height in cell["shapes"]:
                assert width >= 2
                assert cell["x"] <= x <= x + width <= cell["x"] + cell["w"] + 0.01
                assert cell["y"] <= y <= y + height <= cell["y"] + cell["h"]
    assert drawn.rows[-1]["cells"][-2]["x"] <= LEFT + max(GRID, 4 * layers) + 60
    assert all(text[2] <= drawn.height for text in drawn.texts)


def test_a_cell_says_its_bytes() -> None:
    cell = scene(drawn_map()).rows[1]["cells"][1]
    assert cell["label"] == "layer 0, rank 1: 1.6 kB"
    assert cell["detail"] == (
        "attention 400 B, a slice (axis 0); MLP 400 B, a slice (axis 0); norms 800 B, replicated"
    )
    away = scene(drawn_map(2, 4, "pipeline")).rows[0]["cells"][1]
    assert (away["label"], away["detail"]) == ("layer 0, rank 0: on another rank", "")


def test_the_bar_has_weights_cache_and_headroom() -> None:
    drawn = drawn_map(rooms=(Room(1000, 20_000, "free memory on a"),) * 2, context=512)
    bar = scene(drawn).rows[0]["cells"][-1]
    weights = drawn.totals()[0]
    assert bar["label"] == (
        f"memory of rank 0: {weights / 1000:.1f} kB of weights, 1.0 kB of cache, "
        f"{(19_000 - weights) / 1000:.1f} kB left"
    )
    assert bar["detail"] == "of 20.0 kB, free memory on a"
    widths = {shape[0]: shape[3] for shape in bar["shapes"]}
    assert widths["cache"] / widths["room"] == pytest.approx(1000 / 20_000, rel=0.01)
    held = widths["split"] + widths["copy"]
    assert held / widths["room"] == pytest.approx(weights / 20_000, rel=0.01)


def test_too_little_memory_is_said() -> None:
    drawn = scene(drawn_map(rooms=(Room(1000, 5000, ""),) * 2))
    assert "more than it has" in drawn.rows[0]["cells"][-1]["label"]
    assert any("too much" in text[4] for text in drawn.texts)


def test_another_scale_than_the_limit_is_said() -> None:
    far = scene(drawn_map(rooms=(Room(0, 10**12, ""),) * 2))
    near = scene(drawn_map(rooms=(Room(0, 20_000, ""),) * 2))
    assert any("a whole bar is" in text[4] for text in far.texts)
    assert not any("a whole bar is" in text[4] for text in near.texts)


def test_the_legend_explains_what_occurs_and_nothing_else() -> None:
    words = " ".join(text[4] for text in scene(drawn_map(2, 4, "pipeline")).texts)
    assert "whole, on this rank only" in words
    assert "another rank has it" in words
    assert "slice" not in words
    assert "cache" not in words


def test_the_saved_picture_is_small_and_sound() -> None:
    drawn = drawn_map(8, 61, modules=EXPERTS, rooms=(Room(500, 40_000, ""),) * 8)
    picture = static_svg(scene(drawn), "<title> & more")
    root = ET.fromstring(picture)
    assert root.tag.endswith("svg")
    assert len(picture) < 80_000
    patterns = set(re.findall(r'<pattern id="(\w+)"', picture))
    assert set(re.findall(r"url\(#(\w+)\)", picture)) <= patterns


def test_the_saved_notebook_has_a_picture_and_a_table() -> None:
    drawn = drawn_map()
    view = ShardView(drawn)
    bundle = view._repr_mimebundle_()
    assert bundle is not None
    data = bundle[0]
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
    assert data["text/plain"] == repr(drawn) == repr(view)
    found = re.search(r'<img alt="([^"]+)" .* src="data:image/svg\+xml;base64,([^"]+)"',
                      data["text/html"])  # fmt: skip
    assert found is not None
    assert found[1] == "toy, 9 kB: why. 2 ranks, 4 layers."
    assert base64.b64decode(found[2]).startswith(b"<svg")
    assert "<table>" in data["text/html"]
    assert view.scene == attrs.asdict(scene(drawn))


# -- what the page may do --------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("dom.js", "shards.js"), ("chat.js",)], ids=["shards", "chat"])
def test_a_page_makes_no_html_of_text_and_fetches_nothing(names: tuple[str, ...]) -> None:
    code = script(*names)
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function"
    assert re.findall(forbidden, code) == []
    # The name space of SVG is no address that is asked.
    assert set(re.findall(r"https?://[^\"']+", code)) <= {"http://www.w3.org/2000/svg"}
    assert re.findall(r"\bfetch\(|\bimport\b|XMLHttpRequest", code) == []
    assert "export default { render }" in code
    assert len(code) < 20_000  # it travels with every view


def test_the_ranks_side_needs_no_widgets() -> None:
    code = (
        "import sys, macluster, macluster.widgets.turn, macluster.engine.models.shards\n"
        "print(sorted({'anywidget', 'ipywidgets', 'mlx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- the conversation ------------------------------------------------------------------------------


def no_world() -> Any:
    raise WorldBroken("The world is gone.", why="it was stopped", do="%cluster start 2")


@pytest.fixture
def view() -> ChatView:
    """A view whose cluster is gone: everything but a turn works."""
    return ChatView(no_world)


def test_a_view_without_a_cluster_says_what_to_do(view: ChatView) -> None:
    words = "The world is gone.\n  Why: it was stopped\n  Do:  %cluster start 2"
    assert view.status == words
    view.say("hello")
    assert view.turns == [turn_of("user", "hello"), turn_of("error", words)]
    assert view.phase == "ready"


def test_nothing_is_no_turn(view: ChatView) -> None:
    view.say("  \n ")
    assert view.turns == []


def test_a_wrong_setting_is_an_error_in_the_conversation(view: ChatView) -> None:
    view._on_page(None, {"do": "say", "text": "hello", "settings": {"temperature": "-1"}}, [])
    assert view.turns[-1]["text"] == (
        "temperature cannot be -1.\n  Why: it is a number from 0 to 10\n"
        "  Do:  set it to 0, the default, or another one of these"
    )


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"temperature": "0.5"}, "temperature", 0.5),
        ({"temperature": ""}, "temperature", 0.0),
        ({"max_tokens": None}, "max_tokens", 256),
        ({"seed": "7"}, "seed", 7),
        ({"system": None}, "system", ""),
    ],
)
def test_settings_are_read(given: dict[str, Any], name: str, value: Any) -> None:
    assert read_settings(given) == {**DEFAULTS, name: value}


@pytest.mark.parametrize(
    "given",
    [{"top_p": "0"}, {"top_p": 1.5}, {"max_tokens": "many"}, {"seed": -1}, {"temperature": "nan"}],
)
def test_settings_that_cannot_be_meant_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        read_settings(given)
    assert error.value.why
    assert error.value.do


def test_the_code_of_a_turn_goes_on_with_the_conversation(view: ChatView) -> None:
    text = 'it\'s\n"quoted"'
    first = view._code(text)
    compile(first, "turn", "exec")
    assert repr(text) in first
    assert "**{})" in first  # nothing is begun anew
    view.settings = {**view.settings, "system": "Be brief."}
    assert "'system': 'Be brief.'" in view._code(text)
    view._system = "Be brief."
    assert "**{})" in view._code(text)
    view.reset()
    assert "**{'reset': True})" in view._code(text)


def test_history_is_taken_over_with_the_figures_that_are_known(view: ChatView) -> None:
    view.turns = [turn_of("user", "a"), turn_of("assistant", "b", "3 tokens"), turn_of("user", "e")]
    view._take_history(
        [["user", "a"], ["assistant", "b"], ["user", "c"], ["assistant", "d"]],
        asked=[turn_of("user", "e")],
    )
    assert [each["text"] for each in view.turns] == list("abcde")
    assert view.turns[1]["note"] == "3 tokens"


def turn_of(role: str, text: str, note: str = "") -> dict[str, str]:
    return {"role": role, "text": text, "note": note}


def test_the_saved_conversation_is_plain_text(view: ChatView) -> None:
    view.title = "toy <b>"
    view.turns = [turn_of("user", "a < b"), turn_of("assistant", "<script>x</script>", "2 tokens")]
    bundle = view._repr_mimebundle_()
    assert bundle is not None
    data = bundle[0]
    assert data["text/plain"] == (
        "Conversation with toy <b>\n\nuser: a < b\n\nassistant: <script>x</script>\n[2 tokens]"
    )
    assert "<script>" not in data["text/html"]
    assert "&lt;script&gt;x&lt;/script&gt;" in data["text/html"]
    assert "toy &lt;b&gt;" in data["text/html"]
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id


def test_figures_are_read_as_words() -> None:
    figures = {"tokens": 1200, "tokens_per_second": 12.34, "first": 0.5, "context": 1500,
               "limit": 4096}  # fmt: skip
    assert figures_text(figures, "stopped") == (
        "1,200 tokens · 12.3 tokens/s · first after 0.50 s · 1,500 of 4,096 tokens of context · "
        "stopped"
    )
    one = {**figures, "tokens": 1, "limit": None}
    assert figures_text(one) == "1 token · first after 0.50 s · 1,500 tokens of context"


def test_an_error_has_three_parts_wherever_it_came_from() -> None:
    ours = ModelError("No model.", why="none is loaded", do="%model load PATH")
    raised = CellError.named("ModelError")(str(ours), why="raised on rank 0")
    assert error_text(raised) == str(ours)
    assert error_text(ours) == str(ours)
    for error in (CellError("division by zero", why="raised on rank 1"), ValueError("no")):
        lines = error_text(error).splitlines()
        assert lines[1].startswith("  Why: ")
        assert lines[2].startswith("  Do:  ")


def test_lines_of_a_turn_are_read_however_they_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    turn._tell("history", [["user", "a"]])
    turn._tell("text", "one\ntwo ü")
    turn._tell("text", "")
    print("[a library says something]")
    print("no line end", end="")
    turn._tell("figures", {"tokens": 2})
    printed = capsys.readouterr().out
    told = [("history", [["user", "a"]]), ("text", "one\ntwo ü"), ("figures", {"tokens": 2})]
    for size in (1, 7, 10_000):
        reader = turn.Reader()
        parts = [printed[i : i + size] for i in range(0, len(printed), size)]
        assert [each for part in parts for each in reader.take(part)] == told
