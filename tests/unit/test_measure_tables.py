"""What was measured, in tables and rows."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import attrs
import pytest

from macluster.engine.measure.cost import bus_factor
from macluster.engine.measure.fit import Fit
from macluster.engine.measure.outliers import standing_out
from macluster.engine.measure.record import (
    OPS,
    MeasuredRank,
    Measurement,
    Pair,
    Point,
    Sweep,
    SweepPoint,
)
from macluster.engine.measure.samples import Rate, Timing
from macluster.engine.measure.tables import (
    MOST_PAIRS,
    as_rows,
    by_ranks,
    outliers,
    pairs_table,
    sweeps_table,
    title,
    value,
    why_missing,
)
from macluster.engine.units import number_text, rate_text, size_label, time_text

SIZES = tuple(4 << 2 * n for n in range(14))  # 4 B to 256 MiB
LATENCY, BANDWIDTH = 8e-6, 8.2e9


def timing(seconds: float, count: int = 200) -> Timing:
    """As if `count` operations had taken about so long."""
    wide = 1 + 0.4 * LATENCY / (LATENCY + seconds)
    return Timing(seconds, seconds / wide, seconds * wide, seconds * wide**2, seconds / wide,
                  0.06 * seconds, count)  # fmt: skip


def rate(each: float) -> Rate:
    return Rate(each, 0.97 * each, 1.02 * each, 20)


def line(latency: float, bandwidth: float) -> Fit:
    return Fit(latency, bandwidth, 0.021, 0.9987, len(SIZES), (0.98 * latency, 1.03 * latency),
               (0.99 * bandwidth, 1.01 * bandwidth))  # fmt: skip


def pair(a: int, b: int, ranks: int = 2, latency: float = 1.0, sent: float = 1.0) -> Pair:
    """As a formula gives it: a little different for each pair, `latency` and `sent` times it."""
    late = latency * LATENCY * (1 + 0.03 * ((5 * a + 3 * b) % 7))
    there = sent * BANDWIDTH * (1 - 0.01 * ((3 * a + 2 * b) % 9))
    back = BANDWIDTH * (1 - 0.01 * ((2 * a + 7 * b) % 9))
    curve = tuple(
        Point(8 << 2 * n, timing(late + (8 << 2 * n) / there)) for n in range(10)
    )  # fmt: skip
    crowded = rate(0.9 * there) if ranks > 3 else None
    return Pair(a, b, "jaccl", timing(late, 400), rate(there), rate(back), crowded, curve,
                line(late, there))  # fmt: skip


def sweep(op: str, ranks: int) -> Sweep:
    """As a formula gives it: latency + bytes x factor / bandwidth, with a bump at 32 KiB."""
    factor = bus_factor(op, ranks)
    if op == "barrier":
        late = 1.9 * LATENCY * math.log2(ranks)
        return Sweep(op, ranks, (SweepPoint(4, timing(late), 0.0, 0.0, 0),), None)
    late = {"all_sum": 3.2, "all_gather": 2.1, "sendrecv": 1.0}[op] * LATENCY
    speed = BANDWIDTH / factor * {"all_sum": 0.8, "all_gather": 0.9, "sendrecv": 1.0}[op]
    points = []
    for size in SIZES:
        seconds = late + size / speed * (1.25 if 1 << 15 < size < 1 << 20 else 1.0)
        algbw = size / seconds
        points.append(SweepPoint(size, timing(seconds, 64), algbw, factor * algbw, 0))
    return Sweep(op, ranks, tuple(points), line(late, speed))


def measured(ranks: int = 4, ops: tuple[str, ...] = OPS) -> Measurement:
    """All pairs and some collectives of a mesh."""
    pairs = [pair(a, b, ranks) for a in range(ranks) for b in range(a + 1, ranks)]
    return Measurement(
        "jaccl",
        tuple(MeasuredRank(f"studio-{rank + 1}", "Apple M3 Ultra") for rank in range(ranks)),
        tuple(pairs),
        tuple(sweep(op, ranks) for op in ops),
        "2026-10-08T14:03:07+00:00",
        12.4,
    )


def ring(ranks: int = 6) -> Measurement:
    """Neighbours by MLX's ring; two others by a plain socket."""
    found = measured(ranks)
    near = [
        attrs.evolve(each, via="ring") for each in found.pairs if each.b - each.a in (1, ranks - 1)
    ]
    far = attrs.evolve(pair(0, 2, ranks, 9.0, 0.2), via="tcp", curve=(), fit=None, crowded=None)
    return attrs.evolve(found, backend="ring", pairs=(*near, far))


