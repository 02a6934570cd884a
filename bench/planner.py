"""The planner beside every figure that was published and that it has the configuration for.

One set of constants for all; nothing is set per model. Where a publication leaves something out,
the row says what was assumed. Then the calibrated planner beside small real models, on one and two
ranks of this machine.

    python bench/planner.py [--json FILE] [--published | --here]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

import macluster
from macluster.engine.models.splitting import Strategy
from macluster.engine.models.tiny import toy_path
from macluster.engine.plan.hosts import GIB, Hosts, PlannedHost
from macluster.engine.plan.macs import Link
from macluster.engine.plan.planner import Plan, plan
from macluster.engine.plan.speed import Calibration
from macluster.engine.tables import Table

# Percent that a prediction may be off, as promised.
ALLOWED = {"dense": 15, "experts": 30}
SHORT = 1024  # context of a figure that was measured without a long prompt; half of it is cached

ULTRA = "M3 Ultra 512GB"
# Two of Geerling's four Macs had 256 GB.
GEERLING = f"2 x {ULTRA} + 2 x M3 Ultra 256GB, mesh"
EXO = "exo, Geerling 2025-12"


@attrs.frozen
class Row:
    """A published figure, in tokens/s, and what the planner is asked for it."""

    kind: str  # of ALLOWED
    model: str
    hosts: str | Hosts
    published: float
    source: str
    strategy: Strategy = "tensor"
    context: int = SHORT
    prompt: int = 128
    first_token: float | None = None  # seconds, where published
    calibration: Calibration | None = None
    assumed: str = ""


H200 = Hosts(
    (PlannedHost("H200 141GB", 141 * GIB, 4.8e12, share=1.0),) * 2,
    Link("nvlink", "nccl", "mesh", 98e-6, 0.0, 224e9, "measured with MLX on one host"),
)

# GLM-4.7: nobody says in how many bits; with 4 the prediction would be 39 % too high.
ROWS = (
    Row("dense", "Llama-3.1-70B bf16", "M2 Ultra 192GB", 4.7, "mlx-examples#1069"),
    Row("dense", "Llama-3.1-8B 4-bit", "M3 Ultra 256GB", 119.4, "Rapid-MLX#586"),
    Row("dense", "Qwen3.6-27B 4-bit", "M3 Ultra 256GB", 36.5, "Rapid-MLX#159"),
    Row("dense", "Qwen3-4B 4-bit", "M3 Pro 18GB", 44.6, "mlx-lm#1569", context=4096, prompt=2048),
    Row("dense", "Qwen3-0.6B 8-bit", "M4 Pro 48GB", 284.2, "vllm-mlx#531"),
    Row("dense", "Qwen3-0.6B 4-bit", "M3 Ultra 256GB", 387.6, "Rapid-MLX#633"),
    Row("dense", "Qwen3-0.6B 8-bit", "2 x M3 Ultra 256GB, mesh", 59.5, "mlx-lm#1733"),
    Row(
        "dense", "Llama-3.1-8B bf16", H200, 135, "own, 2 H200",
        calibration=Calibration(effective_bandwidth=3.4e12, collective_latency=98e-6),
        assumed="calibrated: 3.4 TB/s, 98 us",
    ),
    Row("experts", "Qwen3-235B 8-bit", ULTRA, 19.5, EXO),
    Row("experts", "Qwen3-235B 8-bit", f"2 x {ULTRA}, mesh", 26.2, EXO),
    Row("experts", "Qwen3-235B 8-bit", GEERLING, 31.9, EXO),
    Row("experts", "DeepSeek-V3.1 4-bit", ULTRA, 21.1, EXO, assumed="4 bits: 8 do not fit"),
    Row("experts", "DeepSeek-V3.1 4-bit", f"2 x {ULTRA}, mesh", 27.8, EXO, assumed="4 bits"),
    Row("experts", "DeepSeek-V3.1 4-bit", GEERLING, 32.5, EXO, assumed="4 bits"),
    Row("experts", "Kimi-K2-Thinking", f"2 x {ULTRA}, mesh", 21.6, EXO),
    Row("experts", "Kimi-K2-Thinking", GEERLING, 28.3, EXO),
    Row("experts", "Kimi-K2.6", f"4 x {ULTRA}, mesh", 28.0, "WWDC26 session 233: 28+"),
    Row(
        "experts", "Kimi-K2-Thinking", f"2 x {ULTRA}, mesh", 15.0, "Hannun 2025-11, 3500 tokens",
        strategy="pipeline", context=4096, assumed="RDMA",
    ),
    Row(
        "experts", "Kimi-K2.5", f"{ULTRA} + 2 x M3 Ultra 256GB, mesh", 14.0,
        "inferencer-feedback#103: around 14", strategy="pipeline", assumed="pipeline",
    ),
    Row("experts", "GLM-4.7 8-bit", ULTRA, 16.0, "mlx-lm#698: 16 or so", assumed="8 bits"),
    Row("experts", "GLM-4.7 8-bit", f"4 x {ULTRA}, mesh", 24.6, "mlx-lm#698", assumed="8 bits"),
    Row("experts", "GLM-5 mxfp8", f"2 x {ULTRA}, mesh", 18.3, "exo#1468"),
    Row("experts", "GLM-5 mxfp8", f"4 x {ULTRA}, mesh", 23.7, "exo#1468"),
    Row(
        "experts", "GLM-5 mxfp8", f"2 x {ULTRA}, mesh", 16.7, "exo#1468, 10K tokens",
        context=20_000, prompt=10_000, first_token=43.3,
    ),
    Row(
        "experts", "GLM-5 mxfp8", f"4 x {ULTRA}, mesh", 21.3, "exo#1468, 10K tokens",
        context=20_000, prompt=10_000, first_token=27.9,
    ),
    Row(
        "experts", "GLM-5 mxfp8", f"2 x {ULTRA}, mesh", 12.5, "exo#1468, 50K tokens",
        context=100_000, prompt=50_000, first_token=394.8,
    ),
    Row("experts", "Qwen3.5-122B mxfp4", "2 x M3 Ultra 256GB, mesh", 42.3, "mlx-lm#1733"),
    Row(
        "experts", "Qwen3-235B 8-bit", "M3 Ultra 256GB + M4 Max 64GB, mesh", 17.8, "mlx-lm#1137",
        strategy="pipeline", assumed="chips, RDMA; 80 + 14 layers there",
    ),
    Row("experts", "gpt-oss-120b", "M4 Max 128GB", 80, "exo#2070: around 80"),
    Row("experts", "gpt-oss-120b", "M5 Max 128GB", 89, "exo#2070"),
    Row("experts", "gpt-oss-120b", "M4 Max 128GB + M5 Max 128GB, mesh", 98, "exo#2070, plain MLX"),
)  # fmt: skip

RATIO = ("Qwen3.6-27B bf16", ULTRA, f"4 x {ULTRA}, mesh", 3.0, "WWDC26 session 233: nearly 3x")

# Why a prediction is probably off by more than allowed.
BECAUSE = {
    "mlx-lm#1733": "one report of both models with mlx 0.31.2, about faults and not speed: there "
    "each collective would take 0.2-0.3 ms, as with the slow fence",
    "Rapid-MLX#633": "0.34 GB of weights a token: launching kernels decides, which takes M3 Ultra "
    "twice as long as assumed, and M4 Pro not",
    "Rapid-MLX#159": "linear attention seems to cost more a layer than 0.04 ms",
    **dict.fromkeys(
        ("exo#2070: around 80", "exo#2070", "exo#2070, plain MLX"),
        "0.2 ms a layer is too much for its small layers (hidden size 2880); about 0.1 would do",
    ),
}

LEFT_OUT = (
    ("GLM-5.3-Flash on 4 M3 Ultra, 25.4 tok/s (exo#2295)", "mlx-lm 0.32.2 has no glm5_next"),
    ("Qwen3.8-27B on 2 M4 Pro, 17.0 tok/s (mlx-lm#990)", "its configuration is not established"),
    ("Kimi-K3, 420.8 GB a rank (mlx-lm#1572)", "its configuration is not established"),
    ("LoRA of Qwen3.5-9B on 4, 3.3x (WWDC26)", "training is not planned"),
    ("1.8x on 2 and 3.2x on 4 (exo's README)", "it does not name the model"),
    ("llama.cpp RPC, prima.cpp, vLLM-metal", "other engines"),
    ("all-reduce of 256 MB or 2 GB (mlx#3412, #1784)", "what the links' constants come from"),
)


# -- here: small real models on ranks of this machine ----------------------------------------------

# In a process of its own: mlx_lm lowers RLIMIT_NOFILE of its process for good. Two are tiny, so
# nearly all of their time is that of their layers; reading weights is most of the third's.
MAKE = """
import json, shutil, sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.utils import save_model
from macluster.engine.models import tiny
from macluster.engine.models.dry import paper_model

