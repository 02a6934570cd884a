"""The world: all ranks of a cluster as one thing that runs cells."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Protocol

import psutil

from . import backends, errors
from .cell import RETURN, Cell, OnOutput
from .client import RankClient, Reply
from .errors import MaclusterError, WorldBroken, WorldError
from .hostfile import Hostfile, describe_ranks

FORM_TIMEOUT = 60.0  # seconds; MLX itself gives up connecting after about 31
ASK_TIMEOUT = 5.0  # seconds
WHERE_TIMEOUT = 0.5  # seconds, for all ranks together: a rescue must not wait for the stuck ones


class Owner(Protocol):
    """The cluster, as far as its world needs to know it."""

    @property
    def name(self) -> str: ...

    @property
    def backend_name(self) -> str: ...

    @property
    def hosts(self) -> Hostfile: ...

    def replace_ranks(self) -> None: ...


class World:
    """The ranks of a running cluster. Made by `Cluster.start` and `Cluster.connect`."""

    def __init__(self, cluster: Owner, client: RankClient) -> None:
        self.cluster = cluster
        self.client = client
        self.last_cell: Cell | None = None
        self._restarting = threading.Lock()

    def __repr__(self) -> str:
        return f"<World {self.cluster.name}: {self.size} ranks, {self.backend}, {self.state}>"

    @property
    def size(self) -> int:
        return len(self.cluster.hosts)

    @property
    def backend(self) -> str:
        return self.cluster.backend_name

    @property
    def ranks(self) -> list[int]:
        return list(range(self.size))

    @property
    def alive(self) -> list[int]:
        """The ranks whose process runs, as far as the controller knows."""
        return [rank for rank in self.client.ids if rank < self.size]

    @property
    def state(self) -> str:
        """ "ok", or in words what is wrong."""
        if self.client.lost is not None:
            return self.client.lost.what.rstrip(".").lower()
        if self._restarting.locked():
            return "restarting"
        dead = sorted(set(self.ranks) - set(self.alive))
        return f"{describe_ranks(dead)} died" if dead else "ok"

    # -- cells -------------------------------------------------------------------------------

    def run(
        self,
        code: str,
        ranks: Sequence[int] | None = None,
        *,
        execution_count: int = 1,
        on_output: OnOutput | None = None,
    ) -> Cell:
        """Send a cell to `ranks` (all by default) and return at once.

        `on_output(rank, message)` is called in another thread for each output message.
        Raises WorldBroken when one of the ranks is dead.
        """
        if self.client.lost is not None:
            raise self.client.lost
        chosen = self.ranks if ranks is None else list(ranks)
        dead = sorted(set(chosen) - set(self.alive))
        if dead:
            raise WorldBroken(
                f"The cell was not run: {describe_ranks(dead)} died earlier.",
                why="its process ended, and the other ranks cannot form a world without it",
                do="%cluster restart starts all ranks anew; %cluster status shows its last output",
            )
        cell = self.last_cell = Cell(self, code, chosen)

        def receive(rank: int, message: dict[str, Any]) -> None:
            cell.record(rank, message)
            if on_output is not None:
                on_output(rank, message)

        content = {"code": code, "execution_count": execution_count, "cell": cell.id}
        futures = self.client.request(chosen, "cell", content, on_output=receive)
        for rank, future in zip(chosen, futures, strict=True):
            cell.follow(rank, future)
        return cell

    # -- calls and questions -------------------------------------------------------------------

    def call(
        self,
        name: str,
        content: Mapping[str, Any] | None = None,
        *,
        ranks: Sequence[int] | None = None,
        buffers: Sequence[Any] = (),
        each: Callable[[int], Mapping[str, Any]] | None = None,
        timeout: float | None = None,
    ) -> list[Reply]:
        """Run one of a rank's CALLS on `ranks`, after the cells that are under way.

        Raises the error that a rank raised, or WorldError when it takes longer than `timeout`. An
        interrupt ends the call on the ranks, too; those that do not react are restarted.
        """
        futures = self.send_call(name, content, ranks=ranks, buffers=buffers, each=each)
        try:
            return [self._outcome(name, future, timeout) for future in futures]
        except KeyboardInterrupt:
            self.signal("SIGINT", self.ranks if ranks is None else ranks)
            if wait(futures, RETURN).not_done:
                self.restart_ranks()
            raise

    def send_call(
        self,
        name: str,
        content: Mapping[str, Any] | None = None,
        *,
        ranks: Sequence[int] | None = None,
        buffers: Sequence[Any] = (),
        each: Callable[[int], Mapping[str, Any]] | None = None,
    ) -> list[Future[Reply]]:
        """Like `call`, without waiting."""
        chosen = self.ranks if ranks is None else ranks
        body = {"name": name, **(content or {})}
        return self.client.request(chosen, "call", body, buffers=buffers, each=each)

    def ask(
        self, name: str, content: Mapping[str, Any] | None = None, *, rank: int = 0,
        timeout: float = ASK_TIMEOUT,
    ) -> dict[str, Any]:  # fmt: skip
        """Ask a rank one of its QUESTIONS; it answers while a cell runs, too."""
        [future] = self.client.request(
            [rank], "ask", {"name": name, **(content or {})}, channel="control"
        )
        return self._outcome(name, future, timeout).content

    def _outcome(self, name: str, future: Future[Reply], timeout: float | None) -> Reply:
        try:
            reply = future.result(timeout)
        except FutureTimeout:
            raise WorldError(
                f"A rank did not answer {name!r} within {timeout:g} s.",
                why="a cell runs on it, or it is stopped (SIGSTOP, a sleeping Mac)",
                do="wait for the cell, or use %cluster restart",
            ) from None
        return _raise_failure(reply)

    def where(self, ranks: Sequence[int]) -> dict[int, dict[str, Any]]:
        """{"cell": id, "place": words} for each rank that answers within WHERE_TIMEOUT."""
        futures = self.client.request(ranks, "ask", {"name": "where"}, channel="control")
        wait(futures, WHERE_TIMEOUT)
        answers: dict[int, dict[str, Any]] = {}
        for rank, future in zip(ranks, futures, strict=True):
            # A rank may hold the GIL in native code, or be stopped.
            with contextlib.suppress(FutureTimeout, MaclusterError):
                answers[rank] = _raise_failure(future.result(0)).content
        return answers

    def forget(self, cell: str, ranks: Sequence[int]) -> None:
        """Have ranks skip a cell whose turn has not come."""
        if ranks:
            content = {"name": "forget", "cell": cell}
            wait(self.client.request(ranks, "ask", content, channel="control"), WHERE_TIMEOUT)

    def signal(self, name: str, ranks: Sequence[int]) -> None:
        """Send a signal, such as "SIGINT", to ranks through their nannies. Does not wait."""
        alive = [rank for rank in ranks if rank in self.client.ids]
        if alive:
            self.client.send_signal(name, targets=alive, block=False)

    def restart_ranks(self) -> None:
        """Kill all ranks and start them anew, on the same controller."""
        with self._restarting:
            self.cluster.replace_ranks()

    # -- forming -------------------------------------------------------------------------------

    async def form(self) -> None:
        """Make the ranks join each other, and prove that rank, size and data are right.

        Raises WorldError or BackendError; the caller ends the processes.
        """
        hostfile = self.cluster.hosts
        backend = backends.get(self.backend)
        prepared = await self._gather(
            self.send_call(
                "world.prepare",
                {"backend": backend.init_name},
                each=lambda rank: {"ips": backend.ports(hostfile, rank) if self.size > 1 else []},
            )
        )
        facts = [reply.content for reply in prepared]
        _same_versions(facts)
        without = [rank for rank, fact in enumerate(facts) if not fact["available"]]
        if without and self.size > 1:
            raise errors.BackendError(
                f"MLX on {describe_ranks(without)} has no {self.backend} backend.",
                why=f"the mlx {facts[without[0]]['mlx']} in {facts[without[0]]['executable']} was "
                "built without it",
                do="install the wheel that has it (jaccl: macOS 26.2 or later; nccl: mlx[cuda13]), "
                "or use --backend ring",
            )
        addresses = [fact["addresses"] for fact in facts]
        orders = {"backend": backend.init_name, "size": self.size, "nonce": secrets.randbits(30)}

        def each(rank: int) -> dict[str, Any]:
            if self.size == 1:
                return {"rank": rank, "env": {"MLX_RANK": "0"}, "files": {}}
            seen = backend.world_environment(hostfile, rank, addresses)
            return {"rank": rank, "env": dict(seen.env), "files": dict(seen.files)}

        # MLX's last rank dials first and then sleeps for a second when nobody listens yet.
        first, last = self.ranks[:-1], self.ranks[-1:]
        futures = self.send_call("world.form", orders, ranks=first, each=each)
        if self.backend == "ring" and hostfile.is_local and first:
            await asyncio.to_thread(_wait_for_listeners, facts[:-1], futures)
        futures += self.send_call("world.form", orders, ranks=last, each=each)
        for rank, reply in enumerate(await self._gather(futures)):
            if reply.content["rank"] != rank:
                raise WorldError(
                    f"Engine {rank} is rank {reply.content['rank']} of the world.",
                    why="the environment of its process names another rank",
                    do="unset MLX_RANK where the notebook was started, then start again",
                )

    async def _gather(self, futures: Sequence[Future[Reply]]) -> list[Reply]:
        tasks = [asyncio.wrap_future(future) for future in futures]
        waiting: set[asyncio.Future[Reply]] = set(tasks)
        deadline = asyncio.get_running_loop().time() + FORM_TIMEOUT
        while waiting and (left := deadline - asyncio.get_running_loop().time()) > 0:
            done, waiting = await asyncio.wait(
                waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                # The first failure explains why the others wait.
                _raise_failure(task.result())
        late = [rank for rank, task in enumerate(tasks) if task in waiting]
        if late:
            raise WorldError(
                f"The world did not form within {FORM_TIMEOUT:.0f} s: "
                f"{describe_ranks(late)} did not connect.",
                why="an address in the hostfile cannot be reached from another host, or a firewall "
                "drops the connection",
                do="check the addresses in the hostfile from each host; on one machine use "
                "%cluster start 2",
            )
        return [task.result() for task in tasks]


def _raise_failure(reply: Reply) -> Reply:
    content = reply.content
    if content.get("status") != "error":
        return reply
    kind = getattr(errors, content["ename"], None)
    if isinstance(kind, type) and issubclass(kind, MaclusterError):
        what = f"On rank {reply.rank}: {content['evalue']}"
        raise kind(what, why=content["why"], do=content["do"])
    last = "".join(content["traceback"]).strip()
    raise WorldError(
        f"Rank {reply.rank} failed: {content['ename']}: {content['evalue']}",
        why=last,
        do="if the lines above do not explain it, %cluster restart gives fresh ranks",
    )


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
