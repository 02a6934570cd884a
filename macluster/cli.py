"""`macluster`: look at running clusters and end what hangs, from a terminal."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .chat import add_chat
from .engine.cell import Cell
from .engine.cluster import DEFAULT_NAME, Cluster
from .engine.errors import MaclusterError
from .engine.hostfile import Hostfile
from .engine.measure.record import QUICK, QUICK_HELP, Measurement
from .engine.plan.planner import plan
from .engine.progress import DATA
from .engine.reports import abort_text, stacks_text
from .engine.tables import Table
from .engine.world import World
from .serve import add_serve
from .terminal import BACKEND_HELP, run_cell


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. The exit code is 1 when it fails, 2 when it makes no sense."""
    options = _parser().parse_args(arguments)
    if getattr(options, "lines", False):
        # Whoever runs it may have been started where Ctrl-C is ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        options.run(options)
    except MaclusterError as error:
        if getattr(options, "lines", False):
            facts = {"what": error.what, "why": error.why, "do": error.do}
            print(json.dumps({"error": {"kind": type(error).__name__, **facts}}), flush=True)
        else:
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
        _add_json(command)

    measuring = commands.add_parser("measure", help="measure the links of idle ranks")
    measuring.add_argument("name", nargs="?", default=DEFAULT_NAME, help="of the cluster")
    measuring.add_argument("--quick", action="store_true", help=QUICK_HELP)
    measuring.add_argument("--save", metavar="FILE", help="as JSON, to compare with later")
    measuring.set_defaults(run=_measure)
    _add_json(measuring)

    start = commands.add_parser("start", help="start a cluster that runs until it is stopped")
    start.add_argument(
        "hosts", metavar="N|HOSTFILE", help="number of ranks here, or a hostfile; - reads one"
    )
    start.add_argument("--backend", help=BACKEND_HELP)
    start.add_argument("--checked", action="store_true", help="compare every collective")
    start.add_argument("--name", default=DEFAULT_NAME)
    start.set_defaults(run=_start)
    _add_json(start)
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


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", dest="lines", action="store_true", help="lines of JSON")


def _say(options: argparse.Namespace, words: str, kind: str = "words") -> None:
    try:
        print(json.dumps({kind: words}) if options.lines else words, flush=True)
    except BrokenPipeError:
        if not options.lines:
            raise
        # Whoever wanted to know is gone; what is under way goes on.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _steps(options: argparse.Namespace) -> Callable[[str], None]:
    return lambda step: _say(options, step, "step")


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
    _say(options, stacks_text(world.stacks()))
    world.client.close(linger=0)


def _abort(options: argparse.Namespace) -> None:
    cluster = Cluster.connect(options.name)
    world = cluster.running_world
    report = world.abort("`macluster abort` ended it")
    _say(options, "\n".join([abort_text(world, report), *report.notes]))
    cluster.disconnect()


def _restart(options: argparse.Namespace) -> None:
    cluster = Cluster.connect(options.name)
    cluster.restart_sync(_steps(options))
    cluster.disconnect()
    if options.lines:
        _say(options, f"all ranks of {options.name!r} are new")


def _stop(options: argparse.Namespace) -> None:
    Cluster.connect(options.name).stop_sync()
    _say(options, f"stopped {options.name!r}")


def _measure(options: argparse.Namespace) -> None:
    cluster = Cluster.connect(options.name)
    world = cluster.running_world
    try:
        # Binds no name: those of the ranks belong to their user.
        asked = f"**{QUICK!r}" if options.quick else ""
        measured = f"__import__('json').dumps(__import__('macluster').measure({asked}).as_json())"
        cell = _measure_cell(options, world, f"print({DATA!r} + {measured}, flush=True)")
        cell.check()
        printed = cell.runs[0].text("stdout").rpartition(DATA)[2]
        found = Measurement.from_json(json.loads(printed))
    finally:
        cluster.disconnect()
    if options.save:
        found.save(options.save)
    summary = f"measured {found.size} ranks in {found.seconds:.1f} s"
    _say(options, summary if options.lines else str(found))


def _measure_cell(options: argparse.Namespace, world: World, code: str) -> Cell:
    """Run it to its end, and say how far it is."""
    shown = True

    def show(content: dict[str, Any]) -> None:
        nonlocal shown
        if not shown:
            return
        text, data, _ = content["text"].partition(DATA)
        shown = not data
        step = text.strip()
        if step and options.lines:
            _say(options, step, "step")
        elif step:
            print(f"\r{step}", end="", file=sys.stderr, flush=True)

    return run_cell(world, code, show)


def _start(options: argparse.Namespace) -> None:
    hosts = options.hosts
    if hosts == "-":
        hosts = Hostfile.from_json(json.load(sys.stdin), source="standard input")
    cluster = Cluster(
        hosts,
        backend=options.backend,
        name=options.name,
        checked=options.checked,
        keep=True,
    )
    cluster.start_sync(_steps(options))
    cluster.disconnect()
    name = options.name
    _say(options, f"%cluster connect {name} uses it in a notebook; `macluster stop {name}` ends it")


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
