"""MLX's collectives as cells see them, in a world of one rank."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from macluster.engine.errors import CollectiveMismatch, UsageError, WorldBroken, WorldError
from macluster.engine.rank import collectives as module
from macluster.engine.rank.collectives import (
    PAIRWISE,
    RECORD,
    TOGETHER,
    Collectives,
    Compiled,
    WorldGroup,
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Collectives:
    """In the place of MLX's functions, and not in any world yet."""
    for name in (*TOGETHER, *PAIRWISE, "init"):
        # As they are: so that they are put back at the end.
        monkeypatch.setattr(mx.distributed, name, getattr(mx.distributed, name))
    monkeypatch.setattr(mx, "compile", mx.compile)
    collectives = Collectives()
    collectives.install()
    return collectives


@pytest.fixture
def world(installed: Collectives) -> Collectives:
    join(installed, 1)
    return installed


def join(collectives: Collectives, epoch: int) -> None:
    collectives.join(collectives.original("init")(backend="ring"), epoch, "ring")


def total() -> Any:
    return mx.distributed.all_sum(mx.array([1, 2])).tolist()


GIVEN_UP = WorldBroken("The world was given up.", why="a rank had failed", do="wait")


# -- the group -------------------------------------------------------------------------------------


def test_init_gives_the_world_of_the_cluster(world: Collectives) -> None:
    group: Any = mx.distributed.init()
    assert group is world.group
    assert (group.rank(), group.size(), group.is_world) == (0, 1, True)
    assert repr(group) == "<world, rank 0 of 1>"
    assert mx.distributed.init(backend="ring") is group


def test_init_of_another_backend_gives_mlx_its_own_group(world: Collectives) -> None:
    assert isinstance(mx.distributed.init(backend="nccl"), mx.distributed.Group)


def test_before_any_world_the_remedy_is_told(installed: Collectives) -> None:
    with pytest.raises(WorldBroken, match="has not joined a world yet") as caught:
        total()
    assert "%cluster status" in caught.value.do


def test_a_second_install_changes_nothing(world: Collectives) -> None:
    before = mx.distributed.all_sum
    world.install()
    assert mx.distributed.all_sum is before


def test_collectives_of_all_ranks_are_counted(world: Collectives) -> None:
    assert total() == [1, 2]
    assert mx.distributed.all_gather(mx.array([3])).tolist() == [3]
    group: Any = world.group
    assert mx.distributed.all_max(mx.array([3]), group=group).tolist() == [3]
    assert world.started == 3


def test_a_group_of_mlx_itself_is_left_alone(world: Collectives) -> None:
    world.part(GIVEN_UP)
    native = world.original("init")(backend="ring")
    assert mx.distributed.all_sum(mx.array([4]), group=native).tolist() == [4]
    assert world.started == 0


# -- a world that goes, and the next one -----------------------------------------------------------


@pytest.mark.parametrize("name", TOGETHER)
def test_a_world_that_was_given_up_refuses_collectives(world: Collectives, name: str) -> None:
    world.part(GIVEN_UP)
    with pytest.raises(WorldBroken, match="was given up") as caught:
        getattr(mx.distributed, name)(mx.ones(2))
    assert (caught.value.what, caught.value.do) == (GIVEN_UP.what, GIVEN_UP.do)
    # Not the same one: its traceback would grow, and hold on to what it came through.
    assert caught.value is not GIVEN_UP
    assert world.started == 0


def test_a_group_that_was_kept_says_that_its_world_is_gone(world: Collectives) -> None:
    group: Any = mx.distributed.init()
    world.part(GIVEN_UP)
    for question in (group.rank, group.size, lambda: group.split(0)):
        with pytest.raises(WorldBroken, match="was given up"):
            question()


def test_a_group_that_was_kept_leads_to_the_next_world(world: Collectives) -> None:
    group: Any = mx.distributed.init()
    total()
    world.part(GIVEN_UP)
    world.drop()
    join(world, 2)
    assert world.started == 0
    assert mx.distributed.all_sum(mx.array([5]), group=group).tolist() == [5]
    assert (group.size(), world.started, world.epoch) == (1, 1, 2)


