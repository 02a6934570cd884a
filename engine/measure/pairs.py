"""Latency and bandwidth between two ranks, over MLX's send and recv or a plain socket.

How each figure is defined stands in docs/measuring.md; the tests compare it with a link of known
delay and rate.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import attrs

from ..errors import WorldError
from ..units import size_label
from .fit import fit
from .record import Pair, Point
from .samples import Rate, Timing
from .sockets import Sockets, receive, send

SMALL = 8  # bytes of a message whose time is the latency
SIZES = tuple(1 << power for power in (3, 6, 10, 13, 15, 16, 18, 20, 22))  # of a curve
MOST = SIZES[-1]
WARM_UP = 2  # round trips that do not count
PASSES = 2  # over all sizes, so that a busy moment does not hit one of them alone
ROUND_TRIPS = (8, 400)  # at least and at most, for the latency
POINT = (2, 100)  # the same for one size of a curve
STREAMS = 6  # rounds of transfers in one direction; the first half does not count
LONG_ENOUGH = 0.02  # seconds of a transfer, or 20 latencies
LONGEST = 0.7  # seconds that one message or transfer may take; larger ones are left out
VARIANTS = 3  # of a message's content, so that one that was left over is not taken for the next

# Which pairs MLX's send and recv reach, by backend. MLX has neither for CUDA.
REACH = {"ring": "neighbours", "jaccl-ring": "neighbours", "jaccl": "all", "mpi": "all"}


class Wire(Protocol):
    """A way to one other rank."""

    def send(self, size: int) -> None: ...

    def receive(self, size: int) -> None: ...

    def tell(self, number: int) -> None: ...

    def hear(self) -> int: ...

    def right(self) -> bool:
        """Whether the last message that was received is the one that was sent."""
        ...


class SocketWire:
    """Plain TCP, which has checksums of its own."""

    def __init__(self, peer: int, sockets: Sockets) -> None:
        self._peer = sockets.peers[peer]
        self._out, self._into = sockets.out, sockets.into

    def send(self, size: int) -> None:
        send(self._peer, self._out[:size])

    def receive(self, size: int) -> None:
        receive(self._peer, self._into[:size])

    def tell(self, number: int) -> None:
        send(self._peer, memoryview(number.to_bytes(8, "big")))

    def hear(self) -> int:
        receive(self._peer, self._into[:8])
        return int.from_bytes(self._into[:8], "big")

    def right(self) -> bool:
        return True


class NativeWire:
    """MLX's send and recv."""

    def __init__(self, peer: int, group: Any) -> None:
        self._peer, self._group = peer, group
        self._made: dict[tuple[int, int], Any] = {}
        self._sent = self._received = 0
        self._last: Any = None

    def send(self, size: int) -> None:
        import mlx.core as mx

        data = self._data(size, self._sent)
        self._sent += 1
        mx.eval(mx.distributed.send(data, self._peer, group=self._group))

    def receive(self, size: int) -> None:
        import mlx.core as mx

        self._last = mx.distributed.recv((size,), mx.uint8, self._peer, group=self._group)
        mx.eval(self._last)
        self._received += 1

    def tell(self, number: int) -> None:
        import mlx.core as mx

        mx.eval(mx.distributed.send(mx.array(number), self._peer, group=self._group))

    def hear(self) -> int:
        import mlx.core as mx

        number = mx.distributed.recv((), mx.int32, self._peer, group=self._group)
        return int(number.tolist())  # type: ignore[arg-type]

    def right(self) -> bool:
        import mlx.core as mx

        due = self._data(self._last.size, self._received - 1)
        return bool(mx.array_equal(self._last, due).item())

    def prepare(self, size: int) -> None:
        """Make what will be sent, which takes a while."""
        for variant in range(VARIANTS):
            self._data(size, variant)

    def _data(self, size: int, number: int) -> Any:
        import mlx.core as mx

        key = size, number % VARIANTS
        if key not in self._made:
            # Only one size is in use at a time.
            self._made = {each: data for each, data in self._made.items() if each[0] == size}
            self._made[key] = ((mx.arange(size) + 83 * key[1]) % 251).astype(mx.uint8)
            mx.eval(self._made[key])
        return self._made[key]


@attrs.frozen
class Way:
    """Two ranks, `a` < `b`, and what carries their messages: as `Pair.via`."""

    a: int
    b: int
    via: str


