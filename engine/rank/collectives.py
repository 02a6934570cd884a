"""MLX's collectives as a rank's cells see them: always on the world of now, one at a time.

`install` puts a function of ours in the place of each collective in `mx.distributed`, where MLX's
own layers and mlx-lm look it up, too. It costs about a microsecond, and gives what MLX does not:

- `mx.distributed.init()` and `group` are a `WorldGroup`, which leads to the world that is valid
  now: a model that was sharded before the world was rebuilt works after it;
- a collective while there is no world raises WorldBroken, where MLX would wait for ever;
- one from another thread raises WorldError, and all of them go on one stream, because MLX mixes
  the data of two that run at once on one group;
- started collectives are counted, which shows who waits for whom;
- with `checked`, the ranks compare what they are about to do before any data moves.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any

from ..counters import counters
from ..errors import CollectiveMismatch, MaclusterError, UsageError, WorldBroken, WorldError
from .lifeline import Lifeline
from .work import line_text

TOGETHER = ("all_sum", "all_max", "all_min", "all_gather", "sum_scatter")
PAIRWISE = ("send", "recv", "recv_like")
# Bytes of a record that ranks compare; one size for all, whatever they are about to do.
RECORD = 256


class WorldGroup:
    """Stands for a group of ranks wherever MLX takes one, also after the world was rebuilt."""

    def __init__(self, collectives: Collectives, native: Any = None) -> None:
        self._collectives = collectives
        self._split = native  # of a part of the world; None for the world itself
        self._epoch = collectives.epoch

    def __repr__(self) -> str:
        kind = "part of the world" if self._split else "world"
        return f"<{kind}, rank {self.rank()} of {self.size()}>"

    @property
    def native(self) -> Any:
        """MLX's group. Raises WorldBroken when there is none any more."""
        if self._split is None:
            return self._collectives.native()
        if self._epoch != self._collectives.epoch:
            raise WorldBroken(
                "This part of the world belongs to a world that was given up.",
                why="a rank failed since, and the ranks formed a new world",
                do="split again: part = group.split(color)",
            )
        return self._split

    @property
    def is_world(self) -> bool:
        return self._split is None

    def rank(self) -> int:
        """This process's number in the group."""
        return int(self.native.rank())

    def size(self) -> int:
        """The number of ranks in the group."""
        return int(self.native.size())

    def split(self, color: int, key: int = -1) -> WorldGroup:
        """The part of the group that gives the same `color`, ordered by `key`."""
        return WorldGroup(self._collectives, self.native.split(color, key))


