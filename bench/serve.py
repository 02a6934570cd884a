"""A model served to eight clients at once, and to difficult ones: macluster beside mlx_lm.server.

Both serve the same model over N local ranks on MLX's ring: macluster from a cluster, mlx_lm.server
under mlx.launch. First their throughput, in turns, so that what else the machine does hits both.
Then what becomes of each after a client that does something difficult: whether a plain request is
answered afterwards within LIMIT seconds, and what /health says then; each begins with a server of
its own. At last a thousand requests of many kinds at once, for macluster only.

    python bench/serve.py [--ranks 2] [--requests 48] [--tokens 64] [--repeats 3] [--soak 1000]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

import macluster

LIMIT = 20.0  # seconds in which a plain request must be answered
START = 120.0  # seconds until a server answers for the first time
TEXT = "The quick brown fox jumps over the lazy dog. "


class Server:
    """A server that answers at `url`, and the process ids of its ranks."""

    def __init__(self, url: str, pids: list[int]) -> None:
        self.url = url
        self.pids = pids
        self.client = httpx.Client(base_url=url, timeout=LIMIT)

    def ask(self, limit: float = LIMIT, **body: Any) -> httpx.Response:
        body = {"prompt": TEXT, "max_tokens": 8, **body}
        return self.client.post("/completions", json=body, timeout=limit)

    def leave(self, **body: Any) -> None:
        """Begin a stream, read a little of it, and go."""
        body = {"prompt": TEXT, "max_tokens": 400, "stream": True, **body}
        with self.client.stream("POST", "/completions", json=body) as answer:
            next(answer.iter_bytes())

    def healthy(self) -> str:
        try:
            health = self.client.get(self.url.removesuffix("/v1") + "/health", timeout=LIMIT)
            return str(health.status_code)
        except httpx.HTTPError as error:
            return type(error).__name__


@contextlib.contextmanager
def ours(options: argparse.Namespace, path: str, extra: list[str]) -> Iterator[Server]:
    strategy = "pipeline" if "--pipeline" in extra else "tensor"
    with macluster.Cluster(options.ranks, backend="ring", name="bench-serve") as world:
        world.run(f"model = macluster.load({path!r}, {strategy!r})").result(START)
        with macluster.Serving(world, port=0) as serving:
            yield Server(serving.url, [world.client.pids[rank] for rank in world.ranks])


@contextlib.contextmanager
def theirs(options: argparse.Namespace, path: str, extra: list[str]) -> Iterator[Server]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    launch = str(Path(sys.executable).with_name("mlx.launch"))
    server = [sys.executable, "-m", "mlx_lm.server", "--model", path, "--port", str(port), *extra]
    process = subprocess.Popen(
        [launch, "-n", str(options.ranks), "--backend", "ring", "--", *server],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}/v1"
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if Server(url, []).ask().status_code == 200:
                    break
            time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
        ranks = [each.pid for each in family if "mlx_lm.server" in " ".join(each.cmdline()[:4])]
        yield Server(url, ranks)
    finally:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                each.kill()
        process.wait()


def throughput(server: Server, options: argparse.Namespace) -> float:
    """Tokens per second of eight clients that ask one thing after another."""

    def one(number: int) -> int:
        # Another beginning each time: no cache helps.
        answer = server.ask(
            START, prompt=f"{number} {TEXT}", max_tokens=options.tokens, temperature=0
        )
        return int(answer.json()["usage"]["completion_tokens"])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(-8, 0)))  # what is done once
        began = time.perf_counter()
        tokens = sum(pool.map(one, range(options.requests)))
        return tokens / (time.perf_counter() - began)


def at_once(server: Server, count: int, **body: Any) -> None:
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(server.ask, **body) for _ in range(count)]:
            future.result()


def kill(server: Server) -> None:
    os.kill(server.pids[1], signal.SIGKILL)
    # Long enough for a world to be mended, and for the other to notice.
    deadline = time.monotonic() + LIMIT
    while server.healthy() != "200" and time.monotonic() < deadline:
        time.sleep(0.2)


def different(server: Server) -> None:
    """Prompts of many lengths, so that caches have to be given up."""
    for number in range(24):
        server.ask(prompt=f"{number} " + TEXT * (number % 5 + 1))


JSON = {"Content-Type": "application/json"}
PIPELINE = ["--pipeline", "--prompt-cache-bytes", "100000"]
DIFFICULT: list[tuple[str, Callable[[Server], Any], list[str]]] = [
    ("a client leaves a stream", lambda s: s.leave(), []),
    ("a client leaves a stream with a seed", lambda s: s.leave(seed=3), []),
    ("eight requests with seeds at once", lambda s: at_once(s, 8, seed=3, temperature=1), []),
    ("32 requests at once", lambda s: at_once(s, 32), []),
    (
        "the body is not JSON",
        lambda s: s.client.post("/completions", content=b"{", headers=JSON),
        [],
    ),
    ("an empty prompt", lambda s: s.ask(prompt=""), []),
    ("a prompt that is a number", lambda s: s.ask(prompt=3), []),
    ("a prompt longer than the context", lambda s: s.ask(prompt=TEXT * 2000), []),
    ("max_tokens 0", lambda s: s.ask(max_tokens=0), []),
    ("logit_bias for a token that is not there", lambda s: s.ask(logit_bias={"10000000": 1}), []),
    ("an empty stop string", lambda s: s.ask(stop=""), []),
    ("another model's name", lambda s: s.ask(model="no/such-model"), []),
    ("uneven pipeline, little memory for caches", different, PIPELINE),
    ("SIGKILL of the second rank", kill, []),
]


def trial(kind: Any, options: argparse.Namespace, path: str, action: Any, extra: list[str]) -> str:
    """What an action did to a server of its own, in words."""
    # Four layers: over three ranks the stages are uneven.
    ranks = 3 if extra else options.ranks
    with kind(argparse.Namespace(ranks=ranks), path, extra) as server:
        try:
            answer = action(server)
            said = str(answer.status_code) if isinstance(answer, httpx.Response) else "done"
        except (httpx.HTTPError, psutil.Error, OSError, IndexError) as error:
            said = type(error).__name__
        try:
            after = f"goes on ({server.ask().status_code})"
        except httpx.HTTPError as error:
            after = f"HANGS or is gone ({type(error).__name__})"
        return f"{said}, then {after}, health {server.healthy()}"


def soak(options: argparse.Namespace, path: str) -> str:
    """Many requests of many kinds, from twelve clients; then a sum over all ranks."""
    rejected = 0

    def one(number: int) -> int:
        kind = number % 5
        if kind == 0:
            server.leave(seed=number)
        elif kind == 1:
            return int(server.ask(START, prompt="x " * 9000, max_tokens=9).status_code == 400)
        else:
            # A prompt that others have begun with, one of its own, one that draws.
            prompt = TEXT if kind == 2 else f"{number} {TEXT}"
            server.ask(START, prompt=prompt, temperature=kind - 2, seed=number).raise_for_status()
        return 0

    with macluster.Cluster(options.ranks, backend="ring", name="bench-soak-serve") as world:
        world.run(f"model = macluster.load({path!r})").result(START)
        sizes = [psutil.Process(world.client.pids[rank]).memory_info().rss for rank in world.ranks]
        with macluster.Serving(world, port=0) as serving:
            server = Server(serving.url, [])
            began = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                rejected = sum(pool.map(one, range(options.soak)))
            took = time.perf_counter() - began
            status = serving.status() or {}
        check = "print(mx.distributed.all_sum(mx.array(rank + 1)).item())"
        runs = world.run(check).result(START).runs
        right = {runs[rank].text().strip() for rank in world.ranks}
        grown = [psutil.Process(world.client.pids[rank]).memory_info().rss for rank in world.ranks]
    wanted = str(sum(range(1, options.ranks + 1)))
    memory = ", ".join(
        f"{a / 1e6:.0f} -> {b / 1e6:.0f} MB" for a, b in zip(sizes, grown, strict=True)
    )
    return (
        f"{options.soak} requests in {took:.0f} s: {status.get('failed')} failed, "
        f"{status.get('given_up')} given up, {rejected} refused; ranks "
        f"{'in step' if right == {wanted} else 'OUT OF STEP'}; memory of the ranks {memory}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--requests", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trial", default="", help="only difficulties with these words in them")
    parser.add_argument("--soak", type=int, default=1000, help="requests of the soak")
    parser.add_argument("--only", choices=("throughput", "soak", "difficult"))
    options = parser.parse_args()
    # Without this MLX calls a C++ compiler for every new kernel where there is no GPU.
    os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model"
        # In a process of its own: mlx_lm lowers RLIMIT_NOFILE of its process for good.
        made = [sys.executable, "-m", "macluster.engine.models.tiny", "qwen2", path]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
        config = json.loads(Path(path, "config.json").read_text())
        # Nothing ends an answer early.
        Path(path, "config.json").write_text(json.dumps({**config, "eos_token_id": -1}))
        if options.only in (None, "soak"):
            print(soak(options, path), flush=True)
        if options.only in (None, "throughput"):
            mine, peer = [], []
            for _ in range(options.repeats):
                for kind, rates in ((ours, mine), (theirs, peer)):
                    with kind(options, path, []) as server:
                        rates.append(throughput(server, options))
                        print(f"{kind.__name__} {rates[-1]:.1f} tokens/s", flush=True)
            print(
                f"{options.ranks} ranks, 8 clients, {options.requests} requests of "
                f"{options.tokens} tokens, {options.repeats} turns: macluster "
                f"{statistics.median(mine):.0f} tokens/s, mlx_lm.server "
                f"{statistics.median(peer):.0f} tokens/s; ratio of pairs, median "
                f"{statistics.median(a / b for a, b in zip(mine, peer, strict=True)):.2f}",
                flush=True,
            )
        if options.only not in (None, "difficult"):
            return
        for name, action, extra in DIFFICULT:
            if options.trial not in name:
                continue
            print(name)
            for label, kind in (("macluster", ours), ("mlx_lm.server", theirs)):
                print(f"  {label:<14}{trial(kind, options, path, action, extra)}", flush=True)


if __name__ == "__main__":
    main()
