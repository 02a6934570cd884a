"""Loops that all ranks leave before the same step, with a thread in the place of each rank."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

import macluster
from macluster.engine import steps as module
from macluster.engine.steps import Turnstile

PATIENCE = 30.0


def until(condition: Callable[[], bool]) -> None:
    deadline, pause = time.monotonic() + PATIENCE, threading.Event()
    while not condition():
        assert time.monotonic() < deadline
        pause.wait(0.001)


class Rank(threading.Thread):
    """Runs a loop through a turnstile of its own; `allowed` is how far its collectives get it."""

    def __init__(self, allowed: int) -> None:
        super().__init__(daemon=True)
        self.turnstile = Turnstile()
        self.done = 0  # steps
        self.stopped = False
        self._allowed = allowed
        self._changed = threading.Condition()

    def run(self) -> None:
        self.turnstile.enter()
        try:
            while True:
                self.turnstile.step()
                with self._changed:
                    self._changed.wait_for(lambda: self.done < self._allowed, PATIENCE)
                self.done += 1
        except KeyboardInterrupt:
            self.stopped = True
        finally:
            self.turnstile.leave()

    def allow(self, steps: int) -> None:
        with self._changed:
            self._allowed = steps
            self._changed.notify_all()


@pytest.fixture
def ranks() -> Iterator[list[Rank]]:
    """Three ranks that are in different steps: the third, the fourth and the sixth."""
    ranks = [Rank(allowed) for allowed in (2, 3, 5)]
    for rank in ranks:
        rank.start()
    until(lambda: [rank.turnstile.begun for rank in ranks] == [3, 4, 6])
    yield ranks
    for rank in ranks:
        rank.turnstile.hold()
        rank.turnstile.stop_before(0)
        rank.allow(1_000_000)
        rank.join(PATIENCE)
        assert not rank.is_alive()


# -- agreement -------------------------------------------------------------------------------------


def test_all_stop_before_the_step_after_the_foremost(ranks: list[Rank]) -> None:
    begun = [rank.turnstile.hold() for rank in ranks]
    assert begun == [3, 4, 6]
    for rank in ranks:
        rank.turnstile.stop_before(7)
        rank.allow(1_000_000)
    for rank in ranks:
        rank.join(PATIENCE)
    assert [rank.stopped for rank in ranks] == [True] * 3
    assert [rank.done for rank in ranks] == [6] * 3


def test_a_rank_that_is_told_late_waits_at_its_next_step(
    ranks: list[Rank], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOLD", PATIENCE)
    for rank in ranks:
        rank.turnstile.hold()
        rank.allow(1_000_000)
    # Nobody passes its next step until all were told.
    until(lambda: [rank.turnstile.begun for rank in ranks] == [4, 5, 7])
    for rank in ranks:
        rank.turnstile.stop_before(7)
    for rank in ranks:
        rank.join(PATIENCE)
    assert [rank.done for rank in ranks] == [6] * 3


def test_with_many_ranks_at_full_speed_all_counts_are_equal() -> None:
    """The protocol as `Cell.interrupt` runs it, while a barrier stands for the collective."""
    for _ in range(20):
        barrier = threading.Barrier(4)
        turnstiles = [Turnstile() for _ in range(4)]
        counts = [0] * 4

        def loop(number: int) -> None:
            turnstile = turnstiles[number]  # noqa: B023
            turnstile.enter()
            try:
                while True:
                    turnstile.step()
                    barrier.wait(PATIENCE)  # noqa: B023
                    counts[number] += 1  # noqa: B023
            except KeyboardInterrupt:
                pass
            finally:
                turnstile.leave()

        threads = [threading.Thread(target=loop, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: min(counts) >= 3)  # noqa: B023
        begun = [each.hold() for each in turnstiles]
        assert None not in begun
        step = max(each or 0 for each in begun) + 1
        for each in turnstiles:
            each.stop_before(step)
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert counts == [step - 1] * 4


def test_release_lets_a_held_rank_go_on(ranks: list[Rank], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD", PATIENCE)
    rank = ranks[0]
    rank.turnstile.hold()
    rank.allow(1_000_000)
    until(lambda: rank.turnstile.begun == 4)
    rank.turnstile.release()
    until(lambda: rank.done > 10)
    assert not rank.stopped


def test_a_hold_that_nobody_comes_back_to_ends_by_itself(
    ranks: list[Rank], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HOLD", 0.05)
    ranks[0].turnstile.hold()
    ranks[0].allow(1_000_000)
    until(lambda: ranks[0].done > 10)
    assert not ranks[0].stopped


# -- one turnstile ---------------------------------------------------------------------------------


def test_no_loop_means_nothing_to_hold() -> None:
    turnstile = Turnstile()
    assert turnstile.hold() is None
    turnstile.enter()
    turnstile.enter()
    turnstile.leave()
    assert turnstile.hold() == 0
    turnstile.leave()
    turnstile.leave()
    assert turnstile.hold() is None


def test_the_next_cell_is_not_held_by_what_was_asked_of_the_last_one() -> None:
    turnstile = Turnstile()
    turnstile.enter()
    turnstile.hold()
    turnstile.stop_before(1)
    turnstile.reset()
    assert turnstile.hold() is None
    turnstile.release()
    turnstile.enter()
    turnstile.step()
    assert turnstile.begun == 1


def test_pace_is_the_time_of_the_last_whole_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 10.5, 13.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    turnstile = Turnstile()
    paces = []
    for _ in range(3):
        turnstile.step()
        paces.append(turnstile.pace)
    assert paces == [0.0, 0.5, 3.0]


# -- steps -----------------------------------------------------------------------------------------


@pytest.fixture
def turnstile(monkeypatch: pytest.MonkeyPatch) -> Turnstile:
    turnstile = Turnstile()
    monkeypatch.setattr(module, "turnstile", turnstile)
    return turnstile


def test_steps_is_a_plain_iteration(turnstile: Turnstile) -> None:
    assert list(macluster.steps("abc")) == ["a", "b", "c"]
    assert turnstile.begun == 3
    assert turnstile.hold() is None


def test_an_interrupt_comes_before_the_item_and_nowhere_else(turnstile: Turnstile) -> None:
    seen = []

    def loop() -> None:
        for item in macluster.steps(range(100)):
            seen.append(item)
            if item == 4:
                assert turnstile.hold() == 5
                turnstile.stop_before(8)

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert seen == [0, 1, 2, 3, 4, 5, 6]
    assert turnstile.hold() is None


@pytest.mark.parametrize("how", ["break", "raise"])
def test_a_loop_that_is_left_early_is_no_loop_any_more(turnstile: Turnstile, how: str) -> None:
    loop = macluster.steps(range(10))
    assert next(iter(loop)) == 0
    assert turnstile.hold() == 1
    turnstile.release()
    if how == "break":
        loop.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(ValueError, match="boom"):
            loop.throw(ValueError("boom"))  # type: ignore[attr-defined]
    assert turnstile.hold() is None
