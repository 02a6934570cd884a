"""Macs that nobody has: their wiring, and what `measure` would find on it."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import attrs
import numpy as np

from ..errors import UsageError
from ..measure.cost import RDMA, SMALL, bus_factor
from ..measure.fit import Fit, fit
from ..measure.record import OPS, MeasuredRank, Measurement, Pair, Point, Sweep, SweepPoint
from ..measure.samples import Rate, Timing
from ..plan import hosts as planned
from ..plan import macs
from ..plan.hosts import Hosts, PlannedHost
from ..plan.macs import Chip, Link
from ..topology.order import EXACT, best_ring
from ..topology.topology import Kind, Node, Topology
from ..topology.topology import Link as Cable
from . import traffic
from .network import Network, Shape
from .traffic import Traffic

EXAMPLE = '"4 x M3 Ultra 512GB, mesh"'
MOST_HOSTS = 8192
FIRST_PORT = 3  # macOS counts Thunderbolt's ports from here: en3
MANY = 64  # hosts; of more, only the cables of the ring are listed
ALL_PAIRS = 16  # ranks; with more on a switch, only neighbours on the ring are measured
DRAWN = 28  # pairs; of more, equal ones share their figures
SIZES = tuple(4 << power for power in range(0, 27, 2))  # 4 B to 256 MiB
LATENCY_SIZE = 8  # bytes
STREAM_SIZE = 64 << 20  # bytes of the transfers that a rate is made of
RUNS = 100  # draws for each figure
MULTI_WIRE = 512 * 1024  # bytes; jaccl's mesh splits larger messages over all cables of a pair
RING_CABLES = 4  # RING_MAX_CONNS of jaccl

# One machine: mlx 0.32.4's ring on loopback, on 2 cores.
LOOPBACK = Link(
    "loopback", "ring", "ring", 160e-6, 160e-6, 1.5e9,
    "send and recv of mlx 0.32.4 on a Linux machine of 2 cores: 75-230 us, 1.4-1.6 GB/s from 1 MiB",
    (0.6, 1.5),
)  # fmt: skip

_KINDS: dict[str, Kind] = {
    "mesh": "rdma",
    "jaccl-ring": "rdma",
    "thunderbolt": "thunderbolt",
    "10gbe": "ethernet",
    "1gbe": "ethernet",
    "loopback": "loopback",
}
_ETHERNET = {"10gbe": 10e9, "1gbe": 1e9}  # bits/s
_THUNDERBOLT = {3: 40e9, 4: 40e9, 5: 80e9}  # bits/s of a cable, in each direction
# Of that, what TCP reaches over Thunderbolt 5: the planner's 5.5 GB/s. A ring of Thunderbolt 4
# carried 48 Gb/s in both directions together (mlx#1985): 0.6 of the rate in each.
TCP_SHARE = macs.LINKS["thunderbolt"].bandwidth / (_THUNDERBOLT[5] / 8)

_COUNTED = re.compile(r"(?:(\d+)\s*[x×*]\s*)?(.+)", re.IGNORECASE)
_MEMORY = re.compile(r".*\s\d+\s*(?:gb|gib|g)", re.IGNORECASE)
_GENERATION = re.compile(r"(?:tb|thunderbolt)\s*([345])", re.IGNORECASE)
_CABLES = re.compile(r"(\d+)\s+cables?", re.IGNORECASE)


@attrs.frozen(eq=False, repr=False)
class Simulation:
    """Hosts, their network, and what the collectives of MLX do on it. `simulate` makes it.

    `reason` says why this link and this memory, `changes` what was made worse since. All that it
    returns is labelled as simulated.
    """

    description: str
    hosts: Hosts
    link: Link
    network: Network
    reason: str = ""
    seed: int = 0
    changes: tuple[str, ...] = ()

    @classmethod
    def of_fit(
        cls, line: Fit, ranks: int, shape: Shape = "ring", *, backend: str = "ring", seed: int = 0
    ) -> Simulation:
        """Of ranks whose links are all like the one that was measured.

        Args:
            line: of the way between two of them.
            ranks: how many.
            shape: "mesh", "ring", or "switch" when each has one cable for all traffic.
            backend: of MLX, which chooses the algorithms: "jaccl", "jaccl-ring" or "ring".
            seed: of the spread of the figures.
        """
        low, high = line.latency_range
        spread = (low / line.latency, high / line.latency) if line.latency > 0 and high else (1, 1)
        form: Literal["mesh", "ring"] = "mesh" if backend == "jaccl" else "ring"
        link = Link(
            "measured", backend, form, line.latency, line.latency, line.bandwidth, line.verdict,
            spread,
        )  # fmt: skip
        hosts = Hosts(tuple(PlannedHost(f"rank {rank}") for rank in range(ranks)), link)
        words = f"{ranks} ranks, {shape}, links as measured"
        return cls(
            words, hosts, link, Network.of_fit(line, ranks, shape), "links as measured", seed
        )

    @property
    def size(self) -> int:
        """The number of hosts."""
        return len(self.hosts)

    @property
    def names(self) -> tuple[str, ...]:
        """What the hosts are called: "m3-ultra-1", "m3-ultra-2"."""
        if self.link.name == "loopback":
            return ("localhost",) * self.size
        if self.link.name == "measured":
            return tuple(host.name for host in self.hosts.hosts)
        counted: dict[str, int] = {}
        names = []
        for host in self.hosts.hosts:
            word = _chip(host).name.lower().replace(" ", "-")
            counted[word] = counted.get(word, 0) + 1
            names.append(f"{word}-{counted[word]}")
        return tuple(names)

    def __repr__(self) -> str:
        lines = [
            f"{self.text}: simulated, nothing of it was measured.",
        ]
        figures = f"{1e6 * self.link.latency:.0f} us, {self._bandwidth_text} a cable"
        lines.append(f"{self.link.name}: {figures} ({self.link.source}).")
        if self.reason:
            lines.append(f"{self.reason[:1].upper()}{self.reason[1:]}.")
        return "\n".join(lines)

    @property
    def _bandwidth_text(self) -> str:
        """That of the cables there are, in GB/s: of the slowest to the fastest one."""
        there = self.network.bandwidth[self.network.bandwidth > 0]
        ends = [f"{each / 1e9:.3g}" for each in (there.min(), there.max())] if len(there) else ["0"]
        return f"{' to '.join(dict.fromkeys(ends))} GB/s"

    @property
    def text(self) -> str:
        """The hosts, and what was made worse."""
        return "; ".join([self.description, *self.changes])

    @property
    def backend(self) -> str:
        """The backend of MLX: jaccl with a cable too few is jaccl-ring, if the rest is a ring."""
        meant = self.link.backend
        return "jaccl-ring" if meant == "jaccl" and self._shape() == "ring" else meant

    # -- faults ------------------------------------------------------------------------------------

    def slow(
        self, a: int, b: int | None = None, *, latency: float = 0.0, bandwidth_factor: float = 1.0
    ) -> Simulation:
        """The same with a faulty cable between two hosts, in both directions.

        Args:
            a: a host.
            b: the other one; None for the cable from `a` to the switch.
            latency: seconds that each message takes longer there, 0 or more.
            bandwidth_factor: the part of the bandwidth that is left, more than 0 and at most 1.

        Raises:
            UsageError: when there is no such cable, or it would not be slower.
        """
        network = self.network.slow(a, b, latency=latency, bandwidth_factor=bandwidth_factor)
        changed = [f"{1e6 * latency:g} us slower"] if latency else []
        changed += [f"{bandwidth_factor:g} of its bandwidth"] if bandwidth_factor != 1 else []
        words = f"{_between(a, b)} {', '.join(changed) or 'unchanged'}"
        return attrs.evolve(self, network=network, changes=(*self.changes, words))

    def without(self, a: int, b: int | None = None) -> Simulation:
        """The same with a cable missing. Raises UsageError when there is none."""
        words = f"{_between(a, b)} missing"
        return attrs.evolve(
            self, network=self.network.without(a, b), changes=(*self.changes, words)
        )

    # -- the wiring --------------------------------------------------------------------------------

    def topology(self) -> Topology:
        """The hosts, and the links between them with what would be measured on them.

        Of more than 64 hosts only neighbours on the ring are listed, also where a switch links all.
        """
        own: dict[tuple[int, int], Pair] = {}
        plain: dict[tuple[int, int], Pair] = {}
        for each in self._pairs(SIZES):
            (plain if (each.a, each.b) in own else own)[each.a, each.b] = each
        links = [
            Cable(
                a,
                b,
                _KINDS.get(self.link.name, "unknown"),
                self._ports(a, b),
                self._rate(a, b),
                own.get((a, b)),
                "simulated",
                plain=plain.get((a, b)),
            )
            for a, b in self._linked()
        ]
        free = self._free(links)
        nodes = [
            Node(rank, name, self._model(host), host.memory, state="ok", free=free[rank])
            for rank, (name, host) in enumerate(zip(self.names, self.hosts.hosts, strict=True))
        ]
        return Topology(tuple(nodes), tuple(links), self.backend, self.text)

    def _free(self, links: Iterable[Cable]) -> list[tuple[str, ...] | None]:
        """Of each host the ports without a cable; None where there is no Thunderbolt."""
        if _KINDS.get(self.link.name) not in ("rdma", "thunderbolt"):
            return [None] * self.size
        used: list[set[str]] = [set() for _ in range(self.size)]
        for link in links:
            for at_a, at_b in link.ports:
                used[link.a].add(at_a)
                used[link.b].add(at_b)
        return [
            tuple(
                port
                for number in range(_chip(host).ports)
                if (port := f"en{FIRST_PORT + number}") not in taken
            )
            for host, taken in zip(self.hosts.hosts, used, strict=True)
        ]

    def _linked(self) -> list[tuple[int, int]]:
        """The pairs of hosts with a cable, or a switch between them."""
        if self.network.shape == "ring" or self.size > MANY:
            found = _neighbours(self.size)
        else:
            found = [(a, b) for a in range(self.size) for b in range(a + 1, self.size)]
        return [(a, b) for a, b in found if self.network.has(a, b)]

    def _ports(self, a: int, b: int) -> tuple[tuple[str, str], ...]:
        """Names such as macOS gives, in the order in which the hosts are."""
        if self.link.name == "measured":
            return ()
        if self.link.name == "loopback":
            return (("lo0", "lo0"),)
        if self.network.shape == "switch":
            return (("en0", "en0"),)
        n, count = self.size, self.network.cables

        def first(host: int, other: int) -> int:
            if self.network.shape == "mesh":
                return FIRST_PORT + (other - (other > host)) * count
            # Two hosts are linked by one set of cables, more by one to each side.
            return FIRST_PORT + (count if n > 2 and (other - host) % n != 1 else 0)

        return tuple((f"en{first(a, b) + k}", f"en{first(b, a) + k}") for k in range(count))

    def _rate(self, a: int, b: int) -> float | None:
        """Bits/s that the hardware would report, of all cables together."""
        if self.link.name in _ETHERNET:
            return _ETHERNET[self.link.name]
        if self.link.name in ("loopback", "measured"):
            return None
        generation = min(_chip(self.hosts.hosts[each]).thunderbolt for each in (a, b))
        return self.network.cables * _THUNDERBOLT[generation]

    def _model(self, host: PlannedHost) -> str:
        if self.link.name in ("loopback", "measured"):
            return ""
        chip = _chip(host)
        return f"{chip.source.partition(' (')[0]}, Apple {chip.name}"

    # -- what would be measured --------------------------------------------------------------------

    def time(self, op: str, size: float) -> float:
        """Seconds of one collective of `size` bytes, without any spread.

        Args:
            op: all_sum, all_gather, sendrecv or barrier.
            size: bytes as nccl-tests counts them: of the whole result for all_gather.

        Raises:
            UsageError: for another op, a negative size, or when a cable is missing without which
                MLX has no world.
        """
        if not 0 <= size < math.inf:
            raise UsageError(
                f"A collective of {size} bytes cannot be simulated.",
                why="a size is 0 bytes or more",
                do='for example: simulation.time("all_sum", 1 << 20)',
            )
        return self._program(op, size)[1](size).run().seconds

    def measure(self, sizes: Sequence[int] | None = None) -> Measurement:
        """What `macluster.measure` would find, all of it simulated.

        The times spread between the best and the worst that was published for this kind of link.
        Which draws they are follows from the seed.

        Args:
            sizes: bytes of curves and collectives, 1 or more; None for 4 B to 256 MiB.

        Raises:
            UsageError: for no sizes or one that is no number of bytes, or when a cable is missing
                without which MLX has no world.
        """
        self._form()  # no use in measuring when there would be no world
        chosen = SIZES if sizes is None else _sizes(sizes)
        pairs = tuple(self._pairs(chosen))
        sweeps = tuple(self._sweep(op, chosen) for op in OPS)
        notes = [f"Simulated from {self.link.name}: {self.link.source}."]
        if self._is_old:
            notes.append(f"{OLD_CABLES[:1].upper()}{OLD_CABLES[1:]}.")
        if len(pairs) > DRAWN:
            notes.append(f"{len(pairs):,} pairs: equal ones share their figures.")
        chips = [self._device(host) for host in self.hosts.hosts]
        return Measurement(
            self.backend,
            tuple(MeasuredRank(*each) for each in zip(self.names, chips, strict=True)),
            pairs,
            sweeps,
            simulated=self.text,
            notes=tuple(notes),
        )

    def _device(self, host: PlannedHost) -> str:
        named = self.link.name not in ("loopback", "measured")
        return f"Apple {_chip(host).name}" if named else ""

    @property
    def _is_old(self) -> bool:
        """Whether there is TCP over Thunderbolt 4."""
        return self.link.name == "thunderbolt" and _old(self.hosts)

    def _form(self) -> Literal["mesh", "ring"]:
        """What MLX makes of the cables: see `_shape`. Raises UsageError when that is no world."""
        form = self._shape()
        if form is not None:
            return form
        a, b = next(pair for pair in _neighbours(self.size) if not self.network.has(*pair))
        why = "MLX needs a cable between all pairs, or a ring in the order of the ranks"
        do = "plug it in"
        if (order := self._ring()) is not None:
            listed = ", ".join(map(str, order))
            why += f"; these cables are a ring in the order {listed}"
            do += f", or write the hosts into the hostfile in the order {listed}"
        raise UsageError(
            f"There is no world without the cable between hosts {a} and {b}.",
            why=why,
            do=f"{do}; .topology() shows what is there",
        )

    def _shape(self) -> Literal["mesh", "ring"] | None:
        """A mesh if the cables are one, else a ring in rank order, None if they are neither."""
        n, has = self.size, self.network.has
        # A mesh of few hosts, at most as many as have ports for it.
        if self.link.shape == "mesh" and all(
            has(a, b) for a in range(n) for b in range(n) if a != b
        ):
            return "mesh"
        return "ring" if all(has(a, b) for a, b in _neighbours(n)) else None

    def _ring(self) -> tuple[int, ...] | None:
        """The order of the hosts in which the cables are a ring, as far as all are tried."""
        if self.size > EXACT:
            return None
        graph = np.zeros((self.size, self.size))
        for a, b in self._linked():
            graph[a, b] = graph[b, a] = 1.0
        return best_ring(graph).order

    def _program(self, op: str, size: float) -> tuple[str, Callable[[float], Traffic]]:
        """The algorithm that MLX takes for this size, by a name, and what makes it."""
        net, form = self.network, self._form()
        rdma = self.link.backend in RDMA
        large = size > SMALL
        if form == "mesh":
            cables = None if size >= MULTI_WIRE else 1
        else:
            cables = None if large or not rdma else 1
        # The TCP ring goes both ways, too; 5.5 GB/s are about what both reach together (mlx#1985).
        # Thunderbolt 4 has half of that for each.
        directions = 2 if (rdma or self._is_old) and large else 1
        name = f"{op} {form} {cables} {directions}"
        if op == "sendrecv":
            return name, lambda size: traffic.send_receive(net, size, cables=cables)
        if op == "all_gather":
            if form == "mesh":
                return name, lambda size: traffic.mesh_all_gather(net, size, cables=cables)
            return name, lambda size: traffic.ring_all_gather(
                net, size, directions=directions, cables=cables
            )
        if op not in ("all_sum", "barrier"):
            raise UsageError(
                f"There is no collective {op!r} to simulate.",
                why=f"the simulator knows {', '.join(OPS)}",
                do='for example: simulation.time("all_sum", 1 << 20)',
            )
        # MLX has no barrier: a sum of one number is.
        if form == "ring":
            return name, lambda size: traffic.ring_all_sum(
                net, size, directions=directions, cables=cables
            )
        if self.size > 2 and large:
            return f"{name} shared", lambda size: traffic.mesh_two_shot(net, size, cables=cables)
        return name, lambda size: traffic.mesh_one_shot(net, size, cables=cables)

    def _sweep(self, op: str, sizes: Sequence[int]) -> Sweep:
        random = np.random.default_rng([self.seed, 1, OPS.index(op)])
        quiet: dict[str, float] = {}  # seconds of a program that carries no bytes
        points = []
        samples = []
        for size in (4,) if op == "barrier" else sizes:
            name, program = self._program(op, size)
            if name not in quiet:
                quiet[name] = program(0).run().seconds
            seconds = self._draw(random, quiet[name], program(size).run().seconds)
            time = Timing.of(seconds)
            rate = 0.0 if op == "barrier" else size / time.p50
            busbw = rate * bus_factor(op, self.size)
            points.append(SweepPoint(size, time, rate, busbw, 0))
            samples.append(seconds)
        line = fit([each.size for each in points], [each.time.p50 for each in points], samples)
        return Sweep(op, self.size, tuple(points), line)

    def _ways(self) -> list[tuple[int, int, str]]:
        """The pairs to measure, and what carries their bytes: MLX's own before a plain socket."""
        linked = self._linked()
        backend = self.backend
        if backend == "jaccl" and self._shape() == "mesh":
            return [(a, b, backend) for a, b in linked]
        # On a ring, MLX sends to neighbours only.
        near = set(_neighbours(self.size))
        found = [(a, b, backend) for a, b in linked if (a, b) in near]
        if self.network.shape == "switch" and self.size <= ALL_PAIRS:
            found += [(a, b, "tcp") for a, b in linked]
        return sorted(found)

    def _pairs(self, sizes: Sequence[int]) -> Iterator[Pair]:
        ways = self._ways()
        shared: dict[tuple[float, ...], Pair] = {}
        for a, b, via in ways:
            key = self._key(a, b) if len(ways) > DRAWN else (float(a), float(b))
            if key not in shared:
                shared[key] = self._pair(a, b, via, sizes)
            yield attrs.evolve(shared[key], a=a, b=b, via=via)

    def _key(self, a: int, b: int) -> tuple[float, ...]:
        """What the figures of a pair follow from."""
        net = self.network
        wires = np.concatenate([np.concatenate(net.wires(*way)) for way in ((a, b), (b, a))])
        used = wires[wires >= 0]
        return (*net.latency[used].tolist(), *net.bandwidth[used].tolist())

    def _pair(self, a: int, b: int, via: str, sizes: Sequence[int]) -> Pair:
        random = np.random.default_rng([self.seed, 2, a, b])
        quiet = [self._one_way(way, 0) for way in ((a, b), (b, a))]

        def there_and_back(size: int) -> list[float]:
            whole = [self._one_way(way, size) for way in ((a, b), (b, a))]
            return self._draw(random, sum(quiet) / 2, sum(whole) / 2)

        latency = there_and_back(LATENCY_SIZE)
        samples = [there_and_back(size) for size in sizes]
        curve = [
            Point(size, Timing.of(seconds)) for size, seconds in zip(sizes, samples, strict=True)
        ]
        rates = [
            Rate.of(STREAM_SIZE, self._draw(random, quiet[place], self._one_way(way, STREAM_SIZE)))
            for place, way in enumerate(((a, b), (b, a)))
        ]
        others = self._others(a, b)
        crowded = None
        if others:
            flow = traffic.sends(self.network, [(a, b), *others], STREAM_SIZE).run()
            seconds = self._draw(random, quiet[0], float(flow.finished[b]))
            crowded = Rate.of(STREAM_SIZE, seconds)
        line = fit(sizes, [point.time.p50 for point in curve], samples)
        return Pair(a, b, via, Timing.of(latency), rates[0], rates[1], crowded, tuple(curve), line)

    def _one_way(self, way: tuple[int, int], size: float) -> float:
        if self.link.shape == "mesh":
            cables = None if size >= MULTI_WIRE else 1
        else:
            cables = None if size > SMALL else 1
        return traffic.sends(self.network, [way], size, cables=cables).run().seconds

    def _others(self, a: int, b: int) -> list[tuple[int, int]]:
        """Pairs of the other hosts that send at the same time: no host is in two."""
        rest = [host for host in range(self.size) if host not in (a, b)]
        found = []
        while len(rest) > 1:
            one = rest.pop(0)
            other = next((each for each in rest if self.network.has(one, each)), None)
            if other is not None:
                rest.remove(other)
                found.append((one, other))
        return found

    def _draw(self, random: np.random.Generator, quiet: float, whole: float) -> list[float]:
        """Times around `whole`, of which the `quiet` seconds are latency, and spread as published.

        Half of them are faster. The best and the worst are two standard deviations away.
        """
        best, worst = self.link.spread
        far = random.standard_normal(RUNS) / 2
        factor = 1 + np.where(
            far < 0, np.maximum(far, -1) * (1 - best), np.minimum(far, 1) * (worst - 1)
        )
        return [float(each) for each in whole + quiet * (factor - 1)]


