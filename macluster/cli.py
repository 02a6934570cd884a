"""`macluster`: look at running clusters and end what hangs, from a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from .chat import add_chat
from .engine.cluster import DEFAULT_NAME, Cluster
from .engine.errors import MaclusterError
from .engine.plan.planner import plan
from .engine.reports import abort_text, stacks_text
from .engine.tables import Table
from .serve import add_serve
from .terminal import BACKEND_HELP


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. The exit code is 1 when it fails, 2 when it makes no sense."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except MaclusterError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="macluster", description="Your running clusters, from a terminal."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="your running clusters")
    listing.add_argument("--json", action="store_true", help="one JSON object for each")
    listing.set_defaults(run=_list)

    for name, run, help_text in (
        ("stacks", _stacks, "where every rank stands, also while a cell runs"),
        ("abort", _abort, "end whatever the ranks do; on ring they keep their variables"),
        ("restart", _restart, "kill all ranks and start them anew; variables are lost"),
        ("stop", _stop, "end a cluster"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("name", nargs="?", default=DEFAULT_NAME, help="of the cluster")
        command.set_defaults(run=run)

    start = commands.add_parser("start", help="start a cluster that runs until it is stopped")
    start.add_argument("hosts", metavar="N|HOSTFILE", help="number of ranks here, or a hostfile")
    start.add_argument("--backend", help=BACKEND_HELP)
    start.add_argument("--checked", action="store_true", help="compare every collective")
    start.add_argument("--name", default=DEFAULT_NAME)
    start.set_defaults(run=_start)
    planning = commands.add_parser("plan", help="whether a model fits, and how fast it would be")
    planning.add_argument("model", help='a folder, or a name such as "DeepSeek-V3.1 8-bit"')
    planning.add_argument(
        "hosts",
        nargs="?",
        help='for example "4 x M3 Ultra 512GB, mesh", or a number of ranks; not needed with '
        "--measured",
    )
    planning.add_argument("--strategy", choices=("auto", "tensor", "pipeline"), default="auto")
    planning.add_argument("--context", type=int, default=8192, metavar="TOKENS")
    planning.add_argument("--prompt", type=int, default=512, metavar="TOKENS")
    planning.add_argument(
        "--measured", metavar="FILE", help="what macluster.calibrate(model).save(FILE) wrote"
    )
    planning.set_defaults(run=_plan)

    add_chat(commands)
    add_serve(commands)
    return parser


def _list(options: argparse.Namespace) -> None:
    listings = Cluster.running()
    if options.json:
        for each in listings:
            print(json.dumps({"name": each.name, "ranks": each.size, "backend": each.backend,
                              "process": each.owner_pid}))  # fmt: skip
        return
    rows = [(each.name, str(each.size), each.backend, str(each.owner_pid)) for each in listings]
    print(Table(("name", "ranks", "backend", "process"), rows, right=(1, 3),
                empty="no clusters run"))  # fmt: skip


def _stacks(options: argparse.Namespace) -> None:
    world = Cluster.connect(options.name).running_world
    print(stacks_text(world.stacks()))
    world.client.close(linger=0)


def _abort(options: argparse.Namespace) -> None:
    cluster = Cluster.connect(options.name)
    world = cluster.running_world
    report = world.abort("`macluster abort` ended it")
    print("\n".join([abort_text(world, report), *report.notes]))
    cluster.disconnect()


def _restart(options: argparse.Namespace) -> None:
    cluster = Cluster.connect(options.name)
    cluster.restart_sync(_progress)
    cluster.disconnect()


def _stop(options: argparse.Namespace) -> None:
    Cluster.connect(options.name).stop_sync()
    print(f"stopped {options.name!r}")


def _start(options: argparse.Namespace) -> None:
    cluster = Cluster(
        options.hosts,
        backend=options.backend,
        name=options.name,
        checked=options.checked,
        keep=True,
    )
    cluster.start_sync(_progress)
    cluster.disconnect()
    name = options.name
    print(f"%cluster connect {name} uses it in a notebook; `macluster stop {name}` ends it")


def _plan(options: argparse.Namespace) -> None:
    print(
        plan(
            options.model,
            options.hosts,
            strategy=options.strategy,
            context=options.context,
            prompt=options.prompt,
            measured=options.measured,
        )
    )


def _progress(step: str) -> None:
    print(step, flush=True)
