"""Are our figures true? In turns with plain MLX, on as many ranks.

    python bench/measure.py [--ranks 2] [--turns 3] [--launch]

Prints the ratio of our medians to those of a script that knows nothing of macluster, how far a line
through every other size is off at the sizes in between, and what the simulator predicts for more
ranks from the link between two.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import macluster
from macluster.engine.measure.fit import fit
from macluster.engine.simulate.simulation import Simulation
from macluster.engine.units import bytes_text

HERE = Path(__file__).parent
SIZES = [4, 64, 1 << 10, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22]
SEND_SIZES = [64, 1 << 10, 1 << 15, 1 << 16, 1 << 18, 1 << 20, 1 << 22]
ENV = {"MLX_DISABLE_COMPILE": "1"}  # otherwise MLX calls a C++ compiler where there is no GPU


def ours(ranks: int) -> macluster.Measurement:
    cluster = macluster.Cluster(ranks, backend="ring", name=f"bench-measure-{os.getpid()}", env=ENV)
    world = cluster.start_sync()
    try:
        cell = world.run(
            "import json\nfound = macluster.measure(ops=('all_sum',), most=1 << 22)\n"
            "rprint('\\n' + json.dumps(found.as_json()))"
        )
        cell.result(600)
        printed = cell.runs[0].text("stdout").splitlines()[-1]
        return macluster.Measurement.from_json(json.loads(printed))
    finally:
        cluster.stop_sync()


def plain(ranks: int, launch: bool) -> dict[str, dict[int, float]]:
    """Seconds by operation and size, of a script that knows nothing of macluster."""
    sizes = ",".join(str(size) for size in sorted({*SIZES, *SEND_SIZES}))
    script = [str(HERE / "_plain_collectives.py"), sizes]
    env = os.environ | ENV
    if launch:
        launcher = shutil.which("mlx.launch", path=str(Path(sys.executable).parent)) or "mlx.launch"
        command = [
            launcher,
            "-n",
            str(ranks),
            "--backend",
            "ring",
            "--python",
            sys.executable,
            "--",
        ]
        done = subprocess.run(
            command + script, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=600, check=True,
        )  # fmt: skip
        printed = done.stdout
    else:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as hostfile:
            json.dump([[f"127.0.0.1:{17_800 + rank}"] for rank in range(ranks)], hostfile)
            hostfile.flush()
            started = [
                subprocess.Popen(
                    [sys.executable, *script], stdout=subprocess.PIPE, text=True,
                    env=env | {"MLX_RANK": str(rank), "MLX_HOSTFILE": hostfile.name},
                )
                for rank in range(ranks)
            ]  # fmt: skip
            printed = "".join(each.communicate(timeout=600)[0] for each in started)
    line = next(each for each in printed.splitlines() if each.startswith("{"))
    found: dict[str, dict[str, float]] = json.loads(line)
    return {op: {int(n): t / 1e6 for n, t in times.items()} for op, times in found.items()}


def beside(ranks: int, turns: int, launch: bool) -> macluster.Measurement:
    """Ours and theirs in turns; prints the ratios, and returns our last measurement."""
    mine: dict[tuple[str, int], list[float]] = {}
    theirs: dict[tuple[str, int], list[float]] = {}
    for _ in range(turns):
        found = ours(ranks)
        [sweep] = found.sweeps
        pair = found.pair(0, 1)
        assert pair is not None
        times = {("all_sum", point.size): point.time.p50 for point in sweep.points}
        times |= {("send", point.size): point.time.p50 for point in pair.curve}
        for key, seconds in times.items():
            mine.setdefault(key, []).append(seconds)
        for op, by_size in plain(ranks, launch).items():
            for size, seconds in by_size.items():
                theirs.setdefault((op, size), []).append(seconds)
    print(f"\n{ranks} ranks, ring, {turns} turns: medians, and the spread between turns")
    print(f"{'':8} {'size':>9} {'ours us':>10} {'plain MLX us':>13} {'ratio':>6}  range of turns")
    ratios = []
    for key in sorted(mine.keys() & theirs.keys()):
        a, b = statistics.median(mine[key]), statistics.median(theirs[key])
        ratios.append(a / b)
        spread = f"{1e6 * min(mine[key]):.0f}-{1e6 * max(mine[key]):.0f} / "
        spread += f"{1e6 * min(theirs[key]):.0f}-{1e6 * max(theirs[key]):.0f}"
        print(f"{key[0]:8} {bytes_text(key[1]):>9} {1e6 * a:10.1f} {1e6 * b:13.1f} {a / b:6.2f}  "
              f"{spread}")  # fmt: skip
    print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    return found


def held_out(found: macluster.Measurement) -> None:
    """A line through every other size, at the sizes that it has not seen."""
    curves: dict[str, list[tuple[int, float]]] = {
        sweep.op: [(point.size, point.time.p50) for point in sweep.points] for sweep in found.sweeps
    }
    for pair in found.pairs:
        name = f"{pair.a}-{pair.b} {pair.via}"
        curves[name] = [(point.size, point.time.p50) for point in pair.curve]
    print("\nA line through every other size, at those in between")
    for name, points in curves.items():
        line = fit([n for n, _ in points[::2]], [t for _, t in points[::2]])
        if line is None:
            continue
        off = [abs(line.time(n) / t - 1) for n, t in points[1::2]]
        good = "" if line.good else " (the line itself says that it is no good one)"
        print(f"{name:14} median {100 * statistics.median(off):.0f} %, "
              f"most {100 * max(off):.0f} %{good}")  # fmt: skip


def simulated(link: Any, counts: list[int]) -> None:
    """Sums of more ranks, simulated from the way between two, beside what is measured."""
    print("\nall_sum: simulated from the link between two ranks, beside measured")
    for ranks in counts:
        [sweep] = ours(ranks).sweeps
        there = Simulation.of_fit(link, ranks, "ring")
        for point in sweep.points:
            if point.size in (1 << 10, 1 << 16, 1 << 20, 1 << 22):
                predicted = there.time("all_sum", point.size)
                print(f"{ranks} ranks {bytes_text(point.size):>9}: simulated "
                      f"{1e6 * predicted:10.1f} us, measured {1e6 * point.time.p50:10.1f} us, "
                      f"ratio {predicted / point.time.p50:.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    # Its launcher keeps a core busy while it waits, which two ranks on two cores feel.
    parser.add_argument("--launch", action="store_true", help="start plain MLX by mlx.launch")
    parser.add_argument("--simulate", type=int, nargs="*", default=[2, 4], metavar="RANKS")
    options = parser.parse_args()
    found = beside(options.ranks, options.turns, options.launch)
    held_out(found)
    pair = found.pair(0, 1)
    if options.simulate and pair is not None and pair.fit is not None:
        print(f"\nthe link: {pair.fit.verdict}")
        simulated(pair.fit, options.simulate)


if __name__ == "__main__":
    main()