folder = Path(sys.argv[1])
for name in ("llama", "qwen3_moe"):
    tiny.make(name, folder / f"tiny {name}")
wide = folder / "wide llama"
shutil.copytree(folder / "tiny llama", wide)
config = json.loads((wide / "config.json").read_text())
config |= {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16,
           "num_key_value_heads": 8, "head_dim": 64, "torch_dtype": "float32"}
model, _ = paper_model(config)
mx.eval(model.parameters())
save_model(wide, model)
(wide / "config.json").write_text(json.dumps(config))
"""
LOCAL = ("toy", "tiny llama", "tiny qwen3_moe", "wide llama")
RANKS = (1, 2)
# Without this MLX calls a C++ compiler for every new kernel where there is no GPU.
ENV = {"MLX_DISABLE_COMPILE": "1"}
CELL = 300  # seconds that a cell may take


def here(repeats: int) -> list[dict[str, Any]]:
    """Predicted and measured, for each model and number of ranks, `repeats` times."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", MAKE, folder], check=True, env={**os.environ, **ENV})
        for size in RANKS:
            name = f"bench-planner-{os.getpid()}-{size}"
            cluster = macluster.Cluster(size, backend="ring", name=name, env=ENV)
            try:
                world = cluster.start_sync()
                for model in LOCAL:
                    path = toy_path() if model == "toy" else Path(folder) / model
                    code = (
                        f"import json\nmodel = macluster.load({str(path)!r})\n"
                        f"for _ in range({repeats}):\n"
                        "    print(json.dumps(macluster.compare_plan(model).to_json()))"
                    )
                    text = world.run(code).result(CELL).runs[0].text("stdout")
                    lines = [line for line in text.splitlines() if line.startswith("{")]
                    found += [{"model": model, "ranks": size, **json.loads(x)} for x in lines]
            finally:
                cluster.stop_sync()
    return found


