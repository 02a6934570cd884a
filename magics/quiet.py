"""Ask the ranks for data that this notebook shows itself: nothing of the cell is printed."""

from __future__ import annotations

import json
from typing import Any

from . import relay
from .lines import Steps, WaitLine
from .session import Session


def told(session: Session, expression: str) -> Any:
    """What an expression is on rank 0, as JSON has it. All ranks compute it, in a cell.

    An interrupt ends the cell on all ranks.

    Raises:
        ClusterNotFound: when this notebook has no cluster.
        CellError: when a rank raised, or the cell was interrupted.
    """
    cell = session.world.run(f"rprint(__import__('json').dumps({expression}))")
    relay.show_notices(session.world)
    cell.on_wait, cell.on_repair = WaitLine(), Steps()
    try:
        cell.wait()
    except KeyboardInterrupt:
        cell.interrupt("you interrupted it")
    cell.check()
    # The last line: a library may have printed something before.
    return json.loads(cell.runs[0].text("stdout").splitlines()[-1])
