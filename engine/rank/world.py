"""Form the world: reserve ports, join the other ranks, prove that they are the right ones."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from ..errors import WorldError

# Ports that this rank holds between `prepare` and `form`, so that no other process takes them.
# The sockets never listen.
_reserved: list[socket.socket] = []


def prepare(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Reserve a free port on each of `content["ips"]` and say what this rank runs on."""
    import mlx.core as mx

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
    with _files(content["files"]):
        if size == 1 and content["backend"] == "ring":
            # MLX's ring has no world of one; its default group is exactly that.
            group = mx.distributed.init()
        else:
            group = mx.distributed.init(strict=True, backend=content["backend"])
    if (group.rank(), group.size()) != (rank, size):
        raise WorldError(
            f"Rank {rank} of {size} joined a group as rank {group.rank()} of {group.size()}.",
            why="the environment of this process names another world",
            do="unset MLX_RANK, MLX_HOSTFILE and MLX_WORLD_SIZE where the notebook was started, "
            "then %cluster restart",
        )
    proof = mx.distributed.all_gather(mx.array([[nonce, rank]], dtype=mx.int32), group=group)
    expected = [[nonce, other] for other in range(size)]
    total = mx.distributed.all_sum(mx.array(rank + 1, dtype=mx.int32), group=group)
    if proof.tolist() != expected or total.item() != size * (size + 1) // 2:
        raise WorldError(
            f"Rank {rank} received data of another world: {proof.tolist()}, not {expected}.",
            why="another process uses the same port or the same cable",
            do="%cluster restart picks new ports",
        )
    _seed_namespace(kernel.shell, group)
    return {"rank": group.rank(), "size": group.size(), "sum": total.tolist()}, ()


def _seed_namespace(shell: Any, group: Any) -> None:
    """The names that every cell finds: `group`, `rank`, `size`, `mx`, `rprint`, `macluster`."""
    import mlx.core as mx

    import macluster

    rank = group.rank()

    def rprint(*values: Any, **options: Any) -> None:
        """Print on rank 0 only, at once."""
        if rank == 0:
            print(*values, **{"flush": True, **options})

    names = {"group": group, "rank": rank, "size": group.size(), "mx": mx}
    names |= {"rprint": rprint, "macluster": macluster}
    shell.push(names, interactive=False)
    # Every rank draws the same numbers until a cell says otherwise: sampled tokens must agree.
    random.seed(0)
    mx.random.seed(0)


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
