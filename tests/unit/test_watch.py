"""Who waits for whom, from what the ranks answer: `engine/watch.py` without any rank."""

from __future__ import annotations

from typing import Any

import pytest

from macluster.engine import watch
from macluster.engine.watch import STILL, Finding, Watch

SUM = "line 3: `mx.eval(total)`"
LOOP = "line 2: `while True: pass`"

Where = dict[int, dict[str, Any]]


class Clock:
    """Stands for the `time` module: passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


def at(
    place: str | None, started: int, *, moment: int = 1, unread: int = 0, serving: str = ""
) -> dict[str, Any]:
    return {
        "place": place,
        "started": started,
        "moment": [moment],
        "unread": unread,
        "cell": "another",
        "serving": serving,
    }


def look_twice(
    clock: Clock, targets: list[int], running: list[int], where: Where, seconds: float = STILL
) -> Finding:
    """What is found when nothing has moved between two looks."""
    watch = Watch(targets)
    assert watch.look(running, where) == Finding()
    clock.now += seconds
    return watch.look(running, where)


def test_ranks_that_serve_are_waited_for_until_they_stop(clock: Clock) -> None:
    where = {0: at(SUM, 1, serving="http://here"), 1: at(SUM, 1)}
    assert Watch([0, 1], "mine").look([0, 1], where).text == (
        "the ranks serve a model at http://here until %serve stop"
    )
    assert Watch([0, 1], "another").look([0, 1], where) == Finding()


def test_ranks_that_just_came_are_not_said_to_wait(clock: Clock) -> None:
    where = {0: at(SUM, 1), 1: at(LOOP, 0)}
    assert look_twice(clock, [0, 1], [0, 1], where, STILL - 0.1) == Finding()


def test_a_rank_that_computes_is_named_with_those_that_wait_for_it(clock: Clock) -> None:
    where = {0: at(SUM, 1), 1: at(LOOP, 0), 2: at(SUM, 1)}
    finding = look_twice(clock, [0, 1, 2], [0, 1, 2], where)
    assert finding.text == (f"ranks 0, 2 at {SUM}, waiting for the others (2 s): rank 1 at {LOOP}")
    assert not finding.deadlock
    assert finding.places == {0: SUM, 2: SUM}


def test_the_one_behind_may_move_as_it_likes(clock: Clock) -> None:
    watch = Watch([0, 1])
    for moment in range(5):
        finding = watch.look([0, 1], {0: at(SUM, 1), 1: at(LOOP, 0, moment=moment)})
        clock.now += STILL / 4
    assert finding.text.endswith(f"rank 1 at {LOOP}")


@pytest.mark.parametrize("moved", [at(SUM, 1, moment=2), at(SUM, 2)], ids=["line", "collective"])
def test_any_movement_begins_the_wait_anew(clock: Clock, moved: dict[str, Any]) -> None:
    watch = Watch([0, 1])
    waiting = {0: at(SUM, 1), 1: at(LOOP, 0)}
    watch.look([0, 1], waiting)
    clock.now += STILL
    later = {0: moved, 1: at(LOOP, 0)}
    assert watch.look([0, 1], later) == Finding()
    clock.now += STILL
    assert watch.look([0, 1], later).text


def test_data_that_an_ended_rank_will_never_read_is_a_deadlock(clock: Clock) -> None:
    where = {0: at(SUM, 1), 1: at(None, 0, unread=12), 2: at(SUM, 1)}
    finding = look_twice(clock, [0, 1, 2], [0, 2], where)
    assert finding.deadlock
    assert finding.text == (
        f"ranks 0, 2 at {SUM}, waiting for the others (2 s): rank 1 ended the cell without it"
    )


def test_without_that_proof_it_is_only_said(clock: Clock) -> None:
    finding = look_twice(clock, [0, 1], [0], {0: at(SUM, 1), 1: at(None, 0)})
    assert "rank 1 ended the cell without it" in finding.text
    assert not finding.deadlock


def test_as_long_as_one_may_still_come_it_is_no_deadlock(clock: Clock) -> None:
    where = {0: at(SUM, 1), 1: at(LOOP, 0, unread=12), 2: at(None, 0, unread=12)}
    finding = look_twice(clock, [0, 1, 2], [0, 1], where)
    assert not finding.deadlock
    assert finding.text.endswith(f"rank 1 at {LOOP}; rank 2 ended the cell without it")


def test_a_rank_that_the_cell_does_not_run_on_is_told(clock: Clock) -> None:
    finding = look_twice(clock, [0], [0], {0: at(SUM, 1), 1: at(None, 0, unread=12)})
    assert finding.text.endswith("the cell does not run on rank 1")
    # Another cell on that rank may run it.
    assert not finding.deadlock


def test_ranks_that_stand_while_others_have_ended_are_told(clock: Clock) -> None:
    """Where collectives are not counted: send, recv, a part of the world."""
    receive = "line 4: `mx.eval(mx.distributed.recv(...))`"
    finding = look_twice(clock, [0, 1], [0], {0: at(receive, 0), 1: at(None, 0)})
    assert finding.text == f"rank 0 at {receive} (2 s); rank 1 ended the cell"
    assert not finding.deadlock


def test_ranks_that_all_stand_still_are_told_after_a_while(clock: Clock) -> None:
    where = {0: at(LOOP, 1), 1: at(LOOP, 1)}
    assert look_twice(clock, [0, 1], [0, 1], where, 9.0) == Finding()
    finding = look_twice(clock, [0, 1], [0, 1], where, 60.0)
    assert finding.text == f"ranks 0-1 at {LOOP}, without a move for 60 s"
    assert not finding.deadlock


def test_a_rank_without_an_answer_is_not_guessed_at(clock: Clock) -> None:
    assert look_twice(clock, [0, 1], [0, 1], {0: at(SUM, 1)}) == Finding()
    assert look_twice(clock, [0, 1], [0, 1], {}) == Finding()


def test_a_rank_that_answers_no_more_is_not_guessed_at(clock: Clock) -> None:
    both = {0: at(LOOP, 1), 1: at(LOOP, 1)}
    watch = Watch([0, 1])
    assert watch.look([0, 1], both) == Finding()
    clock.now += 60.0
    assert watch.look([0, 1], {0: both[0]}) == Finding()
    assert "without a move for 60 s" in watch.look([0, 1], both).text


def test_places_that_differ_are_told_apart(clock: Clock) -> None:
    other = "line 7: `mx.eval(y)`"
    where = {0: at(SUM, 1), 1: at(None, 0, unread=4), 2: at(other, 1), 3: at(None, 1)}
    finding = look_twice(clock, [0, 1, 2, 3], [0, 2, 3], where)
    listing = f"rank 0 at {SUM}, rank 2 at {other}, rank 3 at an unknown place"
    assert finding.text.startswith(listing)
