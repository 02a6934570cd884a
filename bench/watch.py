"""What does it cost a model that generates when the sidebar watches? Watched and not, in turns.

    python bench/watch.py [--ranks 2] [--pairs 20] [--tokens 300] [--period 0.25]

Prints the ratio of tokens per second, watched over unwatched, as the median over pairs of turns
with the range that 95 % of resampled medians lie in.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import threading

import macluster
from macluster.engine.monitor.monitor import Monitor

ENV = {"MLX_DISABLE_COMPILE": "1"}  # otherwise MLX calls a C++ compiler where there is no GPU
TURN = """
parts = macluster.stream_generate(model, "Count from 1 to 15.", max_tokens={tokens},
                                  logits_processors=[endless])
for part in parts:
    pass
rprint(part.generation_tps, part.generation_tokens)
"""
# The toy model would end its answer: its end-of-text token never wins.
SET_UP = """
model = macluster.load(macluster.toy_path())
ends = mx.array(sorted(model.tokenizer.eos_token_ids))
def endless(tokens, logits):
    logits[:, ends] = -1e9
    return logits
"""


def turn(world: macluster.World, tokens: int) -> float:
    cell = world.run(TURN.format(tokens=tokens)).result(300)
    rate, count = cell.runs[0].text("stdout").split()
    assert int(count) == tokens
    return float(rate)


def watched(world: macluster.World, name: str, tokens: int, period: float) -> tuple[float, int]:
    """Tokens per second while a monitor is open, and how many messages came."""
    heard: list[None] = []
    monitor = Monitor(name, lambda: heard.append(None))
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            monitor.want(period)
            monitor.state()
            done.wait(period)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        return turn(world, tokens), len(heard)
    finally:
        done.set()
        watcher.join()
        monitor.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--period", type=float, default=0.25)
    options = parser.parse_args()
    name = f"bench-watch-{os.getpid()}"
    cluster = macluster.Cluster(options.ranks, backend="ring", name=name, env=ENV)
    world = cluster.start_sync()
    try:
        world.run(SET_UP).result(300)
        turn(world, options.tokens)
        ratios, messages = [], 0
        for number in range(options.pairs):
            # Which one comes first changes: a machine that gets warm must favour neither.
            if number % 2:
                with_it, count = watched(world, name, options.tokens, options.period)
                without = turn(world, options.tokens)
            else:
                without = turn(world, options.tokens)
                with_it, count = watched(world, name, options.tokens, options.period)
            messages += count
            ratios.append(with_it / without)
            print(f"{without:8.1f} tokens/s alone, {with_it:8.1f} watched: {ratios[-1]:.3f}")
    finally:
        cluster.stop_sync()
    resampled = sorted(
        statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(2000)
    )
    print(
        f"watched / alone: {statistics.median(ratios):.4f} "
        f"({resampled[50]:.4f} to {resampled[-51]:.4f}), {options.ranks} ranks, "
        f"{options.pairs} pairs of turns, {messages} messages"
    )


if __name__ == "__main__":
    main()
