"""Form the world: reserve ports, join the other ranks, prove that they are the right ones."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import random
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import WorldBroken, WorldError
from . import stale
from .collectives import collectives
from .lifeline import Lifeline

# Ports that this rank holds between `prepare` and `form`, so that no other process takes them.
# The sockets never listen.
_reserved: list[socket.socket] = []

# mlx::core::distributed::clear_backends(): what MLX itself calls at exit, exported by libmlx, and
# not in the Python module.
_CLEAR_BACKENDS = "_ZN3mlx4core11distributed14clear_backendsEv"


def prepare(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Leave the old world, reserve a free port on each of `content["ips"]`, and say what this is.

    Returns facts about the process, and the names whose values went with the old world: `pending`
    were to be computed with a collective of it, `spoiled` were being computed when the cell was
    ended. Both hold NaN now, or arbitrary numbers if they are integers.
    """
    import mlx.core as mx

    collectives.install()
    pending, spoiled = _leave(kernel)
    release_ports()
    addresses = []
    for ip in content["ips"]:
        holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        _reserved.append(holder)
        try:
            holder.bind((ip, 0))
        except OSError as error:
            raise WorldError(
                f"{socket.gethostname()} cannot listen on {ip}: {error.strerror}.",
                why="the hostfile gives it an address that it does not have",
                do=f"correct the address in the hostfile; `ifconfig` on {socket.gethostname()} "
                "lists the right ones",
            ) from None
        addresses.append(f"{ip}:{holder.getsockname()[1]}")
    backend = content["backend"]
    return {
        "addresses": addresses,
        "available": bool(mx.distributed.is_available(backend)),
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "executable": sys.executable,
        "epoch": collectives.epoch,
        "pending": pending,
        "spoiled": spoiled,
        "rebuilds": can_rebuild(),
    }, ()


def release_ports() -> None:
    """Give back what `prepare` reserved."""
    while _reserved:
        _reserved.pop().close()


