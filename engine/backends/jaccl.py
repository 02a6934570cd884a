"""`jaccl`: RDMA over Thunderbolt 5, every Mac cabled to every other one."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..errors import BackendError, HostfileError
from ..hostfile import Hostfile
from .base import Addresses, Backend, RankEnvironment, require_address, require_macos

MAX_PEERS = 8  # MESH_MAX_PEERS in MLX's jaccl/mesh_impl.h


class Jaccl(Backend):
    name = "jaccl"
    init_name = "jaccl"
    summary = "RDMA over Thunderbolt 5, a cable between every two Macs"
    # A rank killed inside a verbs call can leave its port unusable until a reboot,
    # so it gets time to tear its group down.
    term_grace = 10.0
    kill_grace = 10.0

    def neighbours(self, rank: int, n: int) -> list[int]:
        """The ranks that `rank` needs a cable to."""
        return [other for other in range(n) if other != rank]

    def check(self, hostfile: Hostfile) -> None:
        if any(host.is_local for host in hostfile.hosts):
            require_macos(self.name)
        self.check_wiring(hostfile)

    def check_wiring(self, hostfile: Hostfile) -> None:
        """Raise when the RDMA rows do not give the cables that this backend needs."""
        n = len(hostfile)
        if n > MAX_PEERS and self.name == "jaccl":
            raise BackendError(
                f"jaccl connects at most {MAX_PEERS} Macs, and the hostfile has {n}.",
                why="its mesh keeps one connection for each peer",
                do="use --backend jaccl-ring, or fewer hosts",
            )
        require_address(self.name, hostfile, [0])
        missing = [
            f"{hostfile.hosts[i].ssh} to {hostfile.hosts[j].ssh}"
            for i in range(n)
            for j in self.neighbours(i, n)
            if not hostfile.hosts[i].rdma or hostfile.hosts[i].rdma[j] is None
        ]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise HostfileError(
                f"{hostfile.source or 'The hostfile'} names no RDMA device for "
                f"{', '.join(missing[:3])}{more}.",
                why=f"{self.name} needs {self.summary.partition(', ')[2]}",
                do="plug in the missing cable and write the hostfile anew with "
                "mlx.distributed_config,\nor use --backend ring",
            )

    def ports(self, hostfile: Hostfile, rank: int) -> list[str]:
        return [hostfile.hosts[0].ips[0]] if rank == 0 else []

    def world_environment(
        self, hostfile: Hostfile, rank: int, addresses: Sequence[Addresses]
    ) -> RankEnvironment:
        rows = [host.to_json()["rdma"] for host in hostfile.hosts]
        env = {"MLX_RANK": str(rank), "MLX_JACCL_COORDINATOR": addresses[0][0]}
        return RankEnvironment(env, {"MLX_IBV_DEVICES": json.dumps(rows)})
