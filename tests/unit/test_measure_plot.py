"""Figures of a measurement: what is in them."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Literal

import attrs
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from macluster.engine.errors import UsageError
from macluster.engine.measure.tables import Metric
from macluster.engine.topology.topology import Link, Node, Topology
from tests.unit.test_measure_tables import SIZES, measured, ring, slow


def curves(axes: Axes) -> dict[str, object]:
    return {str(each.get_label()): each for each in axes.get_lines()}


def test_the_matrix_holds_what_was_measured() -> None:
    m = slow(8)
    axes = m.plot("pairs").axes[0]
    drawn = axes.images[0].get_array()
    assert drawn is not None
    assert drawn[2, 5] == pytest.approx(m.pair(2, 5).forward.p50 / 1e9)
    assert drawn[5, 2] == pytest.approx(m.pair(2, 5).backward.p50 / 1e9)
    assert np.isnan(np.asarray(drawn.filled(np.nan) if np.ma.isMA(drawn) else drawn)[3, 3])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("to rank", "from rank")
    assert "0.915" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    ("metric", "label"),
    [
        ("latency", "latency p50 (us)"),
        ("jitter", "jitter (us)"),
        ("bandwidth", "bandwidth (GB/s)"),
        ("crowded", "bandwidth while all pairs send (GB/s)"),
        ("part_of_rate", "part of the negotiated rate (%)"),
    ],
)
def test_each_metric_has_its_unit(metric: Metric, label: str) -> None:
    from macluster.engine.measure.plot import plot

    links = tuple(
        Link(a, b, "rdma", negotiated=80e9) for a in range(4) for b in range(a + 1, 4)
    )  # fmt: skip
    topology = Topology(tuple(Node(n, "host") for n in range(4)), links)
    figure = plot(measured(4), "pairs", metric=metric, topology=topology)
    assert figure.axes[1].get_ylabel() == label
    # Latency is the same both ways; while all pairs send, one direction is measured.
    values = len(figure.axes[0].texts)
    assert values == 12
    dashes = sum(text.get_text() == "–" for text in figure.axes[0].texts)
    assert dashes == (6 if metric == "crowded" else 0)


def test_what_is_no_neighbour_and_what_is_a_plain_socket_is_marked() -> None:
    texts = [text.get_text() for text in ring(6).plot("pairs").axes[0].texts]
    assert texts.count("tcp") == 2
    assert texts.count("–") == 6 * 5 - 2 * 7


def test_curves_have_points_bands_fits_and_half_sizes() -> None:
    m = measured(4)
    axes = m.plot("curves").axes[0]
    found = curves(axes)
    names = [name for name in found if not name.startswith("_")]
    assert names == ["all_sum, n½ 109 KiB", "all_gather, n½ 161 KiB", "sendrecv, n½ 64.1 KiB",
                     "barrier"]  # fmt: skip
    sums = found[names[0]]
    assert list(sums.get_xdata()) == list(SIZES)
    assert list(sums.get_ydata()) == [point.time.p50 for point in m.sweeps[0].points]
    fit = m.sweeps[0].fit
    half = found["_half of all_sum"]
    assert half.get_xdata()[0] == fit.half_size
    assert half.get_ydata()[0] == pytest.approx(2 * fit.latency)
    assert sum(name.startswith("_fit") for name in found) == 3
    # A band for each curve, and one across for the barrier.
    assert len(axes.collections) == 3
    assert len(axes.patches) == 1
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylabel() == "time, median and p5–p95"
    # On grey paper, markers and dashes tell them apart.
    styles = {(found[name].get_marker(), found[name].get_linestyle()) for name in names}
    assert len(styles) == 4
    ticks = [axes.xaxis.get_major_formatter()(size, 0) for size in axes.get_xticks()]
    assert ticks == ["16 B", "256 B", "4 KiB", "64 KiB", "1 MiB", "16 MiB", "256 MiB"]


def test_wrong_results_and_bad_fits_are_said() -> None:
    m = slow(8)
    found = curves(m.plot("curves").axes[0])
    assert list(found["wrong results"].get_xdata()) == [1 << 18]
    # What is no line has no size at which half of its bandwidth is reached.
    assert "all_gather (not a line)" in found
    assert "_fit of all_gather" in found
    assert {name for name in found if name.startswith("_half")} == {
        "_half of all_sum", "_half of sendrecv",
    }  # fmt: skip
    assert not any("wrong" in name for name in curves(measured(4).plot("curves").axes[0]))


def test_without_collectives_the_first_pair_is_drawn() -> None:
    m = attrs.evolve(measured(4), sweeps=())
    found = curves(m.plot("curves").axes[0])
    [name] = [each for each in found if not each.startswith("_")]
    assert name.startswith("ranks 0 and 1, n½ ")


def test_all_of_it_side_by_side_or_in_axes_of_ones_own() -> None:
    figure = measured(4).plot()
    assert len(figure.axes) == 3  # two pictures and a colour bar
    mine = Figure()
    left, right = mine.subplots(1, 2)
    assert measured(4).plot("all", ax=(left, right)) is mine
    assert left.images
    assert right.get_lines()
    single = Figure()
    assert measured(4).plot("curves", ax=single.subplots()) is single
    # Only what was measured.
    assert len(attrs.evolve(measured(4), pairs=()).plot().axes) == 1
    simulated = attrs.evolve(measured(4), simulated="4 Macs").plot()
    assert simulated.get_suptitle() == "simulated: 4 Macs"


@pytest.mark.parametrize("what", ["pairs", "curves", "all"])
def test_in_axes_of_ones_own_a_simulation_is_labelled(what: Literal["pairs", "curves"]) -> None:
    for simulated, labels in (("4 Macs", 1), ("", 0)):
        given = Figure().subplots(1, 2 if what == "all" else 1, squeeze=False)[0]
        attrs.evolve(measured(4), simulated=simulated).plot(what, ax=list(given))
        for axes in given:
            texts = [text.get_text() for text in axes.texts]
            assert texts.count("simulated") == labels


def test_what_cannot_be_drawn_is_refused() -> None:
    m = measured(2)
    with pytest.raises(UsageError, match="no plot of 'wires'"):
        m.plot("wires")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no plot of 'all' with the metric 'speed'"):
        m.plot(metric="speed")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing to draw") as caught:
        attrs.evolve(m, pairs=()).plot("pairs")
    assert caught.value.why == "no pair was measured"
    with pytest.raises(UsageError, match="nothing to draw") as caught:
        attrs.evolve(m, pairs=(), sweeps=(), ranks=m.ranks[:1]).plot()
    assert caught.value.why == "a link takes two ranks, and there was one"
    assert "%cluster start 2" in caught.value.do
    with pytest.raises(UsageError, match="1 axes for 2 pictures"):
        m.plot(ax=Figure().subplots())


def test_a_metric_that_no_pair_has_is_refused() -> None:
    with pytest.raises(UsageError, match="no part of the negotiated rate to draw") as caught:
        measured(4).plot("pairs", metric="part_of_rate")
    assert caught.value.why == "the negotiated rate is not known"
    assert "topology=world.topology()" in caught.value.do
    with pytest.raises(UsageError, match="no bandwidth while all pairs send") as caught:
        attrs.evolve(measured(2), sweeps=()).plot(metric="crowded")
    assert caught.value.why == "no other pair"
    rated = Topology(tuple(Node(n, "") for n in range(2)), (Link(0, 1, "rdma", (), 80e9),))
    drawn = measured(2).plot("pairs", metric="part_of_rate", topology=rated).axes[0]
    assert len(drawn.texts) == 2


@pytest.mark.parametrize("ranks", [2, 17, 24])
@pytest.mark.parametrize("kind", ["pdf", "svg", "png"])
def test_it_is_saved_in_every_form(ranks: int, kind: str) -> None:
    out = io.BytesIO()
    measured(ranks).plot("pairs").savefig(out, format=kind)
    start = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}[kind]
    assert out.getvalue().startswith(start)


def test_a_notebook_shows_it_and_pyplot_is_left_alone() -> None:
    code = """
import sys
from tests.unit.test_measure_tables import measured
assert "matplotlib" not in sys.modules
assert measured(2).plot()._repr_png_().startswith(b"\\x89PNG")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
