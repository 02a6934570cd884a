"""`%topology` and `%measure`: see the wires, and trust the numbers."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, line_magic, magics_class

from ..engine.errors import UsageError
from ..engine.measure.record import LEAST, OPS, QUICK, QUICK_HELP, Measurement
from .arguments import Arguments
from .quiet import told
from .session import Session

if TYPE_CHECKING:
    from ..engine.topology.topology import Topology
    from ..engine.world import World
    from ..widgets.measure import MeasureView
    from ..widgets.topology import TopologyView

MOST_HOSTS = 1024  # whose pairs are drawn: a million cells take 20 seconds
PERIOD = 1.0  # seconds between two looks at the ranks
CABLES = 30.0  # seconds between two looks at the cables, for which a Mac runs programs
POWERS = {"": 0, "k": 1, "m": 2, "g": 3}


def _size(text: str) -> int:
    """ "64MiB", "64M" or "67108864" in bytes."""
    found = re.fullmatch(r"([0-9]+)\s*([kmg]?)(i?b)?", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text} is not a size like 64MiB")
    # "64M" is taken for 64 MiB: the sizes of a sweep are powers of two.
    base = 1000 if found[3] == "b" else 1024
    size = int(found[1]) * int(base ** POWERS[found[2]])
    if size < LEAST:
        raise argparse.ArgumentTypeError(
            f"{text} is too small: the smallest collective has {LEAST} B"
        )
    return size


def _ops(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in OPS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(OPS)}")
    return list(dict.fromkeys(names))


HOSTS = 'Macs to simulate, such as "4 x M3 Ultra, mesh"; without it, the ranks of this notebook'
TOPOLOGY = Arguments("%topology", "The ranks, what they run on, and the links between them.")
TOPOLOGY.add_argument("hosts", nargs="?", metavar="HOSTS", help=HOSTS)
TOPOLOGY.add_argument(
    "--measured", metavar="FILE", help="colour the links by what %%measure --save FILE wrote"
)
MEASURE = Arguments("%measure", "Latency and bandwidth of the links, and of the collectives.")
MEASURE.add_argument("hosts", nargs="?", metavar="HOSTS", help=HOSTS)
MEASURE.add_argument(
    "--links", choices=("all", "neighbours", "none"),
    help="pairs of ranks to measure (default: all of up to 16 ranks)",
)  # fmt: skip
MEASURE.add_argument(
    "--ops", type=_ops, metavar="OP,...", help=f"of {', '.join(OPS)} (default: all)"
)
MEASURE.add_argument(
    "--most", type=_size, metavar="SIZE", help="of the largest collective (default: 256MiB)"
)
MEASURE.add_argument("--quick", action="store_true", help=QUICK_HELP)
MEASURE.add_argument("--save", metavar="FILE", help="keep it as JSON")
MEASURE.add_argument("--load", metavar="FILE", help="show what was saved, and measure nothing")
MEASURE.add_argument(
    "--against", metavar="FILE", help="say what has changed since that one was saved"
)


@magics_class
class WireMagics(Magics):
    """The wires between the ranks."""

    def __init__(self, shell: Any, session: Session) -> None:
        super().__init__(shell)
        self.session = session
        # The newest that knows links, with the world that it is of.
        self._measured: tuple[World, Measurement] | None = None

    @line_magic
    def topology(self, line: str) -> TopologyView:

        from ..widgets.topology import TopologyView

        options = TOPOLOGY.read(line)
        if options.hosts is not None:
            if options.measured is not None:
                TOPOLOGY.error("--measured is of ranks that exist, and HOSTS are simulated")
            from ..engine.simulate.simulation import simulate

            return TopologyView(simulate(options.hosts).topology())
        world = self.session.world
        measured = None
        if options.measured is not None:
            measured = Measurement.load(options.measured)
            _check_of(measured, world)
        view = TopologyView(world.topology(measured or self._of(world)))

        def look() -> Topology:
            if world.cluster.world is not world or world.client.lost is not None:
                view.stop()
            # What is measured meanwhile colours this view, too.
            return world.topology(measured or self._of(world), age=CABLES)

        view.live(look, PERIOD)
        return view

    topology.__doc__ = (
        "Who is linked to whom, by what, and how fast that is, as far as `%measure` has found "
        "out.\n\nThe picture follows the ranks: memory, busy, dead.\n\n" + TOPOLOGY.format_help()
    )

    @line_magic
    def measure(self, line: str) -> MeasureView:
        options = MEASURE.read(line)
        # What cannot work is said before minutes are spent on it.
        before = self._baseline(options)
        if options.save is not None:
            _check_writable(options.save)
        found, topology = self._found(options)
        if options.save is not None:
            found.save(options.save)
        if before is not None:
            _say_changes(found, before, topology)
        return measure_view(found, topology)

    measure.__doc__ = (
        "Measure the wires: latency and bandwidth between any two ranks, and the collectives of "
        "all.\n\nIt takes from ten seconds to a few minutes, and Ctrl-C ends it on all ranks. "
        "What the ranks hold stays as it is.\n\n" + MEASURE.format_help()
    )

    def _baseline(self, options: argparse.Namespace) -> Measurement | None:
        """What to compare with. Raises UsageError when that cannot be compared."""
        from ..engine.measure.compare import check_comparable

        if options.against is None:
            return None
        if options.hosts is not None:
            MEASURE.error("--against compares what was measured, and HOSTS are simulated")
        before = Measurement.load(options.against)
        if options.load is not None:
            check_comparable(Measurement.load(options.load), before)
        else:
            _check_of(before, self.session.world)
        return before

    def _found(self, options: argparse.Namespace) -> tuple[Measurement, Topology | None]:
        """What to show, and the links that it is about."""
        chosen = [name for name in ("links", "ops", "most") if getattr(options, name) is not None]
        chosen += ["quick"] if options.quick else []
        if options.load is not None:
            if options.hosts is not None or chosen:
                MEASURE.error("--load measures nothing, so it stands without HOSTS and the rest")
            return Measurement.load(options.load), None
        if options.hosts is not None:
            if chosen:
                MEASURE.error(f"HOSTS are simulated whole: leave --{chosen[0]} out")
            from ..engine.simulate.simulation import simulate

            simulation = simulate(options.hosts)
            if simulation.size > MOST_HOSTS:
                raise UsageError(
                    f"The pairs of {simulation.size:,} hosts are not drawn, only up to "
                    f"{MOST_HOSTS:,}.",
                    why="the matrix has a cell for each pair of them",
                    do=f'macluster.simulate("{options.hosts}").measure() gives tables',
                )
            return simulation.measure(), simulation.topology()
        world = self.session.world
        facts = told(self.session, f"{measure_code(options)}.as_json()", progress=True)
        found = Measurement.from_json(facts)
        if found.pairs:
            self._measured = world, found
        return found, world.topology(found)

    def _of(self, world: World) -> Measurement | None:
        """What was measured last, if that was of this world."""
        if self._measured is None or self._measured[0] is not world:
            return None
        return self._measured[1]


def _check_writable(path: str) -> None:
    """Raise UsageError when nothing can be saved there."""
    target = Path(path).expanduser()
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise UsageError(
            f"Nothing can be saved in {path}.",
            why=f"{target} is a folder"
            if target.is_dir()
            else f"there is no folder {target.parent.absolute()}, or you may not write there",
            do="--save FILE takes the name of a file in a folder of yours",
        )


def _check_of(found: Measurement, world: World) -> None:
    """Raise UsageError when a measurement is of other ranks, as far as these say who they are."""
    from ..engine.measure.compare import check_measured_on

    names = [node.own_name for node in world.topology(age=CABLES).nodes]
    check_measured_on(found, world.backend, names)


def _say_changes(found: Measurement, before: Measurement, topology: Topology | None) -> None:
    """Print what has changed, or why that cannot be said: the figures are shown all the same."""
    from ..engine.measure.compare import compare

    try:
        sentences = compare(found, before, names=_names(topology)).sentences
    except UsageError as error:
        sentences = [str(error)]
    print("\n".join(sentences))


def measure_code(options: argparse.Namespace) -> str:
    """What all ranks run."""
    given: dict[str, Any] = {}
    if options.quick:
        given |= QUICK
    if options.links is not None:
        given["links"] = False if options.links == "none" else options.links
    if options.ops is not None:
        given["ops"] = tuple(options.ops)
    if options.most is not None:
        given["most"] = options.most
    arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return f"macluster.measure({arguments})"


def measure_view(found: Measurement, topology: Topology | None) -> MeasureView:
    """The view of a measurement, with what a ring and a mesh ought to take."""
    from ..engine.measure.predict import expected
    from ..widgets.measure import Curve, MeasureView

    due = expected(found, topology)
    if due is None:
        return MeasureView(found, topology)
    curves = [Curve("ring", due.sizes, due.ring)]
    curves.append(Curve("mesh", due.sizes, due.mesh))
    return MeasureView(found, topology, curves, due.crossing, due.words)


def _names(topology: Topology | None) -> dict[tuple[int, int], str]:
    """What people call a link: by its ports, where these are known."""
    if topology is None:
        return {}
    return {
        (link.a, link.b): "-".join(link.ports[0])
        for link in topology.links
        if link.ports and all(link.ports[0]) and link.kind != "loopback"
    }
