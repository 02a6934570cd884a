"""`macluster serve`: serve a model over several ranks, from a terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from typing import Any

from .engine.cluster import Cluster
from .engine.errors import MaclusterError
from .engine.serve.serving import Serving, add_options, status_line
from .terminal import add_loading, cluster_name, load_code, run_cell

LOOK = 0.5  # seconds between two looks at the requests that have ended


def add_serve(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    serve = commands.add_parser("serve", help="serve a model over HTTP, as OpenAI's API does it")
    add_loading(serve)
    add_options(serve)
    # No draft: batches of answers have no use for one.
    serve.set_defaults(run=run, draft=None)


def run(options: argparse.Namespace) -> None:
    """Start a cluster, load the model, and serve it until Ctrl-C."""
    name = f"serve-{cluster_name(options.model)}-{os.getpid()}"
    cluster = Cluster(options.hostfile or options.n, backend=options.backend, name=name)
    world = cluster.start_sync(lambda step: print(step, file=sys.stderr, flush=True))
    try:
        run_cell(world, load_code(options)).check()
        serving = Serving(
            world,
            name=options.name,
            host=options.host,
            port=options.port,
            max_tokens=options.max_tokens,
            concurrency=options.concurrency,
        ).start()
        print(f"serving at {serving.url}; Ctrl-C ends it", flush=True)
        _follow(serving)
    finally:
        cluster.stop_sync()


def _follow(serving: Serving) -> None:
    """Print a line for each request that has ended, until Ctrl-C. Raises what ended it else."""
    seen = 0.0
    try:
        while serving.running:
            time.sleep(LOOK)
            _show_notices(serving)
            for each in _status(serving).get("recent", []):
                if each["time"] > seen:
                    seen = each["time"]
                    print(_line(each), flush=True)
    except KeyboardInterrupt:
        status = _status(serving)
        serving.stop()
        _show_notices(serving)
        if status:
            print(f"\n{status_line(status)}", file=sys.stderr)
        return
    if serving.error is not None:
        raise serving.error


def _status(serving: Serving) -> dict[str, Any]:
    """Figures of the server; none while rank 0 is being started anew."""
    with contextlib.suppress(MaclusterError):
        return serving.status() or {}
    return {}


def _show_notices(serving: Serving) -> None:
    notices, serving.world.notices = serving.world.notices, []
    for notice in notices:
        print(f"macluster: {notice}", file=sys.stderr)


def _line(request: dict[str, Any]) -> str:
    at = time.strftime("%H:%M:%S", time.localtime(request["time"]))
    kept = f", {request['reused']} of them kept" if request["reused"] else ""
    return (
        f"{at} {request['kind']}: {request['prompt']} tokens{kept}; {request['tokens']} tokens "
        f"in {request['seconds']:.2f} s, {request['finish']}"
    )
