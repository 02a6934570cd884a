"""Latency and bandwidth between two ranks, over MLX's send and recv or a plain socket.

How each figure is defined stands in docs/measuring.md; the tests compare it with a link of known
delay and rate.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import attrs

from ..errors import WorldError
from ..units import size_label
from .fit import fit
from .record import Pair, Point
from .samples import Rate, Timing
from .sockets import Sockets, receive

SMALL = 8  # bytes of a message whose time is the latency
SIZES = tuple(1 << power for power in (3, 6, 10, 13, 15, 16, 18, 20, 22))  # of a curve
MOST = SIZES[-1]
WARM_UP = 2  # round trips that do not count
PASSES = 2  # over all sizes, so that a busy moment does not hit one of them alone
ROUND_TRIPS = (8, 400)  # at least and at most, for the latency
POINT = (2, 100)  # the same for one size of a curve
STREAMS = 7  # transfers that a rate is made of
LONGEST = 1.0  # seconds that one message may take; larger ones are left out

# Which pairs MLX's send and recv reach, by backend. MLX has neither for CUDA.
REACH = {"ring": "neighbours", "jaccl-ring": "neighbours", "jaccl": "all", "mpi": "all"}


class Wire(Protocol):
    """A way to one other rank."""

    def send(self, size: int) -> None: ...

    def receive(self, size: int) -> None: ...

    def tell(self, number: int) -> None: ...

    def hear(self) -> int: ...


class SocketWire:
    """Plain TCP."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._out, self._in = memoryview(bytearray(MOST)), memoryview(bytearray(MOST))

    def send(self, size: int) -> None:
        self._peer.sendall(self._out[:size])

    def receive(self, size: int) -> None:
        receive(self._peer, self._in[:size])

    def tell(self, number: int) -> None:
        self._peer.sendall(number.to_bytes(8, "big"))

    def hear(self) -> int:
        receive(self._peer, self._in[:8])
        return int.from_bytes(self._in[:8], "big")


class NativeWire:
    """MLX's send and recv. What arrives is compared with what was sent, outside of the timing."""

    def __init__(self, peer: int, group: Any) -> None:
        self._peer, self._group = peer, group
        self._made: dict[int, Any] = {}
        self._last: Any = None

    def send(self, size: int) -> None:
        import mlx.core as mx

        mx.eval(mx.distributed.send(self._data(size), self._peer, group=self._group))

    def receive(self, size: int) -> None:
        import mlx.core as mx

        self._last = mx.distributed.recv((size,), mx.uint8, self._peer, group=self._group)
        mx.eval(self._last)

    def check(self) -> None:
        """Raise WorldError when the last message is not what was sent."""
        import mlx.core as mx

        if not mx.array_equal(self._last, self._data(self._last.size)).item():
            raise WorldError(
                f"A message of {self._last.size} bytes from rank {self._peer} arrived changed.",
                why="the link or the backend changes what it carries",
                do="run `%cluster start --checked`, measure again, and report it to MLX",
            )

    def tell(self, number: int) -> None:
        import mlx.core as mx

        mx.eval(mx.distributed.send(mx.array(number), self._peer, group=self._group))

    def hear(self) -> int:
        import mlx.core as mx

        number = mx.distributed.recv((), mx.int32, self._peer, group=self._group)
        return int(number.tolist())  # type: ignore[arg-type]

    def _data(self, size: int) -> Any:
        import mlx.core as mx

        if size not in self._made:
            self._made[size] = (mx.arange(size) % 251).astype(mx.uint8)
            mx.eval(self._made[size])
        return self._made[size]


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
    size = sockets.size
    pairs = [(a, b) for a in range(size) for b in range(a + 1, size)]
    near = [(a, b) for a, b in pairs if b - a in (1, size - 1)]
    reach = {"all": pairs, "neighbours": near}.get(REACH.get(backend, ""), [])
    found = [Way(a, b, backend) for a, b in (reach if every else near) if (a, b) in reach]
    return found + [
        Way(a, b, "tcp") for a, b in (pairs if every else near) if (a, b) not in sockets.failures
    ]


