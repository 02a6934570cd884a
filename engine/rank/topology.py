"""Say what this rank runs on and what it is linked to, also while a cell runs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from ..topology.facts import Prober

if TYPE_CHECKING:
    from ..measure.record import Measurement


def _measured() -> Measurement | None:
    """The last measurement that this process took part in."""
    # The main thread may be importing the module: then the name is not there yet.
    last = getattr(sys.modules.get("macluster.engine.measure.job"), "last", None)
    return last[0] if last else None


def taken() -> str:
    """When this process took part in a measurement last, "" when it has not."""
    found = _measured()
    return found.taken if found is not None else ""


def measurement(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """{"measurement": the last one as JSON, or None}."""
    found = _measured()
    return {"measurement": None if found is None else found.as_json()}, ()


# One for the process: what does not change is asked once.
_prober = Prober()


async def topology(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """{"facts": a `Facts` as JSON, "pid", "busy"}.

    Looks anew at what is plugged in, unless that was done at most `content["age"]` seconds ago, for
    at most `content["patience"]` seconds: after that it says what it knows. The control thread goes
    on with other questions meanwhile.
    """
    looking = asyncio.wrap_future(_prober.begin(content["age"]))
    await asyncio.wait([looking], timeout=content["patience"])
    core = sys.modules.get("mlx.core")
    facts = attrs.evolve(_prober.facts(), held=core.get_active_memory() if core else None)
    busy = kernel.macluster.work is not None
    return {"facts": attrs.asdict(facts), "pid": os.getpid(), "busy": busy}, ()
