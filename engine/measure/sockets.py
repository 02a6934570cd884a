"""Plain TCP between every two ranks: a probe without MLX, and a barrier that costs no processor."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from ..errors import WorldError
from ..models.agree import exchange
from ..rank.collectives import collectives

CONNECT = 5.0  # seconds that a host may take to accept a connection
GREETING = 1.0  # seconds that who has connected may take to say who it is
PATIENCE = 60.0  # seconds that a rank may be silent while its peers wait
TOKEN = 16  # bytes
STRANGERS = 16  # connections of others that may wait beside those of the ranks


class Sockets:
    """One connection to each other rank, as far as there is a way.

    `failures` maps pairs of ranks between which there is none to the reason. `out` and `into` are
    buffers for all of them, of `size` bytes each: a rank talks to one other at a time.
    """

    def __init__(self, rank: int, ranks: int, size: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.peers: dict[int, socket.socket] = {}
        self.failures: dict[tuple[int, int], str] = {}
        self.out, self.into = memoryview(bytearray(size)), memoryview(bytearray(size))

    @classmethod
    def connect(cls, rank: int, ranks: int, size: int) -> Sockets:
        """Connect all ranks. A collective; nothing but this world's ranks is let in."""
        made = cls(rank, ranks, size)
        address = own_address(rank)
        try:
            with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
                made._connect(listener, address)
        except BaseException:
            made.close()
            raise
        return made

    def _connect(self, listener: socket.socket, address: str) -> None:
        port, problem = 0, ""
        try:
            listener.bind((address, 0))
            listener.listen(self.ranks + STRANGERS)
            port = listener.getsockname()[1]
        except OSError as error:
            problem = f"it cannot listen on {address}: {error.strerror or error}"
        facts = exchange([address, port, problem, secrets.token_hex(TOKEN)])
        token = bytes.fromhex(facts[0][3])
        # Everybody listens by now, so nobody has to accept before it connects.
        errors = {peer: self._dial(peer, facts[peer], token) for peer in range(self.rank)}
        for dialler, failed in enumerate(exchange(errors)):
            for peer, reason in failed.items():
                if reason:
                    self.failures[int(peer), dialler] = reason
        higher = range(self.rank + 1, self.ranks)
        self._accept(listener, token, {b for b in higher if (self.rank, b) not in self.failures})

    def _dial(self, peer: int, facts: list[Any], token: bytes) -> str:
        """Connect to a rank; why that failed, or ""."""
        address, port, problem, _ = facts
        if problem:
            return str(problem)
        try:
            self.peers[peer] = made = socket.create_connection((address, port), CONNECT)
            made.sendall(token + self.rank.to_bytes(4, "big"))
            _prepare(made)
        except OSError as error:
            return f"{address}:{port}: {error.strerror or error}"
        return ""

    def _accept(self, listener: socket.socket, token: bytes, expected: set[int]) -> None:
        deadline = time.monotonic() + PATIENCE
        while expected:
            listener.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                found, _ = listener.accept()
            except TimeoutError:
                raise WorldError(
                    f"Rank {min(expected)} connected to rank {self.rank}, and nothing arrived.",
                    why="a firewall answers in place of the host",
                    do="allow Python to accept incoming connections on this host",
                ) from None
            peer = _greeting(found, token)
            if peer in expected:
                expected.discard(peer)
                self.peers[peer] = found
                _prepare(found)
            else:
                found.close()  # not one of us

    @property
    def all_reach_rank_0(self) -> bool:
        """Whether a barrier is possible."""
        return not any(0 in pair for pair in self.failures)

    def barrier(self) -> None:
        """Wait for all ranks, asleep: a rank that waits in MLX's ring takes a core from others."""
        if self.rank == 0:
            for peer in range(1, self.ranks):
                receive(self.peers[peer], self.into[:1])
            for peer in range(1, self.ranks):
                send(self.peers[peer], self.out[:1])
        else:
            send(self.peers[0], self.out[:1])
            receive(self.peers[0], self.into[:1])

    def close(self) -> None:
        for each in self.peers.values():
            each.close()
        self.peers.clear()


def own_address(rank: int) -> str:
    """The address at which this rank's process is reached by the others. A collective."""
    mine = collectives.ips[0] if collectives.ips else _launched_with(rank)
    # All ranks take part, whatever each of them knows.
    facts = exchange([mine, socket.gethostname()])
    if mine:
        return mine
    if len({host for _, host in facts}) == 1:
        return "127.0.0.1"
    # A hostfile for jaccl may name an address of rank 0 only: ours is the one that leads there.
    known = next((address for address, _ in facts if address), "192.0.2.1")
    with (
        contextlib.suppress(OSError),
        contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe,
    ):
        probe.connect((known, 9))  # sends nothing
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def _launched_with(rank: int) -> str:
    """This rank's address under mlx.launch, or ""."""
    with contextlib.suppress(KeyError, OSError, ValueError, LookupError):
        nodes = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())
        return str(nodes[rank][0]).rpartition(":")[0]
    return ""


def send(target: socket.socket, view: memoryview) -> None:
    """Send all of `view`. Raises WorldError as `receive`."""
    try:
        target.sendall(view)
    except OSError as error:
        raise _lost(error) from None


def receive(source: socket.socket, view: memoryview) -> None:
    """Fill `view`. Raises WorldError when the other rank is gone, or silent for PATIENCE."""
    got = 0
    while got < len(view):
        try:
            count = source.recv_into(view[got:])
        except OSError as error:
            raise _lost(error) from None
        if count == 0:
            raise _lost(None)
        got += count


def _lost(error: OSError | None) -> WorldError:
    if isinstance(error, TimeoutError):
        return WorldError(
            f"A rank has sent nothing for {PATIENCE:.0f} s.",
            why="it is stopped, its host sleeps, or the network lost it",
            do="%cluster stacks shows where each rank stands; %cluster abort ends this",
        )
    return WorldError(
        "Another rank closed its connection while the links were measured.",
        why="it raised an error, or its process ended",
        do="look at that rank's error, and measure again",
    )


def _greeting(found: socket.socket, token: bytes) -> int | None:
    """Who has connected; None for a stranger, or one who takes too long."""
    deadline = time.monotonic() + GREETING
    hello = b""
    try:
        while len(hello) < TOKEN + 4:
            found.settimeout(max(0.01, deadline - time.monotonic()))
            part = found.recv(TOKEN + 4 - len(hello))
            if not part or time.monotonic() > deadline:
                return None
            hello += part
    except OSError:
        return None
    known = hmac.compare_digest(hello[:TOKEN], token)
    return int.from_bytes(hello[TOKEN:], "big") if known else None


def _prepare(made: socket.socket) -> None:
    made.settimeout(PATIENCE)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
