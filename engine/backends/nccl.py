"""`nccl`: NVIDIA GPUs, one rank for each."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from ..errors import BackendError
from ..hostfile import Hostfile
from .base import Addresses, Backend, RankEnvironment, require_address


def cuda_gpus() -> bool:
    """True when an NVIDIA driver is installed on this machine."""
    return sys.platform == "linux" and shutil.which("nvidia-smi") is not None


class Nccl(Backend):
    name = "nccl"
    init_name = "nccl"
    summary = "NVIDIA GPUs, one for each rank"

    def check(self, hostfile: Hostfile) -> None:
        if hostfile.is_local and not cuda_gpus():
            raise BackendError(
                "The nccl backend cannot run on this machine.",
                why="there is no NVIDIA driver here (nvidia-smi is not on PATH)",
                do="use --backend ring",
            )
        require_address(self.name, hostfile, [0])

    def ports(self, hostfile: Hostfile, rank: int) -> list[str]:
        return [hostfile.hosts[0].ips[0]] if rank == 0 else []

    def launch_environment(self, hostfile: Hostfile, rank: int) -> dict[str, str]:
        # The GPU's index on its own host: the ranks of that host that come before this one.
        ssh = hostfile.hosts[rank].ssh
        index = sum(host.ssh == ssh for host in hostfile.hosts[:rank])
        return {"CUDA_VISIBLE_DEVICES": str(index)}

    def world_environment(
        self, hostfile: Hostfile, rank: int, addresses: Sequence[Addresses]
    ) -> RankEnvironment:
        host, _, port = addresses[0][0].rpartition(":")
        return RankEnvironment(
            {
                "MLX_RANK": str(rank),
                "MLX_WORLD_SIZE": str(len(hostfile)),
                "NCCL_HOST_IP": host,
                "NCCL_PORT": port,
            }
        )