def ways(backend: str, sockets: Sockets, every: bool) -> list[Way]:
    """What to measure: what MLX itself can use first, then plain sockets.

    Sockets to all pairs with `every`, otherwise only between neighbours.
    """
    ranks = sockets.ranks
    pairs = [(a, b) for a in range(ranks) for b in range(a + 1, ranks)]
    near = [(a, b) for a, b in pairs if b - a in (1, ranks - 1)]
    wanted = pairs if every else near
    reach = {"all": pairs, "neighbours": near}.get(REACH.get(backend, ""), [])
    found = [Way(a, b, backend) for a, b in wanted if (a, b) in reach]
    return found + [Way(a, b, "tcp") for a, b in wanted if (a, b) not in sockets.failures]


def rounds(found: Sequence[Way], ranks: int) -> list[list[Way]]:
    """Rounds of as many ways as possible of which no two share a rank, one kind at a time.

    Each way is part of one round at least, where there is another one beside it.
    """
    made: list[list[Way]] = []
    for via in dict.fromkeys(way.via for way in found):
        left = {(way.a, way.b): way for way in found if way.via == via}
        alike = dict(left)
        for turn in _tournament(ranks):
            chosen = [left.pop(pair) for pair in turn if pair in left]
            if not chosen:
                continue
            # A round that lacks a pair is filled up with ways that had theirs, or will have.
            busy = {rank for way in chosen for rank in (way.a, way.b)}
            for pair, way in alike.items():
                if not busy & set(pair):
                    chosen.append(way)
                    busy |= set(pair)
                    left.pop(pair, None)
            if len(chosen) > 1:
                made.append(chosen)
    return made


def _tournament(ranks: int) -> list[list[tuple[int, int]]]:
    """All pairs in rounds of disjoint ones: one seat stays, the others move round the table."""
    seats: list[int | None] = [*range(ranks)] + ([None] if ranks % 2 else [])
    turns = []
    for _ in range(len(seats) - 1):
        halves = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        turns.append([(min(a, b), max(a, b)) for a, b in halves if a is not None and b is not None])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return turns


@attrs.define
class Finding:
    """What rank `a` of a way has found so far: seconds by size, and bytes/s in each round."""

    latency: list[float] = attrs.field(factory=list)
    curve: dict[int, list[float]] = attrs.field(factory=dict)
    forward: list[list[float]] = attrs.field(factory=list)
    backward: list[list[float]] = attrs.field(factory=list)
    crowded: list[list[float]] = attrs.field(factory=list)


# A piece of work for one way: `a` measures, `b` answers.
Task = tuple[str, Callable[[Wire, bool, Finding], None]]


def tasks() -> Iterator[Task]:
    """What is done with each way while no other one is in use, in pieces of a second at most."""
    for _ in range(PASSES):
        yield "latency", _latency
        for size in SIZES:
            yield size_label(size), functools.partial(_curve_point, size)
    for _ in range(STREAMS):
        yield "bandwidth", _forward
    for _ in range(STREAMS):
        yield "bandwidth back", _backward


def _latency(wire: Wire, first: bool, found: Finding) -> None:
    found.latency += _round_trips(wire, first, SMALL, ROUND_TRIPS, 0.1)


def _curve_point(size: int, wire: Wire, first: bool, found: Finding) -> None:
    times = _round_trips(wire, first, size, POINT, 0.05, found.curve)
    if times:
        found.curve.setdefault(size, []).extend(times)


def _forward(wire: Wire, first: bool, found: Finding) -> None:
    _stream(wire, first, first, found, found.forward)


def _backward(wire: Wire, first: bool, found: Finding) -> None:
    _stream(wire, first, not first, found, found.backward)


def crowd(wire: Wire, first: bool, found: Finding) -> None:
    """As the bandwidth, while other pairs do the same."""
    _stream(wire, first, first, found, found.crowded)


