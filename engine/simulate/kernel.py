"""Messages on wires, in time: the two functions that all simulated seconds come from.

Both take the same arrays. A group is what acts at once, a rank in most traffic. In each of its
steps it waits for one message on every stream that comes to it, computes, and sends one message on
every stream that leaves it. With `lag` 1 it waits for the messages of the step before, with `lag` 0
for those of the same step; groups are then numbered in the order in which messages pass them.

A message claims its first wire when it is ready, and waits while the wire is busy with messages
that were ready earlier. It keeps the wire for `hold_first` seconds. If there is a second wire, it
claims that when it begins to leave, and does not leave the second before the first. It arrives
`latency` seconds after it left the last wire.

They are plain Python that numba compiles (see traffic.py): arrays and loops, no objects.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def stepwise(
    steps: int,
    lag: int,
    leaving_from: Ints,
    leaving: Ints,
    coming_from: Ints,
    coming: Ints,
    target: Ints,
    first: Ints,
    second: Ints,
    hold_first: Floats,
    hold_second: Floats,
    latency: Floats,
    compute: Floats,
    wires: int,
) -> tuple[Floats, Floats]:
    """When each group is done, and when the last message of each stream arrived, in seconds.

    Exact where no wire carries two streams: then nobody has to know who was first.
    """
    groups = len(compute)
    free = np.zeros(wires)
    ready = np.zeros(groups)
    arrived = np.zeros(len(first))
    before = np.zeros(len(first))
    for step in range(steps):
        if lag == 1:
            arrived, before = before, arrived
        for group in range(groups):
            time = ready[group]
            for place in range(coming_from[group], coming_from[group + 1]):
                stream = coming[place]
                if lag == 0:
                    time = max(time, arrived[stream])
                elif step > 0:
                    time = max(time, before[stream])
            time += compute[group]
            ready[group] = time
            for place in range(leaving_from[group], leaving_from[group + 1]):
                stream = leaving[place]
                wire = first[stream]
                start = max(time, free[wire])
                end = start + hold_first[stream]
                free[wire] = end
                wire = second[stream]
                if wire >= 0:
                    start = max(start, free[wire])
                    end = max(end, start + hold_second[stream])
                    free[wire] = end
                arrived[stream] = end + latency[stream]
    for group in range(groups):
        for place in range(coming_from[group], coming_from[group + 1]):
            ready[group] = max(ready[group], arrived[coming[place]])
    return ready, arrived


def events(
    steps: int,
    lag: int,
    leaving_from: Ints,
    leaving: Ints,
    coming_from: Ints,
    coming: Ints,
    target: Ints,
    first: Ints,
    second: Ints,
    hold_first: Floats,
    hold_second: Floats,
    latency: Floats,
    compute: Floats,
    wires: int,
) -> tuple[Floats, Floats]:
    """The same for any traffic, one event after the other. Of two at once, the one made first."""
    groups, streams = len(compute), len(first)
    free = np.zeros(wires)
    ready = np.zeros(groups)
    arrived = np.zeros(streams)
    got = np.zeros(streams, np.int64)  # messages of each stream that arrived
    issued = np.zeros(groups, np.int64)  # steps that each group sent
    lacking = np.zeros(groups, np.int64)  # streams that its next step still waits for
    # Time, number, what, and the end of a message on its first wire. What: the arrival of a
    # stream's message, its claim of the second wire, or a group that sends.
    heap: Any = [(0.0, 0, 0, 0.0)]
    heap.pop()
    number = 0
    for group in range(groups):
        lacking[group] = 0 if lag == 1 else coming_from[group + 1] - coming_from[group]
        if lacking[group] == 0 and steps > 0:
            heapq.heappush(heap, (compute[group], number, 2 * streams + group, 0.0))
            number += 1
    while len(heap) > 0:
        time, _, what, end = heapq.heappop(heap)
        if what >= 2 * streams:
            group = what - 2 * streams
            ready[group] = time
            for place in range(leaving_from[group], leaving_from[group + 1]):
                stream = leaving[place]
                wire = first[stream]
                start = max(time, free[wire])
                end = start + hold_first[stream]
                free[wire] = end
                if second[stream] >= 0:
                    heapq.heappush(heap, (start, number, streams + stream, end))
                else:
                    heapq.heappush(heap, (end + latency[stream], number, stream, 0.0))
                number += 1
            issued[group] += 1
            if issued[group] < steps:
                count = 0
                for place in range(coming_from[group], coming_from[group + 1]):
                    if got[coming[place]] < issued[group] + 1 - lag:
                        count += 1
                lacking[group] = count
                if count == 0:
                    heapq.heappush(heap, (time + compute[group], number, 2 * streams + group, 0.0))
                    number += 1
        elif what >= streams:
            stream = what - streams
            wire = second[stream]
            start = max(time, free[wire])
            end = max(end, start + hold_second[stream])
            free[wire] = end
            heapq.heappush(heap, (end + latency[stream], number, stream, 0.0))
            number += 1
        else:
            stream = what
            group = target[stream]
            got[stream] += 1
            arrived[stream] = time
            if (
                issued[group] < steps
                and lacking[group] > 0
                and got[stream] == issued[group] + 1 - lag
            ):
                lacking[group] -= 1
                if lacking[group] == 0:
                    heapq.heappush(heap, (time + compute[group], number, 2 * streams + group, 0.0))
                    number += 1
    for stream in range(streams):
        ready[target[stream]] = max(ready[target[stream]], arrived[stream])
    return ready, arrived
