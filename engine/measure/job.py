"""Measure the wires of the running ranks."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections import deque
from collections.abc import Callable, Generator, Sequence
from datetime import datetime
from importlib.metadata import version

import attrs
import psutil

from ..errors import UsageError
from ..models.agree import exchange
from ..progress import Progress
from ..rank.collectives import collectives
from ..steps import steps
from ..units import size_label
from . import pairs, sweep
from .pairs import REACH, Finding, NativeWire, SocketWire, Way, Wire, as_pair
from .record import LEAST, OPS, MeasuredRank, Measurement, Pair, Sweep, read_pair
from .sockets import Sockets

MANY = 16  # ranks; with more, only neighbours are measured unless all pairs are asked for
LARGEST = 256 << 20  # bytes of a collective
LINKS = 3  # times as long as one collective take all links, about

# Why nothing was measured: on the one rank of a cluster, and where there is no cluster.
ONE_RANK = "There is one rank, and a link takes two. Start more: %cluster start 2."
NO_RANK = (
    "This process is alone, and a link takes two ranks. %measure measures those of the notebook's "
    "cluster (%cluster start 2); macluster.measure() does so in a cell that runs on all of them "
    "(%%distributed)."
)

last: deque[Measurement] = deque(maxlen=1)  # for whoever watches this rank


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
        ops: the collectives to time, of all_sum, all_gather, sendrecv and barrier, each once; ()
            for none.
        most: bytes of the largest collective. Memory, and a second for one operation, limit it too.

    Raises:
        UsageError: on every rank, for another collective or size, or when the ranks were asked for
            different things.
        WorldError: when a message arrives changed, or a rank is silent for a minute.
    """
    import mlx.core as mx

    job = Job(links, ops, most)
    checked, collectives.checked = collectives.checked, False
    try:
        # All of it in one loop: an interrupt then finds all ranks between two of its pieces.
        with contextlib.closing(job.work()) as work:
            for _ in steps(work):
                pass
    finally:
        # What compares collectives would be part of every time.
        collectives.checked = checked
        mx.clear_cache()
    assert job.result is not None
    last.append(job.result)
    return job.result