def print_here(found: Sequence[dict[str, Any]]) -> None:
    rows = []
    for each in found:
        for row in each["rows"]:
            if row["unit"] == "bytes":
                continue
            seconds = row["figure"].startswith("first")
            scale, places = (1000, 0) if seconds else (1, 1)
            predicted, low, high, measured = (
                f"{scale * value:.{places}f}"
                for value in (*row["predicted"].values(), row["measured"])
            )
            rows.append(
                [
                    each["model"],
                    str(each["ranks"]),
                    "first token, ms" if seconds else row["figure"],
                    f"{predicted} ({low}-{high})",
                    measured,
                    f"{row['error']:+.0f} %",
                    "yes" if row["inside"] else "no",
                ]
            )
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, on the CPU"
    heading = ("model", "ranks", "figure", "predicted", "measured", "error", "in the range")
    title = f"\nCalibrated, on ranks of this machine ({machine}; ring)"
    print(Table(heading, rows, right=(1, 3, 4, 5), title=title).text(170))
    for size in RANKS:
        errors = [
            abs(row["error"])
            for each in found
            for row in each["rows"]
            if each["ranks"] == size and row["figure"] == "tokens/s"
        ]
        plural = "s" if size > 1 else ""
        print(
            f"{size} rank{plural}: median error of tokens/s {statistics.median(errors):.0f} %, "
            f"largest {max(errors):.0f} %, of {len(errors)}"
        )
    wrong = [
        each["model"]
        for each in found
        for row in each["rows"]
        if row["unit"] == "bytes" and not row["inside"]
    ]
    print(f"Bytes on the ranks: {'exact' if not wrong else 'WRONG for ' + ', '.join(wrong)}")


# -- published figures -----------------------------------------------------------------------------