# -- what a description means ----------------------------------------------------------------------


def simulate(description: str | int, *, seed: int = 0) -> Simulation:
    """Hosts that need not exist, to look at and to measure.

    Args:
        description: as for the planner, "4 x M3 Ultra 512GB, mesh", with up to 8,192 hosts. Without
            its memory a chip has the most that it was sold with. The link is mesh, jaccl-ring, ring
            (TCP over Thunderbolt), 10gbe (or ethernet), or 1gbe. "TB5" says that the cables are
            Thunderbolt 5, "2 cables" how many lie side by side. A number means ranks on one
            machine, over loopback.
        seed: of the spread of the figures.

    Raises:
        UsageError: for an unknown chip or link, one that these Macs cannot have, a single host, or
            too many.
    """
    if isinstance(description, bool) or not isinstance(description, (int, str)):
        raise UsageError(
            f"{description!r} does not describe hosts.",
            why="a description is a text, or a whole number of ranks on this machine",
            do=f"for example: {EXAMPLE}",
        )
    # Not isdigit, which is true of a raised 2.
    if isinstance(description, int) or description.strip().isdecimal():
        count = int(description)
        if count < 2:
            raise _few_hosts(str(description), count)
        if count > planned.MOST_RANKS:
            raise UsageError(
                f"{count:,} ranks on one machine are more than can be simulated, "
                f"{planned.MOST_RANKS}.",
                why="a number means ranks on one machine, which share its cores",
                do=f'describe Macs for more: "{min(count, MOST_HOSTS)} x M3 Ultra, jaccl-ring"',
            )
        local = planned.parse(count)
        network = Network.of_link(LOOPBACK, count, "ring")
        words = f"{count} ranks on one machine"
        return Simulation(words, local, LOOPBACK, network, "a number means ranks here", seed)
    first, *options = [part.strip() for part in description.split(",")]
    cables, generation, rest = 1, None, []
    for option in filter(None, options):
        if found := _CABLES.fullmatch(option):
            cables = int(found[1])
        elif found := _GENERATION.fullmatch(option):
            generation = int(found[1])
        else:
            rest.append(option)
    parts, reasons = _parts(first, description)
    hosts = _hosts(parts, rest, description)
    if hosts.link is None:
        raise _few_hosts(description, 1)
    link = hosts.link
    _check_cables(hosts, link, cables, generation, description)
    shape: Shape = "switch" if link.name in _ETHERNET else link.shape
    network = Network.of_link(link, len(hosts), shape, cables=cables)
    if link.name == "thunderbolt" and _old(hosts):
        network = _within_rate(network, hosts)
        reasons.append(OLD_CABLES)
    reason = "; ".join([f"{link.name}, {hosts.reason}", *reasons])
    words = str(hosts) if cables == 1 else f"{hosts}, {cables} cables"
    return Simulation(words, hosts, link, network, reason, seed)


