"""What the commands of the terminal have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from .engine.cell import Cell
from .engine.world import World

BACKEND_HELP = "jaccl, jaccl-ring, ring, mpi or nccl"


def add_loading(parser: argparse.ArgumentParser) -> None:
    """The options for ranks and the model that they load, see `load_code`."""
    parser.add_argument("--model", required=True, help="a folder, or a repository on the hub")
    hosts = parser.add_mutually_exclusive_group()
    hosts.add_argument("-n", type=int, default=1, metavar="N", help="ranks on this machine")
    hosts.add_argument("--hostfile", metavar="FILE")
    parser.add_argument("--backend", help=BACKEND_HELP)
    parser.add_argument("--pipeline", action="store_true", help="split by depth, not by width")
    parser.add_argument("--adapter", metavar="FOLDER", help="an adapter to fuse into the model")


def cluster_name(model: str) -> str:
    """A cluster's name from a path or a repository's."""
    last = model.rstrip("/").rpartition("/")[2]
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in last) or "model"


def _print(content: dict[str, Any]) -> None:
    stream = sys.stderr if content["name"] == "stderr" else sys.stdout
    stream.write(content["text"])
    stream.flush()


def load_code(options: argparse.Namespace) -> str:
    """What the ranks run to load the model that the command names."""
    strategy = "pipeline" if options.pipeline else "auto"
    return (
        f"model = macluster.load({options.model!r}, {strategy!r}, adapter={options.adapter!r}, "
        f"draft={options.draft!r})\n"
        "rprint(model, model.reason, sep='\\n')"
    )


def run_cell(world: World, code: str, show: Callable[[dict[str, Any]], None] = _print) -> Cell:
    """Run a cell, and `show` what rank 0 prints while it does. Ctrl-C ends the cell."""

    def on_output(rank: int, message: dict[str, Any]) -> None:
        if rank == 0 and message["header"]["msg_type"] == "stream":
            show(message["content"])

    cell = world.run(code, on_output=on_output)
    try:
        cell.wait()
    except KeyboardInterrupt:
        cell.interrupt("you interrupted it")
    return cell
