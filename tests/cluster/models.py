"""Worlds that load models, and what their ranks answer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

import macluster

# Without this MLX calls a C++ compiler for every new kernel where there is no GPU.
ENV = {"MLX_DISABLE_COMPILE": "1"}
TIMEOUT = 90  # seconds a cell may take on a busy machine


def start(size: int) -> Iterator[macluster.World]:
    cluster = macluster.Cluster(
        size, backend="ring", name=f"test-models-{os.getpid()}-{size}", env=ENV
    )
    try:
        yield cluster.start_sync()
    finally:
        cluster.stop_sync()


def answers(world: macluster.World, code: str) -> list[Any]:
    """The last line that each rank printed, as JSON."""
    runs = world.run(f"import json\n{code}").result(TIMEOUT).runs
    return [json.loads(runs[rank].text("stdout").splitlines()[-1]) for rank in world.ranks]


def fails(world: macluster.World, code: str) -> str:
    """The text of the error, which every rank must raise; then the world must still work."""
    cell = world.run(code)
    with pytest.raises(macluster.CellError):
        cell.result(TIMEOUT)
    assert {run.ename for run in cell.runs.values()} == {"ModelError"}
    assert len({run.evalue for run in cell.runs.values()}) == 1
    total = sum(range(1, world.size + 1))
    after = answers(world, "print(json.dumps(mx.distributed.all_sum(mx.array(rank + 1)).item()))")
    assert after == [total] * world.size
    return cell.runs[0].evalue
