"""Ranks that measure their own speed, and the planner's prediction beside what they measure.

How near a prediction comes is not asserted: on a busy machine no factor would hold. `bench` prints
it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import macluster
from macluster.engine.models import tiny
from macluster.engine.models.dry import dry_run
from macluster.magics.model import PLAN, ModelMagics
from tests.cluster.faults import until
from tests.cluster.models import TIMEOUT, answers, fails, start

TOY = str(tiny.toy_path())
ROUNDS = 3


@pytest.fixture(scope="module")
def one() -> Iterator[macluster.World]:
    yield from start(1)


@pytest.fixture(scope="module")
def two() -> Iterator[macluster.World]:
    yield from start(2)


def calibrated(world: macluster.World, model: str) -> macluster.Measured:
    """What all ranks found, which must be the same."""
    code = f"print(json.dumps(macluster.calibrate({model}, rounds={ROUNDS}).to_json()))"
    found = answers(world, code)
    assert found == [found[0]] * world.size
    return macluster.Measured.from_json(found[0])


def check_spreads(found: macluster.Measured) -> None:
    for rank in found.ranks:
        for speed in (rank.bandwidth, rank.plain, rank.prefill):
            assert 0 < speed.low <= speed.median <= speed.high
            assert speed.count == ROUNDS
        for seconds in (rank.layer, rank.token):
            assert 0 <= seconds.low <= seconds.median <= seconds.high
            assert seconds.count == ROUNDS


def test_two_ranks_measure_what_the_planner_uses(two: macluster.World) -> None:
    load = f"model = macluster.load({TOY!r})\nprint(json.dumps(None))"
    answers(two, load)
    found = calibrated(two, "model")
    check_spreads(found)
    assert (found.model, found.weights) == (Path(TOY).name, "float32 weights")
    assert (found.architecture, found.hidden, found.size) == ("qwen2", 64, 2)
    for spread in (found.latency, found.sums):
        assert spread is not None
        assert 0 < spread.low <= spread.median <= spread.high
        assert spread.count == ROUNDS
    made = macluster.plan(TOY, strategy="tensor", measured=found, context=256, prompt=8)
    assert len(made.hosts) == 2
    assert made.best.tokens_per_second is not None
    assert made.best.terms is not None
    # Two sums in each of four layers, as they were measured.
    assert made.best.terms.wire >= 8 * found.latency.median  # type: ignore[union-attr]


def test_one_rank_has_no_sums(one: macluster.World) -> None:
    found = calibrated(one, repr("Llama-3.1-8B 8-bit"))
    check_spreads(found)
    assert found.latency is None
    assert found.sums is None
    assert found.weights == "8-bit weights in groups of 64"
    assert (found.architecture, found.hidden) == ("llama", 4096)


def test_an_architecture_that_cannot_run_here_has_a_stand_in(one: macluster.World) -> None:
    """Its tiny model has a list that cannot be made longer."""
    config = {"model_type": "minimax_m3_vl", "text_config": {"hidden_size": 64, "num_experts": 4}}
    found = calibrated(one, repr(config))
    # Without a GPU, MLX gathers experts in float32 only.
    assert found.architecture in ("qwen3_moe", "qwen3_moe in float32")


def test_a_calibration_leaves_the_ranks_as_they_were(two: macluster.World) -> None:
    code = f"""
model = macluster.load({TOY!r})
def state():
    parts = macluster.stream_generate(model, "Count from 1 to 5.", max_tokens=8)
    return [[part.token for part in parts], mx.random.uniform().item(), sorted(globals())]
mx.random.seed(7)
before = after = None
before = state()
mx.random.seed(7)
drawn = mx.random.randint(0, 1 << 30).item()
mx.random.seed(7)
macluster.calibrate(model, rounds=2)
same = drawn == mx.random.randint(0, 1 << 30).item()
mx.random.seed(7)
after = state()
print(json.dumps([before[0] == after[0], set(after[2]) - set(before[2]) <= {{"drawn", "same"}},
                  len(before[0]) > 0, same]))
"""
    assert answers(two, code) == [[True] * 4] * 2


def test_ranks_must_calibrate_for_the_same(two: macluster.World) -> None:
    text = fails(two, f"macluster.calibrate({TOY!r}, rounds=2 + rank)")
    assert text.startswith("Rank 1 was asked to calibrate for something else")
    assert "1 rounds are too few" in fails(two, f"macluster.calibrate({TOY!r}, rounds=1)")
    assert "no such model" in fails(two, "macluster.calibrate('no such model')")


def test_a_wrong_sum_is_found_on_one_rank_and_raised_on_all(two: macluster.World) -> None:
    code = f"""