class Part:
    """Stands for a group that MLX has split off."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1


def test_a_part_of_a_world_goes_with_it(world: Collectives) -> None:
    part = WorldGroup(world, Part())
    assert repr(part) == "<part of the world, rank 0 of 1>"
    assert not part.is_world
    join(world, 2)
    with pytest.raises(WorldBroken, match="belongs to a world that was given up") as caught:
        part.size()
    assert "group.split" in caught.value.do


# -- who may not -----------------------------------------------------------------------------------


def in_thread(call: Callable[[], object]) -> list[BaseException]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="loader")
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return errors


def test_another_thread_is_refused_by_name(world: Collectives) -> None:
    [error] = in_thread(total)
    assert isinstance(error, WorldError)
    assert "all_sum was called in the thread 'loader'" in str(error)
    assert world.started == 0
    assert total() == [1, 2]


def test_a_cell_that_runs_alone_is_refused(world: Collectives) -> None:
    world.solo = "this setup cell runs on rank 1 only"
    with pytest.raises(UsageError, match="needs all ranks, but this setup cell runs on rank 1"):
        total()
    assert world.started == 0
    world.solo = ""
    assert total() == [1, 2]


# -- compiled functions ----------------------------------------------------------------------------


def test_a_compiled_function_is_compiled_once_in_each_world(world: Collectives) -> None:
    compiled: list[int] = []

    def compiler() -> Callable[[int], int]:
        compiled.append(world.epoch)
        return lambda x: x + world.epoch

    function = Compiled(world, compiler)
    assert [function(10), function(20)] == [11, 21]
    join(world, 2)
    assert [function(10), function(20)] == [12, 22]
    assert compiled == [1, 2]


def test_mx_compile_follows_the_world(world: Collectives, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")

    @mx.compile
    def double(x: mx.array) -> mx.array:
        return mx.distributed.all_sum(x) * 2

    assert isinstance(double, Compiled)
    assert double(mx.array([3])).tolist() == [6]
    join(world, 2)
    assert double(mx.array([3])).tolist() == [6]


# -- checked mode ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "options", "text"),
    [
        ("all_sum", (mx.ones(3),), {}, "all_sum float32 (3,)"),
        ("all_gather", (), {"x": mx.zeros((2, 1), mx.int32)}, "all_gather int32 (2, 1)"),
        ("send", (mx.array(True), 1), {}, "send bool ()"),
        ("recv", ((4, 2), mx.float16, 1), {}, "recv float16 (4, 2)"),
        ("recv", (), {"shape": [4], "dtype": mx.uint8, "src": 1}, "recv uint8 (4,)"),
        # A receiver expects what a sender says.
        ("recv_like", (mx.ones(3), 1), {}, "send float32 (3,)"),
    ],
)
def test_a_collective_is_told_with_its_type_and_shape(
    name: str, args: tuple[Any, ...], options: dict[str, Any], text: str
) -> None:
    assert module._signature(name, args, options) == text


def test_checked_mode_lets_equal_collectives_through(world: Collectives) -> None:
    world.checked = True
    assert total() == [1, 2]
    assert world.started == 1


def test_different_collectives_are_told_before_any_data_moves(
    world: Collectives, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = b"2|all_gather int32 (4,)|line 3: `mx.distributed.all_gather(x | y)`".ljust(RECORD)
    monkeypatch.setattr(world, "_exchange", lambda record: [record, theirs])
    monkeypatch.setattr(world, "_place", lambda: "line 2: `mx.distributed.all_sum(x)`")
    world.checked = True
    with pytest.raises(CollectiveMismatch) as caught:
        mx.distributed.all_sum(mx.ones(3))
    assert caught.value.what == "Ranks 0 and 1 are about to run different collectives."
    mine, other = caught.value.why.splitlines()
    place = "at line 2: `mx.distributed.all_sum(x)`"
    assert mine == f"rank 0: all_sum float32 (3,) (collective 1 of this world) {place}"
    place = "at line 3: `mx.distributed.all_gather(x | y)`"
    assert other == f"rank 1: all_gather int32 (4,) (collective 2 of this world) {place}"
    assert caught.value.do
    # It counts from the moment at which the others may wait for it.
    assert world.started == 1


def test_a_long_line_does_not_make_a_longer_record(
    world: Collectives, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def exchange(record: bytes) -> list[bytes]:
        sizes.append(len(record))
        return [record]

    monkeypatch.setattr(world, "_exchange", exchange)
    monkeypatch.setattr(world, "_place", lambda: "line 1: `" + "ä" * 1000)
    world.checked = True
    assert total() == [1, 2]
    assert sizes == [RECORD]


@pytest.mark.parametrize("record", [b"", b"\xff\xfe\x00" * 80, b"|||", b"7"])
def test_what_another_rank_sends_may_be_anything(
    world: Collectives, monkeypatch: pytest.MonkeyPatch, record: bytes
) -> None:
    monkeypatch.setattr(world, "_exchange", lambda mine: [mine, record])
    world.checked = True
    with pytest.raises(CollectiveMismatch):
        total()