def slow(ranks: int = 8) -> Measurement:
    """One cable that is not as the others, and results that are wrong."""
    found = measured(ranks)
    pairs = [
        pair(2, 5, ranks, 6.0, 0.12) if (each.a, each.b) == (2, 5) else each
        for each in found.pairs
    ]  # fmt: skip
    sums = found.sweeps[0]
    points = [attrs.evolve(point, wrong=2 if point.size == 1 << 18 else 0) for point in sums.points]
    bent = attrs.evolve(found.sweeps[1], fit=Fit(2e-5, 6e9, 0.31, 0.941, 14, worst=0.9))
    sweeps = (attrs.evolve(sums, points=tuple(points)), bent, *found.sweeps[2:])
    return attrs.evolve(found, pairs=tuple(pairs), sweeps=sweeps)


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_sizes_are_written_in_binary_units() -> None:
    written = {4: "4 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 16: "64 KiB",
               1000 << 10: "1000 KiB", 1 << 20: "1 MiB", 1 << 28: "256 MiB", 1 << 30: "1 GiB",
               1 << 41: "2048 GiB"}  # fmt: skip
    assert {size: size_label(size) for size in written} == written


def test_quantities_have_three_digits_and_the_unit_that_fits() -> None:
    times = {0.0: "0 us", 8.214e-6: "8.21 us", 41.27e-6: "41.3 us", 999.6e-6: "1.00 ms",
             0.0125: "12.5 ms", 3.4: "3.40 s", 1234.5: "1,234 s", 8.5e-8: "0.085 us"}  # fmt: skip
    assert {each: time_text(each) for each in times} == times
    rates = {8.214e9: "8.21 GB/s", 0.9996e9: "1.00 GB/s", 950e6: "950 MB/s", 12e3: "12.0 kB/s"}
    assert {each: rate_text(each) for each in rates} == rates


def test_the_title_says_what_when_and_how_long() -> None:
    assert title(measured(4)) == "jaccl, 4 ranks on 4 hosts, 2026-10-08 14:03 UTC, 12.4 s"
    alone = Measurement("ring", (MeasuredRank("here"),), taken="2026-10-08T14:03:07+02:00")
    assert title(alone) == "ring, 1 rank on 1 host, 2026-10-08 14:03 UTC+02:00"
    assert title(attrs.evolve(alone, taken="yesterday")).endswith("yesterday")


def test_pairs_stand_in_a_table_in_us_and_gigabytes() -> None:
    m = ring(6)
    first = m.pairs[0]
    _, _, *lines = rows(repr(pairs_table(m)))
    assert len(lines) == len(m.pairs)
    assert lines[0][:5] == ["0", "-", "1", "ring", number_text(1e6 * first.latency.p50)]
    assert lines[0][-4:] == [
        number_text(first.forward.p50 / 1e9), number_text(first.backward.p50 / 1e9),
        number_text(0.9 * first.forward.p50 / 1e9), "20",
    ]  # fmt: skip
    assert lines[-1][3] == "tcp"
    assert lines[-1][-2] == "-"
    assert repr(pairs_table(attrs.evolve(m, pairs=()))) == "no pair was measured"


def test_a_sweep_has_the_columns_of_nccl_tests_and_ends_with_the_average() -> None:
    m = slow(8)
    text = repr(sweeps_table(m, "all_sum"))
    assert "size runs time us (p99) algbw GB/s busbw GB/s wrong" in re.sub(r" +", " ", text)
    points = m.sweeps[0].points
    found = {" ".join(line[:2]): line for line in rows(text) if len(line) == 8}
    assert list(found) == [size_label(point.size) for point in points]
    assert found["256 MiB"][-3:] == [
        number_text(points[-1].algbw / 1e9), number_text(points[-1].busbw / 1e9), "0",
    ]  # fmt: skip
    assert found["256 KiB"][-1] == "2"
    mean = sum(point.busbw for point in points) / len(points)
    assert rows(text)[-1] == ["average", number_text(mean / 1e9), "2"]
    barrier = repr(sweeps_table(m, "barrier"))
    assert "busbw" not in barrier
    assert "45.6 (" in barrier
    assert repr(sweeps_table(attrs.evolve(m, sweeps=()), "all_sum")) == "all_sum was not measured"