def _parts(first: str, text: str) -> tuple[list[tuple[int, str]], list[str]]:
    """How many of what, each with its memory; and what was assumed."""
    parts, reasons = [], []
    for part in first.split("+"):
        found = _COUNTED.fullmatch(part.strip())
        if found is None:
            raise UsageError(
                f"{text!r} does not describe hosts.",
                why="a description is a count and a chip, then a link",
                do=f"for example: {EXAMPLE}",
            )
        body = found[2]
        _check_comma(body, text)
        if not _MEMORY.fullmatch(body):
            chip = macs.chip(body)
            most = max(chip.bandwidth)
            if len(chip.bandwidth) > 1:
                reasons.append(f"{chip.name} with {most}GB, the most it was sold with")
            body = f"{chip.name} {most}GB"
        parts.append((int(found[1] or 1), body))
    return parts, reasons


def _check_comma(body: str, text: str) -> None:
    """Raise UsageError for "M3 Ultra mesh", which lacks a comma before its link."""

    def option(words: str) -> bool:
        if _GENERATION.fullmatch(words) or _CABLES.fullmatch(words):
            return True
        with contextlib.suppress(UsageError):
            macs.link(words)
            return True
        return False

    words = body.split()
    # One word, such as "mesh", or two, such as "2 cables".
    for count in range(1, min(3, len(words))):
        last = " ".join(words[-count:])
        if option(last):
            raise UsageError(
                f"{text!r} lacks a comma before {last!r}.",
                why="the hosts end, and what links them begins, at a comma",
                do=f'write "{" ".join(words[:-count])}, {last}"',
            )


