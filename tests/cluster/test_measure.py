"""The wires of real ranks: what is found is the same on all, true, and disturbs nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import macluster
from macluster.engine.measure.sweep import SIZES
from tests.cluster.faults import until
from tests.cluster.hosts import PAYLOAD, Hosts, last_json, namespaces
from tests.cluster.models import TIMEOUT, answers, start

assert namespaces  # a fixture
KILOBYTE, MEGABYTE = 1 << 10, 1 << 20
ON_HOSTS = """
import json, macluster, mlx.core as mx
mx.distributed.init(strict=True, backend="ring")
found = macluster.measure(ops=())
print()
print(json.dumps(found.as_json()))
"""


@pytest.fixture(scope="module")
def two() -> Iterator[macluster.World]:
    yield from start(2)


@pytest.fixture(scope="module")
def four() -> Iterator[macluster.World]:
    yield from start(4)


def measured(world: macluster.World, arguments: str) -> macluster.Measurement:
    """What all ranks found, which must be the same."""
    code = f"print('\\n' + json.dumps(macluster.measure({arguments}).as_json()))"
    found = answers(world, code)
    assert found == [found[0]] * world.size
    return macluster.Measurement.from_json(found[0])


def test_two_ranks_measure_their_link_and_every_collective(two: macluster.World) -> None:
    found = measured(two, f"most={MEGABYTE}")
    assert (found.backend, found.size, found.simulated) == ("ring", 2, "")
    assert [(pair.a, pair.b, pair.via) for pair in found.pairs] == [(0, 1, "ring"), (0, 1, "tcp")]
    for pair in found.pairs:
        assert 0 < pair.latency.least <= pair.latency.p50 <= pair.latency.p99
        assert min(pair.forward.p50, pair.backward.p50) > 0
        assert pair.crowded is None  # there is no other pair
        assert [point.size for point in pair.curve] == sorted({p.size for p in pair.curve})
        assert pair.fit is not None
    assert [sweep.op for sweep in found.sweeps] == ["all_sum", "all_gather", "sendrecv", "barrier"]
    for sweep in found.sweeps:
        sizes = [size for size in SIZES if size <= MEGABYTE]
        if sweep.op in ("barrier", "all_gather"):
            # Two ranks cannot put half of 4 bytes into a result each.
            sizes = sizes[:1] if sweep.op == "barrier" else sizes[1:]
        assert [point.size for point in sweep.points] == sizes
        assert [point.wrong for point in sweep.points] == [0] * len(sweep.points)
        for point in sweep.points:
            if sweep.op == "barrier":
                assert (point.algbw, point.busbw) == (0, 0)
            else:
                assert point.algbw == pytest.approx(point.size / point.time.p50)
    bus = {sweep.op: sweep.points[0].busbw / sweep.points[0].algbw for sweep in found.sweeps[:3]}
    assert bus == pytest.approx({"all_sum": 1, "all_gather": 0.5, "sendrecv": 1})


def test_any_pair_of_four_is_measured_by_tcp_and_neighbours_by_mlx(four: macluster.World) -> None:
    found = measured(four, "ops=()")
    native = [(pair.a, pair.b) for pair in found.pairs if pair.via == "ring"]
    plain = [(pair.a, pair.b) for pair in found.pairs if pair.via == "tcp"]
    assert native == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert plain == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert all(pair.crowded is not None for pair in found.pairs)
    across = found.pair(3, 1)
    assert across is not None
    assert across.via == "tcp"
    assert found.sweeps == ()


def test_what_the_ranks_hold_stays(two: macluster.World) -> None:
    toy = str(macluster.toy_path())
    two.run(f"model = macluster.load({toy!r})\nmx.random.seed(7)").result(TIMEOUT)
    say = "macluster.generate(model, 'Count from 1 to 5.', max_tokens=12)"
    before = answers(two, f"print(json.dumps({say}))\n")
    state = answers(two, "print(json.dumps(mx.random.state[0].tolist()))")
    measured(two, f"most={KILOBYTE}, links='neighbours'")
    assert answers(two, "print(json.dumps(mx.random.state[0].tolist()))") == state
    assert answers(two, f"print(json.dumps({say}))\n") == before


@pytest.mark.parametrize("stage", ["latency", "bandwidth", "all_sum, 4 B"])
def test_an_interrupt_stops_all_ranks_and_the_world_stays(two: macluster.World, stage: str) -> None:
    epoch = two.epoch
    cell = two.run("macluster.measure(links='neighbours')")
    until(lambda: stage in cell.runs[0].text("stdout"), "it measures", cell.wait)
    cell.cancel()
    assert cell.wait(TIMEOUT)
    assert {run.ename for run in cell.runs.values()} == {"KeyboardInterrupt"}
    again = measured(two, f"ops=('barrier',), links=False, most={KILOBYTE}")
    assert again.sweeps[0].points[0].wrong == 0
    assert two.epoch == epoch


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("ops=('all_reduce',)", "makes no sense"),
        ("links='some'", "makes no sense"),
        ("most=2", "makes no sense"),
        ("links='all' if rank else 'neighbours'", "asked to measure different things"),
    ],
)
def test_what_makes_no_sense_is_refused_on_all_ranks(
    two: macluster.World, arguments: str, said: str
) -> None:
    cell = two.run(f"macluster.measure({arguments})")
    with pytest.raises(macluster.CellError):
        cell.result(TIMEOUT)
    assert {run.ename for run in cell.runs.values()} == {"UsageError"}
    assert all(said in run.evalue for run in cell.runs.values())
    assert measured(two, "ops=(), links=False").pairs == ()


def test_after_an_interrupt_at_once_the_ranks_can_measure(two: macluster.World) -> None:
    # One rank may have begun when another has not: then a new world is formed.
    for _ in range(3):
        cell = two.run("macluster.measure()")
        cell.cancel()
        assert cell.wait(TIMEOUT)
        assert {run.status for run in cell.runs.values()} == {"error"}
        found = measured(two, f"ops=('barrier',), links=False, most={KILOBYTE}")
        assert found.sweeps[0].points[0].wrong == 0


CORRUPT = """
from macluster.engine.measure.pairs import NativeWire
_receive = NativeWire.receive
def _changed(self, size):
    _receive(self, size)
    if size == 1024:
        self._last = self._last + 1
