"""Ask the ranks for data that this notebook shows itself: nothing of the cell is printed."""

from __future__ import annotations

import json
from typing import Any

from ..engine.cell import Cell
from ..engine.errors import CellCancelled
from ..engine.progress import DATA
from ..engine.verdict import error_of
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
        CellError: when a rank raised, or the cell was interrupted: then it is called
            KeyboardInterrupt.
    """
    cell = session.world.run(f"rprint({DATA!r} + __import__('json').dumps({expression}))")
    relay.show_notices(session.world)
    cell.on_wait, cell.on_repair = WaitLine(), Steps()
    try:
        line = Line()
        while not cell.wait(LOOK if progress else None):
            line.show(_last(cell.runs[0].text("stdout")))
        if progress and (said := _last(cell.runs[0].text("stdout"))):
            line.show(said)
    except KeyboardInterrupt:
        cell.interrupt("you interrupted it")
    _check(cell)
    # A library may have printed something before.
    return json.loads(cell.runs[0].text("stdout").rpartition(DATA)[2])


def _last(printed: str) -> str:
    """The last line of what was printed, up to the data."""
    text = printed.partition(DATA)[0]
    return relay.overwritten(text).rstrip("\n").rpartition("\n")[2].rstrip()


def _check(cell: Cell) -> None:
    """As `Cell.check`; but of an interrupt, where in our own code it found the ranks is no news."""
    error = error_of(cell)
    if isinstance(error, CellCancelled) and cell.cancelled:
        raise CellCancelled.named("KeyboardInterrupt")(
            "It was ended on all ranks.",
            why="\n".join(dict.fromkeys(cell.notes)) or "you interrupted it",
            rank=error.rank,
            ename="KeyboardInterrupt",
        )
    if error is not None:
        raise error
