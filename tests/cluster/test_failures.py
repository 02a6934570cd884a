"""Ranks that fail, hang or die: every cell ends, and says why."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

import macluster
from macluster.engine import transfer
from tests.cluster.processes import PATIENCE, family, still_there

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


# -- cells that must end although something around them fails --------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "print('\\ud800')",
        "raise ValueError('\\ud800')",
        "display({'text/plain': 'x', 'a/b': object()}, raw=True)",
    ],
)
def test_what_cannot_be_sent_does_not_keep_a_cell_waiting(
    world: macluster.World, code: str
) -> None:
    assert world.run(code).wait(PATIENCE)
    assert works(world)


def test_a_callback_that_fails_does_not_keep_a_cell_waiting(world: macluster.World) -> None:
    def show(rank: int, message: object) -> None:
        raise BrokenPipeError("nobody reads")

    assert world.run("print(rank)", on_output=show).wait(PATIENCE)
    assert works(world)


def test_a_cell_can_be_waited_for_by_many(world: macluster.World) -> None:
    for _ in range(50):
        cell = world.run("pass")
        waiters = [threading.Thread(target=cell.wait, args=(PATIENCE,)) for _ in range(4)]
        for waiter in waiters:
            waiter.start()
        for waiter in waiters:
            waiter.join(PATIENCE)
        assert not any(waiter.is_alive() for waiter in waiters)


def test_cancelling_a_cell_before_its_turn_leaves_the_earlier_one_alone(
    world: macluster.World,
) -> None:
    earlier = world.run("import threading\nthreading.Event().wait(3)")
    later = world.run("ran = True")
    later.cancel()
    assert later.wait(PATIENCE)
    with pytest.raises(macluster.CellError) as caught:
        later.check()
    assert type(caught.value).__name__ == "CancelledError"
    assert earlier.result(PATIENCE).done
    cell = world.run("print('ran' in globals())").result(PATIENCE)
    assert [cell.runs[rank].text() for rank in world.ranks] == ["False\n"] * RANKS


def test_a_lazy_collective_can_be_pulled_from_one_rank(world: macluster.World) -> None:
    world.run("lazy = mx.distributed.all_sum(mx.array(1.0))").result(PATIENCE)
    assert transfer.pull(world, ["lazy"], [0])[0][0].item() == RANKS
    assert works(world)


def test_a_child_of_a_rank_ends_with_the_cluster() -> None:
    with macluster.Cluster(1, name="children") as world:
        code = "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid)"
        child = psutil.Process(int(world.run(code).result(PATIENCE).runs[0].text()))
    assert still_there([child]) == []


def test_the_end_of_the_controller_ends_the_cells() -> None:
    cluster = macluster.Cluster(2, name="headless")
    with cluster as world:
        cell = world.run("import time\nwhile True: time.sleep(0.1)")
        processes = family(cluster)
        psutil.Process(cluster.controller.pid).kill()
        with pytest.raises(macluster.CellError, match="controller of this cluster ended"):
            cell.result(PATIENCE)
        assert "controller" in world.state
        with pytest.raises(macluster.WorldBroken, match="controller"):
            world.run("1")
    assert still_there(processes) == []


def test_stop_during_a_restart_leaves_nothing() -> None:
    cluster = macluster.Cluster(2, name="twice")
    world = cluster.start_sync()
    processes = family(cluster)
    restart = threading.Thread(target=_ignoring_errors, args=(cluster.restart_sync,))
    restart.start()
    while len(world.alive) == 2:
        restart.join(0.01)
    cluster.stop_sync()
    restart.join(PATIENCE)
    assert not restart.is_alive()
    assert still_there(processes) == []
    left = psutil.Process().children(recursive=True)
    assert [each for each in left if "twice" in " ".join(each.cmdline())] == []


def _ignoring_errors(call: Callable[[], object]) -> None:
    with contextlib.suppress(macluster.MaclusterError):
        call()