def test_the_text_tells_everything_and_the_worst_first() -> None:
    text = repr(slow(8))
    lines = text.splitlines()
    assert lines[0] == title(slow(8))
    assert lines[1] == "WRONG RESULTS: all_sum, 256 KiB: 2 wrong"
    assert "stands out: rank 2 to rank 5: " in text
    assert "all_gather: not a line" in text
    assert max(map(len, lines)) <= 110
    assert all(text.count(f"\n{op}\n") == 1 for op in OPS)
    simulated = attrs.evolve(measured(2), simulated="2 x M4 Max", notes=("a note",))
    assert repr(simulated).splitlines()[1:3] == [
        "simulated, nothing was measured: 2 x M4 Max", "a note",
    ]  # fmt: skip
    nothing = attrs.evolve(measured(2), pairs=(), sweeps=())
    assert repr(nothing).endswith("nothing was measured")


def test_of_many_pairs_the_slowest_are_shown() -> None:
    m = slow(16)
    text = repr(m)
    assert f"the slowest; {len(m.pairs) - MOST_PAIRS} more pairs are in .pairs" in text
    table = text[: text.index("the slowest")]
    lines = [line for line in rows(table) if "jaccl" in line]
    assert len(lines) == MOST_PAIRS
    assert lines[0][:3] == ["2", "-", "5"]


# -- what stands out -------------------------------------------------------------------------------


def test_a_slow_direction_and_a_late_pair_stand_out() -> None:
    found = outliers(slow(8))
    assert [(each.a, each.b, each.metric) for each in found] == [
        (2, 5, "bandwidth"), (2, 5, "latency"),
    ]  # fmt: skip
    assert re.fullmatch(
        r"rank 2 to rank 5: 915 MB/s, 12 % of the median of 7.\d+ GB/s", found[0].words
    )
    assert "6.17 x the median of 8.72 us" in found[1].words


@pytest.mark.parametrize(
    ("latency", "sent", "count"), [(1, 1, 0), (2.5, 0.4, 0), (4, 1, 1), (1, 0.2, 1), (4, 0.2, 2)]
)
def test_less_than_a_third_or_more_than_three_times_stands_out(
    latency: float, sent: float, count: int
) -> None:
    m = measured(6)
    last = pair(4, 5, 6, latency, sent)
    assert len(outliers(attrs.evolve(m, pairs=(*m.pairs[:-1], last)))) == count


def test_a_plain_socket_is_not_compared_with_the_others() -> None:
    assert outliers(ring(6)) == []


def test_ranks_of_one_host_are_not_compared_with_cables() -> None:
    m = measured(6)
    hosts = ("studio-1", *(each.host for each in m.ranks[:5]))
    fast = attrs.evolve(pair(0, 1, 6, 0.1), forward=rate(8e10), backward=rate(8e10))
    together = attrs.evolve(
        m,
        ranks=tuple(MeasuredRank(host) for host in hosts),
        pairs=(fast, pair(1, 2, 6), pair(0, 2, 6)),
    )
    assert outliers(together) == []
    # Where nothing says that they are, the two others are far below the median.
    apart = attrs.evolve(together, ranks=m.ranks, pairs=(fast, fast, pair(1, 2, 6)))
    assert outliers(apart)


def test_a_latency_or_a_bandwidth_of_0_is_no_measure_for_others() -> None:
    m = measured(4)
    none = attrs.evolve(m.pairs[0], latency=timing(0.0), forward=rate(0.0), backward=rate(0.0))
    assert outliers(attrs.evolve(m, pairs=(none, none, none, *m.pairs[:1]))) == []
    [there, back] = outliers(attrs.evolve(m, pairs=(none, *m.pairs[1:])))
    assert there.words.startswith("rank 0 to rank 1: 0 kB/s, 0 % of the median of ")
    assert (back.a, back.b) == (1, 0)


