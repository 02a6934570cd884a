"""How a cell ended, in words: which rank was the cause, where the others stood, what was done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import CellCancelled, CellError, CellTimeout, RankDied
from .hostfile import describe_ranks
from .watch import Finding

if TYPE_CHECKING:
    from .cell import Cell, RankRun


def error_of(cell: Cell) -> CellError | None:
    """The error of the rank whose failure came first, or None for a cell that ended well."""
    failed = [run for run in cell.runs.values() if run.status in ("error", "died")]
    if not failed:
        return None
    # Ranks that were freed or killed because of another one come after the cause.
    failed.sort(key=lambda run: (cell.is_consequence(run), run.status != "died", run.rank))
    first = failed[0]
    if cell.is_consequence(first):
        return _deadlock(cell, cell.deadlock) if cell.deadlock else _ended(cell, first)
    if first.status == "died":
        return _death(cell, first)
    kind = CellCancelled if cell.cancelled else CellError
    return kind.named(first.ename)(
        first.evalue or first.ename,
        why="\n".join(_story(cell, first)),
        rank=first.rank,
        ename=first.ename,
        traceback=first.traceback,
    )


def timeout_error(cell: Cell, timeout: float, late: Sequence[int]) -> CellTimeout:
    """For a cell that was stopped because `late` had not ended in time."""
    return CellTimeout(
        f"The cell was stopped after {timeout:g} s: {describe_ranks(late)} had not ended.",
        why="\n".join(
            dict.fromkeys(["it ran longer than its timeout", *_stood(cell), *cell.notes])
        ),
        do="raise --timeout, or leave it out to let the cell run as long as it needs",
    )


def _ended(cell: Cell, first: RankRun) -> CellError:
    """For a cell that no rank of its own made fail."""
    name = "KeyboardInterrupt" if cell.cancelled else "CellCancelled"
    return CellCancelled.named(name)(
        "The cell was ended.",
        why="\n".join(dict.fromkeys([first.freed, *_stood(cell), *cell.notes])),
        rank=first.rank,
        ename=name,
    )


def _stood(cell: Cell) -> list[str]:
    """Where the ranks were interrupted. They may have moved on since somebody looked."""
    places: dict[str, list[int]] = {}
    for run in cell.runs.values():
        if run.status == "error" and run.place:
            places.setdefault(run.place, []).append(run.rank)
    return [f"{describe_ranks(ranks)} stood at {place}." for place, ranks in places.items()]


def _death(cell: Cell, first: RankRun) -> CellError:
    death = first.death or RankDied(f"Rank {first.rank} died.")
    cause = first.obituary if death.why == "its process ended" else death.why
    do = death.do
    if any(first.rank in report.restarted for report in cell.recoveries):
        do = (
            f"run the cells again that set rank {first.rank} up: %%rank {first.rank} runs one "
            "there;\n%%distributed --on-start marks one to be run on every new rank"
        )
    why = [cause, *_story(cell, first)]
    return CellError(death.what, why="\n".join(filter(None, why)), do=do, rank=first.rank)


def _deadlock(cell: Cell, finding: Finding) -> CellError:
    return CellError(
        f"The cell could not end: {finding.text}.",
        why="\n".join(["a collective waits for every rank", *cell.notes]),
        do="let every rank run the same collectives; an `if rank == ...` around one is the usual "
        "cause",
        rank=min(finding.places),
    )


def _story(cell: Cell, first: RankRun) -> list[str]:
    """The cause, then a line for each of the other ranks, then what was done about it."""
    others = [
        run
        for run in cell.runs.values()
        if run is not first and run.status == "error" and not cell.is_consequence(run)
    ]
    same = [run for run in others if (run.ename, run.evalue) == (first.ename, first.evalue)]
    lines = []
    if first.status == "error":
        place = f" at {first.place}" if first.place else ""
        lines.append(f"raised on rank {first.rank}{place}")
        if same:
            lines[0] += f" (and the same on {describe_ranks([run.rank for run in same])})"
    for run in others:
        if run not in same:
            said = run.evalue.splitlines() or [""]
            lines.append(f"rank {run.rank}: {run.ename}: {said[0]}")
    lines += [
        f"rank {run.rank} died, too: {run.obituary or 'its process ended'}"
        for run in cell.runs.values()
        if run is not first
        and run.status == "died"
        and run.death is not first.death
        and not cell.is_consequence(run)
    ]
    well = [run.rank for run in cell.runs.values() if run.status == "ok"]
    if well:
        lines.append(f"{describe_ranks(well)}: ended without an error")
    return [*lines, *cell.notes]