if rank == {rank}:
    NativeWire.receive = _changed
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_message_that_arrives_changed_is_an_error(two: macluster.World, rank: int) -> None:
    two.run(CORRUPT.format(rank=rank)).result(TIMEOUT)
    try:
        cell = two.run("macluster.measure(ops=())")
        with pytest.raises(macluster.CellError):
            cell.result(TIMEOUT)
        assert {run.ename for run in cell.runs.values()} == {"WorldError"}
        assert all("1 KiB arrived changed" in run.evalue for run in cell.runs.values())
    finally:
        two.run(f"if rank == {rank}: NativeWire.receive = _receive").result(TIMEOUT)
    descriptors = "__import__('os').listdir('/proc/self/fd')"
    before = answers(two, f"print(json.dumps(len({descriptors})))")
    measured(two, "ops=(), links=True")
    assert answers(two, f"print(json.dumps(len({descriptors})))") == before


@pytest.mark.parametrize("op", ["all_sum", "all_gather", "sendrecv", "barrier"])
def test_a_wrong_result_is_counted(two: macluster.World, op: str) -> None:
    # One result on one rank is that of the operation before.
    two.run(
        "from macluster.engine.measure.sweep import Operation\n"
        "_run, _kept = Operation._run, []\n"
        "def _late(self, value):\n"
        "    _kept.append(_run(self, value))\n"
        "    return _kept[-2] if len(_kept) == 5 else _kept[-1]\n"
        "if rank == 1: Operation._run = _late"
    ).result(TIMEOUT)
    try:
        found = measured(two, f"links=False, ops=({op!r},), most=1024")
    finally:
        two.run("if rank == 1: Operation._run = _run").result(TIMEOUT)
    assert sum(point.wrong for point in found.sweeps[0].points) == 1


def test_a_collective_that_is_named_twice_is_measured_once(two: macluster.World) -> None:
    found = measured(two, f"links=False, ops=('barrier', 'all_sum', 'barrier'), most={KILOBYTE}")
    assert [sweep.op for sweep in found.sweeps] == ["barrier", "all_sum"]


def test_one_rank_has_no_wires() -> None:
    for world in start(1):
        found = measured(world, "")
        assert (found.pairs, found.sweeps, found.size) == ((), (), 1)
        assert found.notes == (
            "There is one rank, and a link takes two. Start more: %cluster start 2.",
        )


@pytest.mark.slow
@pytest.mark.usefixtures("namespaces")
def test_a_link_of_known_delay_and_rate_shows_as_that_link(tmp_path: Path) -> None:
    # 12 ms from host 0 to host 1, 40 Mbit/s and 2 ms from 1 to 2; hosts 0 and 2 are near.
    delay, rate = 0.012, 40e6
    with Hosts(3, {(0, 1): (delay, None), (1, 2): (0.002, rate)}) as hosts:
        facts = last_json(hosts.run(ON_HOSTS, tmp_path))
    found = macluster.Measurement.from_json(facts)
    assert len(found.pairs) == 6
    by_pair = {(pair.a, pair.b, pair.via): pair for pair in found.pairs}
    for via in ("ring", "tcp"):
        far, near, narrow = (by_pair[*pair, via] for pair in ((0, 1), (0, 2), (1, 2)))
        # The least: a busy machine adds to all others.
        assert far.latency.least == pytest.approx(delay, rel=0.1)
        assert max(near.latency.least, narrow.latency.least) < 0.7 * delay
        for way in (narrow.forward, narrow.backward):
            assert way.p50 == pytest.approx(PAYLOAD * rate / 8, rel=0.1)
        assert narrow.bandwidth < near.bandwidth / 5


def test_saved_and_read_again_it_is_the_same(two: macluster.World, tmp_path: Path) -> None:
    found = measured(two, f"most={KILOBYTE}")
    found.save(tmp_path / "wires.json")
    assert macluster.Measurement.load(tmp_path / "wires.json") == found
    json.loads((tmp_path / "wires.json").read_text())
