"""What every backend says about itself: one small class each, no state."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import attrs

from ..errors import BackendError, HostfileError
from ..hostfile import Hostfile

# The addresses a rank listens on, as "ip:port". A rank picks its own free ports
# before the world forms, so no port is chosen for a machine by another one.
Addresses = Sequence[str]


@attrs.frozen
class RankEnvironment:
    """What one rank finds in its environment.

    `env` maps names to values. `files` maps names to file contents: the rank writes each content
    to a private file and sets the variable to its path.
    """

    env: Mapping[str, str] = attrs.field(factory=dict)
    files: Mapping[str, str] = attrs.field(factory=dict)


class Backend(ABC):
    """One of MLX's collective libraries."""

    name: ClassVar[str]  # as in a hostfile and in `--backend`
    init_name: ClassVar[str]  # as in `mx.distributed.init(backend=...)`
    summary: ClassVar[str]
    term_grace: ClassVar[float] = 2.0  # seconds between SIGTERM and SIGKILL at stop
    # The same when a world has failed. Most ranks hang then, and nothing is gained by asking.
    kill_grace: ClassVar[float] = 0.0
    # True when a rank that waits for others can be freed, and can join a new world, without losing
    # its process. Otherwise a failure costs all ranks: they are killed and started anew.
    rebuilds_in_place: ClassVar[bool] = False

    @abstractmethod
    def check(self, hostfile: Hostfile) -> None:
        """Raise BackendError or HostfileError when `hostfile` or this machine rules it out."""

    def ports(self, hostfile: Hostfile, rank: int) -> list[str]:
        """The addresses of `rank` that need a free port each, in order."""
        return []

    def launch_environment(self, hostfile: Hostfile, rank: int) -> dict[str, str]:
        """Variables that must stand before MLX is imported."""
        return {}

    @abstractmethod
    def world_environment(
        self, hostfile: Hostfile, rank: int, addresses: Sequence[Addresses]
    ) -> RankEnvironment:
        """Variables and files that `mx.distributed.init` reads.

        `addresses[r]` are the "ip:port" texts that rank `r` reserved for `ports(hostfile, r)`.
        """

    def command(self, hostfile: Hostfile) -> list[str] | None:
        """A launcher that starts all ranks by itself, or None when each rank is started alone."""
        return None


def require_macos(backend: str) -> None:
    """RDMA over Thunderbolt exists on macOS only. Raises BackendError elsewhere."""
    if sys.platform != "darwin":
        raise BackendError(
            f"The {backend} backend cannot run on this machine ({sys.platform}).",
            why="JACCL is RDMA over Thunderbolt 5, which macOS 26.2 and later have on Macs with "
            "Thunderbolt 5",
            do="use --backend ring, which runs over TCP anywhere",
        )


def require_address(backend: str, hostfile: Hostfile, ranks: Sequence[int]) -> None:
    """Raise BackendError when a host in `ranks` has no address in the hostfile."""
    for rank in ranks:
        if not hostfile.hosts[rank].ips:
            raise HostfileError(
                f"Host {rank} ({hostfile.hosts[rank].ssh}) has no address in "
                f"{hostfile.source or 'the hostfile'}.",
                why=f'the {backend} backend connects to addresses, and "ips" is empty',
                do=f'add one that the other hosts reach: "ips": ["192.168.1.1{rank}"]',
            )
