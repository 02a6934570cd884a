"""Time from nothing to a verified all_sum on N local ranks: stock ipyparallel against macluster.

The peer is what `ipcluster start` does (`ipyparallel.Cluster`, default settings), plus the same
all_sum on MLX's ring. The two take turns, so a change of the machine's speed hits both.

    python bench/start.py [--ranks 4] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import logging
import socket
import statistics
import tempfile
import time

import ipyparallel

import macluster

JOIN = """
import json, os, tempfile
with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
    json.dump(nodes, file)
os.environ.update(MLX_RANK=str(my_rank), MLX_HOSTFILE=file.name)
import mlx.core as mx
world = mx.distributed.init(strict=True, backend="ring")
total = int(mx.distributed.all_sum(mx.array(my_rank + 1), group=world).item())
os.unlink(file.name)
"""


def free_ports(count: int) -> list[int]:
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


def stock(ranks: int) -> float:
    """Seconds that ipyparallel's own start and an all_sum take."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        cluster = ipyparallel.Cluster(n=ranks, profile_dir=folder, log_level=logging.ERROR)
        try:
            client = cluster.start_and_connect_sync()
            view = client[:]
            view.push({"nodes": [[f"127.0.0.1:{port}"] for port in free_ports(ranks)]}, block=True)
            view.scatter("my_rank", range(ranks), flatten=True, block=True)
            view.execute(JOIN, block=True)
            totals = view.pull("total", block=True)
            took = time.perf_counter() - began
            assert totals == [ranks * (ranks + 1) // 2] * ranks, totals
            client.close()
        finally:
            cluster.stop_cluster_sync()
    return took


def ours(ranks: int) -> float:
    """Seconds that macluster's start takes; it ends with an all_sum on every rank."""
    began = time.perf_counter()
    cluster = macluster.Cluster(ranks, name="bench-start", backend="ring")
    world = cluster.start_sync()
    try:
        took = time.perf_counter() - began
        assert len(world.alive) == ranks
    finally:
        cluster.stop_sync()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    options = parser.parse_args()
    times: dict[str, list[float]] = {"ipyparallel": [], "macluster": []}
    for _ in range(options.rounds):
        times["ipyparallel"].append(stock(options.ranks))
        times["macluster"].append(ours(options.ranks))
    print(f"start of {options.ranks} local ranks to a verified all_sum, {options.rounds} rounds")
    print(f"{'':<14}{'median':>9}{'min':>9}{'max':>9}")
    for name, values in times.items():
        row = (statistics.median(values), min(values), max(values))
        print(f"{name:<14}" + "".join(f"{value:>7.2f} s" for value in row))
    ratios = [b / a for a, b in zip(times["ipyparallel"], times["macluster"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"macluster / ipyparallel: {ratio:.2f} (median of pairs; the aim is at most 0.50)")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"times": times, "ratio": ratio}, file)


if __name__ == "__main__":
    main()
