"""See what a cell waits for while it runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from .hostfile import describe_ranks

STILL = 2.0  # seconds without any movement after which a rank counts as waiting
LONG = 10.0  # the same when all ranks stand still: they may compute, or wait for each other


@attrs.frozen
class Finding:
    """`text` says who waits for whom, "" when nobody does. `deadlock`: they never will be served.

    `places` are the lines at which the waiting ranks stand.
    """

    text: str = ""
    deadlock: bool = False
    places: Mapping[int, str] = attrs.field(factory=dict)


class Watch:
    """Looks at the ranks again and again, and remembers since when each stands where it stands.

    `targets` are the ranks that run the cell with the id `cell`.
    """

    def __init__(self, targets: Sequence[int], cell: str = "") -> None:
        self.targets = list(targets)
        self.cell = cell
        self._since: dict[int, tuple[Any, float]] = {}

    def look(self, running: Sequence[int], where: Mapping[int, Mapping[str, Any]]) -> Finding:
        """`running` are the targets that have not ended; `where` is what the ranks answered."""
        now = time.monotonic()
        # Begun by another process, or nobody would wait here.
        served = [each["serving"] for each in where.values() if each["cell"] != self.cell]
        if any(served):
            return Finding(f"the ranks serve a model at {max(served)} until %serve stop")
        for rank, answer in where.items():
            moment = (answer["moment"], answer["started"])
            if rank not in self._since or self._since[rank][0] != moment:
                self._since[rank] = (moment, now)
        still = {rank: now - since for rank, (_, since) in self._since.items()}
        stuck = [rank for rank in running if rank in where and still[rank] >= STILL]
        counts = {rank: where[rank]["started"] for rank in where}
        # Those that have started a collective which another rank has not.
        ahead = [rank for rank in stuck if counts[rank] > min(counts.values())]
        if ahead:
            return self._ahead(ahead, running, where, min(still[rank] for rank in ahead))
        ended = sorted(set(self.targets) - set(running))
        if ended and stuck and len(stuck) == len(running):
            seconds = min(still[rank] for rank in stuck)
            places = _places(stuck, where)
            text = f"{_listing(places)} ({seconds:.0f} s); {describe_ranks(ended)} ended the cell"
            return Finding(text, places=places)
        # A rank that has not answered this time may be on its way.
        if running and all(rank in where and still[rank] >= LONG for rank in running):
            places = _places(running, where)
            seconds = min(still[rank] for rank in running)
            return Finding(f"{_listing(places)}, without a move for {seconds:.0f} s", places=places)
        return Finding()

    def _ahead(
        self,
        ahead: Sequence[int],
        running: Sequence[int],
        where: Mapping[int, Mapping[str, Any]],
        seconds: float,
    ) -> Finding:
        most = max(where[rank]["started"] for rank in ahead)
        behind = [rank for rank in where if where[rank]["started"] < most]
        outside = [rank for rank in behind if rank not in self.targets]
        ended = [rank for rank in behind if rank in self.targets and rank not in running]
        late = [rank for rank in behind if rank in running]
        places = _places(ahead, where)
        reasons = []
        if late:
            reasons.append(_listing(_places(late, where)))
        if ended:
            reasons.append(f"{describe_ranks(ended)} ended the cell without it")
        if outside:
            reasons.append(f"the cell does not run on {describe_ranks(outside)}")
        text = f"{_listing(places)}, waiting for the others ({seconds:.0f} s): {'; '.join(reasons)}"
        # The neighbour's data lies there unread: a proof, on a ring.
        all_wait = set(running) <= set(ahead)
        deadlock = all_wait and any(where[rank]["unread"] for rank in ended)
        return Finding(text, deadlock, places)


def _places(ranks: Sequence[int], where: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    return {rank: where[rank]["place"] or "an unknown place" for rank in ranks}


def _listing(places: Mapping[int, str]) -> str:
    """`ranks 0, 2 at line 3: `...``, for every place."""
    by_place: dict[str, list[int]] = {}
    for rank, place in places.items():
        by_place.setdefault(place, []).append(rank)
    return ", ".join(f"{describe_ranks(ranks)} at {place}" for place, ranks in by_place.items())