real = mx.distributed.all_sum
def wrong(value, **options):
    found = real(value, **options)
    return found + 1 if rank == 1 and value.nbytes > 1 << 20 else found
mx.distributed.all_sum = wrong
try:
    macluster.calibrate({TOY!r}, rounds=2)
finally:
    mx.distributed.all_sum = real
"""
    text = fails(two, code)
    assert text.startswith("Rank 1: A sum of all ranks was ")
    assert "and should have been 3.0" in text


@pytest.mark.parametrize("strategy", ["tensor", "pipeline"])
def test_a_prediction_stands_beside_what_was_measured(two: macluster.World, strategy: str) -> None:
    code = f"""
model = macluster.load({TOY!r}, {strategy!r})
record = macluster.calibrate(model, rounds={ROUNDS})
found = macluster.compare_plan(model, measured=record, prompt=16, tokens=4)
print(json.dumps([found.to_json(), repr(found), found._repr_html_(), model.nbytes]))
"""
    ranks = answers(two, code)
    (facts, text, html, _), *_ = ranks
    assert [rank[:3] for rank in ranks] == [[facts, text, html]] * 2
    rows: dict[str, dict[str, Any]] = {row["figure"]: row for row in facts["rows"]}
    assert list(rows) == ["tokens/s", "first token, s", "rank 0, weights", "rank 1, weights"]
    for row in rows.values():
        assert row["measured"] > 0
        assert row["predicted"]["low"] <= row["predicted"]["value"] <= row["predicted"]["high"]
        assert row["ratio"] == pytest.approx(row["predicted"]["value"] / row["measured"])
    on_paper = dry_run(TOY, 2, strategy)  # type: ignore[arg-type]
    for rank in range(2):
        row = rows[f"rank {rank}, weights"]
        # To the byte: predicted from the files, measured on the rank.
        assert row["predicted"]["value"] == row["measured"] == ranks[rank][3]
        assert row["measured"] == on_paper.ranks[rank].weights
        assert row["inside"]
    for said in ("Not in the prediction", "n=3, IQR", "all_sum of 64 numbers", strategy):
        assert said in " ".join(text.split())
        assert said in html


def test_numbers_that_cannot_be_compared_are_refused(two: macluster.World) -> None:
    code = f"model = macluster.load({TOY!r})\nmacluster.compare_plan(model, tokens=1)"
    assert "cannot be compared" in fails(two, code)


def test_an_interrupt_stops_all_ranks_after_the_same_round(two: macluster.World) -> None:
    answers(two, "kept, kept_id = [rank], None\nkept_id = id(kept)\nprint(json.dumps(None))")
    epoch = two.epoch
    cell = two.run(f"macluster.calibrate({TOY!r}, rounds=100_000)")
    until(lambda: "round 3 of" in cell.runs[0].text("stdout"), "a third round", cell.wait)
    cell.cancel()
    with pytest.raises(macluster.CellCancelled):
        cell.result(TIMEOUT)
    # Nothing was torn down: they stood at the same place.
    assert two.epoch == epoch
    assert answers(two, "print(json.dumps([id(kept) == kept_id, kept]))") == [
        [True, [0]],
        [True, [1]],
    ]


def test_a_record_is_of_json_types(one: macluster.World, tmp_path: Path) -> None:
    found = calibrated(one, repr(TOY))
    found.save(tmp_path / "speed.json")
    assert macluster.Measured.load(tmp_path / "speed.json") == found
    assert json.loads(json.dumps(found.to_json())) == found.to_json() | {
        "ranks": [attrs.asdict(rank) for rank in found.ranks]
    }


def shown(world: macluster.World, line: str) -> list[str]:
    """What each rank shows as the result of what `%model plan` runs."""
    code = ModelMagics.plan_code(PLAN.read(line))
    cell = world.run(code).result(TIMEOUT)
    return [
        "".join(
            content["data"]["text/plain"]
            for kind, content in cell.runs[rank].messages
            if kind == "execute_result"
        )
        for rank in world.ranks
    ]


def test_the_magic_measures_the_ranks_and_plans_on_one(two: macluster.World) -> None:
    first, second = shown(two, f"{TOY} --calibrated --strategy tensor --context 256 --prompt 8")
    assert "Measured on 2 ranks" in first
    assert "predicted tokens/s" in first
    assert second == ""


def test_the_magic_sets_a_loaded_model_beside_its_prediction(two: macluster.World) -> None:
    answers(two, f"mine = macluster.load({TOY!r})\nprint(json.dumps(None))")
    text = shown(two, "--against mine")[0]
    assert "rank 1, weights" in text
    assert "ratio" in text
