"""What checked mode costs: an all_sum with and without it, and the guard that is always there.

`guarded` is what a cell calls, `bare` is MLX's own function. The two are timed in turns, in the
same cell.

    python bench/checked.py [--ranks 2] [--rounds 300]
"""

from __future__ import annotations

import argparse
import json

import macluster

CODE = """
import json, statistics, time
from macluster.engine.rank.collectives import collectives
bare = collectives.original("all_sum")
value = mx.ones({count})
def timed(call):
    began = time.perf_counter(); mx.eval(call()); return time.perf_counter() - began
def started(call):
    began = time.perf_counter(); call(); return time.perf_counter() - began
native = group.native
took = {{"bare": [], "guarded": []}}
for _ in range({rounds}):
    took["bare"].append(timed(lambda: bare(value, group=native)))
    took["guarded"].append(timed(lambda: mx.distributed.all_sum(value)))
rprint(json.dumps({{name: statistics.median(times) for name, times in took.items()}}))
"""
GUARD = """
import timeit
from macluster.engine.rank.collectives import collectives
bare, native, value = collectives.original("all_sum"), group.native, mx.ones(1)
alone = lambda call: min(timeit.repeat(call, number=2000, repeat=5)) / 2000
rprint(alone(lambda: mx.distributed.all_sum(value)) - alone(lambda: bare(value, group=native)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    with macluster.Cluster(options.ranks, name="bench-checked") as world:
        guard = float(world.run(GUARD).result(120).runs[0].text())
        print(f"starting one costs {guard * 1e6:.1f} us more than MLX's own function")
        print("all_sum of        bare   guarded  ratio   checked  ratio")
        for count in (1, 16_384, 1_048_576):
            code = CODE.format(count=count, rounds=options.rounds)
            plain = json.loads(world.run(code).result(300).runs[0].text())
            checked = json.loads(world.run(code, checked=True).result(300).runs[0].text())
            bare, guarded, slow = plain["bare"], plain["guarded"], checked["guarded"]
            print(
                f"{count * 4:>10} B {bare * 1e6:6.0f} us {guarded * 1e6:6.0f} us "
                f"{guarded / bare:6.2f} {slow * 1e6:6.0f} us {slow / bare:6.2f}"
            )


if __name__ == "__main__":
    main()
