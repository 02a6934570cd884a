"""From a fault to a usable world: macluster beside what the peers do with the same fault.

Rank 1 of N local ranks fails while the others wait in a collective. Measured for each trial:

- control: seconds from the fault until the cell has ended and the user has control back
- usable: seconds from the fault until an all_sum over N ranks is right again
- rebuild: the part of it from the abort to the verified new world
- kept: on how many of the other ranks a variable from before the fault is still there

Then the kill-first restart, which is what backends get that cannot free a blocked rank. The peers'
rows come from _recovery_peers.py, which says how they are measured; there, waiting for control that
never comes back is not counted, and the user then acts at once.

    python bench/recovery.py [--ranks 4] [--repeats 5] [--no-peers] [--nbdistributed PYTHON]
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import macluster

PATIENCE = 120.0
WAIT = "mx.eval(mx.distributed.all_sum(mx.ones(3)))"
# What rank 1 does instead once the others wait; None: the fault comes from outside.
FAULTS: dict[str, str | None] = {
    "exception": "raise ValueError('boom')",
    "skipped collective": "pass",
    "SIGKILL": None,
    "SIGSTOP": None,
    "interrupt": None,
}


@dataclass(frozen=True)
class Trial:
    """Seconds; `rebuild` is None where no new world was needed."""

    fault: str
    control: float
    usable: float
    rebuild: float | None
    kept: int


def usable(world: macluster.World) -> None:
    """Return once an all_sum over all ranks is right."""
    cell = world.run("print(mx.distributed.all_sum(mx.array(rank + 1)).item())").result(PATIENCE)
    wanted = f"{world.size * (world.size + 1) // 2}\n"
    assert all(run.text() == wanted for run in cell.runs.values()), cell.runs


def others_wait(world: macluster.World) -> None:
    """Return once all ranks but rank 1 stand in the collective."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        places = {rank: each["place"] or "" for rank, each in world.where().items()}
        if all(WAIT in places.get(rank, "") for rank in world.ranks if rank != 1):
            return
    raise TimeoutError("the other ranks never came to the collective")


def trial(world: macluster.World, fault: str, gate: Path) -> Trial:
    world.run("kept = True").result(PATIENCE)
    gate.unlink(missing_ok=True)
    act = FAULTS[fault]
    late = f"    while not os.path.exists({str(gate)!r}): time.sleep(0.001)"
    lines = ["import os, time", "if rank == 1:", late, f"    {act or 'pass'}"]
    cell = world.run("\n".join([*lines, "else:", f"    {WAIT}"]))
    others_wait(world)
    at = time.monotonic()
    if act is not None:
        gate.touch()
    elif fault == "interrupt":
        threading.Thread(target=cell.cancel).start()
    else:
        os.kill(world.client.pids[1], getattr(signal, fault))
    assert cell.wait(PATIENCE)
    control = time.monotonic() - at
    usable(world)
    took = time.monotonic() - at
    kept = world.run("print('kept' in globals())").result(PATIENCE)
    count = sum(run.text() == "True\n" for rank, run in kept.runs.items() if rank != 1)
    rebuilds = [report.seconds for report in cell.recoveries]
    return Trial(fault, control, took, sum(rebuilds) if rebuilds else None, count)


def spread(values: Sequence[float]) -> str:
    return (
        f"{statistics.median(values):6.2f} {max(values):6.2f}" if values else f"{'-':>6} {'-':>6}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--nbdistributed", metavar="PYTHON", default=sys.executable)
    options = parser.parse_args()
    trials, restarts = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        macluster.Cluster(options.ranks, name="bench-recovery") as world,
    ):
        usable(world)
        for _ in range(options.repeats):
            trials += [trial(world, fault, Path(folder, "gate")) for fault in FAULTS]
            began = time.monotonic()
            world.cluster.restart_sync()
            usable(world)
            restarts.append(time.monotonic() - began)
    print(f"{options.ranks} ranks, {options.repeats} trials each; seconds, p50 and max")
    print(f"{'macluster':<20}{'control':>13}  {'usable':>13}  {'rebuild':>13}  kept")
    for fault in FAULTS:
        mine = [each for each in trials if each.fault == fault]
        columns = [
            spread([each.control for each in mine]),
            spread([each.usable for each in mine]),
            spread([each.rebuild for each in mine if each.rebuild is not None]),
        ]
        kept = f"{min(each.kept for each in mine)} of {options.ranks - 1}"
        print(f"{fault:<20}{'  '.join(columns)}  {kept}")
    print(f"{'kill-first restart':<20}{'':15}{spread(restarts)}  {'':13}  0 of {options.ranks - 1}")
    if options.peers:
        from _recovery_peers import measure_peers, show

        print()
        show(measure_peers(options.ranks, min(options.repeats, 3), options.nbdistributed))


if __name__ == "__main__":
    main()
