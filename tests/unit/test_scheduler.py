"""Who is answered when, without ranks: `engine/serve/scheduler.py`."""

from __future__ import annotations

from collections.abc import Sequence

from macluster.engine.models.trial import CacheSize
from macluster.engine.serve.batch import Token, Work
from macluster.engine.serve.room import Room
from macluster.engine.serve.scheduler import PROBATION, WAITING, Answer, Scheduler

FREE = Room([(CacheSize(token=1), 1000)])


def answer(number: int, prompt: int = 10, max_tokens: int = 20) -> Answer:
    tokens = [number] * prompt
    return Answer(Work(number, tokens, max_tokens, 0, {"temperature": 0.0}, {}), "request")


class Ranks:
    """Stands for the ranks: has the works that the scheduler gives them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.works: dict[int, Work] = {}

    def round(self) -> tuple[list[int], list[int]]:
        """The numbers that are given up, and those that begin."""
        cancel, begin = self.scheduler.decide(self.works)
        for number in cancel:
            del self.works[number]
        for work in begin:
            assert work.number not in self.works
            self.works[work.number] = work
        return cancel, [work.number for work in begin]

    def step(self, *, finish: Sequence[int] = ()) -> list[int]:
        """One token for everybody. Returns who still wants it."""
        tokens = [Token(number, 7, "length" if number in finish else None) for number in self.works]
        for number in finish:
            del self.works[number]
        parts = self.scheduler.deliver(tokens, {})
        return [each.work.number for each, _ in parts]

    def fail(self) -> tuple[list[int], list[int]]:
        """They fail and come back. The numbers that are condemned, and that have no room."""
        self.works = {}
        condemned, crowded = self.scheduler.resume(self.scheduler.room, self.scheduler.concurrency)
        for each in [*condemned, *crowded]:
            self.scheduler.leave([each])
        return [each.work.number for each in condemned], [each.work.number for each in crowded]


def begun(concurrency: int = 8, room: Room = FREE, count: int = 0) -> tuple[Scheduler, Ranks]:
    scheduler = Scheduler(room, concurrency)
    scheduler.submit([answer(number) for number in range(count)])
    ranks = Ranks(scheduler)
    ranks.round()
    return scheduler, ranks


def test_answers_begin_in_their_order_as_far_as_there_are_places() -> None:
    scheduler, ranks = begun(concurrency=2)
    assert scheduler.submit([answer(0), answer(1), answer(2)])
    assert ranks.round() == ([], [0, 1])
    assert (scheduler.active, scheduler.waiting) == (2, 1)
    assert ranks.step(finish=[0]) == [0, 1]
    assert ranks.round() == ([], [2])


def test_one_that_has_no_room_waits_until_there_is() -> None:
    scheduler, ranks = begun(room=Room([(CacheSize(token=1), 100)]))
    scheduler.submit([answer(0, 20, 20), answer(1, 40, 20), answer(2, 1, 1)])
    # Two answers of 60 are more than 100; and nobody overtakes.
    assert ranks.round() == ([], [0])
    assert ranks.step(finish=[0]) == [0]
    assert ranks.round() == ([], [1])


def test_more_than_can_wait_are_not_taken() -> None:
    scheduler, _ = begun(concurrency=1)
    assert scheduler.submit([answer(number) for number in range(WAITING)])
    assert not scheduler.submit([answer(WAITING)])


def test_who_leaves_is_given_up_once() -> None:
    scheduler, ranks = begun(concurrency=2, count=3)
    scheduler.leave([scheduler.answers[0], scheduler.answers[2]])
    assert ranks.round() == ([0], [])
    assert ranks.round() == ([], [])
    assert list(scheduler.answers) == [1]


def test_one_that_ends_by_itself_is_not_given_up() -> None:
    scheduler, ranks = begun(count=1)
    ranks.step(finish=[0])
    scheduler.leave([scheduler.answers[0]])
    assert ranks.round() == ([], [])


def test_after_a_stop_string_nothing_is_delivered() -> None:
    scheduler, ranks = begun(count=2)
    scheduler.end(scheduler.answers[0])
    assert ranks.step() == [1]
    assert scheduler.answers[0].made == []
    assert ranks.round() == ([0], [])


def test_after_a_failure_answers_go_on_where_they_were() -> None:
    _, ranks = begun(count=2)
    ranks.step()
    ranks.step()
    assert ranks.fail() == ([], [])
    assert ranks.round() == ([], [0, 1])
    work = ranks.works[1]
    assert work.tokens == [*[1] * 10, 7, 7]
    assert (work.done, work.max_tokens) == (2, 18)


def test_one_that_ended_before_a_failure_does_not_begin_again() -> None:
    scheduler, ranks = begun(count=3)
    scheduler.end(scheduler.answers[0])
    ranks.step(finish=[1])
    ranks.fail()
    # Its client has not read its last tokens yet, and then leaves.
    stopped = scheduler.answers[0]
    assert ranks.round() == ([], [2])
    scheduler.leave([stopped])
    assert ranks.round() == ([], [])


def test_a_stop_string_that_is_seen_after_a_failure_ends_what_was_queued_again() -> None:
    scheduler, ranks = begun(count=2)
    ranks.step()
    ranks.fail()
    scheduler.end(scheduler.answers[0])
    assert ranks.round() == ([], [1])
    scheduler.leave([scheduler.answers[0]])
    assert ranks.round() == ([], [])


def test_who_is_under_way_in_two_failures_runs_alone_and_others_are_not_condemned() -> None:
    scheduler, ranks = begun(count=3)
    assert ranks.fail() == ([], [])
    assert ranks.round() == ([], [0, 1, 2])
    assert ranks.fail() == ([], [])
    scheduler.submit([answer(3)])
    # One at a time; who came later waits, too.
    assert ranks.round() == ([], [0])
    assert ranks.round() == ([], [])
    for _ in range(PROBATION):
        ranks.step()
    # It has proven harmless, and the next one is tried, alone again.
    assert ranks.round() == ([], [])
    ranks.step(finish=[0])
    assert ranks.round() == ([], [1])
    assert ranks.fail() == ([1], [])
    assert scheduler.condemned == 1
    assert scheduler.is_condemned(answer(1).work)
    assert not scheduler.is_condemned(answer(2).work)
    assert ranks.round() == ([], [3])


def test_a_harmless_answer_survives_many_failures_of_others() -> None:
    scheduler, ranks = begun()
    scheduler.submit([answer(0, 10, 500)])
    ranks.round()
    for _ in range(10):
        for _ in range(PROBATION):
            ranks.step()
        assert ranks.fail() == ([], [])
        assert ranks.round() == ([], [0])
    assert scheduler.condemned == 0


def test_less_room_than_before_is_said_to_those_that_need_more() -> None:
    scheduler, ranks = begun(count=1)
    scheduler.submit([answer(1, 500, 100)])
    ranks.round()
    small = Room([(CacheSize(token=1), 100)])
    condemned, crowded = scheduler.resume(small, 8)
    assert condemned == []
    assert [each.work.number for each in crowded] == [1]
