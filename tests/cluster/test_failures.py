"""Ranks that fail, hang or die: every cell ends, and says why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import macluster
from tests.cluster.processes import PATIENCE

RANKS = 3


@pytest.fixture(scope="module")
def world() -> Iterator[macluster.World]:
    with macluster.Cluster(RANKS, name="failures") as world:
        yield world


def works(world: macluster.World) -> bool:
    """True when a collective over all ranks gives the right sum."""
    cell = world.run("print(mx.distributed.all_sum(mx.array(rank + 1)).item())").result(PATIENCE)
    return [cell.runs[rank].text() for rank in world.ranks] == ["6\n"] * RANKS


def test_the_first_failing_rank_is_shown_and_the_others_are_named(world: macluster.World) -> None:
    world.run("kept = rank").result(PATIENCE)
    with pytest.raises(macluster.CellError, match="boom 1") as caught:
        world.run("if rank > 0:\n    raise ValueError(f'boom {rank}')").result(PATIENCE)
    error = caught.value
    assert type(error).__name__ == "ValueError"
    assert error.rank == 1
    assert "line 2" in "".join(error.traceback)
    assert "rank 2: ValueError: boom 2" in error.why
    assert "rank 0: ended without an error" in error.why
    assert works(world)
    cell = world.run("print(kept)").result(PATIENCE)
    assert [cell.runs[rank].text() for rank in world.ranks] == ["0\n", "1\n", "2\n"]


def test_a_rank_that_raises_while_others_wait_frees_them(world: macluster.World) -> None:
    code = (
        "if rank == 1:\n    raise ValueError('boom')\nmx.eval(mx.distributed.all_sum(mx.ones(3)))"
    )
    cell = world.run(code)
    with pytest.raises(macluster.CellError, match="boom") as caught:
        cell.result(PATIENCE)
    assert caught.value.rank == 1
    assert "rank 0 was at line 3: `mx.eval(mx.distributed.all_sum(mx.ones(3)))`" in caught.value.why
    assert "variables and models are gone" in caught.value.why
    assert works(world)


def test_a_rank_that_skips_a_collective_is_found_by_the_timeout(world: macluster.World) -> None:
    cell = world.run("if rank == 0:\n    mx.eval(mx.distributed.all_sum(mx.ones(3)))")
    with pytest.raises(macluster.CellTimeout, match="stopped after 2 s") as caught:
        cell.result(2)
    assert "rank 0 was at line 2" in caught.value.why
    assert works(world)


@pytest.mark.parametrize("death", ["os._exit(3)", "os.kill(os.getpid(), 9)", "ctypes.string_at(0)"])
def test_a_rank_that_dies_is_named_and_a_restart_helps(world: macluster.World, death: str) -> None:
    code = f"import ctypes, os\nif rank == 2:\n    {death}\n"
    cell = world.run(code + "mx.eval(mx.distributed.all_sum(mx.ones(3)))")
    with pytest.raises(macluster.CellError, match="Rank 2 died") as caught:
        cell.result(PATIENCE)
    assert caught.value.rank == 2
    world.cluster.restart_sync()
    assert works(world)


def test_a_world_with_a_dead_rank_refuses_cells_until_it_is_restarted(
    world: macluster.World,
) -> None:
    with pytest.raises(macluster.CellError, match="Rank 1 died"):
        world.run("import os\nif rank == 1: os._exit(1)").result(PATIENCE)
    assert world.state == "rank 1 died"
    with pytest.raises(macluster.WorldBroken, match="rank 1 died earlier") as caught:
        world.run("1")
    assert "%cluster restart" in caught.value.do
    world.cluster.restart_sync()
    assert world.state == "ok"
    assert works(world)


def test_an_interrupt_ends_a_loop_on_all_ranks_and_keeps_their_variables(
    world: macluster.World,
) -> None:
    world.run("steps = 0").result(PATIENCE)
    cell = world.run("while True:\n    steps += 1")
    assert not cell.wait(0.5)
    cell.cancel()
    with pytest.raises(macluster.CellError) as caught:
        cell.result(PATIENCE)
    assert type(caught.value).__name__ == "KeyboardInterrupt"
    cell = world.run("print(steps > 0)").result(PATIENCE)
    assert [cell.runs[rank].text() for rank in world.ranks] == ["True\n"] * RANKS
    assert works(world)


def test_an_interrupt_cancels_a_cell_that_awaits(world: macluster.World) -> None:
    cell = world.run("import asyncio\nwaiting = True\nawait asyncio.sleep(3600)")
    assert not cell.wait(0.5)
    cell.cancel()
    with pytest.raises(macluster.CellError) as caught:
        cell.result(PATIENCE)
    assert type(caught.value).__name__ == "CancelledError"
    assert world.run("assert waiting").result(PATIENCE).done
    assert works(world)


def test_sys_exit_in_a_cell_does_not_end_the_rank(world: macluster.World) -> None:
    pids = [world.ask("status", rank=rank)["pid"] for rank in world.ranks]
    world.run("import sys\nif rank == 1: sys.exit(1)").wait(PATIENCE)
    assert [world.ask("status", rank=rank)["pid"] for rank in world.ranks] == pids
    assert works(world)
