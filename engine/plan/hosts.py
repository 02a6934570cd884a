"""The Macs of a plan: parsed from a description, a hostfile, or this machine."""

from __future__ import annotations

import re
import sys

import attrs
import psutil

from ..errors import UsageError
from ..hostfile import Hostfile
from . import macs
from .macs import GIB, THUNDERBOLT_5, Chip, Link

MOST_RANKS = 64  # a plan makes a model for every rank; more is a typing error
MESH_MOST = 8  # MESH_MAX_PEERS of MLX
EXAMPLE = '"4 x M3 Ultra 512GB, mesh"'

# "4 x M3 Ultra 512GB"
_HOST = re.compile(r"(?:(\d+)\s*[x×*]\s*)?(.+?)(?:\s+(\d+)\s*(?:gb|gib|g))?", re.IGNORECASE)
_SLOW_FENCE = ("no fast synch", "without fast synch", "slow fence")


@attrs.frozen
class PlannedHost:
    """What one rank runs on.

    Bytes of `memory`, memory `bandwidth` in bytes/s and speed of `prefill` in FLOP/s; each is None
    where nobody knows. `share` is the part of the memory that the GPU gets, None to use the plan's.
    """

    name: str
    memory: int | None = None
    bandwidth: float | None = None
    prefill: float | None = None
    share: float | None = None


@attrs.frozen
class Hosts:
    """The hosts of a world in rank order, and the link between them. `link` is None for one rank,
    and for ranks of one machine.

    `reason` says why this link, where nobody asked for it. `fast_synch` is whether the ranks run
    with MLX_METAL_FAST_SYNCH=1.
    """

    hosts: tuple[PlannedHost, ...]
    link: Link | None = None
    reason: str = ""
    fast_synch: bool = True

    def __len__(self) -> int:
        return len(self.hosts)

    def __str__(self) -> str:
        names = [host.name for host in self.hosts]
        parts = []
        while names:
            count = next((i for i, name in enumerate(names) if name != names[0]), len(names))
            parts.append(f"{count} x {names[0]}" if count > 1 else names[0])
            del names[:count]
        text = " + ".join(parts)
        return text if self.link is None else f"{text}, {self.link.name}"

    def with_one_more(self) -> Hosts:
        """The same, and one more host like the last. Raises UsageError when the link cannot."""
        more = attrs.evolve(self, hosts=(*self.hosts, self.hosts[-1]))
        if self.link is not None:
            _check_link(more, self.link)
            return more
        chips = [macs.CHIPS.get(_chip_name(host)) for host in more.hosts]
        known = [chip for chip in chips if chip is not None]
        if len(known) < len(chips):
            return more
        link, reason = _choose_link(known)
        return attrs.evolve(more, link=link, reason=reason)


def parse(description: str | int | Hostfile | Hosts, *, macs_are: str | None = None) -> Hosts:
    """The hosts that a description means.

    Args:
        description: "4 x M3 Ultra 512GB, mesh", "M3 Ultra 512GB + M4 Max 128GB, ethernet", a number
            of ranks on this machine (also as text), or a Hostfile. The link is mesh or jaccl-ring
            (RDMA over Thunderbolt 5), ring (TCP over Thunderbolt), 10gbe or 1gbe (TCP over
            Ethernet). Without one, Macs with Thunderbolt 5 are taken to be a mesh. "no fast synch"
            counts on MLX's default fence in place of MLX_METAL_FAST_SYNCH=1.
        macs_are: for a Hostfile, the Macs that it names: "4 x M3 Ultra 512GB". A hostfile does not
            say.

    Raises:
        UsageError: for an unknown chip, memory that it was not sold with, an unknown link, or one
            that these Macs cannot have.
    """
    if isinstance(description, Hosts):
        return description
    if isinstance(description, Hostfile):
        return _of_hostfile(description, macs_are)
    if macs_are is not None:
        raise UsageError(
            "macs_are names the Macs of a hostfile.",
            why=f"the hosts were given as {description!r}, which says it already",
            do="leave macs_are out",
        )
    if isinstance(description, int) or description.strip().isdigit():
        return _local(int(description))
    return _of_text(description)


def _of_text(text: str) -> Hosts:
    first, *options = [part.strip() for part in text.split(",")]
    hosts: list[PlannedHost] = []
    chips: list[Chip] = []
    for part in first.split("+"):
        count, chip, host = _host(part.strip(), text)
        hosts += [host] * count
        chips += [chip] * count
    if len(hosts) > MOST_RANKS:
        raise UsageError(
            f"{len(hosts)} Macs are more than a plan can be made for, {MOST_RANKS}.",
            why="a model is divided on paper for every one of them",
            do=f"give fewer: {EXAMPLE}",
        )
    fast = True
    link: Link | None = None
    reason = "as asked for"
    for option in filter(None, options):
        if option.lower() in _SLOW_FENCE:
            fast = False
        elif link is None:
            link = macs.link(option)
        else:
            raise UsageError(
                f"{text!r} names two links, {link.name} and {option}.",
                why="all ranks of a world use one backend",
                do=f"keep one of them: {EXAMPLE}",
            )
    if len(hosts) == 1:
        return Hosts(tuple(hosts), None, "", fast)
    if link is None:
        link, reason = _choose_link(chips)
    found = Hosts(tuple(hosts), link, reason, fast)
    _check_link(found, link)
    return found


