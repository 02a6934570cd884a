"""`ring`: TCP between neighbours. Runs anywhere, over any cable."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..hostfile import Hostfile
from .base import Addresses, Backend, RankEnvironment, require_address


class Ring(Backend):
    name = "ring"
    init_name = "ring"
    summary = "TCP between neighbours, over any cable"
    rebuilds_in_place = True  # see engine/rank/lifeline.py

    def check(self, hostfile: Hostfile) -> None:
        require_address(self.name, hostfile, range(len(hostfile)))

    def ports(self, hostfile: Hostfile, rank: int) -> list[str]:
        return list(hostfile.hosts[rank].ips)

    def world_environment(
        self, hostfile: Hostfile, rank: int, addresses: Sequence[Addresses]
    ) -> RankEnvironment:
        nodes = [list(node) for node in addresses]
        return RankEnvironment({"MLX_RANK": str(rank)}, {"MLX_HOSTFILE": json.dumps(nodes)})
