"""Measure the wires of the running ranks."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

import attrs
import psutil

from ..errors import UsageError
from ..models.agree import exchange
from ..progress import Progress
from ..rank.collectives import collectives
from ..steps import steps
from ..units import size_label
from . import pairs, sweep
from .pairs import REACH, Finding, NativeWire, SocketWire, Wire, as_pair
from .record import OPS, MeasuredRank, Measurement, Pair, Sweep, read_pair
from .sockets import Sockets

MANY = 16  # ranks; with more, only neighbours are measured unless all pairs are asked for
LARGEST = 256 << 20  # bytes of a collective


def measure(
    *,
    links: bool | str = True,
    ops: Sequence[str] = OPS,
    most: int = LARGEST,
) -> Measurement:
    """Measure links and collectives. Every rank must call it; all get the same record.

    It shows on rank 0 how far it is, and an interrupt stops it on all ranks at the same place. What
    the ranks hold stays as it is.

    Args:
        links: "all" pairs of ranks, only "neighbours" of the ring, or False for none. True is all
            of up to 16 ranks, and neighbours of more.
        ops: the collectives to time, of all_sum, all_gather, sendrecv and barrier; () for none.
        most: bytes of the largest collective. Memory, and a second for one operation, limit it too.

    Raises:
        UsageError: on every rank, for another collective or size, or when the ranks were asked for
            different things.
        WorldError: when a message arrives changed, or a rank is silent for a minute.
    """
    import mlx.core as mx

    group = mx.distributed.init()
    rank, size = group.rank(), group.size()
    every = links == "all" or (links is True and size <= MANY)
    _check_asked(links, ops, most)
    backend = world_backend(size)
    progress = Progress(shown=rank == 0)
    notes: list[str] = []
    found_pairs: tuple[Pair, ...] = ()
    found_sweeps: list[Sweep] = []
    parts = [name for name in ops if _possible(name, backend, notes)] if size > 1 else []
    # About as long as each other: all pairs, and each collective.
    whole = (3 if links and size > 1 else 0) + len(parts)
    try:
        if links and size > 1:
            with contextlib.closing(Sockets.connect(rank, size)) as sockets:
                notes += [
                    f"Rank {b} does not reach rank {a} by TCP: {why}."
                    for (a, b), why in sorted(sockets.failures.items())
                ]
                found_pairs = _pairs(backend, sockets, every, group, progress, 3 / whole)
        for number, op in enumerate(parts):
            done = whole - len(parts) + number
            found_sweeps.append(_sweep(op, most, group, progress, (done / whole, 1 / whole), notes))
    finally:
        mx.clear_cache()
    seconds = max(exchange(progress.seconds))
    progress.done(f"measured in {seconds:.1f} s")
    return Measurement(
        backend=backend,
        ranks=tuple(MeasuredRank(*each) for each in exchange([socket.gethostname(), _device()])),
        pairs=found_pairs,
        sweeps=tuple(found_sweeps),
        taken=exchange(datetime.now().astimezone().isoformat(timespec="seconds"))[0],
        seconds=seconds,
        versions={"mlx": version("mlx"), "python": platform.python_version()},
        notes=tuple(notes),
    )


def world_backend(size: int) -> str:
    """The backend that the ranks use, as a hostfile calls it."""
    if collectives.backend_name or size == 1:
        return collectives.backend_name or "ring"
    # Under mlx.launch: what it sets for each of them.
    names = {
        "JACCL_RING": "jaccl-ring", "MLX_JACCL_RING": "jaccl-ring", "MLX_IBV_DEVICES": "jaccl",
        "JACCL_IBV_DEVICES": "jaccl", "MLX_HOSTFILE": "ring", "NCCL_HOST_IP": "nccl",
    }  # fmt: skip
    return next((name for variable, name in names.items() if variable in os.environ), "mpi")


def _check_asked(links: bool | str, ops: Sequence[str], most: int) -> None:
    def check() -> None:
        unknown = [op for op in ops if op not in OPS]
        if unknown or links not in (True, False, "all", "neighbours") or most < sweep.SIZES[0]:
            raise UsageError(
                f"measure(links={links!r}, ops={ops!r}, most={most!r}) makes no sense.",
                why='links is True, False, "all" or "neighbours"; ops are of '
                f"{', '.join(OPS)}; most is {sweep.SIZES[0]} bytes or more",
                do="macluster.measure() measures everything",
            )

    check()
    asked = exchange([links, list(ops), most])
    if any(each != asked[0] for each in asked):
        raise UsageError(
            "The ranks were asked to measure different things.",
            why="an argument depends on the rank",
            do="call macluster.measure() alike on all ranks",
        )


def _possible(op: str, backend: str, notes: list[str]) -> bool:
    if op == "sendrecv" and backend not in REACH:
        notes.append(f"No sendrecv: MLX has no send and recv on {backend}.")
        return False
    return True


def _pairs(
    backend: str, sockets: Sockets, every: bool, group: Any, progress: Progress, part: float
) -> tuple[Pair, ...]:
    rank = sockets.rank
    ways = pairs.ways(backend, sockets, every)
    wires: dict[pairs.Way, Wire] = {}
    for way in ways:
        if rank in (way.a, way.b):
            peer = way.b if rank == way.a else way.a
            native = way.via != "tcp"
            wires[way] = NativeWire(peer, group) if native else SocketWire(sockets.peers[peer])
    findings = {way: Finding() for way in wires}
    alone = [(way, name, task) for way in ways for name, task in pairs.tasks()]
    crowded = pairs.rounds(ways)
    total = len(alone) + len(crowded)
    barrier = _barrier(sockets, group)
    for number, (way, name, task) in enumerate(steps(alone)):
        progress.at(f"ranks {way.a} and {way.b}, {way.via}: {name}", part * number / total)
        barrier()
        if way in wires:
            task(wires[way], rank == way.a, findings[way])
    for number, each in enumerate(steps(crowded)):
        progress.at("all pairs at once", part * (len(alone) + number) / total)
        barrier()
        for way in each:
            if way in wires:
                pairs.crowd(wires[way], rank == way.a, findings[way])
    barrier()
    mine = [
        attrs.asdict(as_pair(way, finding)) for way, finding in findings.items() if rank == way.a
    ]
    order = {(way.a, way.b, way.via): number for number, way in enumerate(ways)}
    every_pair = [read_pair(each) for found in exchange(mine) for each in found]
    return tuple(sorted(every_pair, key=lambda each: order[each.a, each.b, each.via]))


def _barrier(sockets: Sockets, group: Any) -> Any:
    """A barrier in which ranks sleep, where there is a way."""
    import mlx.core as mx

    if all(exchange(sockets.all_reach_rank_0)):
        return sockets.barrier
    return lambda: mx.eval(mx.distributed.all_sum(mx.array(1), group=group))


def _sweep(
    op: str,
    most: int,
    group: Any,
    progress: Progress,
    span: tuple[float, float],
    notes: list[str],
) -> Sweep:
    sizes = sweep.order(op, _limit(most, notes))
    mine: dict[int, tuple[list[float], int]] = {}
    begin, length = span
    for number, size in enumerate(sizes):
        if mine and size > (largest := max(mine)):
            slowest = max(exchange(min(mine[largest][0])))
            if slowest * size / largest > sweep.LONGEST:
                notes.append(
                    f"{op} stops at {size_label(largest)}, which take {slowest:.2f} s here: the "
                    f"next size would take more than {sweep.LONGEST:.0f} s."
                )
                break
        progress.at(f"{op}, {size_label(size)}", begin + length * number / len(sizes))
        # Each burst is a step, where an interrupt can stop all ranks.
        for result in steps(sweep.one_size(op, size, group)):
            if result is not None:
                seconds, wrong = mine.get(size, ([], 0))
                mine[size] = (seconds + result[0], wrong + result[1])
    found = exchange([[size, *mine[size]] for size in sorted(mine)])
    return sweep.as_sweep(
        op,
        group.size(),
        [
            (each[0][0], [seconds for _, seconds, _ in each], [wrong for _, _, wrong in each])
            for each in zip(*found, strict=True)
        ],
    )


def _limit(most: int, notes: list[str]) -> int:
    """The largest collective that every rank has memory for. A collective."""
    here = socket.gethostname()
    found = exchange([here, psutil.virtual_memory().available])
    hosts = [host for host, _ in found]
    room = min(free // hosts.count(host) // sweep.COPIES for host, free in found)
    if room < most:
        largest = size_label(max(size for size in sweep.SIZES if size <= max(room, 4)))
        note = f"Collectives up to {largest}: there is no free memory for larger ones."
        if note not in notes:
            notes.append(note)
    return int(min(most, room))


def _device() -> str:
    import mlx.core as mx

    if mx.default_device() == mx.gpu:
        with contextlib.suppress(AttributeError, RuntimeError):
            return str(mx.device_info()["device_name"])
    return platform.processor() or platform.machine()