def plan_row(row: Row) -> Plan:
    return plan(
        row.model,
        row.hosts,
        strategy=row.strategy,
        context=row.context,
        prompt=row.prompt,
        calibration=row.calibration,
    )


def results(rows: Sequence[Row]) -> Iterator[tuple[Row, Plan]]:
    for row in rows:
        yield row, plan_row(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to FILE")
    parser.add_argument("--repeats", type=int, default=2, help="of each model on this machine")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--published", action="store_true", help="only published figures")
    only.add_argument("--here", action="store_true", help="only models on this machine")
    options = parser.parse_args()
    figures = {}
    if not options.here:
        figures["published"] = published_figures()
    if not options.published:
        figures["here"] = here(options.repeats)
        print_here(figures["here"])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def published_figures() -> list[dict[str, Any]]:
    """Print them, and give them back."""
    found: list[dict[str, Any]] = []
    first_tokens = []
    for row, made in results(ROWS):
        compared = made.compare(row.published, measured_first_token=row.first_token)
        rate, *first = compared.rows
        name = made.model if len(made.hosts) == 1 else f"{made.model}, {row.strategy}"
        found.append(
            {
                "kind": row.kind,
                "model": name,
                "hosts": str(made.hosts),
                "predicted": rate.predicted.value,
                "low": rate.predicted.low,
                "high": rate.predicted.high,
                "published": row.published,
                "error_percent": rate.error,
                "inside": abs(rate.error) <= ALLOWED[row.kind],
                "in_range": rate.inside,
                "source": row.source,
                "assumed": row.assumed,
                "fits": made.fits,
            }
        )
        for each in first:
            first_tokens.append(
                [
                    name,
                    str(made.hosts),
                    str(row.prompt),
                    each.predicted.text(),
                    f"{each.measured:.1f}",
                    f"{each.error:+.0f} %",
                ]
            )
    model, one, four, published, source = RATIO
    rates = [
        plan(model, hosts, strategy="tensor", context=SHORT, prompt=128).best.tokens_per_second
        for hosts in (one, four)
    ]
    assert rates[0] is not None
    assert rates[1] is not None
    ratio = rates[1].value / rates[0].value
    error = 100 * (ratio - published) / published

    table = Table(
        ("", "model", "hosts", "predicted", "published", "error", "source", "assumed"),
        [
            [
                each["kind"] if each["inside"] else f"{each['kind']} !",
                each["model"],
                each["hosts"],
                f"{each['predicted']:.1f} ({each['low']:.0f}-{each['high']:.0f})",
                f"{each['published']:.1f}",
                f"{each['error_percent']:+.0f} %",
                each["source"],
                each["assumed"],
            ]
            for each in found
        ],
        right=(3, 4, 5),
        title="tokens/s, predicted (lowest-highest) and published",
    )
    print(table.text(170))
    print(
        f"\n{model}, 4 ranks against 1: predicted {ratio:.2f}x, published {published:.1f}x "
        f"({error:+.0f} %), {source}"
    )
    heading = ("model", "hosts", "prompt", "predicted s", "published s", "error")
    title = "\nSeconds to the first token, exo#1468"
    print(Table(heading, first_tokens, right=(2, 3, 4, 5), title=title).text(170))

    print()
    for kind, allowed in ALLOWED.items():
        mine = [each for each in found if each["kind"] == kind]
        errors = [abs(each["error_percent"]) for each in mine]
        inside = sum(each["inside"] for each in mine)
        ranged = sum(each["in_range"] for each in mine)
        if kind == "dense":
            errors.append(abs(error))
            inside += abs(error) <= allowed
        print(
            f"{kind}: {inside} of {len(errors)} within {allowed} %, median error "
            f"{statistics.median(errors):.0f} %; {ranged} of {len(mine)} in the predicted range"
        )
    print("\nNot inside, and the probable reason:")
    for each in found:
        if not each["inside"]:
            why = BECAUSE.get(each["source"], "not known")
            print(f"- {each['model']} on {each['hosts']} ({each['source']}): {why}")
    print("\nPublished, but not reproduced:")
    for what, why in LEFT_OUT:
        print(f"- {what}: {why}")
    return found


if __name__ == "__main__":
    main()
