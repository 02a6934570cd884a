"""`%cluster`: start, connect, look at and stop the cluster of this notebook."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from IPython.core.magic import Magics, line_magic, magics_class

from ..engine import tables
from ..engine.cluster import DEFAULT_NAME, Cluster
from ..engine.errors import StartError, UsageError, WorldError
from ..engine.hostfile import split_assignment
from ..engine.processes import runs
from ..engine.reports import abort_text, stacks_text
from .arguments import Arguments, read_verb
from .lines import Steps
from .relay import plain_text
from .session import Session

START = Arguments("%cluster start", "Start a cluster: N ranks on this machine, or a hostfile.")
START.add_argument("hosts", nargs="?", metavar="N|HOSTFILE", help="number of ranks, or a hostfile")
START.add_argument("--backend", metavar="NAME", help="jaccl, jaccl-ring, ring, mpi or nccl")
START.add_argument(
    "--env", action="append", default=[], metavar="K=V", help="a variable for every rank"
)
START.add_argument(
    "--checked", action="store_true",
    help="compare every collective across the ranks before it moves data",
)  # fmt: skip
START.add_argument(
    "--keep", action="store_true", help="let the ranks outlive this notebook's kernel"
)
START.add_argument("--name", default=DEFAULT_NAME, help=f"its name (default: {DEFAULT_NAME})")
CONNECT = Arguments("%cluster connect", "Use a cluster that another notebook started.")
CONNECT.add_argument("name", nargs="?", default=DEFAULT_NAME, metavar="NAME")
OUTPUT = Arguments("%cluster output", "What the ranks printed in the last cell, in full.")
OUTPUT.add_argument("-t", "--rank", type=int, default=0, metavar="RANK", help="default: 0")
OUTPUT.add_argument("--lines", type=int, default=100, metavar="N", help="the last N lines")
OUTPUT.add_argument("--save", metavar="FILE", help="write all of it to FILE")
STATUS = Arguments("%cluster status", "The ranks of this notebook's cluster.")
RESTART = Arguments("%cluster restart", "Kill all ranks and start them anew. Variables are lost.")
ABORT = Arguments(
    "%cluster abort",
    "End whatever the ranks do, also for another notebook. Variables and models stay on ring.",
)
STACKS = Arguments("%cluster stacks", "Where every rank stands, also while a cell runs.")
DISCONNECT = Arguments("%cluster disconnect", "Let go of a cluster, which runs on.")
STOP = Arguments("%cluster stop", "End the cluster that this notebook uses.")
STOP.add_argument("--force", action="store_true", help="also when another notebook has started it")
LIST = Arguments("%cluster list", "Your running clusters.")

VERBS = {
    "start": START,
    "connect": CONNECT,
    "status": STATUS,
    "stacks": STACKS,
    "abort": ABORT,
    "restart": RESTART,
    "stop": STOP,
    "disconnect": DISCONNECT,
    "list": LIST,
    "output": OUTPUT,
}


@magics_class
class ClusterMagics(Magics):
    """The cluster of this notebook."""

    def __init__(self, shell: Any, session: Session) -> None:
        super().__init__(shell)
        self.shell: Any = shell
        self.session = session

    @line_magic
    def cluster(self, line: str) -> Any:
        verb, options = read_verb("%cluster", VERBS, line, "%cluster start 2")
        return getattr(self, f"_{verb}")(options)

    cluster.__doc__ = (
        "Start, connect, look at and stop the cluster of this notebook.\n\n"
        + "\n".join(parser.format_help() for parser in VERBS.values())
    )

    def _start(self, options: Any) -> None:
        self.session.release_lost()
        cluster = self.session.cluster
        if cluster is not None and cluster.world is not None:
            raise UsageError(
                f"This notebook uses the cluster {cluster.name!r} already.",
                why="a notebook has one cluster at a time",
                do="%cluster restart for fresh ranks, or %cluster stop first",
            )
        hosts = options.hosts
        if hosts is None:
            raise UsageError(
                "%cluster start does not say how many ranks.",
                why="it needs a number of ranks on this machine, or a hostfile",
                do="%cluster start 2, or %cluster start hostfile.json",
            )
        env = dict(split_assignment(text) for text in options.env)
        cluster = Cluster(
            hosts,
            backend=options.backend,
            env=env,
            name=options.name,
            checked=options.checked,
            keep=options.keep,
        )
        try:
            cluster.start_sync(Steps())
        except KeyboardInterrupt:
            raise StartError(
                "The start was broken off.",
                why="you interrupted it",
                do="%cluster start begins anew; nothing of this one is left",
            ) from None
        self.session.adopt(cluster, owned=True)

    def _connect(self, options: Any) -> None:
        self.session.release_lost()
        own = self.session.cluster
        if own is not None and own.world is not None:
            if self.session.owned and not own.keep:
                raise UsageError(
                    f"This notebook started the cluster {own.name!r}, which still runs.",
                    why="it would have no notebook left that stops it",
                    do="%cluster stop first",
                )
            own.disconnect()
        cluster = Cluster.connect(options.name)
        self.session.adopt(cluster, owned=False)
        print(f"connected to {cluster.name!r}: {cluster.n} ranks on {cluster.backend}")

    def _status(self, options: Any) -> tables.Table:
        cluster, world = self.session.running
        rows = []
        for rank in world.ranks:
            if rank not in world.alive:
                said = cluster.last_words(rank).splitlines()
                rows.append((str(rank), "dead", "", "", "", said[-1] if said else ""))
                continue
            try:
                facts = world.ask("status", rank=rank, timeout=1.0)
            except WorldError:
                rows.append((str(rank), "no answer", "", "", "", ""))
                continue
            where = world.where([rank]).get(rank, {})
            serving = where.get("serving")
            place = f"serves a model at {serving}" if serving else where.get("place")
            rows.append(
                (
                    str(rank),
                    "busy" if place else "idle",
                    str(facts["pid"]),
                    tables.size_text(facts["rss"]),
                    tables.size_text(facts["mlx_active"]),
                    place or "",
                )
            )
        print(
            f"{cluster.name}: {world.size} ranks on {world.backend} "
            f"({cluster.backend_reason}), {world.state}"
            + (", every collective checked" if cluster.checked else "")
        )
        for notice in world.notices:
            print(notice)
        world.notices.clear()
        heading = ("rank", "state", "pid", "memory", "MLX arrays", "at")
        return tables.Table(heading, rows, right=(0, 2, 3, 4))

    def _stacks(self, options: Any) -> None:
        print(stacks_text(self.session.world.stacks()))

    def _abort(self, options: Any) -> None:
        _, world = self.session.running
        report = world.abort(f"process {os.getpid()} aborted it")
        print("\n".join([abort_text(world, report), *report.notes]))

    def _restart(self, options: Any) -> None:
        cluster, _ = self.session.running
        try:
            cluster.restart_sync(Steps())
        except KeyboardInterrupt:
            raise StartError(
                "The restart was broken off.",
                why="you interrupted it",
                do="%cluster restart begins anew; a cell that needs the ranks does the same",
            ) from None

    def _stop(self, options: Any) -> None:
        cluster, _ = self.session.running
        foreign = cluster.owner_pid != os.getpid()
        if foreign and runs(cluster.owner_pid) and not options.force:
            raise UsageError(
                f"The cluster {cluster.name!r} was started by another notebook "
                f"(process {cluster.owner_pid}), which still runs.",
                why="its ranks and what they hold would be gone there, too",
                do="%cluster disconnect lets go of it; %cluster stop --force ends it all the same",
            )
        began = time.monotonic()
        cluster.stop_sync()
        self.session.release()
        print(f"stopped {cluster.name!r} in {time.monotonic() - began:.1f} s")

    def _disconnect(self, options: Any) -> None:
        cluster, _ = self.session.running
        if self.session.owned and not cluster.keep:
            raise UsageError(
                f"This notebook started the cluster {cluster.name!r}.",
                why="it would have no notebook left that stops it",
                do="%cluster stop; a cluster that is started with --keep can be let go of",
            )
        cluster.disconnect()
        self.session.release()
        print(f"{cluster.name!r} runs on; %cluster connect {cluster.name} finds it again")

    def _list(self, options: Any) -> tables.Table:
        own = self.session.cluster.name if self.session.cluster else None
        rows = [
            (each.name, str(each.size), each.backend, str(each.owner_pid),
             "this notebook" if each.name == own else "")
            for each in Cluster.running()
        ]  # fmt: skip
        heading = ("name", "ranks", "backend", "process", "")
        return tables.Table(heading, rows, right=(1, 3), empty="no clusters run")

    def _output(self, options: Any) -> None:
        cell = self.session.world.last_cell
        if cell is None or options.rank not in cell.runs:
            raise UsageError(
                f"There is no output of rank {options.rank}.",
                why="no cell has run on it from this notebook",
                do="run a %%distributed cell first",
            )
        text = plain_text(cell.runs[options.rank])
        if options.save:
            Path(options.save).expanduser().write_text(text)
            print(f"{tables.size_text(len(text.encode()))} written to {options.save}")
        else:
            print("".join(text.splitlines(True)[-options.lines :]), end="")
