"""Ask the ranks for data that this notebook shows itself: nothing of the cell is printed."""

from __future__ import annotations

import json
from typing import Any

from . import relay
from .lines import Line, Steps, WaitLine
from .session import Session

LOOK = 0.3  # seconds between two looks at how far it is


def told(session: Session, expression: str, *, progress: bool = False) -> Any:
    """What an expression is on rank 0, as JSON has it. All ranks compute it, in a cell.

    An interrupt ends the cell on all ranks. With `progress`, the last line that rank 0 has printed
    so far is shown, and written over.

    Raises:
        ClusterNotFound: when this notebook has no cluster.
        CellError: when a rank raised, or the cell was interrupted.
    """
    cell = session.world.run(f"rprint(__import__('json').dumps({expression}))")
    relay.show_notices(session.world)
    cell.on_wait, cell.on_repair = WaitLine(), Steps()
    try:
        line = Line()
        while not cell.wait(LOOK if progress else None):
            line.show(_last(cell.runs[0].text("stdout")))
        said = cell.runs[0].text("stdout").rstrip().rpartition("\n")
        if progress and said[0]:
            line.show(_last(said[0]))
    except KeyboardInterrupt:
        cell.interrupt("you interrupted it")
    cell.check()
    # The last line: a library may have printed something before.
    return json.loads(cell.runs[0].text("stdout").splitlines()[-1])


def _last(printed: str) -> str:
    return relay.overwritten(printed).rstrip("\n").rpartition("\n")[2].rstrip()
