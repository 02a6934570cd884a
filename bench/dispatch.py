"""Round trip of an empty cell on N local ranks: `%%px` against `%%distributed`.

Both run in one real Jupyter kernel, in turn, in rounds of many cells. A bare ZeroMQ echo to N
processes shows the floor.

    python bench/dispatch.py [--ranks 4] [--cells 200]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time

import zmq
from jupyter_client.manager import start_new_kernel

ROUNDS = 5

# Runs inside the kernel. Prints the times of both magics as one line of JSON.
IN_KERNEL = """
import io, json, logging, time
from contextlib import redirect_stdout
import ipyparallel
shell = get_ipython()
shell.run_line_magic("load_ext", "macluster")
shell.run_line_magic("cluster", "start {ranks} --backend ring --name bench-dispatch")
peer = ipyparallel.Cluster(n={ranks}, profile_dir={folder!r}, log_level=logging.ERROR)
client = peer.start_and_connect_sync(activate=True)

def one(magic):
    began = time.perf_counter()
    shell.run_cell_magic(magic, "", "pass")
    return time.perf_counter() - began

times = {{"px": [], "distributed": []}}
try:
    for _ in range({rounds}):
        for magic in times:
            # What the other magic left for its hub and its engines to do must not count here.
            for _ in range(10):
                one(magic)
            times[magic] += [one(magic) for _ in range({cells} // {rounds})]
finally:
    client.close()
    peer.stop_cluster_sync()
    shell.run_line_magic("cluster", "stop")
print("RESULT " + json.dumps(times))
"""


def magics(ranks: int, cells: int) -> dict[str, list[float]]:
    """Seconds per empty cell for each magic, measured inside a Jupyter kernel."""
    manager, client = start_new_kernel(kernel_name="python3")
    printed: list[str] = []

    def keep(message: dict) -> None:
        content = message["content"]
        if message["msg_type"] == "stream":
            printed.append(content["text"])
        elif message["msg_type"] == "error":
            printed.append("\n".join(content["traceback"]))

    with tempfile.TemporaryDirectory() as folder:
        code = IN_KERNEL.format(ranks=ranks, cells=cells, rounds=ROUNDS, folder=folder)
        try:
            client.execute_interactive(code, output_hook=keep, timeout=600)
        finally:
            client.stop_channels()
            manager.shutdown_kernel()
    text = "".join(printed)
    if "RESULT " not in text:
        raise SystemExit(text)
    result: dict[str, list[float]] = json.loads(text.partition("RESULT ")[2].splitlines()[0])
    return result


def echo(port: int) -> None:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port}")
    socket.send(b"ready")
    while (message := socket.recv()) != b"stop":
        socket.send(message)


def floor(ranks: int, cells: int) -> list[float]:
    """Seconds per round trip of one small message to each of N processes over bare ZeroMQ."""
    socket = zmq.Context().socket(zmq.ROUTER)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    workers = [multiprocessing.Process(target=echo, args=(port,)) for _ in range(ranks)]
    for worker in workers:
        worker.start()
    names = [socket.recv_multipart()[0] for _ in workers]
    times = []
    for _ in range(cells):
        began = time.perf_counter()
        for name in names:
            socket.send_multipart([name, b"pass"])
        for _ in names:
            socket.recv_multipart()
        times.append(time.perf_counter() - began)
    for name in names:
        socket.send_multipart([name, b"stop"])
    for worker in workers:
        worker.join()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    options = parser.parse_args()
    times = magics(options.ranks, options.cells)
    times["bare ZeroMQ"] = floor(options.ranks, options.cells)
    print(f"empty cell on {options.ranks} local ranks, {options.cells} cells each")
    print(f"{'':<14}{'p50':>9}{'p95':>9}{'min':>9}")
    for name, values in times.items():
        ordered = sorted(values)
        p95 = ordered[int(0.95 * (len(ordered) - 1))]
        row = (statistics.median(ordered), p95, ordered[0])
        print(f"{name:<14}" + "".join(f"{value * 1e3:>6.2f} ms" for value in row))
    ratio = statistics.median(times["distributed"]) / statistics.median(times["px"])
    print(f"%%distributed / %%px: {ratio:.2f} (ratio of medians; the aim is at most 0.25)")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"times": times, "ratio": ratio}, file)


if __name__ == "__main__":
    main()