def _hosts(parts: list[tuple[int, str]], options: list[str], text: str) -> Hosts:
    """As the planner reads it, which counts to 64 only."""
    total = sum(count for count, _ in parts)
    if total > MOST_HOSTS:
        raise UsageError(
            f"{total:,} hosts are more than can be simulated, {MOST_HOSTS:,}.",
            why="a sum on a ring of n takes 2 n (n - 1) messages",
            do=f"give fewer: {EXAMPLE}",
        )

    def parsed(counts: Sequence[int]) -> Hosts:
        words = " + ".join(
            f"{count} x {body}" for count, (_, body) in zip(counts, parts, strict=True)
        )
        return planned.parse(", ".join([words, *options]))

    if total <= planned.MOST_RANKS:
        return parsed([count for count, _ in parts])
    few = parsed([2] * len(parts))
    listed = tuple(
        host for host, (count, _) in zip(few.hosts[::2], parts, strict=True) for _ in range(count)
    )
    link, reason = few.link, few.reason
    if link is not None and link.shape == "mesh":
        if reason == "as asked for":
            raise UsageError(
                f"{total:,} Macs cannot be a mesh.",
                why=f"MLX's mesh has at most {planned.MESH_MOST} ranks; each pair needs a cable",
                do='use "jaccl-ring"',
            )
        link, reason = macs.LINKS["jaccl-ring"], f"more than {planned.MESH_MOST} are no mesh"
    return attrs.evolve(few, hosts=listed, link=link, reason=reason)


