"""A calibration in place of the planner's constants, and where it can be asked for."""

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from macluster.engine.cluster import as_hostfile
from macluster.engine.errors import MaclusterError, UsageError
from macluster.engine.hostfile import Hostfile
from macluster.engine.models.dry import DryRun, RankPart
from macluster.engine.models.shards import ShardMap, ShardRow
from macluster.engine.models.splitting import Split
from macluster.engine.models.trial import CacheSize
from macluster.engine.plan import measured, planner, speed
from macluster.engine.plan.hosts import parse
from macluster.engine.plan.measured import Measured, RankSpeed, Spread
from macluster.engine.plan.planner import Compared, Comparison, plan
from macluster.engine.plan.speed import BEST, EXPECTED, WORST, Calibration, Prediction, Work
from macluster.magics.model import PLAN, on_ranks

LAYERS = 4
HIDDEN = 500  # numbers in 2000 bytes
CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}  # fmt: skip


def spread(median: float) -> Spread:
    return Spread(median, 0.5 * median, 2 * median, 9)


def rank(factor: float = 1.0) -> RankSpeed:
    """Reads 1 GB/s of weights and 2 of a cache; 1 ms a layer and 3 besides; 1 TFLOP/s."""
    return RankSpeed(
        host="mac",
        memory=1 << 30,
        bandwidth=spread(1e9 * factor),
        plain=spread(2e9 * factor),
        layer=spread(1e-3),
        token=spread(3e-3),
        prefill=spread(1e12),
    )


def record(*ranks: RankSpeed) -> Measured:
    several = len(ranks) > 1
    return Measured(
        "test", "4-bit weights", "llama", HIDDEN, "CPU", ranks,
        spread(1e-4) if several else None,
        spread(1e8) if several else None,
    )  # fmt: skip


def work(found: Measured, size: int = 2) -> Work:
    wire = () if size == 1 else (("all_sum", 2000),) * (2 * LAYERS)
    part = RankPart(0, 10_000, CacheSize(block=2560), wire)
    rows = tuple(
        ShardRow(number, layer, "mlp.up_proj", f"{layer}.mlp.up_proj", 2500, "split", 0)
        for number in range(size)
        for layer in range(LAYERS)
    )
    run = DryRun(
        "test", Split("tensor", ""), ShardMap(rows, "", size, 0), (part,) * size, LAYERS, HIDDEN, 0
    )
    return Work(run, found.hosts(), measured=found)


# -- the formula -----------------------------------------------------------------------------------


def test_what_was_measured_takes_the_place_of_every_constant() -> None:
    terms = speed.token(work(record(rank(), rank())), 256, EXPECTED)
    assert terms is not None
    assert terms.weights == pytest.approx(10_000 / 1e9)
    assert terms.cache == pytest.approx(2560 / 2e9)
    assert terms.layers == pytest.approx(LAYERS * 1e-3 + 3e-3)
    assert terms.wire == pytest.approx(2 * LAYERS * (1e-4 + 2000 / 1e8))


def test_the_slowest_rank_counts() -> None:
    slow = speed.token(work(record(rank(), rank(0.1))), 256, EXPECTED)
    assert slow is not None
    assert slow.weights == pytest.approx(10_000 / 1e8)


def test_quartiles_make_the_range() -> None:
    made = work(record(rank(), rank()))
    worst, usual, best = (speed.token(made, 256, each) for each in (WORST, EXPECTED, BEST))
    assert worst is not None
    assert usual is not None
    assert best is not None
    # Half of the speed, or twice the time; and the other way round.
    assert worst.weights == pytest.approx(2 * usual.weights)
    assert best.weights == pytest.approx(usual.weights / 2)
    for term in ("layers", "wire"):
        assert getattr(worst, term) == pytest.approx(2 * getattr(usual, term))
        assert getattr(best, term) == pytest.approx(getattr(usual, term) / 2)


def test_the_first_token_takes_reading_the_prompt_and_one_token() -> None:
    made = work(record(rank()), 1)
    one = speed.token(made, 100, EXPECTED)
    assert one is not None
    first = speed.first_token(made, 100, 10**6, EXPECTED)
    reading = 2 * 10**6 * 100 / 1e12
    assert first == pytest.approx(reading + LAYERS * 1e-3 + 3e-3 + one.total)


def test_a_world_of_another_size_does_not_take_its_sums() -> None:
    made = work(record(rank()), 1)
    assert not made.knows_sums
    assert work(record(rank(), rank())).knows_sums
    four = record(*[rank()] * 4)
    assert not attrs.evolve(work(record(rank(), rank())), measured=four).knows_sums


# -- the plan --------------------------------------------------------------------------------------