def _host(part: str, text: str) -> tuple[int, Chip, PlannedHost]:
    """How many, of what chip, and one of them."""
    found = _HOST.fullmatch(part)
    if found is None or found[1] == "0":
        raise UsageError(
            f"{text!r} does not describe hosts.",
            why="a description is a count, a chip and its memory, then a link",
            do=f"for example: {EXAMPLE}",
        )
    chip = macs.chip(found[2])
    sizes = sorted(chip.bandwidth)
    listed = " or ".join(f"{size}GB" for size in sizes)
    if found[3] is None and len(sizes) > 1:
        raise UsageError(
            f"{chip.name} comes with different memory.",
            why=f"it was sold with {listed}",
            do=f'say which: "{chip.name} {sizes[-1]}GB"',
        )
    size = int(found[3] or sizes[0])
    if size not in chip.bandwidth:
        raise UsageError(
            f"There is no {chip.name} with {size}GB.",
            why=f"it was sold with {listed} ({chip.source}, technical specifications)",
            do=f'for example: "{chip.name} {min(sizes, key=lambda each: abs(each - size))}GB"',
        )
    host = PlannedHost(
        f"{chip.name} {size}GB", size * GIB, chip.bandwidth[size] * 1e9, chip.prefill
    )
    return int(found[1] or 1), chip, host


def _chip_name(host: PlannedHost) -> str:
    return host.name.rpartition(" ")[0]


def _choose_link(chips: list[Chip]) -> tuple[Link, str]:
    """The fastest link that these Macs can have, and the reason."""
    old = [chip.name for chip in chips if chip.thunderbolt < THUNDERBOLT_5]
    if old:
        return macs.LINKS[
            "thunderbolt"
        ], f"{old[0]} has Thunderbolt {macs.CHIPS[old[0]].thunderbolt}, no RDMA"
    few = min(chips, key=lambda chip: chip.ports)
    if len(chips) - 1 > few.ports or len(chips) > MESH_MOST:
        return macs.LINKS["jaccl-ring"], f"{few.name} has {few.ports} ports, too few for a mesh"
    return macs.LINKS["mesh"], "all have Thunderbolt 5 and ports enough"


def _check_link(hosts: Hosts, link: Link) -> None:
    """Raise UsageError when these Macs cannot be linked so."""
    if link.backend not in ("jaccl", "jaccl-ring"):
        return
    for host in hosts.hosts:
        chip = macs.CHIPS.get(_chip_name(host))
        if chip is None:
            continue
        if chip.thunderbolt < THUNDERBOLT_5:
            raise UsageError(
                f"{chip.name} cannot be part of a {link.name}.",
                why=f"RDMA needs Thunderbolt 5, and {chip.name} has Thunderbolt {chip.thunderbolt}",
                do='use "ring" (TCP over Thunderbolt) or "ethernet"',
            )
        if link.shape == "mesh" and len(hosts) - 1 > chip.ports:
            raise UsageError(
                f"{len(hosts)} Macs with {chip.name} cannot be a mesh.",
                why=f"each needs a cable to {len(hosts) - 1} others, and has at most {chip.ports} "
                "ports",
                do='use "jaccl-ring", which needs two cables a Mac',
            )
    if link.shape == "mesh" and len(hosts) > MESH_MOST:
        raise UsageError(
            f"{len(hosts)} Macs cannot be a mesh.",
            why=f"MLX's mesh has at most {MESH_MOST} ranks",
            do='use "jaccl-ring"',
        )


def _local(ranks: int) -> Hosts:
    """Ranks of this machine, which share its memory."""
    if not 1 <= ranks <= MOST_RANKS:
        raise UsageError(
            f"A plan needs 1 to {MOST_RANKS} ranks, not {ranks}.",
            why="the number counts the ranks on this machine",
            do=f"give another number, or name Macs: {EXAMPLE}",
        )
    # Only macOS keeps a part of the memory from the GPU.
    share = None if sys.platform == "darwin" else 1.0
    each = psutil.virtual_memory().total // ranks
    name = "this machine" if ranks == 1 else f"1/{ranks} of this machine"
    return Hosts((PlannedHost(name, each, share=share),) * ranks)


def _of_hostfile(hostfile: Hostfile, macs_are: str | None) -> Hosts:
    if macs_are is None and hostfile.is_local:
        return _local(len(hostfile))
    backend = hostfile.backend
    if not backend:
        backend = "jaccl" if all(host.rdma for host in hostfile.hosts) else "ring"
    names = {"jaccl": "mesh", "jaccl-ring": "jaccl-ring", "ring": "thunderbolt"}
    if len(hostfile) > 1 and backend not in names:
        raise UsageError(
            f"A plan cannot be made for the backend {backend!r}.",
            why=f"the planner knows the links of {', '.join(names)}",
            do=f"describe the hosts: {EXAMPLE}",
        )
    link = macs.LINKS[names[backend]] if len(hostfile) > 1 else None
    # MLX's own default is the slow fence, and the hostfile decides.
    fast = hostfile.environment().get("MLX_METAL_FAST_SYNCH") == "1"
    if macs_are is None:
        hosts = tuple(PlannedHost(host.ssh) for host in hostfile.hosts)
        return Hosts(hosts, link, f"backend {backend} of the hostfile", fast)
    named = _of_text(macs_are.split(",")[0])
    if len(named) != len(hostfile):
        raise UsageError(
            f"macs_are={macs_are!r} names {len(named)} Macs, and the hostfile {len(hostfile)}.",
            why="there is one entry in the hostfile for each rank",
            do=f'name all of them, in rank order: macs_are="{len(hostfile)} x M3 Ultra 512GB"',
        )
    found = Hosts(named.hosts, link, f"backend {backend} of the hostfile", fast)
    if link is not None:
        _check_link(found, link)
    return found
