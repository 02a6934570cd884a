"""A measurement as JSON, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from macluster.engine.errors import UsageError
from macluster.engine.measure.record import Measurement
from tests.unit.test_measure_tables import measured, ring, slow


@pytest.mark.parametrize("made", [measured(4), ring(6), slow(8), measured(2, ())])
def test_json_has_json_types_only_and_comes_back(made: Measurement, tmp_path: Path) -> None:
    made = attrs.evolve(made, versions={"mlx": "0.32.4"}, notes=("a note",))
    facts = made.as_json()
    assert json.loads(json.dumps(facts)) == facts
    assert Measurement.from_json(facts) == made
    made.save(tmp_path / "wires.json")
    assert Measurement.load(tmp_path / "wires.json") == made


def test_what_a_later_version_has_added_is_passed_over() -> None:
    facts = measured(2).as_json()
    facts["colour"] = facts["pairs"][0]["colour"] = facts["sweeps"][0]["points"][0]["x"] = [1]
    facts["pairs"][0]["fit"]["cubic"] = 0.5
    assert Measurement.from_json(facts) == measured(2)


def test_what_an_earlier_version_did_not_know_has_its_default() -> None:
    facts = measured(2).as_json()
    del facts["versions"], facts["pairs"][0]["fit"]["far"]
    assert Measurement.from_json(facts) == measured(2)


def put(*path: str | int) -> Callable[[Any, Any], None]:
    def change(facts: Any, value: Any) -> None:
        for step in path[:-1]:
            facts = facts[step]
        facts[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "value", "why"),
    [
        (put("format"), "macluster measurement 2", "its format is"),
        (put("ranks"), [], "no ranks"),
        (put("ranks"), [{"host": "a"}], "ranks 0 and 1 of 1"),
        (put("backend"), 3, "backend is 3"),
        (put("seconds"), "long", "seconds is 'long'"),
        (put("seconds"), -1.0, "seconds is -1"),
        (put("seconds"), 10**400, "too large"),
        (put("notes"), "abc", "notes is 'abc'"),
        (put("versions"), ["mlx"], "versions"),
        (put("versions"), {"mlx": 1}, "versions"),
        (put("pairs", 0, "a"), -1, "ranks -1 and 1"),
        (put("pairs", 0, "b"), 99, "ranks 0 and 99"),
        (put("pairs", 0, "b"), 0, "ranks 0 and 0"),
        (put("pairs", 0, "b"), 1.0, "whole number"),
        (put("pairs", 1), measured(4).as_json()["pairs"][0], "twice"),
        (put("pairs", 0, "latency", "p50"), math.nan, "pairs[0].latency.p50 is nan"),
        (put("pairs", 0, "forward", "p95"), math.inf, "pairs[0].forward.p95 is inf"),
        (put("pairs", 0, "latency", "p50"), None, "pairs[0].latency.p50 is None"),
        (put("pairs", 0, "fit", "latency_range"), [1.0], "a list of 2"),
        (put("sweeps", 0, "op"), "<b>broadcast", "sweeps[0].op"),
        (put("sweeps", 0, "op"), "barrier", "barrier is there twice"),
        (put("sweeps", 0, "ranks"), 3, "of 3 ranks, not 4"),
        (put("sweeps", 0, "points", 3, "wrong"), -1, "points[3].wrong is -1"),
        (put("sweeps", 0, "points", 3, "size"), "4 KiB", "whole number"),
    ],
)
def test_anything_else_is_refused(change: Callable[[Any, Any], None], value: Any, why: str) -> None:
    facts = measured(4).as_json()
    change(facts, value)
    with pytest.raises(UsageError, match="no measurement of macluster") as caught:
        Measurement.from_json(facts)
    assert why in (caught.value.why or "")


@pytest.mark.parametrize("facts", [None, [], "text", {}, {"format": "macluster measurement 1"}])
def test_what_is_no_measurement_at_all_is_refused(facts: object) -> None:
    with pytest.raises(UsageError):
        Measurement.from_json(facts)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_figures_that_are_none_are_not_saved(bad: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be saved"):
        attrs.evolve(measured(2), seconds=bad).save(tmp_path / "wires.json")
    assert not (tmp_path / "wires.json").exists()
