"""Form a world: have the ranks join each other, and prove that rank, size and data are right."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import attrs
import psutil

from . import backends
from .client import Reply, raise_failure
from .errors import BackendError, WorldError
from .hostfile import Hostfile, describe_ranks

FORM_TIMEOUT = 60.0  # seconds; MLX itself gives up connecting after about 31


class Ranks(Protocol):
    """What forming needs: the ranks, and a way to call them."""

    @property
    def ranks(self) -> list[int]: ...

    def know(self, facts: Sequence[Mapping[str, Any]]) -> None: ...

    def send_call(
        self,
        name: str,
        content: Mapping[str, Any] | None = None,
        *,
        ranks: Sequence[int] | None = None,
        each: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> list[Future[Reply]]: ...


@attrs.frozen
class Plan:
    """Which world: its hosts and backend, its number among the cluster's worlds, its mode."""

    hostfile: Hostfile
    backend: backends.Backend
    epoch: int
    checked: bool


async def form(world: Ranks, plan: Plan) -> list[dict[str, Any]]:
    """Make the ranks leave their world, where they have one, and form a new one.

    Returns what each rank said about itself, see `rank/world.py`. Raises WorldError, RankDied or
    BackendError; ranks may then still be busy trying.
    """
    hostfile, backend, size = plan.hostfile, plan.backend, len(world.ranks)
    prepared = await gather(
        world.send_call(
            "world.prepare",
            {"backend": backend.init_name},
            each=lambda rank: {"ips": backend.ports(hostfile, rank) if size > 1 else []},
        )
    )
    facts = [reply.content for reply in prepared]
    world.know(facts)
    _same_versions(facts)
    without = [rank for rank, fact in enumerate(facts) if not fact["available"]]
    if without and size > 1:
        raise BackendError(
            f"MLX on {describe_ranks(without)} has no {backend.name} backend.",
            why=f"the mlx {facts[without[0]]['mlx']} in {facts[without[0]]['executable']} was "
            "built without it",
            do="install the wheel that has it (jaccl: macOS 26.2 or later; nccl: mlx[cuda13]), "
            "or use --backend ring",
        )
    addresses = [fact["addresses"] for fact in facts]
    ports = [int(address.rpartition(":")[2]) for each in addresses for address in each]
    orders = {
        "backend": backend.init_name,
        "backend_name": backend.name,
        "size": size,
        "nonce": secrets.randbits(30),
        "epoch": plan.epoch,
        "checked": plan.checked,
        # The sockets that a rank must keep open for its neighbours.
        "ports": ports if backend.rebuilds_in_place and size > 1 else [],
    }

    def each(rank: int) -> dict[str, Any]:
        about = {"rank": rank, "ips": list(hostfile.hosts[rank].ips)}
        if size == 1:
            return {**about, "env": {"MLX_RANK": "0"}, "files": {}}
        seen = backend.world_environment(hostfile, rank, addresses)
        return {**about, "env": dict(seen.env), "files": dict(seen.files)}

    # MLX's last rank dials first and then sleeps for a second when nobody listens yet.
    first, last = world.ranks[:-1], world.ranks[-1:]
    futures = world.send_call("world.form", orders, ranks=first, each=each)
    if backend.name == "ring" and hostfile.is_local and first:
        await asyncio.to_thread(_wait_for_listeners, facts[:-1], futures)
    futures += world.send_call("world.form", orders, ranks=last, each=each)
    for rank, reply in enumerate(await gather(futures)):
        if reply.content["rank"] != rank:
            raise WorldError(
                f"Engine {rank} is rank {reply.content['rank']} of the world.",
                why="the environment of its process names another rank",
                do="unset MLX_RANK where the notebook was started, then start again",
            )
    return facts


async def gather(futures: Sequence[Future[Reply]], timeout: float = FORM_TIMEOUT) -> list[Reply]:
    """All replies, or the first failure. Raises WorldError after `timeout` seconds."""
    tasks = [asyncio.wrap_future(future) for future in futures]
    waiting: set[asyncio.Future[Reply]] = set(tasks)
    deadline = asyncio.get_running_loop().time() + timeout
    try:
        while waiting and (left := deadline - asyncio.get_running_loop().time()) > 0:
            done, waiting = await asyncio.wait(
                waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                # The first failure explains why the others wait.
                raise_failure(task.result())
    finally:
        for task in waiting:
            # Nobody looks at these any more, whatever becomes of them.
            task.add_done_callback(lambda each: each.cancelled() or each.exception())
    late = [rank for rank, task in enumerate(tasks) if task in waiting]
    if late:
        raise WorldError(
            f"{describe_ranks(late)} did not answer within {timeout:.0f} s.",
            why="an address in the hostfile cannot be reached from another host, a firewall drops "
            "the connection, or the machine is overloaded",
            do="check the addresses in the hostfile from each host; on one machine use "
            "%cluster start 2",
        )
    return [task.result() for task in tasks]


def _same_versions(facts: Sequence[Mapping[str, Any]]) -> None:
    """Ranks that run different versions give wrong data without an error. Raises WorldError."""
    for part in ("mlx", "python"):
        versions = {
            fact[part].rsplit(".", 1)[0] if part == "python" else fact[part] for fact in facts
        }
        if len(versions) > 1:
            listing = "\n".join(
                f"rank {i} on {f['hostname']}: {f[part]}" for i, f in enumerate(facts)
            )
            raise WorldError(
                f"The ranks run different versions of {part}.",
                why=listing,
                do=f"install the same {part} on every host",
            )


def _wait_for_listeners(
    facts: Sequence[Mapping[str, Any]], futures: Sequence[Future[Reply]]
) -> None:
    """Return once every rank listens, has failed, or a second has passed."""
    wanted = {(fact["pid"], address) for fact in facts for address in fact["addresses"][:1]}
    pause = threading.Event()
    for _ in range(200):
        listening = set()
        for fact in facts:
            with contextlib.suppress(psutil.Error):
                for connection in psutil.Process(fact["pid"]).net_connections(kind="tcp4"):
                    if connection.status == psutil.CONN_LISTEN:
                        listening.add((fact["pid"], "{}:{}".format(*connection.laddr)))
        if wanted <= listening or any(future.done() for future in futures):
            return
        pause.wait(0.005)
