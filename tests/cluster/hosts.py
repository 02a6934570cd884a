"""Several hosts on this machine: network namespaces, with a cable of known delay between two.

A cable is a pair of virtual Ethernet ports. One with a delay or a rate is a program that carries
packets from one tunnel device to another; the kernel's own emulator (netem) is not built into every
kernel.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1500
PORT = 17_100
LATE = 0.1  # seconds that a cable may have to wait for a core
# What TCP carries in a packet of MTU bytes: less the headers of IP and TCP with its time stamps.
PAYLOAD = (MTU - 52) / MTU


def unavailable() -> str:
    """Why there cannot be hosts here, or ""."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    if not Path("/dev/net/tun").exists():
        return "this kernel has no tunnel devices"
    made = subprocess.run(["ip", "netns", "add", f"mcx{os.getpid()}"], capture_output=True)
    if made.returncode:
        return f"network namespaces cannot be made: {made.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "del", f"mcx{os.getpid()}"], check=True)
    return ""


class Hosts:
    """`n` hosts, each with a cable to every other. Host i has the address 10.77.i.1.

    `slow` maps pairs to (seconds of delay each way, bits/s or None).
    """

    def __init__(
        self, n: int, slow: dict[tuple[int, int], tuple[float, float | None]] | None = None
    ) -> None:
        self.n = n
        self.slow = slow or {}
        self.names = [f"mc{os.getpid()}-{i}" for i in range(n)]
        self._wires: list[Wire] = []

    def __enter__(self) -> Self:
        try:
            for host, name in enumerate(self.names):
                _ip("netns", "add", name)
                self._in(host, "link", "set", "lo", "up")
                self._in(host, "address", "add", f"10.77.{host}.1/32", "dev", "lo")
            for a, b in itertools.combinations(range(self.n), 2):
                if (a, b) in self.slow:
                    self._wires.append(Wire(self.names[a], self.names[b], f"en{b}", f"en{a}",
                                            *self.slow[a, b]))  # fmt: skip
                else:
                    _ip("link", "add", f"en{b}", "netns", self.names[a], "type", "veth",
                        "peer", "name", f"en{a}", "netns", self.names[b])  # fmt: skip
                for here, there in ((a, b), (b, a)):
                    self._in(here, "link", "set", f"en{there}", "mtu", str(MTU), "up")
                    self._in(here, "route", "add", f"10.77.{there}.1/32", "dev", f"en{there}",
                             "src", f"10.77.{here}.1")  # fmt: skip
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for wire in self._wires:
            wire.close()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def _in(self, host: int, *words: str) -> None:
        _ip("-n", self.names[host], *words)

    def run(self, code: str, folder: Path, timeout: float = 200) -> list[str]:
        """Run code as one rank of a ring on each host, in rank order; what each has printed.

        Raises AssertionError with what it said when one fails.
        """
        nodes = [[f"10.77.{host}.1:{PORT + host}"] for host in range(self.n)]
        hostfile = folder / "hosts.json"
        hostfile.write_text(json.dumps(nodes))
        started = [
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, "-c", code],
                env=os.environ | {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, name in enumerate(self.names)
        ]
        deadline = time.monotonic() + timeout
        said = []
        try:
            for rank, process in enumerate(started):
                out, errors = process.communicate(timeout=max(1, deadline - time.monotonic()))
                assert process.returncode == 0, f"rank {rank}: {out}{errors}"
                said.append(out)
        finally:
            for process in started:
                process.kill()
                with contextlib.suppress(ValueError):
                    process.communicate()
        return said


class Wire:
    """A cable that takes `delay` seconds each way and carries `rate` bits/s, None for any."""

    def __init__(
        self, a: str, b: str, port_a: str, port_b: str, delay: float, rate: float | None
    ) -> None:
        self._ends = (_tunnel(a, port_a), _tunnel(b, port_b))
        self._delay, self._rate = delay, rate
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.write(self._waker, b"x")
        self._thread.join()
        for each in (*self._ends, self._wake, self._waker):
            os.close(each)

    def _carry(self) -> None:
        number = itertools.count()  # packets that are due at once keep their order
        due: list[tuple[float, int, int, bytes]] = []
        free = [0.0, 0.0]  # when each direction has sent what it was given
        while True:
            wait = max(0.0, due[0][0] - time.monotonic()) if due else None
            ready, _, _ = select.select([*self._ends, self._wake], [], [], wait)
            if self._wake in ready:
                return
            now = time.monotonic()
            for direction, source in enumerate(self._ends):
                if source in ready:
                    packet = os.read(source, MTU)
                    length = 8 * len(packet) / self._rate if self._rate else 0.0
                    # A token bucket: what this program is late by is made good.
                    free[direction] = max(now - LATE, free[direction]) + length
                    arrival = max(now, free[direction]) + self._delay
                    entry = (arrival, next(number), self._ends[1 - direction], packet)
                    heapq.heappush(due, entry)
            while due and due[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(due)
                # A port that is down takes nothing: the packet is lost.
                with contextlib.suppress(OSError):
                    os.write(target, packet)


def _tunnel(namespace: str, name: str) -> int:
    """A tunnel device in a namespace, as the file whose reads and writes are its packets."""
    outside = f"t{os.getpid() % 10_000}{name}{namespace[-1]}"
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    request = struct.pack("16sH", outside.encode(), IFF_TUN | IFF_NO_PI)
    fcntl.ioctl(descriptor, TUNSETIFF, request)
    _ip("link", "set", outside, "netns", namespace, "name", name)
    return descriptor


def _ip(*words: str) -> None:
    found = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert found.returncode == 0, f"ip {' '.join(words)}: {found.stderr}"


def last_json(said: Sequence[str]) -> Any:
    """The last line that rank 0 has printed."""
    return json.loads(said[0].splitlines()[-1])


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips where there can be no hosts."""
    if why := unavailable():
        pytest.skip(why)
