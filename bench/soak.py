"""Cells with random faults, one after another: nothing hangs, nothing leaks.

After every cell the next collective must be right, and the variables of every rank that was not
replaced must be there. Every hundred cells, the memory of the controller, of this process and of
the ranks is printed; of the ranks, only those that are older than a hundred cells.

    python bench/soak.py [--cells 1000] [--ranks 3] [--faults 0.15] [--seed 1]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import threading
import time

import psutil

import macluster

PATIENCE = 120.0
WAIT = "mx.eval(mx.distributed.all_sum(mx.ones(1000)))"
FAULTS = {
    "exception": "raise ValueError('boom')",
    "exit": "import os; os._exit(3)",
    "SIGKILL": "import os; os.kill(os.getpid(), 9)",
    "SIGSTOP": "import os; os.kill(os.getpid(), 19)",
    "skip": "pass",
    "cancel": "import time; time.sleep(600)",
    "timeout": "while True: pass",
}


def healthy(world: macluster.World, marks: dict[int, int]) -> None:
    """The sum is right, and every rank still has its mark."""
    code = "print(mx.distributed.all_sum(mx.array(rank + 1)).item(), globals().get('mark'))"
    cell = world.run(code).result(PATIENCE)
    total = world.size * (world.size + 1) // 2
    for rank in world.ranks:
        assert cell.runs[rank].text() == f"{total} {marks.get(rank)}\n", (rank, marks, cell.runs)


def fail(world: macluster.World, kind: str, culprit: int) -> macluster.Cell:
    code = f"if rank == {culprit}:\n    {FAULTS[kind]}\nelse:\n    {WAIT}"
    cell = world.run(code)
    if kind == "cancel":
        threading.Timer(0.2, cell.cancel).start()
    try:
        cell.result(3.0 if kind == "timeout" else PATIENCE)
    except macluster.CellError:
        return cell
    raise AssertionError(f"{kind} on rank {culprit} went unnoticed")


def megabytes(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--faults", type=float, default=0.15, help="their share of the cells")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    faults: dict[str, int] = {}
    slowest, began = 0.0, time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with macluster.Cluster(options.ranks, name="soak") as world:
        marks: dict[int, int] = {}
        born = dict.fromkeys(world.ranks, 0)
        print(f"{'cells':>6} {'faults':>6} {'worlds':>6} {'slowest':>8}  memory (MB)")
        for number in range(1, options.cells + 1):
            started = time.monotonic()
            if choose.random() < options.faults:
                kind, culprit = choose.choice(list(FAULTS)), choose.randrange(world.size)
                faults[kind] = faults.get(kind, 0) + 1
                for report in fail(world, kind, culprit).recoveries:
                    for rank in report.restarted:
                        marks.pop(rank, None)
                        born[rank] = number
            else:
                world.run(f"mark = {number}\n{WAIT}").result(PATIENCE)
                marks = dict.fromkeys(world.ranks, number)
            healthy(world, marks)
            slowest = max(slowest, time.monotonic() - started)
            if number % 100 == 0:
                old = [rank for rank in world.ranks if number - born[rank] > 100]
                ranks = ", ".join(f"rank {r} {megabytes(world.client.pids[r]):.0f}" for r in old)
                print(
                    f"{number:6} {sum(faults.values()):6} {world.epoch:6} {slowest:7.1f}s  "
                    f"here {megabytes(os.getpid()):.0f}, "
                    f"controller {megabytes(world.cluster.controller.pid):.0f}, {ranks}",
                    flush=True,
                )
                slowest = 0.0
    listing = ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items()))
    print(f"{options.cells} cells in {time.monotonic() - began:.0f} s, no hang; {listing}")


if __name__ == "__main__":
    main()
