"""What a person reads about a world: in a notebook, in a terminal, later in the sidebar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .hostfile import describe_ranks

if TYPE_CHECKING:
    from .recovery import Recovery
    from .world import World


def stacks_text(stacks: Mapping[int, Mapping[str, Any] | None]) -> str:
    """Where every rank stands; ranks with the same stack are told together."""
    by_stack: dict[str, list[int]] = {}
    for rank, stack in stacks.items():
        by_stack.setdefault(_frames_text(stack), []).append(rank)
    blocks = []
    for text, ranks in by_stack.items():
        seconds = [_elapsed(stacks[rank]) for rank in ranks]
        known = [each for each in seconds if each is not None]
        since = f", for {max(known):.1f} s" if known else ""
        blocks.append(f"{describe_ranks(ranks)}{since}:\n{text}")
    return "\n".join(blocks)


def _elapsed(stack: Mapping[str, Any] | None) -> float | None:
    return None if stack is None else stack["elapsed"]


def _frames_text(stack: Mapping[str, Any] | None) -> str:
    if stack is None:
        return "  no answer: it is dead or stopped, or native code holds the interpreter"
    if stack["elapsed"] is None:
        return "  idle"
    lines = []
    for frame in stack["frames"]:
        lines.append(f"  {frame['file']}, line {frame['line']}, in {frame['function']}")
        if frame["source"]:
            lines.append(f"    {frame['source']}")
    return "\n".join(lines) or "  busy with a request of macluster itself"


def abort_text(world: World, report: Recovery) -> str:
    """What an abort has done, in a line."""
    kept = sorted(set(world.ranks) - set(report.restarted))
    what = f"{describe_ranks(kept)} kept their variables" if kept else "all ranks are new"
    return f"ended; the world is {world.state} again after {report.seconds:.1f} s, {what}"
