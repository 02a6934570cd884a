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

from ..errors import WorldError
from ..models.agree import exchange
from ..rank.collectives import collectives

CONNECT = 5.0  # seconds that a host may take to accept a connection
PATIENCE = 60.0  # seconds that a rank may be silent while its peers wait
TOKEN = 16  # bytes


class Sockets:
    """One connection to each other rank, as far as there is a way.

    `failures` maps pairs of ranks between which there is none to the reason.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.peers: dict[int, socket.socket] = {}
        self.failures: dict[tuple[int, int], str] = {}

    @classmethod
    def connect(cls, rank: int, size: int) -> Sockets:
        """Connect all ranks. A collective; nothing but this world's ranks is let in."""
        made = cls(rank, size)
        if size == 1:
            return made
        address = own_address(rank)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind((address, 0))
            listener.listen(size)
            here = [address, listener.getsockname()[1], secrets.token_hex(TOKEN)]
            facts = exchange(here)
            token = bytes.fromhex(facts[0][2])
            # Everybody listens by now, so nobody has to accept before it connects.
            errors = {}
            for peer in range(rank):
                try:
                    made.peers[peer] = _dial((facts[peer][0], facts[peer][1]), token, rank)
                except OSError as error:
                    there = f"{facts[peer][0]}:{facts[peer][1]}"
                    errors[peer] = f"{there}: {error.strerror or error}"
            for dialler, failed in enumerate(exchange(errors)):
                for peer, reason in failed.items():
                    made.failures[int(peer), dialler] = reason
            expected = {peer for peer in range(rank + 1, size) if (rank, peer) not in made.failures}
            made._accept(listener, token, expected)
        return made

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
                self.peers[peer] = _ready(found)
            else:
                found.close()  # not one of us

    @property
    def all_reach_rank_0(self) -> bool:
        """Whether a barrier is possible."""
        return not any(0 in pair for pair in self.failures)

    def barrier(self) -> None:
        """Wait for all ranks, asleep: a rank that waits in MLX's ring takes a core from others."""
        if self.rank == 0:
            for peer in range(1, self.size):
                receive(self.peers[peer], memoryview(bytearray(1)))
            for peer in range(1, self.size):
                self.peers[peer].sendall(b"g")
        else:
            self.peers[0].sendall(b"r")
            receive(self.peers[0], memoryview(bytearray(1)))

    def close(self) -> None:
        for each in self.peers.values():
            each.close()
        self.peers.clear()


def own_address(rank: int) -> str:
    """The address at which this rank's process is reached by the others. A collective."""
    if collectives.ips:
        return collectives.ips[0]
    # Under mlx.launch.
    with contextlib.suppress(KeyError, OSError, ValueError, LookupError):
        nodes = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())
        return str(nodes[rank][0]).rpartition(":")[0]
    name = socket.gethostname()
    if len(set(exchange(name))) == 1:
        return "127.0.0.1"
    return socket.gethostbyname(name)


def receive(source: socket.socket, view: memoryview) -> None:
    """Fill `view`. Raises WorldError when the other rank is gone, or silent for PATIENCE."""
    got = 0
    while got < len(view):
        try:
            count = source.recv_into(view[got:])
        except TimeoutError:
            raise WorldError(
                f"A rank has sent nothing for {PATIENCE:.0f} s.",
                why="it is stopped, its host sleeps, or the network lost it",
                do="%cluster stacks shows where each rank stands; %cluster abort ends this",
            ) from None
        if count == 0:
            raise WorldError(
                "Another rank closed its connection while the links were measured.",
                why="it raised an error, or its process ended",
                do="look at that rank's error, and measure again",
            )
        got += count


def _dial(address: tuple[str, int], token: bytes, rank: int) -> socket.socket:
    made = socket.create_connection(address, CONNECT)
    made.sendall(token + rank.to_bytes(4, "big"))
    return _ready(made)


def _greeting(found: socket.socket, token: bytes) -> int | None:
    """Who has connected; None for a stranger."""
    found.settimeout(CONNECT)
    hello = bytearray(TOKEN + 4)
    try:
        receive(found, memoryview(hello))
    except (OSError, WorldError):
        return None
    known = hmac.compare_digest(bytes(hello[:TOKEN]), token)
    return int.from_bytes(hello[TOKEN:], "big") if known else None


def _ready(made: socket.socket) -> socket.socket:
    made.settimeout(PATIENCE)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made