def form(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Join the world and verify it: size, rank, nonce, and a sum whose result is known.

    Two worlds on one port mix their data without an error, so every rank sends a number that only
    this world knows.
    """
    import mlx.core as mx

    rank, size, nonce = content["rank"], content["size"], content["nonce"]
    os.environ.update(content["env"])
    release_ports()  # a moment before MLX takes them; the nonce would show a stranger
    init = collectives.original("init")
    with _files(content["files"]):
        if size == 1 and content["backend"] == "ring":
            # MLX's ring has no world of one; when it is not forced, it gives exactly that. Without
            # a name MLX would go on to MPI, which starts a daemon of its own.
            group = init(backend="ring")
        else:
            group = init(strict=True, backend=content["backend"])
    if (group.rank(), group.size()) != (rank, size):
        raise WorldError(
            f"Rank {rank} of {size} joined a group as rank {group.rank()} of {group.size()}.",
            why="the environment of this process names another world",
            do="unset MLX_RANK, MLX_HOSTFILE and MLX_WORLD_SIZE where the notebook was started, "
            "then %cluster restart",
        )
    if content["ports"]:
        # Before the first collective: from then on a neighbour can leave us waiting.
        collectives.lifeline = Lifeline(content["ports"], on_stale_use=lambda: _stale_use(kernel))
    gather, add = collectives.original("all_gather"), collectives.original("all_sum")
    proof = gather(mx.array([[nonce, rank]], dtype=mx.int32), group=group)
    expected = [[nonce, other] for other in range(size)]
    total = add(mx.array(rank + 1, dtype=mx.int32), group=group)
    if proof.tolist() != expected or total.item() != size * (size + 1) // 2:
        raise WorldError(
            f"Rank {rank} received data of another world: {proof.tolist()}, not {expected}.",
            why="another process uses the same port or the same cable",
            do="%cluster restart picks new ports",
        )
    if collectives.epoch == 0:
        _seed_namespace(kernel.shell, rank, size)
    collectives.join(group, content["epoch"], content["backend"])
    collectives.backend_name, collectives.ips = content["backend_name"], tuple(content["ips"])
    collectives.always_checked = content["checked"]
    seed(kernel, {"seed": content["epoch"] - 1}, ())
    return {"rank": rank, "size": size, "sum": total.tolist()}, ()


def seed(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Every rank draws the same numbers until a cell says otherwise: sampled tokens must agree."""
    import mlx.core as mx

    random.seed(content["seed"])
    mx.random.seed(content["seed"])
    return {}, ()


async def abort(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """End what the main thread does, and the world with it.

    Returns {"vacant"}: False when the main thread has not come back within
    `content["patience"]` seconds.
    """
    collectives.part(
        WorldBroken(
            "The world of this cluster was given up.",
            why=content["why"],
            do="wait until %cluster status says that the world is ok, and run the cell again",
        )
    )
    # First, so that the interrupt is there when the main thread comes back from its collective.
    kernel.macluster.end_work()
    if collectives.lifeline is not None:
        collectives.lifeline.cut()
    return {"vacant": await kernel.macluster.vacate(content["patience"])}, ()


def unread() -> int:
    """Bytes on the ring that no collective of this rank has asked for; 0 on other backends."""
    return collectives.lifeline.unread() if collectives.lifeline is not None else 0


def can_rebuild() -> bool:
    """True when this MLX lets a process leave a world and join another."""
    return hasattr(_libmlx(), _CLEAR_BACKENDS)


def _leave(kernel: Any) -> tuple[list[str], list[str]]:
    """Drop the old world: MLX's group, its sockets, and what was yet to be computed with it."""
    collectives.part(collectives.broken or WorldBroken("This rank has left its world."))
    pending, spoiled = [], []
    if collectives.lifeline is not None:
        # What is evaluated from here on gets NaN in place of the others' data.
        collectives.lifeline.cut()
        pending = stale.settle(kernel.shell.user_ns)
        spoiled = stale.spoiled(kernel)
    collectives.drop()
    if collectives.lifeline is not None:
        collectives.lifeline.retire()
        collectives.lifeline = None
    gc.collect()
    getattr(_libmlx(), _CLEAR_BACKENDS)()
    return pending, spoiled


def _libmlx() -> ctypes.CDLL:
    import mlx.core as mx

    suffix = "dylib" if sys.platform == "darwin" else "so"
    return ctypes.CDLL(str(Path(mx.__file__).parent / "lib" / f"libmlx.{suffix}"))


def _stale_use(kernel: Any) -> None:
    """MLX sends on the sockets of a world that was given up."""
    work = kernel.macluster.work
    # What `settle` computes on purpose arrives late, too; that is no cell.
    if work is not None and work.cell is not None and kernel.macluster.stale is not work:
        kernel.macluster.stale = work
        kernel.macluster.interrupt(work)


def _seed_namespace(shell: Any, rank: int, size: int) -> None:
    """The names that every cell finds: `group`, `rank`, `size`, `mx`, `rprint`, `macluster`."""
    import mlx.core as mx

    import macluster

    def rprint(*values: Any, **options: Any) -> None:
        """Print on rank 0 only, at once."""
        if rank == 0:
            print(*values, **{"flush": True, **options})

    names = {"group": collectives.group, "rank": rank, "size": size, "mx": mx}
    names |= {"rprint": rprint, "macluster": macluster}
    shell.push(names, interactive=False)


@contextlib.contextmanager
def _files(files: Mapping[str, str]) -> Iterator[None]:
    """Write each content to a private file for as long as MLX reads it."""
    with tempfile.TemporaryDirectory(prefix="macluster-") as folder:
        for name, text in files.items():
            path = os.path.join(folder, name.lower() + ".json")
            with open(path, "w") as file:
                file.write(text)
            os.environ[name] = path
        yield
    # The path is gone; a second reader must get a clear error rather than a stale file.
    for name in files:
        os.environ.pop(name, None)
