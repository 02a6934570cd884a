"""Tokens per second: macluster, with its output in a cell, beside the same loop under mlx.launch.

Both run mlx_lm's own generation of the same model over N local ranks on MLX's ring. Under
mlx.launch it is the bare loop, which prints nothing; with macluster it is
`macluster.stream_generate`, which can be interrupted, and rank 0 prints the text as it comes,
through the cluster into this process. The two take turns, so that what else the machine does hits
both.

    python bench/generate.py [--ranks 2] [--tokens 200] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from string import Template

import macluster

PROMPT = [5, 99, 300, 42, 7]
LIMIT = 600.0  # seconds for one run

BARE = Template("""
import time
import mlx.core as mx, mlx_lm
from mlx_lm.generate import generation_stream
from mlx_lm.utils import load_model, load_tokenizer
from pathlib import Path

group = mx.distributed.init()
model, config = load_model(Path($path), lazy=True)
model.$split(group)
mx.eval(model.parameters())
tokenizer = load_tokenizer(Path($path), eos_token_ids=[-1])
stream = mx.default_stream(mx.cpu) if mx.default_device() == mx.cpu else generation_stream
for tokens in (8, $tokens):
    count, began = 0, None
    for part in mlx_lm.stream_generate(
        model, tokenizer, mx.array($prompt), max_tokens=tokens, stream=stream
    ):
        count += 1
        began = began or time.perf_counter()
    took = time.perf_counter() - began
    mx.synchronize(stream)
if group.rank() == 0:
    print("RATE", (count - 1) / took, flush=True)
""")

OURS = Template("""
import time
def timed(tokens):
    count, began = 0, None
    for part in macluster.stream_generate(model, $prompt, max_tokens=tokens):
        count += 1
        began = began or time.perf_counter()
        rprint(part.text, end="", flush=True)
    return (count - 1) / (time.perf_counter() - began)
timed(8)
rate = timed($tokens)
rprint("\\nRATE", rate)
""")


def rate(output: str) -> float:
    rates = [line.partition("RATE ")[2] for line in output.splitlines() if "RATE " in line]
    if not rates:
        raise RuntimeError(f"the loop did not say how fast it was: {output[-2000:]}")
    return float(rates[-1])


def bare(options: argparse.Namespace, strategy: str, path: str) -> float:
    """The loop in processes that mlx.launch starts."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "loop.py")
        split = "shard" if strategy == "tensor" else "model.pipeline"
        script.write_text(
            BARE.substitute(path=repr(path), split=split, tokens=options.tokens, prompt=PROMPT)
        )
        launch = str(Path(sys.executable).with_name("mlx.launch"))
        done = subprocess.run(
            [
                launch,
                "-n",
                str(options.ranks),
                "--backend",
                "ring",
                "--",
                sys.executable,
                str(script),
            ],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=True,
        )
    return rate(done.stdout + done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", default=None, help="default: a random qwen2, made on the spot")
    options = parser.parse_args()
    # Without this MLX calls a C++ compiler for every new kernel where there is no GPU.
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or f"{folder}/model"
        if options.model is None:
            # In a process of its own: mlx_lm lowers RLIMIT_NOFILE of its process for good.
            made = [sys.executable, "-m", "macluster.engine.models.tiny", "qwen2", path]
            subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
            config = json.loads(Path(path, "config.json").read_text())
            # Nothing ends the answer early.
            Path(path, "config.json").write_text(json.dumps({**config, "eos_token_id": -1}))
        print(f"{options.ranks} ranks, {options.tokens} tokens, {options.repeats} turns each")
        print(f"{'':<10}{'macluster':>12}{'mlx.launch':>12}  tokens/s, median; ratio of medians")
        with macluster.Cluster(options.ranks, backend="ring", name="bench-generate") as world:
            for strategy in ("tensor", "pipeline"):
                world.run(f"model = macluster.load({path!r}, {strategy!r})").result(LIMIT)
                ours, theirs = [], []
                for _ in range(options.repeats):
                    code = OURS.substitute(prompt=PROMPT, tokens=options.tokens)
                    ours.append(rate(world.run(code).result(LIMIT).runs[0].text()))
                    theirs.append(bare(options, strategy, path))
                mine, peer = statistics.median(ours), statistics.median(theirs)
                print(f"{strategy:<10}{mine:>12.1f}{peer:>12.1f}  {mine / peer:.2f}", flush=True)


if __name__ == "__main__":
    main()