class Collectives:
    """The world as this rank's cells reach it."""

    def __init__(self) -> None:
        self.epoch = 0  # counts the worlds of this cluster
        self.started = 0  # collectives of the whole world, started in this epoch
        self.always_checked = False
        self.checked = False  # in the cell of now
        self.solo = ""  # why no other rank takes part in what runs now
        self.broken: MaclusterError | None = WorldBroken(
            "This rank has not joined a world yet.",
            why="it was started a moment ago",
            do="run the cell again when %cluster status says that the world is ok",
        )
        self.cell_files: Mapping[str, Any] = {}
        self._group: Any = None
        self._stream: Any = None
        self._backend = ""
        self.backend_name = ""  # as in a hostfile: two of them may be one of MLX's
        self.ips: tuple[str, ...] = ()  # where the other ranks reach this one
        self._thread = 0
        self._traces = 0  # functions that `mx.compile` is tracing
        self._original: dict[str, Callable[..., Any]] = {}
        self.group = WorldGroup(self)
        self.lifeline: Lifeline | None = None  # of a world that can be given up in place

    # -- the world comes and goes ------------------------------------------------------------

    def install(self) -> None:
        """Take the place of MLX's functions. A second call does nothing."""
        import mlx.core as mx

        if self._original:
            return
        for name in (*TOGETHER, *PAIRWISE, "init"):
            self._original[name] = getattr(mx.distributed, name)
            if name != "init":
                setattr(mx.distributed, name, self._guarded(name))
        mx.distributed.init = self._init
        self._original["compile"] = mx.compile
        mx.compile = self._compile

    def join(self, native: Any, epoch: int, backend: str) -> None:
        """From now on, `native` is the world. To be called in the thread that runs the cells."""
        import mlx.core as mx

        self._group, self.epoch, self._backend = native, epoch, backend
        # NCCL works on the GPU's stream; the others on the CPU's.
        self._stream = None if backend == "nccl" else mx.default_stream(mx.cpu)
        self._thread = threading.get_ident()
        self.started = 0
        self.broken = None

    def part(self, why: MaclusterError) -> None:
        """Refuse collectives from now on, because of `why`. From any thread."""
        self.broken = why

    def original(self, name: str) -> Callable[..., Any]:
        """MLX's own function."""
        return self._original[name]

    def drop(self) -> None:
        """Forget MLX's group, so that it closes."""
        self._group = None

    @property
    def given_up(self) -> bool:
        """True while this rank is in no world."""
        return self.broken is not None

    def native(self) -> Any:
        """MLX's group of the world. Raises WorldBroken."""
        self.require_world()
        return self._group

    def require_world(self) -> None:
        """Raise WorldBroken when this rank is in no world."""
        if (why := self.broken) is not None:
            # A new one each time: its traceback would hold on to everything it came through.
            raise type(why)(why.what, why=why.why, do=why.do)

    # -- in the place of MLX's functions -----------------------------------------------------

    def _init(
        self, strict: bool = False, backend: str = "any", *, all_gather_factory: Any = None
    ) -> Any:
        """The world of this cluster; for another backend than the cluster's, MLX's own group."""
        if backend in ("any", self._backend):
            return self.group
        return self._original["init"](strict, backend, all_gather_factory=all_gather_factory)

    def _compile(self, fun: Callable[..., Any], *args: Any, **options: Any) -> Callable[..., Any]:
        def traced(*values: Any, **named: Any) -> Any:
            # Ranks may trace at different times: what is started here is no collective yet.
            self._traces += 1
            try:
                return fun(*values, **named)
            finally:
                self._traces -= 1

        compiler = self._original["compile"]
        return Compiled(self, functools.partial(compiler, traced, *args, **options))

    def _guarded(self, name: str) -> Callable[..., Any]:
        original = self._original[name]
        together = name in TOGETHER

        @functools.wraps(original)
        def collective(*args: Any, group: Any = None, stream: Any = None, **options: Any) -> Any:
            __tracebackhide__ = True
            ours = self.group if group is None else group
            if not isinstance(ours, WorldGroup):
                return original(*args, group=group, stream=stream, **options)
            native = ours.native
            self._admit(name)
            checked = self.checked and ours.is_world and not self._traces
            if not self._traces:
                counters.collectives += 1
                counters.bytes += getattr(args[0], "nbytes", 0) if args else 0
            if together and ours.is_world and not self._traces:
                # Before the check, which is a collective itself: others see that this rank waits.
                self.started += 1
            if checked:
                self._check(name, args, options)
            result = original(*args, group=native, stream=self._stream or stream, **options)
            if checked:
                # In the order in which they were compared.
                self._evaluate(result)
            return result

        return collective

    def _admit(self, name: str) -> None:
        """Raise WorldError for a collective that would mix its data with another one's."""
        if threading.get_ident() != self._thread:
            raise WorldError(
                f"{name} was called in the thread {threading.current_thread().name!r}.",
                why="MLX mixes the data of collectives that run at once on one group, so only the "
                "cell's own thread may start them",
                do="compute in threads, and exchange data in the cell itself",
            )
        if self.solo:
            raise UsageError(
                f"{name} needs all ranks, but {self.solo}.",
                why="a collective waits for every rank",
                do="keep collectives out of this cell, or run it on all ranks",
            )

    # -- checked mode ------------------------------------------------------------------------

    def _check(self, name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        """Compare this collective with what the other ranks are about to do.

        Raises CollectiveMismatch, on every rank that is part of it, before any data has moved.
        """
        mine = f"{self.started}|{_signature(name, args, options)}|{self._place()}"
        record = mine.encode()[:RECORD].ljust(RECORD)
        if name in TOGETHER:
            for rank, theirs in enumerate(self._exchange(record)):
                if theirs != record:
                    self._mismatch(rank, theirs, mine)
        elif name == "send":
            peer = options.get("dst", args[1] if len(args) > 1 else None)
            self._send(record, peer)
        else:
            position = 2 if name == "recv" else 1
            peer = options.get("src", args[position] if len(args) > position else None)
            theirs = self._receive(peer)
            _, signature, _ = _parts(theirs)
            if signature != _signature(name, args, options).replace(name, "send", 1):
                self._mismatch(int(peer or 0), theirs, mine)

    def _mismatch(self, rank: int, theirs: bytes, mine: str) -> None:
        here = int(self._group.rank())
        lines = [
            f"rank {r}: {signature} (collective {number} of this world)"
            + (f" at {place}" if place else "")
            for r, (number, signature, place) in sorted(
                {rank: _parts(theirs), here: _parts(mine.encode())}.items()
            )
        ]
        raise CollectiveMismatch(
            f"Ranks {min(rank, here)} and {max(rank, here)} are about to run different "
            "collectives.",
            why="\n".join(lines),
            do="make every rank run the same collectives with the same shapes and types in the "
            "same order",
        )

    def _evaluate(self, result: Any) -> None:
        import mlx.core as mx

        mx.eval(result)

    def _exchange(self, record: bytes) -> list[bytes]:
        import mlx.core as mx
        import numpy as np

        row = mx.array(np.frombuffer(record, np.uint8))[None]
        rows = self._original["all_gather"](row, group=self._group, stream=self._stream)
        return [np.array(each).tobytes() for each in rows]

    def _send(self, record: bytes, peer: Any) -> None:
        import mlx.core as mx
        import numpy as np

        row = mx.array(np.frombuffer(record, np.uint8))
        mx.eval(self._original["send"](row, peer, group=self._group, stream=self._stream))

    def _receive(self, peer: Any) -> bytes:
        import mlx.core as mx
        import numpy as np

        row = self._original["recv"](
            (RECORD,), mx.uint8, peer, group=self._group, stream=self._stream
        )
        return np.array(row).tobytes()

    def _place(self) -> str:
        """The line of the cell that the caller's caller stands in, with its source."""
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename not in self.cell_files:
            frame = frame.f_back
        if frame is None:
            return ""
        return line_text(frame.f_code.co_filename, frame.f_lineno)[:120]


class Compiled:
    """A function under `mx.compile`, compiled anew for each world.

    The compiled graph holds the group of the world in which it was traced.
    """

    def __init__(
        self, collectives: Collectives, compiler: Callable[[], Callable[..., Any]]
    ) -> None:
        self._collectives = collectives
        self._compile = compiler
        self._compiled = compiler()
        self._epoch = collectives.epoch

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self._epoch != self._collectives.epoch:
            self._compiled, self._epoch = self._compile(), self._collectives.epoch
        return self._compiled(*args, **options)


def _signature(name: str, args: tuple[Any, ...], options: Mapping[str, Any]) -> str:
    """The operation with the type and the shape of its data, such as `all_sum float32 (3,)`."""
    values = (*args, *options.values())
    if name == "recv":
        shape = options.get("shape", args[0] if args else ())
        kind = options.get("dtype", args[1] if len(args) > 1 else "")
    else:
        value = next((each for each in values if hasattr(each, "dtype")), None)
        shape, kind = getattr(value, "shape", ()), getattr(value, "dtype", type(value).__name__)
    kind = str(kind).removeprefix("mlx.core.")
    return f"{'send' if name == 'recv_like' else name} {kind} {tuple(shape)}"


def _parts(record: bytes) -> tuple[str, str, str]:
    """Number, signature and place of a record. They come from another rank: anything may be in."""
    text = record.decode(errors="replace").strip()
    number, _, rest = text.partition("|")
    signature, _, place = rest.partition("|")
    return number, signature, place


collectives = Collectives()
