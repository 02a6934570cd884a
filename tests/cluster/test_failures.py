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
    world.run("kept = mx.array([rank, 7])").result(PATIENCE)
    epoch = world.epoch
    code = (
        "if rank == 1:\n    raise ValueError('boom')\nmx.eval(mx.distributed.all_sum(mx.ones(3)))"
    )
    with pytest.raises(macluster.CellError, match="boom") as caught:
        world.run(code).result(PATIENCE)
    assert caught.value.rank == 1
    assert caught.value.why.splitlines() == [
        "raised on rank 1 at line 2: `raise ValueError('boom')`",
        "ranks 0, 2 stood at line 3: `mx.eval(mx.distributed.all_sum(mx.ones(3)))`.",
    ]
    assert world.epoch == epoch + 1
    assert works(world)
    cell = world.run("print(kept.tolist())").result(PATIENCE)
    assert [cell.runs[rank].text() for rank in world.ranks] == ["[0, 7]\n", "[1, 7]\n", "[2, 7]\n"]


def test_a_rank_that_skips_a_collective_is_found(world: macluster.World) -> None:
    line = "mx.eval(mx.distributed.all_sum(mx.ones(3)))"
    cell = world.run(f"if rank == 0:\n    {line}")
    with pytest.raises(macluster.CellError, match="The cell could not end: rank 0 at") as caught:
        cell.result(PATIENCE)
    assert f"line 2: `{line}`, waiting for the others" in caught.value.what
    assert "ranks 1-2 ended the cell without it" in caught.value.what
    assert "if rank == ..." in caught.value.do
    assert works(world)


def test_a_cell_that_takes_too_long_is_stopped_with_its_variables_kept(
    world: macluster.World,
) -> None:
    world.run("kept = rank").result(PATIENCE)
    cell = world.run("while True: pass")
    with pytest.raises(macluster.CellTimeout, match=r"after 0\.5 s: ranks 0-2 had not ended"):
        cell.result(0.5)
    assert cell.done
    assert works(world)
    cell = world.run("print(kept)").result(PATIENCE)
    assert [cell.runs[rank].text() for rank in world.ranks] == ["0\n", "1\n", "2\n"]


@pytest.mark.parametrize(
    ("death", "cause"),
    [
        ("os._exit(3)", "its process ended with exit code 3"),
        ("os.kill(os.getpid(), 9)", "its process was ended by SIGKILL"),
        ("ctypes.string_at(0)", "its process was ended by SIGSEGV: a crash in native code"),
    ],
)
def test_a_rank_that_dies_is_named_and_replaced(
    world: macluster.World, death: str, cause: str
) -> None:
    world.run("kept = rank").result(PATIENCE)
    before = dict(world.client.pids)
    code = f"import ctypes, os\nif rank == 2:\n    {death}\n"
    cell = world.run(code + "mx.eval(mx.distributed.all_sum(mx.ones(3)))")
    with pytest.raises(macluster.CellError) as caught:
        cell.result(PATIENCE)
    assert caught.value.what == "Rank 2 died."
    assert caught.value.rank == 2
    assert caught.value.why.startswith(cause)
    assert "ranks 0-1 stood at line 4" in caught.value.why
    assert (
        "rank 2 started anew, with no variables; ranks 0-1 kept their variables."
        in caught.value.why
    )
    assert "%%rank 2" in caught.value.do
    assert world.state == "ok"
    assert [world.client.pids[rank] == before[rank] for rank in world.ranks] == [True, True, False]
    cell = world.run("print('kept' in globals())").result(PATIENCE)
    assert [cell.runs[rank].text() for rank in world.ranks] == ["True\n", "True\n", "False\n"]
    assert works(world)


def test_all_ranks_may_die_at_once(world: macluster.World) -> None:
    with pytest.raises(macluster.CellError, match="Rank 0 died") as caught:
        world.run("import os; os._exit(rank + 1)").result(PATIENCE)
    assert "rank 2 died, too: its process ended with exit code 3" in caught.value.why
    assert "All ranks were started anew: their variables are gone." in caught.value.why
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
    assert isinstance(caught.value, macluster.CellCancelled)
    assert "cancelled before its turn" in caught.value.why
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
