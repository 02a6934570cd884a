"""A topology in a notebook: the picture, and the figures of the host or link that is selected.

`%topology` shows it. It can be kept up to date: by `update`, or by itself with `live`.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import anywidget
import attrs
import traitlets

from ..engine.errors import MaclusterError, UsageError
from ..engine.measure.record import Pair
from ..engine.measure.samples import Rate
from ..engine.tables import Table
from ..engine.topology.shape import Shape
from ..engine.topology.topology import KINDS, Link, Node, Topology
from ..engine.units import bytes_text, rate_text, size_label, time_text
from .network import (
    CSS,
    IN_FULL,
    WORDS,
    headline,
    link_words,
    memory_words,
    missing,
    scene,
    slowest,
    static_svg,
)
from .picture import figure, script

GAP = 0.25  # seconds at least between two messages to the page
# Of a saved notebook: what the tables may be long, in characters, and the links that are shown
# where they would be longer.
LONGEST, FEW = 16_000, 12

STATES = {
    "ok": "ok",
    "busy": "busy, a cell runs",
    "dead": "dead, its process is gone",
    "unknown": "not known",
}


# -- figures ---------------------------------------------------------------------------------------


def figures(topology: Topology, faulty: Collection[tuple[int, int]] = ()) -> dict[str, Any]:
    """What the panel says, in words: of "all", of "node-0", of "link-0-1" and so on.

    Each is {"title", "under", "faulty", "heard", "rows": [[name, value], ...], "curve"}.
    """
    return node_figures(topology) | link_figures(topology, faulty)


def node_figures(topology: Topology) -> dict[str, Any]:
    """Those of "all" and of the nodes: memory and state change from second to second."""
    found = {"all": _of_all(topology)}
    for node in topology.nodes:
        found[f"node-{node.rank}"] = _of_node(node, topology)
    return found


def link_figures(topology: Topology, faulty: Collection[tuple[int, int]] = ()) -> dict[str, Any]:
    """Those of the links: thousands in a large mesh, which seldom change."""
    hosts = {node.rank: node.host for node in topology.nodes}
    bad = {(min(pair), max(pair)) for pair in faulty}
    found: dict[str, Any] = {}
    seen: dict[tuple[int, int], int] = {}
    for link in topology.links:
        pair = (link.a, link.b)
        index = seen[pair] = seen.get(pair, -1) + 1
        key = f"link-{link.a}-{link.b}" + (f"-{index}" if index else "")
        found[key] = _of_link(link, hosts, pair in bad)
    return found


def _entry(title: str, under: str, rows: Sequence[tuple[str, str]], heard: str) -> dict[str, Any]:
    shown = [[name, value] for name, value in rows if value]
    return {"title": title, "under": under, "rows": shown, "heard": heard}


def _of_all(topology: Topology) -> dict[str, Any]:
    rows = [("Backend", topology.backend)]
    for kind in KINDS:
        speeds = [
            each.measured.bandwidth
            for each in topology.links
            if each.kind == kind and each.measured
        ]
        count = sum(each.kind == kind for each in topology.links)
        if count:
            median = f", median {rate_text(statistics.median(speeds))}" if speeds else ""
            none = "" if speeds else ", not measured"
            rows.append((WORDS[kind], f"{count} link{'s' * (count > 1)}{median}{none}"))
    least = slowest(topology)
    if least is not None and least.measured is not None and len(topology.links) > 1:
        rows.append(("Slowest", f"{rate_text(least.measured.bandwidth)}, {least.a} – {least.b}"))
    rows += [("No cable", f"{a} – {b}") for a, b in missing(topology)]
    counts: dict[str, list[int]] = {}
    for node in topology.nodes:
        counts.setdefault(node.state, []).append(node.rank)
    if set(counts) != {"ok"}:
        for state, ranks in counts.items():
            few = ", ".join(str(rank) for rank in ranks[:8]) if len(ranks) <= 8 else ""
            which = f"rank{'s' * (len(ranks) > 1)} {few}" if few else f"{len(ranks)} ranks"
            rows.append((f"State {state}", which))
    rows.append(("Simulated", topology.simulated))
    return _entry("Overview", "", rows, headline(topology))


def _of_node(node: Node, topology: Topology) -> dict[str, Any]:
    links = topology.of(node.rank)
    memory = memory_words(node)
    if memory and node.memory and node.used is not None:
        memory += f" in use ({100 * node.used / node.memory:.0f} %)"
    rows = [
        ("Host", node.host),
        ("Model", node.model),
        ("State", STATES.get(node.state, node.state)),
        ("Memory", memory),
        ("Arrays held", "" if node.held is None else bytes_text(node.held)),
        ("Links", str(len(links)) if links else "none"),
    ]
    speeds = {
        each.b if each.a == node.rank else each.a: each.measured.bandwidth
        for each in links
        if each.measured is not None
    }
    if speeds:
        low, high = min(speeds, key=speeds.__getitem__), max(speeds, key=speeds.__getitem__)
        rows.append(("Fastest", f"{rate_text(speeds[high])}, to rank {high}"))
        if len(speeds) > 1:
            rows.append(("Slowest", f"{rate_text(speeds[low])}, to rank {low}"))
    heard = ", ".join(f"{name} {value}" for name, value in rows if value)
    return _entry(f"rank {node.rank}", node.host, rows, heard)


def _of_link(link: Link, hosts: Mapping[int, str], faulty: bool) -> dict[str, Any]:
    one, two = hosts.get(link.a, ""), hosts.get(link.b, "")
    under = f"{one} – {two}" if one != two else f"on {one}"
    rows = [
        ("Kind", IN_FULL[link.kind]),
        ("Known from", link.why),
        ("Cables", str(len(link.ports)) if len(link.ports) > 1 else ""),
        ("Ports", ", ".join(f"{a or '?'} – {b or '?'}" for a, b in link.ports)),
        ("Negotiated", f"{link.negotiated / 1e9:g} Gb/s" if link.negotiated else ""),
    ]
    pair = link.measured
    if pair is None:
        rows.append(("Measured", "not yet: %measure"))
    else:
        rows += _measured(pair, link)
    found = _entry(f"rank {link.a} – rank {link.b}", under, rows, link_words(link, faulty))
    if faulty:
        found |= {"under": f"faulty · {under}", "faulty": True}
    if pair is not None and len(pair.curve) > 1:
        found["curve"] = _curve(pair, link)
    return found


def _measured(pair: Pair, link: Link) -> list[tuple[str, str]]:
    part = link.part_of_rate
    late = pair.latency
    return [
        (f"{pair.a} → {pair.b}", _rate(pair.forward)),
        (f"{pair.b} → {pair.a}", _rate(pair.backward)),
        ("Of the rate", "" if part is None else f"{100 * part:.0f} %, the slower direction"),
        ("All at once", "" if pair.crowded is None else _rate(pair.crowded)),
        ("Latency", f"{time_text(late.p50)} median, n = {late.count:,}"),
        ("p99, jitter", f"{time_text(late.p99)}, {time_text(late.jitter)}"),
        ("Carried by", pair.via),
    ]


def _rate(rate: Rate) -> str:
    low, unit = rate_text(rate.p5).split(" ")
    high, other = rate_text(rate.p95).split(" ")
    spread = f"{low}-{high}" if unit == other else f"{low} {unit} - {high}"
    return f"{rate_text(rate.p50)} ({spread} {other}, n = {rate.count:,})"


def _curve(pair: Pair, link: Link) -> dict[str, Any]:
    """The curve for the page; times with three digits, of which no more are seen."""
    fit = pair.fit
    points = [
        [each.size, *(float(f"{t:.3g}") for t in (each.time.p50, each.time.p5, each.time.p95))]
        for each in pair.curve
    ]
    words = "Time by size: medians, band from p5 to p95"
    words += "; dashed: the negotiated rate" if link.negotiated else ""
    words += f". Line: {fit.verdict}." if fit else "."
    first, last = pair.curve[0], pair.curve[-1]
    label = (
        f"Time by size of a message: {size_label(first.size)} takes {time_text(first.time.p50)}, "
        f"{size_label(last.size)} takes {time_text(last.time.p50)}"
    )
    return {
        "points": points,
        "fit": [fit.latency, fit.bandwidth] if fit else None,
        "good": bool(fit and fit.good),
        "half": fit.half_size if fit else None,
        "roof": link.negotiated / 8 if link.negotiated else None,
        "words": words,
        "label": label,
    }


def _table(topology: Topology) -> str:
    """The tables of a saved notebook, as HTML; of many links, the slowest."""
    found = topology._repr_html_()
    if len(found) <= LONGEST:
        return found
    speeds = sorted(
        topology.links, key=lambda each: each.measured.bandwidth if each.measured else 0
    )
    rows = [
        (
            f"{link.a} – {link.b}",
            WORDS[link.kind],
            f"{link.negotiated / 1e9:g} Gb/s" if link.negotiated else "",
            rate_text(link.measured.bandwidth) if link.measured else "not measured",
            time_text(link.measured.latency.p50) if link.measured else "",
        )
        for link in speeds[:FEW]
    ]
    heading = ("ranks", "kind", "negotiated", "bandwidth", "latency")
    more = len(topology.links) - len(rows)
    title = f"The slowest links; {more:,} more are in .links" if more > 0 else ""
    return Table(heading, rows, (2, 3, 4), "no links are known", title)._repr_html_()


# -- the pace --------------------------------------------------------------------------------------


class _Timer(Protocol):
    def start(self) -> None: ...


def _timer(seconds: float, call: Callable[[], None]) -> _Timer:
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    return timer


class Pace:
    """Passes on the newest of many values, at most one in `gap` seconds, and none twice in a row.

    What comes too early waits for a timer; what came before it in that time is dropped.
    """

    def __init__(
        self,
        send: Callable[[Any], None],
        gap: float = GAP,
        clock: Callable[[], float] = time.monotonic,
        timer: Callable[[float, Callable[[], None]], _Timer] = _timer,
    ) -> None:
        self._send, self._gap, self._clock, self._new_timer = send, gap, clock, timer
        self._lock = threading.Lock()  # for what follows
        self._turn = threading.Lock()  # held while sending: values stay in order
        self._last: Any = None
        self._sent_at: float | None = None
        self._waiting: list[Any] = []  # the newest, or nothing
        self._timer: _Timer | None = None

    def begin(self, value: Any) -> None:
        """The page has this already."""
        with self._lock:
            self._last = value

    def offer(self, value: Any) -> None:
        """Send this now or soon, unless something newer comes."""
        with self._lock:
            self._waiting = [value]
            if self._timer is not None:
                return
            early = 0.0
            if self._sent_at is not None:
                early = self._sent_at + self._gap - self._clock()
            if early > 0:
                if value == self._last:
                    self._waiting = []
                    return
                self._timer = self._new_timer(early, self._due)
                self._timer.start()
                return
        self._pass_on()

    def _due(self) -> None:
        with self._lock:
            self._timer = None
        self._pass_on()

    def _pass_on(self) -> None:
        with self._turn:
            with self._lock:
                waiting, self._waiting = self._waiting, []
                if not waiting or waiting[0] == self._last:
                    return
                self._last = waiting[0]
                self._sent_at = self._clock()
            self._send(waiting[0])


# -- the widget ------------------------------------------------------------------------------------


@attrs.frozen
class _Seen:
    """What the page is to show."""

    topology: Topology
    warnings: tuple[str, ...] = ()
    faulty: frozenset[tuple[int, int]] = frozenset()
    status: str = ""


class Drawing:
    """What a page gets of one topology after another; what has not changed is not made anew."""

    def __init__(self) -> None:
        self._shape: tuple[Any, Shape] | None = None  # with what it was found from
        self._links: tuple[Any, dict[str, Any]] | None = None  # the same of `link_figures`

    def traits(self, topology: Topology, status: str = "") -> dict[str, Any]:
        """The traits of a TopologyView, with the warnings and faulty links of its shape."""
        return self.of(self.judged(_Seen(topology, status=status)))

    def judged(
        self,
        seen: _Seen,
        warnings: tuple[str, ...] | None = None,
        faulty: frozenset[tuple[int, int]] | None = None,
    ) -> _Seen:
        """With what was given, and otherwise with what the shape of the topology says."""
        if warnings is None or faulty is None:
            topology = seen.topology
            # Memory and cells come and go; the shape is looked at when something else has changed.
            key = topology.links, topology.backend, [node.silent for node in topology.nodes]
            if self._shape is None or self._shape[0] != key:
                self._shape = key, topology.shape
            shape = self._shape[1]
            warnings = shape.sentences if warnings is None else warnings
            faulty = _pairs(shape.faulty) if faulty is None else faulty
        return attrs.evolve(seen, warnings=warnings, faulty=faulty)

    def of(self, seen: _Seen) -> dict[str, Any]:
        """The traits that show it."""
        return {
            "scene": attrs.asdict(scene(seen.topology, seen.warnings, seen.faulty)),
            "figures": node_figures(seen.topology),
            "link_figures": self._link_figures(seen),
            "status": seen.status,
        }

    def _link_figures(self, seen: _Seen) -> dict[str, Any]:
        """Made anew only when links, hosts or faults have changed."""
        key = seen.topology.links, [node.host for node in seen.topology.nodes], seen.faulty
        if self._links is None or self._links[0] != key:
            self._links = key, link_figures(seen.topology, seen.faulty)
        return self._links[1]


class TopologyView(anywidget.AnyWidget):
    """A topology in a notebook. `topology` is the one that is shown.

    Args:
        topology: what to show.
        warnings: sentences to stand above the picture; without them, those about its shape.
        faulty: the ranks at both ends of the links that are to stand out; without them, those that
            are slow or of the wrong kind.
    """

    _esm = f"const NETWORK_STYLE = {json.dumps(CSS)};\n" + script(
        "dom.js", "axes.js", "network.js", "topology.js"
    )
    scene: Any = traitlets.Dict().tag(sync=True)
    # What the panel says, by what is selected.
    figures: Any = traitlets.Dict().tag(sync=True)
    link_figures: Any = traitlets.Dict().tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        topology: Topology,
        *,
        warnings: Sequence[str] | None = None,
        faulty: Collection[tuple[int, int]] | None = None,
    ) -> None:
        self._warnings = None if warnings is None else tuple(warnings)
        self._faulty = None if faulty is None else _pairs(faulty)
        self._drawing = Drawing()
        self._seen = self._judged(_Seen(topology))
        self._lock = threading.RLock()
        self._pages: set[str] = set()
        self._source: Callable[[], Topology] | None = None
        self._period = 1.0
        self._worker: threading.Thread | None = None
        self._stopped = threading.Event()
        self._pace = Pace(self._show)
        self._pace.begin(self._seen)
        super().__init__(**self._drawing.of(self._seen))
        self.on_msg(self._on_page)

    @property
    def topology(self) -> Topology:
        """The newest topology; the page has it at most a quarter of a second later."""
        return self._seen.topology

    def __repr__(self) -> str:
        return repr(self.topology)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        found = super()._repr_mimebundle_(**kwargs)
        if found is None:
            return None
        # What is left when the kernel is gone: a picture, and the table.
        seen = self._seen
        drawn = scene(seen.topology, seen.warnings, seen.faulty)
        found[0]["text/plain"] = repr(seen.topology)
        found[0]["text/html"] = figure(static_svg(drawn), drawn.label) + _table(seen.topology)
        return found

    # -- up to date --------------------------------------------------------------------------------

    def update(
        self,
        topology: Topology,
        *,
        warnings: Sequence[str] | None = None,
        faulty: Collection[tuple[int, int]] | None = None,
    ) -> None:
        """Show another topology; None keeps the warnings and faulty links that were given.

        May be called from any thread, as often as you like: the page hears of it at most four
        times a second, and not at all when nothing has changed.
        """
        if warnings is not None:
            self._warnings = tuple(warnings)
        if faulty is not None:
            self._faulty = _pairs(faulty)
        self._change({"topology": topology, "status": ""})

    def live(self, source: Callable[[], Topology], period: float = 1.0) -> None:
        """Call `source` every `period` seconds, in a thread, while a page shows this view.

        What the source raises is shown in the view, until it succeeds again.

        Raises:
            UsageError: the period is not above 0.
        """
        if not period > 0:
            raise UsageError(
                f"a period of {period} s cannot be", why="it is not above 0", do="take 1.0"
            )
        with self._lock:
            self._source, self._period = source, period
            self._start()

    def stop(self) -> None:
        """End what `live` began; the picture stays as it is."""
        with self._lock:
            self._source = None
            self._stopped.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the thread of `live` has ended, at most `timeout` seconds. Says if it has."""
        worker = self._worker
        if worker is not None:
            worker.join(timeout)
        return worker is None or not worker.is_alive()

    def close(self) -> None:
        """Take the view off every page."""
        self.stop()
        super().close()

    def _change(self, changes: dict[str, Any]) -> None:
        with self._lock:
            self._seen = seen = self._judged(attrs.evolve(self._seen, **changes))
        self._pace.offer(seen)

    def _judged(self, seen: _Seen) -> _Seen:
        return self._drawing.judged(seen, self._warnings, self._faulty)

    def _show(self, seen: _Seen) -> None:
        traits = self._drawing.of(seen)
        if traits["link_figures"] is self.link_figures:
            # Thousands, which need not be compared one by one.
            del traits["link_figures"]
        # One message, with only what differs from what the page has.
        with self.hold_sync():
            for name, value in traits.items():
                setattr(self, name, value)

    def _on_page(self, _: Any, content: Mapping[str, Any], __: Any) -> None:
        page = content.get("page")
        if not isinstance(page, str):
            return
        with self._lock:
            if content.get("do") == "open":
                self._pages.add(page)
                self._start()
            elif content.get("do") == "close":
                self._pages.discard(page)
                if not self._pages:
                    self._stopped.set()

    def _start(self) -> None:
        """Begin a thread where there is something to do and none is at it; under the lock."""
        if self._source is None or not self._pages:
            return
        # A new event for each thread: one that is about to end must not be called back.
        running = self._worker is not None and self._worker.is_alive()
        if running and not self._stopped.is_set():
            return
        self._stopped = threading.Event()
        self._worker = threading.Thread(target=self._work, args=(self._stopped,), daemon=True)
        self._worker.start()

    def _work(self, stopped: threading.Event) -> None:
        while True:
            with self._lock:
                source, period = self._source, self._period
            if stopped.is_set() or source is None:
                return
            try:
                topology = source()
            except Exception as error:
                told = str(error) if isinstance(error, MaclusterError) else _told(error)
                changes: dict[str, Any] = {"status": f"Not up to date: {told}"}
            else:
                changes = {"topology": topology, "status": ""}
            if stopped.is_set():
                return
            self._change(changes)
            stopped.wait(period)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _pairs(faulty: Collection[tuple[int, int]]) -> frozenset[tuple[int, int]]:
    return frozenset((min(pair), max(pair)) for pair in faulty)