def test_a_plan_says_what_was_measured() -> None:
    found = record(rank(), rank(0.5))
    made = plan(CONFIG, measured=found, strategy="tensor", context=1024, prompt=16)
    assert made.hosts == found.hosts()
    assert made.best.tokens_per_second is not None
    assert made.best.first_token is not None
    text = " ".join(repr(made).split())
    for said in (
        "Measured on 2 ranks (mac), here the slowest: bandwidth 0.5 GB/s (n=9, IQR 0.25-1), ",
        "1,000 us (n=9, IQR 500-2,000) a layer of llama",
        "all_sum of 500 numbers 100 us (n=9, IQR 50-200)",
    ):
        assert said in text
        assert said in made._repr_html_()
    assert "MLX_METAL_FAST_SYNCH" not in text
    assert max(map(len, repr(made).splitlines())) <= planner.WIDTH


def test_a_plan_is_a_plain_record(tmp_path: Path) -> None:
    found = record(rank())
    found.save(tmp_path / "speed.json")
    made = plan(CONFIG, "M4 16GB", measured=tmp_path / "speed.json", context=1024, prompt=16)
    facts = made.to_json()
    assert json.loads(json.dumps(facts)) == facts | {"measured": json.loads(json.dumps(
        facts["measured"]))}  # fmt: skip
    (option,) = facts["options"]
    assert option["tokens_per_second"] == attrs.asdict(made.best.tokens_per_second)  # type: ignore[arg-type]
    assert option["ranks"][0]["headroom"] == made.best.ranks[0].headroom
    assert set(option["terms"]) == {"weights", "cache", "layers", "wire"}
    assert facts["measured"]["ranks"][0]["bandwidth"]["median"] == 1e9
    assert Measured.from_json(facts["measured"]) == found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "A plan needs hosts"),
        ({"hosts": 3, "measured": record(rank())}, "A calibration of rank 0 is none of 3 ranks"),
        ({"measured": record(rank()), "calibration": Calibration(1.0)}, "not both"),
        ({"measured": "/no/such/file"}, "There is no calibration in /no/such/file"),
    ],
)
def test_half_of_what_is_needed_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(CONFIG, **arguments)
    assert said in str(caught.value)
    assert caught.value.do


@pytest.mark.parametrize("facts", [[], {}, {"format": "other"}, {"format": measured.FORMAT}])
def test_another_file_is_no_calibration(facts: Any) -> None:
    with pytest.raises(UsageError, match="no calibration"):
        Measured.from_json(facts)


def test_a_record_prints_within_the_width() -> None:
    found = record(rank(), rank(12.345))
    text = repr(found)
    assert max(map(len, text.splitlines())) <= planner.WIDTH
    assert "the sums were right" in " ".join(text.split())
    assert "quartiles in brackets" in found._repr_html_()
    assert "sums" not in repr(record(rank()))


def test_a_comparison_has_ratios_and_notes() -> None:
    rows = (
        Compared("tokens/s", Prediction(30.0, 25.0, 35.0), 20.0),
        Compared("rank 0, weights", Prediction(2000, 2000, 2000), 2000, "bytes"),
    )
    made = Comparison("a model", rows, ("Not in <the> prediction: heat.",))
    assert [row.ratio for row in rows] == [1.5, 1.0]
    assert "1.50" in repr(made)
    assert "2.0 kB" in repr(made)
    assert repr(made).endswith("Not in <the> prediction: heat.")
    assert "&lt;the&gt;" in made._repr_html_()
    facts = made.to_json()
    assert [row["inside"] for row in facts["rows"]] == [False, True]
    assert json.loads(json.dumps(facts)) == facts


# -- where it can be asked for ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "ranks"),
    [
        ("toy 2", False),
        ("toy --measured speed.json", False),
        ('toy "M4 16GB" --measured speed.json', False),
        ("toy --calibrated", True),
        ("--against model", True),
    ],
)
def test_a_line_says_whether_ranks_are_needed(line: str, ranks: bool) -> None:
    assert on_ranks(PLAN.read(line)) is ranks


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "needs a MODEL"),
        ("toy", "needs HOSTS"),
        ("toy 2 --calibrated", "leave HOSTS"),
        ("toy --against model", "stands alone"),
        ("--against model --calibrated", "stands alone"),
        ("--against 3", "cannot be a name"),
    ],
)
def test_half_a_line_is_explained(line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        on_ranks(PLAN.read(line))
    assert said in caught.value.what


def test_a_number_as_text_is_that_number() -> None:
    assert parse("2") == parse(2)
    assert as_hostfile("3") == Hostfile.local(3)
    with pytest.raises(UsageError, match="not 0"):
        parse("0")
    with pytest.raises(MaclusterError) as caught:
        as_hostfile("-1")
    with pytest.raises(MaclusterError) as same:
        as_hostfile(-1)
    assert str(caught.value) == str(same.value)
