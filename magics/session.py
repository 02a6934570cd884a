"""The cluster that this notebook uses."""

from __future__ import annotations

from ..engine.cluster import Cluster
from ..engine.errors import ClusterNotFound
from ..engine.world import World


class Session:
    """Holds the notebook's current cluster, started here or attached."""

    def __init__(self) -> None:
        self.cluster: Cluster | None = None
        self.owned = False

    @property
    def world(self) -> World:
        """The running world. Raises ClusterNotFound when there is none."""
        return self.running[1]

    @property
    def running(self) -> tuple[Cluster, World]:
        """The cluster and its world. Raises ClusterNotFound when none runs."""
        if self.cluster is None or self.cluster.world is None:
            running = ", ".join(listing.name for listing in Cluster.running())
            others = f", or %cluster connect NAME (running: {running})" if running else ""
            raise ClusterNotFound(
                "This notebook has no cluster.",
                why="none was started or connected in this kernel, or it was stopped",
                do="%cluster start 2" + others,
            )
        return self.cluster, self.cluster.world

    def adopt(self, cluster: Cluster, *, owned: bool) -> None:
        self.cluster, self.owned = cluster, owned

    def release_lost(self) -> None:
        """Clear away a cluster whose controller is gone."""
        cluster = self.cluster
        if cluster is None or cluster.world is None or cluster.world.client.lost is None:
            return
        if self.owned:
            cluster.stop_sync()
        else:
            cluster.disconnect()
        self.release()

    def release(self) -> None:
        self.cluster, self.owned = None, False
