"""Who is linked to whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from .. import records
from ..errors import UsageError
from ..measure.record import Pair

if TYPE_CHECKING:
    from ..tables import Table
    from .order import RingOrder
    from .shape import Shape

FORMAT = "macluster topology 1"

# What a link is made of, best first.
Kind = Literal["rdma", "thunderbolt", "ethernet", "wifi", "loopback", "unknown"]
KINDS: tuple[Kind, ...] = ("rdma", "thunderbolt", "ethernet", "wifi", "loopback", "unknown")


@attrs.frozen
class Node:
    """A rank and what it runs on.

    `memory` is what the host has in bytes, `used` how much of it is in use, `held` the bytes of
    arrays that this rank holds; None where that is not known. `state` is "ok", "busy", "dead" or
    "unknown". `free` are the interfaces of Thunderbolt sockets with nothing plugged in, None where
    they are not known. `own_name` is the host's own name for itself, "" where it is not known:
    `host` may be the one by which the hostfile reaches it.
    """

    rank: int
    host: str
    model: str = ""  # "Mac Studio, Apple M3 Ultra"
    memory: int | None = None
    used: int | None = None
    held: int | None = None
    state: str = "unknown"
    free: tuple[str, ...] | None = None
    own_name: str = ""

    @property
    def silent(self) -> bool:
        """Whether the rank could not be asked what it is linked to."""
        return self.state in ("dead", "unknown") and self.memory is None


@attrs.frozen
class Link:
    """One cable or route between two ranks' hosts, `a` < `b`.

    `ports` are the names of the interfaces at a and at b ("en4", "en5"), "" where unknown; a pair
    may have several cables, which count as one link with all their names. `negotiated` is the rate
    in bits/s that the hardware reports, of all cables together. `why` says where the kind was
    learnt from. `besides` are the kinds of other ways between the two, which are not used.
    `measured` is MLX's own send and recv where these reach; `plain` is then what a plain socket
    does there, by which it can be compared with links that MLX does not reach.
    """

    a: int
    b: int
    kind: Kind
    ports: tuple[tuple[str, str], ...] = ()
    negotiated: float | None = None
    measured: Pair | None = None
    why: str = ""
    besides: tuple[Kind, ...] = ()
    plain: Pair | None = None

    @property
    def cabled(self) -> bool:
        """Whether a Thunderbolt cable joins the two, be it used or not."""
        return bool({"rdma", "thunderbolt"} & {self.kind, *self.besides})

    @property
    def cables(self) -> int:
        """How many cables there are, at least 1."""
        return max(1, len(self.ports))

    @property
    def part_of_rate(self) -> float | None:
        """Measured bandwidth of the slower way / negotiated rate, None when one is unknown."""
        if self.measured is None or not self.negotiated:
            return None
        return 8 * self.measured.bandwidth / self.negotiated


@attrs.frozen(repr=False)
class Topology:
    """The ranks of a world, and the links between them.

    `simulated` describes the hosts when nothing of it exists.
    """

    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    backend: str = ""
    simulated: str = ""

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.nodes)

    def link(self, a: int, b: int) -> Link | None:
        """The link between two ranks, in any order."""
        low, high = sorted((a, b))
        return next((each for each in self.links if (each.a, each.b) == (low, high)), None)

    def of(self, rank: int) -> Sequence[Link]:
        """The links of one rank."""
        return [each for each in self.links if rank in (each.a, each.b)]

    def name(self, rank: int) -> str:
        """The host of a rank where that says which rank is meant, else "rank 3"."""
        host = self.nodes[rank].host
        return host if host and self._hosts[host] == 1 else f"rank {rank}"

    @property
    def _hosts(self) -> Counter[str]:
        return Counter(node.host for node in self.nodes)

    @property
    def shape(self) -> Shape:
        """The shape of the wiring, which backends it allows, and what is missing, in words."""
        from .shape import shape

        return shape(self)

    @property
    def best_ring(self) -> RingOrder:
        """The order of the ranks in which a ring is fastest."""
        from .order import best_ring

        return best_ring(self)

    def table(self) -> Table:
        """The links as a table."""
        from .tables import links_table

        return links_table(self)

    def __repr__(self) -> str:
        from .tables import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from .tables import as_html

        return as_html(self)

    # -- keeping it --------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """As JSON types; `from_json` reads it."""
        return records.as_json(self, FORMAT)

    @classmethod
    def from_json(cls, facts: Any) -> Topology:
        """What `as_json` gave. Names that a later version has added are passed over.

        Raises UsageError for anything that `as_json` did not write.
        """
        try:
            if isinstance(facts, Mapping):
                records.check_format(facts, FORMAT)
            found = records.structured(cls, facts)
            _check(found)
            records.as_text(found.as_json())
        except (ValueError, OverflowError) as error:
            raise UsageError(
                "This is no topology of macluster.",
                why=str(error),
                do="write one: world.topology().save(path)",
            ) from None
        return found

    def save(self, path: str | Path) -> None:
        """Write it as JSON. Raises UsageError for a figure that JSON has not: NaN, infinity."""
        records.save(self.as_json(), path, "topology")

    @classmethod
    def load(cls, path: str | Path) -> Topology:
        """What `save` wrote. Raises UsageError when the file cannot be read, or is another one."""
        facts = records.load(path, "topology", "write one: world.topology().save(path)")
        return cls.from_json(facts)


def _check(topology: Topology) -> None:
    if not topology.nodes:
        raise ValueError("it has no nodes")
    for at, node in enumerate(topology.nodes):
        if node.rank != at:
            raise ValueError(f"node {at} is of rank {node.rank}")
    seen = set()
    for link in topology.links:
        if not 0 <= link.a < link.b < topology.size:
            raise ValueError(f"a link joins {link.a} and {link.b} of {topology.size} ranks")
        if (link.a, link.b) in seen:
            raise ValueError(f"there are two links between {link.a} and {link.b}")
        seen.add((link.a, link.b))