def _check_cables(hosts: Hosts, link: Link, cables: int, generation: int | None, text: str) -> None:
    if generation is not None and link.name in _ETHERNET:
        raise UsageError(
            f"{text!r} asks for Thunderbolt {generation} and for Ethernet.",
            why=f"{link.name} is TCP over Ethernet, which uses no Thunderbolt cable",
            do=f'leave one of them out; "..., ring, TB{generation}" is TCP over Thunderbolt',
        )
    chips = {_chip(host).name: _chip(host) for host in hosts.hosts}
    for chip in chips.values():
        if generation is not None and chip.thunderbolt != generation:
            raise UsageError(
                f"{chip.name} has no Thunderbolt {generation}.",
                why=f"it has Thunderbolt {chip.thunderbolt}",
                do=f'leave "TB{generation}" out',
            )
    if cables == 1:
        return
    n = len(hosts)
    neighbours = n - 1 if link.shape == "mesh" else min(2, n - 1)
    few = min(chips.values(), key=lambda chip: chip.ports)
    most = few.ports // neighbours
    why = f"{few.name} has {few.ports} ports, and {neighbours} others to reach"
    if link.name in _ETHERNET:
        most, why = 1, "each has one cable to the switch"
    elif link.name == "jaccl-ring" and most > RING_CABLES:
        most, why = RING_CABLES, f"jaccl uses at most {RING_CABLES} to each side"
    if not 1 <= cables <= most:
        raise UsageError(
            f"{text!r} cannot have {cables} cables side by side.",
            why=why,
            do=f'ask for {most}: "..., {most} cable{"s" if most > 1 else ""}"',
        )


