"""`jaccl-ring`: RDMA over Thunderbolt 5, every Mac cabled to the next one."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ..hostfile import Hostfile
from .base import Addresses, RankEnvironment
from .jaccl import Jaccl


class JacclRing(Jaccl):
    name = "jaccl-ring"
    summary = "RDMA over Thunderbolt 5, a cable from every Mac to the next one"

    def neighbours(self, rank: int, n: int) -> list[int]:
        return sorted({(rank - 1) % n, (rank + 1) % n} - {rank})

    def world_environment(
        self, hostfile: Hostfile, rank: int, addresses: Sequence[Addresses]
    ) -> RankEnvironment:
        mesh = super().world_environment(hostfile, rank, addresses)
        return attrs.evolve(mesh, env={**mesh.env, "MLX_JACCL_RING": "1"})
