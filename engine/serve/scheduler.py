"""Who is answered when: the queue between the clients of a served model and its ranks.

Clients submit answers and give them up, in the server's thread; the main thread asks what the next
round does, and hands in what was computed. Nothing here knows of sockets or of MLX.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from .batch import Token, Work
from .room import Room

WAITING = 256  # answers that may wait for their turn
PROBATION = 8  # tokens that an answer must make after failures before it counts as harmless
KNOWN = 256  # requests that the ranks have failed with, and that are remembered


@attrs.define(eq=False)
class Answer:
    """One answer, on its way. `request` is whose it is."""

    work: Work
    request: Any
    made: list[int] = attrs.field(factory=list)
    reused: int = 0
    ended: bool = False
    failures: int = 0  # of the ranks while it was under way, since its last PROBATION
    proven: int = 0  # tokens since the last of them

    @property
    def left(self) -> Work:
        """What is left to be made of it, for ranks that know nothing of it."""
        return attrs.evolve(
            self.work,
            tokens=[*self.work.tokens, *self.made],
            max_tokens=self.work.max_tokens - len(self.made),
            done=len(self.made),
        )

    @property
    def suspect(self) -> bool:
        """The ranks have failed with it twice, so it runs alone until it has proven harmless."""
        return self.failures > 1


class Scheduler:
    """Answers that wait and answers under way."""

    def __init__(self, room: Room, concurrency: int) -> None:
        self.room = room
        self.concurrency = concurrency
        self.answers: dict[int, Answer] = {}
        self.condemned = 0  # answers that the ranks cannot make
        self._waiting: deque[int] = deque()
        self._given_up: set[int] = set()
        self._bad: deque[int] = deque(maxlen=KNOWN)
        self._changing = threading.Lock()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def active(self) -> int:
        return len(self.answers) - len(self._waiting)

    # -- for the server's thread ---------------------------------------------------------------

    def submit(self, answers: Sequence[Answer]) -> bool:
        """Queue the answers of a request. False when too many wait already."""
        with self._changing:
            if len(self._waiting) + len(answers) > WAITING:
                return False
            for answer in answers:
                self.answers[answer.work.number] = answer
                self._waiting.append(answer.work.number)
        return True

    def leave(self, answers: Iterable[Answer]) -> None:
        """Their request is over: what has not ended is given up."""
        with self._changing:
            for answer in answers:
                number = answer.work.number
                if self.answers.pop(number, None) is None:
                    continue
                if number in self._waiting:
                    self._waiting.remove(number)
                elif not answer.ended:
                    self._given_up.add(number)

    def end(self, answer: Answer) -> None:
        """No more tokens of this answer are wanted: a stop string has come."""
        with self._changing:
            if not answer.ended:
                answer.ended = True
                self._given_up.add(answer.work.number)

    def is_condemned(self, work: Work) -> bool:
        """Whether the ranks have failed with the same before."""
        return _fingerprint(work) in self._bad

    # -- for the main thread -------------------------------------------------------------------

    def decide(self, works: Mapping[int, Work]) -> tuple[list[int], list[Work]]:
        """The answers under way (`works`) to give up, and those to begin."""
        with self._changing:
            cancel = sorted(number for number in self._given_up if number in works)
            self._given_up.clear()
            under_way = {number: works[number].length for number in works if number not in cancel}
            begin: list[Work] = []
            while self._waiting:
                answer = self.answers[self._waiting[0]]
                if not answer.ended:
                    work = answer.left
                    lengths = [*under_way.values(), work.length]
                    suspects = [number for number in under_way if self._is_suspect(number)]
                    alone = answer.suspect and under_way
                    if suspects or alone or not self.fits(lengths):
                        break
                    under_way[work.number] = work.length
                    begin.append(work)
                self._waiting.popleft()
            return cancel, begin

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether answers of these lengths, in tokens, can be under way at once."""
        return len(lengths) <= self.concurrency and self.room.fits(lengths)

    def _is_suspect(self, number: int) -> bool:
        return number in self.answers and self.answers[number].suspect

    def deliver(
        self, tokens: Sequence[Token], reused: Mapping[int, int]
    ) -> list[tuple[Answer, list[Token]]]:
        """Take note of what was computed. Returns it by answer, for those that still want it."""
        parts: dict[int, list[Token]] = {}
        with self._changing:
            for each in tokens:
                answer = self.answers.get(each.number)
                if answer is None or answer.ended:
                    continue
                if each.finish != "stop":
                    answer.made.append(each.token)
                answer.ended = each.finish is not None
                answer.reused = reused.get(each.number, answer.reused)
                answer.proven += 1
                if answer.proven >= PROBATION:
                    answer.failures = 0
                parts.setdefault(each.number, []).append(each)
            return [(self.answers[number], part) for number, part in parts.items()]

    def resume(self, room: Room, concurrency: int) -> tuple[list[Answer], list[Answer]]:
        """The ranks have failed and are back, and know nothing of what was under way.

        Returns the answers that they cannot make, and those for which there is no room any more.
        """
        with self._changing:
            self.room, self.concurrency = room, concurrency
            condemned, crowded = [], []
            for number in sorted(self.answers.keys() - set(self._waiting)):
                answer = self.answers[number]
                if answer.ended:
                    continue
                if answer.suspect:
                    # It was alone, see `decide`.
                    condemned.append(answer)
                answer.failures, answer.proven = answer.failures + 1, 0
            for answer in condemned:
                answer.ended = True
                self._bad.append(_fingerprint(answer.work))
            self.condemned += len(condemned)
            going = [each for _, each in sorted(self.answers.items()) if not each.ended]
            for answer in going:
                if not self.fits([answer.left.length]):
                    crowded.append(answer)
                    answer.ended = True
            # Those that may be at fault come last: they hold the others up.
            going = sorted((each for each in going if not each.ended), key=lambda a: a.suspect)
            self._waiting = deque(answer.work.number for answer in going)
            return condemned, crowded


def _fingerprint(work: Work) -> int:
    """Tells a request from others, whatever its number and its seed."""
    asked = (
        tuple(work.tokens),
        repr(sorted(work.sampling.items())),
        repr(work.penalties),
        work.top,
    )
    return hash(asked)