def test_an_outlier_says_what_it_is_compared_with() -> None:
    m = slow(8)
    [sent, late] = standing_out(m.pairs)
    assert (sent.pair, sent.value, sent.count) == (m.pair(2, 5), m.pair(2, 5).forward.p50, 28)
    assert (late.metric, late.value) == ("latency", m.pair(2, 5).latency.p50)
    assert [sent, late] == outliers(m)


def test_why_a_value_is_missing_is_said() -> None:
    m = ring(6)
    found = by_ranks(m)
    assert why_missing(m, None, "latency", 1, 3) == "not neighbours on this ring"
    assert why_missing(m, None, "latency", 5, 0) == "not measured"
    assert why_missing(m, found[0, 1], "latency", 1, 1) == "the same rank"
    assert "from the lower rank" in why_missing(m, found[0, 1], "crowded", 1, 0)
    assert why_missing(m, found[0, 2], "crowded", 0, 2) == "no other pair"
    assert "not known" in why_missing(m, found[0, 1], "part_of_rate", 0, 1)


def test_a_value_has_a_direction() -> None:
    each = pair(0, 1, 4)
    assert value(each, "bandwidth", 0) == each.forward.p50
    assert value(each, "bandwidth", 1) == each.backward.p50
    assert value(each, "latency", 0) == value(each, "latency", 1) == each.latency.p50
    assert value(each, "latency_p99", 0) == each.latency.p99
    assert value(each, "jitter", 0) == each.latency.jitter
    assert value(each, "crowded", 0) == pytest.approx(0.9 * each.forward.p50)
    assert value(each, "crowded", 1) is None
    assert value(each, "part_of_rate", 0) is None
    assert value(each, "part_of_rate", 0, 80e9) == pytest.approx(each.forward.p50 / 1e8)


def test_mlx_goes_before_a_plain_socket() -> None:
    m = measured(2)
    both = attrs.evolve(m, pairs=(attrs.evolve(m.pairs[0], via="tcp"), m.pairs[0]))
    assert by_ranks(both)[1, 0].via == "jaccl"


# -- for a page and for programs -------------------------------------------------------------------


class Tags(HTMLParser):
    """Counts the tags, and keeps the words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: dict[str, int] = {}
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_html_has_the_tables_and_no_markup_of_others() -> None:
    m = attrs.evolve(slow(8), simulated="<b>8 Macs</b>")
    found = Tags(m._repr_html_())
    assert found.tags["table"] == 5
    assert found.tags["th"] == 11 + 3 * (6 + 6) + 3
    assert found.tags["tr"] == (1 + 28) + 3 * (1 + 14 + 1) + 2
    assert "b" not in found.tags
    assert "simulated, nothing was measured: <b>8 Macs</b>" in found.words
    assert "WRONG RESULTS: all_sum, 256 KiB: 2 wrong" in found.words


def test_rows_are_flat_and_complete() -> None:
    m = ring(6)
    found = as_rows(m)
    assert {name: len(each) for name, each in found.items()} == {
        "pairs": 7, "curves": 60, "sweeps": 3 * 14 + 1,
    }  # fmt: skip
    for each in found.values():
        # One set of columns, of plain values: what a data frame wants.
        assert len({tuple(row) for row in each}) == 1
        assert all(
            value is None or isinstance(value, int | float | str)
            for row in each
            for value in row.values()
        )
    first, last = found["pairs"][0], found["pairs"][-1]
    assert (first["host_a"], first["host_b"], first["via"]) == ("studio-1", "studio-2", "ring")
    assert first["latency_p50"] == m.pairs[0].latency.p50
    assert first["fit_half_size"] == m.pairs[0].fit.half_size
    assert (last["crowded_p50"], last["fit_latency"]) == (None, None)
    assert found["sweeps"][0]["busbw"] == m.sweeps[0].points[0].busbw
    for simulated in ("", "6 x M3 Ultra, ring"):
        tables = as_rows(attrs.evolve(m, simulated=simulated)).values()
        assert {row["simulated"] for rows in tables for row in rows} == {simulated}
