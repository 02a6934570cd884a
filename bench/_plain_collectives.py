"""Times collectives with MLX alone, for bench/measure.py. Run it as the ranks of a ring.

It knows nothing of macluster. Prints one line of JSON on rank 0: microseconds, the median of each
size, of the slowest rank.
"""

import json
import statistics
import sys
import time

import mlx.core as mx

SIZES = [int(each) for each in sys.argv[1].split(",")]
COUNT = 40

group = mx.distributed.init(strict=True, backend="ring")
rank, ranks = group.rank(), group.size()


def slowest(seconds):
    """The median over all operations of what the slowest rank took."""
    all_ranks = mx.distributed.all_max(mx.array(seconds), group=group)
    return 1e6 * statistics.median(all_ranks.tolist())


def sums(values, count):
    for _ in range(3):
        mx.eval(mx.distributed.all_sum(values, group=group))
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        mx.eval(mx.distributed.all_sum(values, group=group))
        seconds.append(time.perf_counter() - began)
    return seconds


found = {"all_sum": {}, "send": {}}
for size in SIZES:
    values = mx.full((size // 4,), float(rank))
    mx.eval(values)
    count = COUNT if size <= 1 << 20 else 10
    found["all_sum"][size] = slowest(sums(values, count))

for size in SIZES:
    values = mx.zeros((size,), mx.uint8)
    mx.eval(values)
    count = COUNT if size <= 1 << 20 else 10
    seconds = []
    for turn in range(3 + count):
        began = time.perf_counter()
        if rank == 0:
            mx.eval(mx.distributed.send(values, 1, group=group))
            mx.eval(mx.distributed.recv((size,), mx.uint8, 1, group=group))
        elif rank == 1:
            mx.eval(mx.distributed.recv((size,), mx.uint8, 0, group=group))
            mx.eval(mx.distributed.send(values, 0, group=group))
        if turn >= 3:
            seconds.append((time.perf_counter() - began) / 2)
    found["send"][size] = 1e6 * statistics.median(seconds)
    mx.eval(mx.distributed.all_sum(mx.array(1), group=group))

if rank == 0:
    print(json.dumps(found))