def rounds(found: list[Way]) -> list[list[Way]]:
    """The same, in rounds of pairs of which no two share a rank, one kind at a time."""
    made: list[list[Way]] = []
    for way in found:
        for each in made:
            busy = {rank for other in each for rank in (other.a, other.b)}
            if each[0].via == way.via and not busy & {way.a, way.b}:
                each.append(way)
                break
        else:
            made.append([way])
    return [each for each in made if len(each) > 1]


@attrs.define
class Finding:
    """What rank `a` of a way has found so far; seconds, in the order of measuring."""

    latency: list[float] = attrs.field(factory=list)
    forward: Rate | None = None
    backward: Rate | None = None
    crowded: Rate | None = None
    curve: dict[int, list[float]] = attrs.field(factory=dict)


# A piece of work for one way: `a` measures, `b` answers.
Task = tuple[str, Callable[[Wire, bool, Finding], None]]


def tasks() -> Iterator[Task]:
    """What is done with each way while no other one is in use."""
    for _ in range(PASSES):
        yield "latency", _latency
        for size in SIZES:
            yield size_label(size), _curve_point(size)
    yield "bandwidth", _forward
    yield "bandwidth back", _backward


def _latency(wire: Wire, first: bool, found: Finding) -> None:
    found.latency += _round_trips(wire, first, SMALL, ROUND_TRIPS, 0.1)


def _curve_point(size: int) -> Callable[[Wire, bool, Finding], None]:
    def measure(wire: Wire, first: bool, found: Finding) -> None:
        times = _round_trips(wire, first, size, POINT, 0.05, found.curve)
        if times:
            found.curve.setdefault(size, []).extend(times)

    return measure


def _forward(wire: Wire, first: bool, found: Finding) -> None:
    found.forward = _stream(wire, first, first, found)


def _backward(wire: Wire, first: bool, found: Finding) -> None:
    found.backward = _stream(wire, first, not first, found)


def crowd(wire: Wire, first: bool, found: Finding) -> None:
    """As the bandwidth, while other pairs do the same."""
    found.crowded = _stream(wire, first, first, found)


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
    are the times of smaller sizes.
    """
    if not first:
        for _ in range(2):  # the warm-up, and what counts
            for _ in range(wire.hear()):
                wire.receive(size)
                wire.send(size)
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
    if isinstance(wire, NativeWire):
        wire.check()
    return times


def _round_trip(wire: Wire, size: int) -> float:
    began = time.perf_counter()
    wire.send(size)
    wire.receive(size)
    return time.perf_counter() - began


def _stream(wire: Wire, first: bool, sends: bool, found: Finding) -> Rate | None:
    """The rate of one direction, known to `first`: messages without a break, then an answer.

    The time of the answer and of the first message's way is taken off: twice the latency.
    """
    if first:
        size = max(found.curve)
        quick = min(found.curve[size])
        # Long beside the latency, and long enough for TCP to open its window.
        wish = max(0.02, 20 * min(found.latency))
        messages = int(min(256, max(2, wish / quick)))
        if messages * quick > LONGEST:
            messages = max(1, int(LONGEST / quick))
        streams = STREAMS if messages * quick < 0.1 else 3
        for number in (size, messages, streams):
            wire.tell(number)
    else:
        size, messages, streams = (wire.hear() for _ in range(3))
    seconds = [_transfer(wire, first, sends, size, messages) for _ in range(1 + streams)]
    if not first:
        return None
    beyond = 2 * min(found.latency)
    return Rate.of(size * messages, [max(each - beyond, each / 2) for each in seconds[1:]])


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
    assert found.forward is not None
    assert found.backward is not None
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
        forward=found.forward,
        backward=found.backward,
        crowded=found.crowded,
        curve=points,
        fit=line,
    )
