"""What the planner predicts for a loaded model on these ranks, beside what is measured there."""

from __future__ import annotations

from typing import Any

from ..errors import ModelError
from ..models.agree import by_one, exchange, together
from ..models.dry import dry_run
from ..models.load import LoadedModel
from ..models.timing import timed_generation
from .calibrate import calibrate
from .measured import Measured, Spread
from .model import find
from .planner import Compared, Comparison, predict
from .speed import Prediction, Work

RUNS = 5  # generations that count; one before them does not

EXCLUDED = (
    "Not in the prediction: computing attention, what the ranks wait for each other because one is "
    "late, reading experts one by one, and what else these machines do. Not in the measurement: "
    "turning tokens into text, and showing it."
)


def compare_plan(
    loaded: LoadedModel,
    *,
    measured: Measured | None = None,
    prompt: int = 64,
    tokens: int = 32,
) -> Comparison:
    """Set what is predicted for this model, split and ranks beside what is measured here.

    Every rank must call it; all get the same. The ranks are calibrated first, then generate
    `tokens` tokens behind `prompt` others six times, of which the first does not count. The
    prediction knows nothing of the generations. An interrupt stops all ranks at the same place.

    Args:
        loaded: from `load`.
        measured: from `calibrate`, to use it in place of a new calibration.
        prompt: tokens of the prompt, at least 2.
        tokens: to generate, at least 2.

    Raises:
        ModelError: on every rank, when a number makes no sense, `measured` is of another number of
            ranks, or the model's files cannot be read any more.
    """
    together(lambda: _check(loaded, measured, prompt, tokens))
    record = measured or calibrate(loaded)
    runs = [timed_generation(loaded, prompt, tokens) for _ in range(1 + RUNS)][1:]
    mine = {
        "rates": [1 / run.token for run in runs],
        "firsts": [run.first for run in runs],
        "bytes": loaded.nbytes,
    }
    found = exchange(mine)
    predicted = by_one(lambda: _predicted(loaded, record, prompt, tokens), loaded.rank)
    # All ranks take part in each token: they end within a step of each other.
    rate = min((Spread.of(each["rates"]) for each in found), key=lambda each: each.median)
    first = max((Spread.of(each["firsts"]) for each in found), key=lambda each: each.median)
    rows = [Compared("tokens/s", Prediction(**predicted["rate"]), rate.median)]
    if predicted["first"] is not None:
        rows.append(Compared("first token, s", Prediction(**predicted["first"]), first.median))
    rows += [
        Compared(f"rank {rank}, weights", Prediction(count, count, count), each["bytes"], "bytes")
        for rank, (count, each) in enumerate(zip(predicted["bytes"], found, strict=True))
    ]
    notes = (
        (
            f"Measured: medians of {RUNS} generations of {tokens} tokens behind {prompt}; tokens/s "
            f"{rate.text(1)}, first token {first.text(1e-3, 'ms')}, quartiles in brackets."
        ),
        *record.said(loaded.size),
        EXCLUDED,
    )
    where = "one rank" if loaded.size == 1 else f"{loaded.strategy} over {loaded.size} ranks"
    return Comparison(f"{loaded.path.name}, {where}", tuple(rows), notes)


def _check(loaded: LoadedModel, measured: Measured | None, prompt: int, tokens: int) -> None:
    if prompt < 2 or tokens < 2:
        raise ModelError(
            f"prompt={prompt}, tokens={tokens} cannot be compared.",
            why="the time to the first token and that between tokens need two of each",
            do="give 2 or more of both",
        )
    if measured is not None and measured.size != loaded.size:
        raise ModelError(
            f"The calibration is of {measured.size} ranks, and the model on {loaded.size}.",
            why="sums of another number of ranks take another time",
            do="leave measured out, to calibrate now",
        )


def _predicted(loaded: LoadedModel, record: Measured, prompt: int, tokens: int) -> dict[str, Any]:
    """For this model, as it is split: by one rank, on paper."""
    split = loaded.split
    run = dry_run(str(loaded.path), loaded.size, split.strategy, layers=split.layers)
    work = Work(run, record.hosts(), measured=record)
    try:
        parameters: int | None = find(loaded.path).active_parameters()
    except ModelError:
        parameters = None  # some formats cannot be made in bfloat16
    _, rate, first = predict(work, prompt + tokens // 2, prompt, parameters)
    assert rate is not None
    return {
        "rate": _json(rate),
        "first": None if first is None else _json(first),
        "bytes": [part.weights for part in run.ranks],
    }


def _json(found: Prediction) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}