OLD_CABLES = (
    f"a cable of Thunderbolt 4 is taken to carry {100 * TCP_SHARE:.0f} % of its 40 Gb/s each way, "
    "the share that TCP reaches on Thunderbolt 5"
)


def _old(hosts: Hosts) -> bool:
    return any(_chip(host).thunderbolt < macs.THUNDERBOLT_5 for host in hosts.hosts)


def _within_rate(network: Network, hosts: Hosts) -> Network:
    """No cable faster than what TCP makes of its hardware: of two ends, that of the older one."""
    rates = np.array([_THUNDERBOLT[_chip(host).thunderbolt] / 8 for host in hosts.hosts])
    bandwidth = network.bandwidth.copy()
    ranks = np.arange(len(hosts))
    after = (ranks + 1) % len(hosts)
    slowest = TCP_SHARE * np.minimum(rates[ranks], rates[after])[:, None]
    for a, b in ((ranks, after), (after, ranks)):
        wires = network.wires(a, b)[0]
        bandwidth[wires] = np.minimum(bandwidth[wires], slowest)
    return attrs.evolve(network, bandwidth=bandwidth)


def _sizes(asked: object) -> tuple[int, ...]:
    found = list(asked) if isinstance(asked, Iterable) else []
    if not found or not all(isinstance(size, (int, np.integer)) and size >= 1 for size in found):
        raise UsageError(
            f"measure(sizes={asked!r}) makes no sense.",
            why="sizes are whole numbers of bytes, 1 or more",
            do="for example: measure([64, 1 << 20]); measure() takes 4 B to 256 MiB",
        )
    return tuple(sorted({int(size) for size in found}))


def _chip(host: PlannedHost) -> Chip:
    return macs.CHIPS[host.name.rpartition(" ")[0]]


def _neighbours(size: int) -> list[tuple[int, int]]:
    """The pairs of a ring, the lower number first."""
    pairs = {(min(a, b), max(a, b)) for a, b in ((r, (r + 1) % size) for r in range(size))}
    return sorted(pairs)


def _between(a: int, b: int | None) -> str:
    return f"cable of host {a}" if b is None else f"cable {a}-{b}"


def _few_hosts(text: str, count: int) -> UsageError:
    return UsageError(
        f"{text!r} describes a single host, which has no links."
        if count == 1
        else f"{text!r} describes no hosts.",
        why="links lie between two hosts or more",
        do=f"for example: {EXAMPLE}",
    )