def _round_trips(
    wire: Wire,
    first: bool,
    size: int,
    limits: tuple[int, int],
    budget: float,
    known: Mapping[int, list[float]] | None = None,
) -> list[float]:
    """Seconds one way, of messages of `size` bytes there and back; [] when they take too long.

    Both sides call it. `first` decides how many there will be, in about `budget` seconds; `known`
    are the times of smaller sizes. Raises WorldError when one arrives changed.
    """
    if isinstance(wire, NativeWire):
        wire.prepare(size)
    if not first:
        counts = []
        for _ in range(2):  # the warm-up, and what counts
            counts.append(wire.hear())
            for _ in range(counts[-1]):
                wire.receive(size)
                wire.send(size)
        if any(counts):
            _agree(wire, first, wire.right(), size)
        return []
    smaller = max((each for each in known or () if each < size), default=0)
    if known and smaller and min(known[smaller]) * size / smaller > LONGEST:
        wire.tell(0)
        wire.tell(0)
        return []
    wire.tell(WARM_UP)
    quickest = min(_round_trip(wire, size) for _ in range(WARM_UP))
    count = int(min(limits[1], max(limits[0], budget / quickest)))
    wire.tell(count)
    times = [_round_trip(wire, size) / 2 for _ in range(count)]
    _agree(wire, first, wire.right(), size)
    return times


def _round_trip(wire: Wire, size: int) -> float:
    began = time.perf_counter()
    wire.send(size)
    wire.receive(size)
    return time.perf_counter() - began


def _agree(wire: Wire, first: bool, right: bool, size: int) -> None:
    """Raise WorldError on both sides when a message has arrived changed on one of them."""
    if first:
        wire.tell(int(right))
        there = bool(wire.hear())
    else:
        there = bool(wire.hear())
        wire.tell(int(right))
    if not (right and there):
        raise WorldError(
            f"A message of {size_label(size)} arrived changed.",
            why="the link or the backend changes what it carries",
            do="measure again; if it stays, report it to MLX, and use another backend",
        )


def _stream(wire: Wire, first: bool, sends: bool, found: Finding, rates: list[list[float]]) -> None:
    """One round of transfers in one direction: messages without a break, then an answer.

    The time of the answer and of the first message's way is taken off, twice the latency, but not
    more than half of the time. `first` appends bytes/s to `rates`.
    """
    if first:
        asked = _amount(found, rates)
        for number in asked:
            wire.tell(number)
    else:
        asked = wire.hear(), wire.hear(), wire.hear()
    size, messages, transfers = asked
    if isinstance(wire, NativeWire):
        wire.prepare(size)
    seconds = [_transfer(wire, first, sends, size, messages) for _ in range(transfers)]
    _agree(wire, first, sends or wire.right(), size)
    if first:
        beyond = 2 * min(found.latency)
        rates.append([size * messages / max(took - beyond, took / 2) for took in seconds])


def _amount(found: Finding, rates: Sequence[Sequence[float]]) -> tuple[int, int, int]:
    """Bytes of a message, messages of a transfer, and transfers of a round."""
    latency = min(found.latency)
    size = max(found.curve)
    quickest = min(found.curve[size])
    each = size / rates[-1][-1] if rates else max(quickest - latency, quickest / 10)
    # Long beside the latency: TCP takes many round trips to open its window.
    messages = int(min(512, max(2, max(LONG_ENOUGH, 20 * latency) / each)))
    if messages * each > LONGEST:
        messages = max(1, int(LONGEST / each))
    return size, messages, 2 if messages * each < LONGEST / 8 else 1


def _transfer(wire: Wire, first: bool, sends: bool, size: int, messages: int) -> float:
    """Seconds from the first message, or from asking for it, until all is known to be there."""
    if sends and not first:
        wire.hear()
    began = time.perf_counter()
    if first and not sends:
        wire.tell(1)
    move = wire.send if sends else wire.receive
    for _ in range(messages):
        move(size)
    if first and sends:
        wire.hear()
    elif not first and not sends:
        wire.tell(1)
    return time.perf_counter() - began


def as_pair(way: Way, found: Finding) -> Pair:
    """The record of a way that was measured."""
    points = tuple(Point(size, Timing.of(times)) for size, times in found.curve.items())
    line = fit(
        list(found.curve),
        [point.time.p50 for point in points],
        samples=list(found.curve.values()),
    )
    return Pair(
        a=way.a,
        b=way.b,
        via=way.via,
        latency=Timing.of(found.latency),
        forward=_rate(found.forward),
        backward=_rate(found.backward),
        crowded=_rate(found.crowded) if found.crowded else None,
        curve=points,
        fit=line,
    )


def _rate(rates: Sequence[Sequence[float]]) -> Rate:
    """Of the later rounds, when TCP has opened its window."""
    counted = [each for many in rates[len(rates) // 2 :] for each in many]
    return Rate.of(1, [1 / each for each in counted])
