"""`%serve`: let other programs use a model that the ranks hold."""

from __future__ import annotations

import argparse
import time
from typing import Any

from IPython.core.magic import Magics, line_magic, magics_class

from ..engine.errors import WorldError
from ..engine.serve.serving import (
    DRAIN,
    Serving,
    add_options,
    status_line,
    status_of,
    status_table,
    stop_serving,
)
from ..engine.tables import Table
from ..engine.world import ASK_TIMEOUT, World
from .arguments import Arguments, read_verb, variable_name
from .model import NAME
from .relay import show_notices
from .session import Session

LOOK = 0.1  # seconds between two looks whether it has ended

START = Arguments("%serve start", "Serve a model over HTTP, as OpenAI's API does it.")
START.add_argument("model", nargs="?", type=variable_name, default=NAME, metavar="NAME",
                   help=f"of the model on the ranks (default: {NAME})")  # fmt: skip
add_options(START)
STATUS = Arguments("%serve status", "What is served, and the last requests.")
STOP = Arguments("%serve stop", "Make the ranks free again; the model stays loaded.")
STOP.add_argument("--drain", type=float, default=DRAIN, metavar="SECONDS",
                  help="that answers under way get (default: 10)")  # fmt: skip

VERBS = {"start": START, "status": STATUS, "stop": STOP}


@magics_class
class ServeMagics(Magics):
    """Serving, for this notebook's cluster."""

    def __init__(self, shell: Any, session: Session) -> None:
        super().__init__(shell)
        self.shell: Any = shell
        self.session = session

    @line_magic
    def serve(self, line: str) -> Serving | Table | None:
        verb, options = read_verb("%serve", VERBS, line, "%serve start")
        found: Serving | Table | None = getattr(self, f"_{verb}")(options)
        return found

    serve.__doc__ = (
        "Serve a model that the ranks hold to other programs: chat clients, editors, scripts.\n\n"
        "While they serve, the ranks run no cells; the notebook itself is free.\n"
        "`serving = %serve start` gives a handle with `url`, `status()` and `stop()`.\n\n"
        + "\n".join(parser.format_help() for parser in VERBS.values())
    )

    def _start(self, options: argparse.Namespace) -> Serving:
        given = {name: value for name, value in vars(options).items() if value is not None}
        serving = Serving(self.session.world, given.pop("model"), **given)
        try:
            return serving.start()
        finally:
            show_notices(self.session.world)

    def _status(self, options: argparse.Namespace) -> Table | None:
        world = self.session.world
        show_notices(world)
        status = status_of(world)
        print("The ranks serve nothing." if status is None else status_line(status))
        return None if status is None else status_table(status)

    def _stop(self, options: argparse.Namespace) -> None:
        world = self.session.world
        show_notices(world)
        if world.serving is not None:
            world.serving.stop(options.drain)
        else:
            stop_serving(world, options.drain)
            _wait_for_its_end(world, options.drain)
        print("the ranks are free; the model stays loaded")


def _wait_for_its_end(world: World, drain: float) -> None:
    """Until the ranks are free, which another notebook had serving."""
    deadline = time.monotonic() + drain + ASK_TIMEOUT
    while status_of(world) is not None:
        if time.monotonic() > deadline:
            raise WorldError(
                "The ranks have not ended serving yet.",
                why="a step takes long, or a rank hangs",
                do="%cluster stacks shows where they are; %cluster abort ends it",
            )
        time.sleep(LOOK)