class Job:
    """One measurement on this rank. `work` does it, piece by piece; then there is a `result`."""

    def __init__(self, links: bool | str, ops: Sequence[str], most: int) -> None:
        import mlx.core as mx

        self.group = mx.distributed.init()
        self.rank, self.size = self.group.rank(), self.group.size()
        self.links, self.ops, self.most = links, ops, most
        self.notes: list[str] = []
        self.result: Measurement | None = None
        self._progress = Progress(shown=self.rank == 0)
        self._pairs: tuple[Pair, ...] = ()
        self._sweeps: list[Sweep] = []
        self._whole = self._done = 0.0  # parts of the work, each as long as one collective

    def work(self) -> Generator[None, None, None]:
        """Measure. Yields between two pieces, which come in the same order on all ranks."""
        self._check_asked()
        yield
        backend = world_backend(self.size)
        asked = dict.fromkeys(self.ops) if self.size > 1 else ()
        ops = [op for op in asked if self._possible(op, backend)]
        links = bool(self.links) and self.size > 1
        if self.size == 1:
            self.notes.append(ONE_RANK if collectives.backend_name else NO_RANK)
        self._whole = (LINKS if links else 0) + len(ops)
        if links:
            sockets = Sockets.connect(self.rank, self.size, pairs.MOST)
            try:
                yield from self._links(backend, sockets)
            finally:
                sockets.close()
            self._done += LINKS
        for op in ops:
            yield from self._sweep(op)
            self._done += 1
        here = [socket.gethostname(), _device()]
        taken = datetime.now().astimezone().isoformat(timespec="seconds")
        facts = exchange([here, taken, self._progress.seconds])
        seconds = max(took for _, _, took in facts)
        self._progress.done(f"measured in {seconds:.1f} s")
        self.result = Measurement(
            backend=backend,
            ranks=tuple(MeasuredRank(*each) for each, _, _ in facts),
            pairs=self._pairs,
            sweeps=tuple(self._sweeps),
            taken=facts[0][1],
            seconds=seconds,
            versions={"mlx": version("mlx"), "python": platform.python_version()},
            notes=tuple(self.notes),
        )

    def _at(self, text: str, part: float) -> None:
        """`part` of the links, or of the collective of now, is done."""
        length = LINKS if self._done == 0 and self.links else 1
        self._progress.at(text, (self._done + length * part) / self._whole)

    # -- what was asked for --------------------------------------------------------------------

    def _check_asked(self) -> None:
        """Raise UsageError on all ranks when one was asked for what makes no sense."""
        asked = [repr(self.links), repr(self.ops), repr(self.most)]
        told = exchange([asked, self._nonsense()])
        if not any(bad for _, bad in told) and any(each != told[0][0] for each, _ in told):
            raise UsageError(
                "The ranks were asked to measure different things.",
                why="an argument depends on the rank",
                do="call macluster.measure() alike on all ranks",
            )
        for (links, ops, most), bad in told:
            if bad:
                raise UsageError(
                    f"measure(links={links}, ops={ops}, most={most}) makes no sense.",
                    why=f'links is True, False, "all" or "neighbours"; ops are of '
                    f"{', '.join(OPS)}; most is a number of bytes, {LEAST} or more",
                    do="macluster.measure() measures everything",
                )

    def _nonsense(self) -> bool:
        given: tuple[object, object, object] = self.links, self.ops, self.most
        links, ops, most = given
        if not isinstance(ops, (list, tuple)) or not all(op in OPS for op in ops):
            return True
        known = isinstance(links, bool) or links in ("all", "neighbours")
        return not (known and isinstance(most, int) and most >= LEAST)

    def _possible(self, op: str, backend: str) -> bool:
        if op == "sendrecv" and backend not in REACH:
            self.notes.append(f"No sendrecv: MLX has no send and recv on {backend}.")
            return False
        return True

    # -- links ---------------------------------------------------------------------------------

    def _links(self, backend: str, sockets: Sockets) -> Generator[None, None, None]:
        self.notes += [
            f"No TCP between rank {a} and rank {b}: {why}."
            for (a, b), why in sorted(sockets.failures.items())
        ]
        every = self.links == "all" or (self.links is True and self.size <= MANY)
        ways = pairs.ways(backend, sockets, every)
        wires = {way: self._wire(way, sockets) for way in ways if self.rank in (way.a, way.b)}
        findings = {way: Finding() for way in wires}
        barrier = self._barrier(sockets)
        alone = [(way, name, task) for way in ways for name, task in pairs.tasks()]
        crowded = pairs.rounds(ways, self.size)
        total = len(alone) + len(crowded)
        for number, (way, name, task) in enumerate(alone):
            self._at(f"ranks {way.a} and {way.b}, {way.via}: {name}", number / total)
            barrier()
            if way in wires:
                task(wires[way], self.rank == way.a, findings[way])
            yield
        for number, each in enumerate(crowded):
            self._at("all pairs at once", (len(alone) + number) / total)
            barrier()
            for way in each:
                if way in wires:
                    pairs.crowd(wires[way], self.rank == way.a, findings[way])
            yield
        barrier()
        found = [
            attrs.asdict(as_pair(way, finding))
            for way, finding in findings.items()
            if self.rank == way.a
        ]
        place = {(way.a, way.b, way.via): number for number, way in enumerate(ways)}
        self._pairs = tuple(
            sorted(
                (read_pair(each) for many in exchange(found) for each in many),
                key=lambda each: place[each.a, each.b, each.via],
            )
        )
        yield

    def _wire(self, way: Way, sockets: Sockets) -> Wire:
        peer = way.b if self.rank == way.a else way.a
        return SocketWire(peer, sockets) if way.via == "tcp" else NativeWire(peer, self.group)

    def _barrier(self, sockets: Sockets) -> Callable[[], None]:
        """A barrier in which ranks sleep, where there is a way."""
        import mlx.core as mx

        if all(exchange(sockets.all_reach_rank_0)):
            return sockets.barrier
        return lambda: mx.eval(mx.distributed.all_sum(mx.array(1), group=self.group))

    # -- collectives ---------------------------------------------------------------------------

    def _sweep(self, op: str) -> Generator[None, None, None]:
        sizes = sweep.order(op, self._room(), self.size)
        mine: dict[int, tuple[list[float], int]] = {}
        most = max(sizes, default=0)
        for number, size in enumerate(sizes):
            if size > most:
                continue
            if mine and size > (largest := max(mine)):
                slowest = max(exchange(min(mine[largest][0])))
                if slowest * size / largest > sweep.LONGEST:
                    most = largest
                    self.notes.append(
                        f"{op} stops at {size_label(largest)}, which take {slowest:.2f} s here: "
                        f"the next size would take more than {sweep.LONGEST:.0f} s."
                    )
                    continue
            self._at(f"{op}, {size_label(size)}", number / len(sizes))
            for result in sweep.one_size(op, size, self.group):
                if result is not None:
                    seconds, wrong = mine.get(size, ([], 0))
                    mine[size] = (seconds + result[0], wrong + result[1])
                yield
        found = exchange([[size, *mine[size]] for size in sorted(mine)])
        columns = zip(*found, strict=True)
        points = [
            (each[0][0], [seconds for _, seconds, _ in each], [wrong for _, _, wrong in each])
            for each in columns
        ]
        if points:
            self._sweeps.append(sweep.as_sweep(op, self.size, points))
        yield

    def _room(self) -> int:
        """The largest collective that every rank has memory for. A collective."""
        found = exchange([socket.gethostname(), psutil.virtual_memory().available])
        hosts = [host for host, _ in found]
        room = min(free // hosts.count(host) // sweep.COPIES for host, free in found)
        if room < self.most:
            largest = size_label(max(size for size in sweep.SIZES if size <= max(room, LEAST)))
            note = f"Collectives up to {largest}: there is no free memory for larger ones."
            if note not in self.notes:
                self.notes.append(note)
        return int(min(self.most, room))


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


def _device() -> str:
    import mlx.core as mx

    if mx.default_device() == mx.gpu:
        with contextlib.suppress(AttributeError, RuntimeError):
            return str(mx.device_info()["device_name"])
    return platform.processor() or platform.machine()
