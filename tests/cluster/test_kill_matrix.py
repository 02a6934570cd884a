"""Every way to fail, in every phase: each cell ends, says why, and the world works again."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import attrs
import psutil
import pytest

import macluster
from macluster.engine import cluster as cluster_module
from macluster.engine import forming
from macluster.engine.hostfile import describe_ranks
from macluster.engine.launch import RankSetLauncher
from macluster.engine.processes import runs
from tests.cluster.faults import (
    EXCEPTION,
    EXIT,
    FAULTS,
    IMPORTS,
    INTERRUPT,
    KILL,
    LOOP,
    MEMORY,
    SKIP,
    STOP,
    SUM,
    Fault,
    Patient,
    end_of,
    files,
    until,
)
from tests.cluster.processes import PATIENCE, family, still_there, with_children

# Without this MLX calls a C++ compiler for every new kernel where there is no GPU.
ENV = {"MLX_DISABLE_COMPILE": "1"}
# For six phases in turn. On two cores two ranks fail faster than four.
SIZES = (2, 2, 2, 3, 3, 4)
AT_ONCE = 1  # starts at the same time; two would share what they measure
FORMING = 3.0  # seconds that forming a world gets where a rank does not take part
TOY = str(macluster.toy_path())

Patients = Callable[[int], Patient]


@pytest.fixture(scope="module")
def patients() -> Iterator[Patients]:
    """One cluster of each size, for all tests; idle ones cost next to nothing."""
    known: dict[int, Patient] = {}

    def patient(size: int) -> Patient:
        if size not in known:
            known[size] = Patient(macluster.Cluster(size, name=f"matrix-{size}", env=ENV))
        known[size].be_ready()
        return known[size]

    yield patient
    for each in known.values():
        each.cluster.stop_sync()
    for each in known.values():
        each.check_gone()


def spread(turn: int, *more: tuple[int, Fault]) -> pytest.MarkDecorator:
    """Every fault once, on two, three or four ranks: six turns give every fault every size.

    Small worlds more often, because each rank that is started anew takes a second.
    """
    pairs = [(SIZES[(turn + at) % len(SIZES)], fault) for at, fault in enumerate(FAULTS)]
    return pytest.mark.parametrize(("size", "fault"), [*pairs, *more], ids=str)


def culprit_of(size: int, fault: Fault) -> int:
    """Not always the same rank. Rank 0 is left out: where one must hold the others up, it does."""
    return 1 + FAULTS.index(fault) % (size - 1)


def code_of(*lines: str) -> str:
    return "\n".join([IMPORTS, *lines])


# -- around a collective ---------------------------------------------------------------------------


@spread(2, (8, EXCEPTION))
def test_a_fault_before_a_collective(patients: Patients, size: int, fault: Fault) -> None:
    patient, culprit = patients(size), culprit_of(size, fault)
    if fault is SKIP:
        code = code_of(f"if rank != {culprit}:", f"    {SUM}")
    else:
        code = code_of(f"if rank == {culprit}:", f"    {fault.code}", SUM)
    error = end_of(patient.world.run(code), fault)
    patient.check_end(fault, culprit, error)
    patient.check_others_stood(culprit, SUM, error)


def wait_until_inside(
    patient: Patient, cell: macluster.Cell, ranks: list[int], before: int
) -> None:
    """Return once `ranks` wait in the collective that is the cell's first."""
    last: dict[int, object] = {}

    def inside() -> bool:
        nonlocal last
        where = patient.world.where(ranks)
        moments = {rank: answer["moment"] for rank, answer in where.items()}
        still, last = moments == last, moments
        return still and all(
            rank in where
            and where[rank]["started"] == before + 1
            and f"`{SUM}`" in (where[rank]["place"] or "")
            for rank in ranks
        )

    until(inside, f"ranks {ranks} are inside the collective", cell.wait)


def wait_for(gate: Path) -> str:
    """A line of a block, which ends once the file is there."""
    return f"    while not os.path.exists({str(gate)!r}): threading.Event().wait(0.005)"


@spread(1)
def test_a_fault_while_ranks_are_inside_a_collective(
    patients: Patients, size: int, fault: Fault, tmp_path: Path
) -> None:
    patient, culprit = patients(size), culprit_of(size, fault)
    # The fault strikes at the first gate. Rank 0 follows the others at the second.
    strike, follow = tmp_path / "strike", tmp_path / "follow"
    hit_inside = fault.kills or fault is INTERRUPT
    late = 0 if hit_inside else culprit
    if fault.signal:
        lines = ["if rank == 0:", wait_for(follow), SUM]
    elif hit_inside:
        # Another thread of the culprit, whose main thread is in the collective.
        lines = ["def hit():", wait_for(strike), f"    {fault.code}", f"if rank == {culprit}:"]
        lines += ["    threading.Thread(target=hit).start()"]
        lines += ["if rank == 0:", wait_for(follow), SUM]
    else:
        lines = [f"if rank == {culprit}:", wait_for(strike), f"    {fault.code}"]
        lines += [f"if rank != {culprit}:", f"    {SUM}"] if fault is SKIP else [SUM]
    before = patient.world.ask("where")["started"]
    cell = patient.world.run(code_of(*lines))
    wait_until_inside(patient, cell, [rank for rank in range(size) if rank != late], before)
    pid = patient.world.client.pids[culprit]
    strike.touch()
    if fault.signal:
        os.kill(pid, fault.signal)
    elif fault.kills:
        # Or the collective ends before the rank does.
        until(lambda: not runs(pid), "the rank has ended", cell.wait)
    follow.touch()
    error = end_of(cell, fault)
    patient.check_end(fault, culprit, error)
    if fault is INTERRUPT:
        # The collective has ended before Python could see the signal.
        assert f"{describe_ranks(patient.others(culprit))}: ended without an error" in error.why
    else:
        patient.check_others_stood(culprit, SUM, error)


@spread(3)
def test_a_fault_after_a_collective(patients: Patients, size: int, fault: Fault) -> None:
    patient, culprit = patients(size), culprit_of(size, fault)
    epoch = patient.world.epoch
    hit = f"if rank == {culprit}: {fault.code}"
    if fault is SKIP:
        hit = f"if rank != {culprit}: {SUM}"
    elif fault is LOOP:
        hit = f"while rank == {culprit}: pass"
    together = "total = mx.distributed.all_sum(mx.ones(3))"
    error = end_of(
        patient.world.run(code_of(together, "assert total.tolist() == 3 * [size]", hit)), fault
    )
    patient.check_end(fault, culprit, error)
    # Ranks that are in step need no new world.
    assert patient.world.epoch == epoch + (fault.kills or fault is SKIP)


# -- with a model ----------------------------------------------------------------------------------


@spread(5)
def test_a_fault_while_a_model_is_loaded(patients: Patients, size: int, fault: Fault) -> None:
    patient, culprit = patients(size), culprit_of(size, fault)
    load = f"other = macluster.load({TOY!r}, model.strategy)"
    if fault is SKIP:
        code = code_of(f"if rank != {culprit}:", f"    {load}")
    else:
        code = code_of(
            "from macluster.engine.models import load as loading",
            "read = loading._read_weights",
            "def hit(loaded):",
            "    loading._read_weights = read",
            f"    if rank == {culprit}:",
            f"        {fault.code}",
            "    read(loaded)",
            "loading._read_weights = hit",
            load,
        )
    error = end_of(patient.world.run(code), fault)
    if fault in (EXCEPTION, MEMORY):
        # The ranks tell each other what failed, and all of them raise.
        assert type(error).__name__ == "ModelError"
        assert error.what.startswith(f"Rank {culprit}: {fault.says}")
        patient.check([], error.why)
        return
    patient.check_end(fault, culprit, error)
    patient.check_others_stood(culprit, load, error)


@spread(4)
def test_a_fault_while_a_model_generates(patients: Patients, size: int, fault: Fault) -> None:
    patient, culprit = patients(size), culprit_of(size, fault)
    each = 'for part in macluster.stream_generate(model, "Count from 1 to 15.", max_tokens=-1):'
    hit = "break" if fault is SKIP else fault.code
    code = code_of(
        "count = 0", each, "    count += 1", f"    if rank == {culprit} and count == 3:",
        f"        {hit}",
    )  # fmt: skip
    error = end_of(patient.world.run(code), fault)
    patient.check_end(fault, culprit, error)
    if fault is not SKIP:
        patient.check_others_stood(culprit, each, error)


# -- ended from outside ----------------------------------------------------------------------------

STEPS = f"for step in macluster.steps(range(1_000_000)):\n    {SUM}\n    count += 1"
TOKENS = (
    "for part in macluster.stream_generate(model, 'Count from 1 to 15.', max_tokens=-1):\n"
    "    count += 1"
)


@pytest.mark.parametrize(
    ("size", "loop"),
    [(2, STEPS), (4, STEPS), (4, TOKENS)],
    ids=["2-steps", "4-steps", "4-generation"],
)
def test_an_interrupt_stops_all_ranks_before_the_same_step(
    patients: Patients, size: int, loop: str
) -> None:
    patient = patients(size)
    world, epoch = patient.world, patient.world.epoch
    cell = world.run("count = 0\n" + loop)

    def under_way() -> bool:
        """Every rank has begun its third step."""
        moments = [answer["moment"] for answer in world.where().values()]
        return len(moments) == size and all(moment and moment[-1] >= 3 for moment in moments)

    until(under_way, "the loop is under way", cell.wait)
    cell.cancel()
    with pytest.raises(macluster.CellCancelled) as caught:
        cell.check()
    assert type(caught.value).__name__ == "KeyboardInterrupt"
    assert re.search(r"stopped before step \d+, because interrupted", caught.value.why)
    counts = world.run("print(count)").result(PATIENCE).runs
    assert len({counts[rank].text() for rank in world.ranks}) == 1
    assert int(counts[0].text()) >= 2
    assert world.epoch == epoch
    patient.check([], caught.value.why)


def test_a_rank_that_loops_is_named_while_the_others_wait(patients: Patients) -> None:
    patient = patients(3)
    said: list[str] = []
    cell = patient.world.run(code_of(f"while rank == 1: pass\n{SUM}"))
    cell.on_wait = said.append
    wanted = "rank 1 at line 2: `while rank == 1: pass`"
    until(lambda: wanted in cell.waiting, "the looping rank is named", cell.wait)
    assert f"ranks 0, 2 at line 3: `{SUM}`, waiting for the others" in cell.waiting
    assert not cell.done
    assert cell.waiting in said
    cell.cancel()
    error = end_of(cell)
    assert type(error).__name__ == "KeyboardInterrupt"
    assert "line 2: `while rank == 1: pass`" in error.why
    assert said[-1] == ""
    patient.check([], error.why)


def test_a_timeout_names_the_line_of_the_rank_that_loops(patients: Patients) -> None:
    patient = patients(2)
    error = end_of(patient.world.run(code_of(f"while rank == 1: pass\n{SUM}")), LOOP)
    assert "rank 1" in error.why
    assert "line 2: `while rank == 1: pass`" in error.why
    patient.check([], error.why)


# -- while a world is formed -----------------------------------------------------------------------

# Puts a fault in the place of one call that forms a world, for once.
HIT_WHEN_FORMING = """
from macluster.engine.rank.service import CALLS
form = CALLS[{call!r}]
def hit(kernel, content, buffers):
    CALLS[{call!r}] = form
    {code}
    return form(kernel, content, buffers)
CALLS[{call!r}] = hit
"""


def hit_when_forming(fault: Fault, culprit: int, call: str = "world.form") -> str:
    skipped = f"return {{'rank': {culprit}}}, ()"
    return code_of(
        HIT_WHEN_FORMING.format(call=call, code=skipped if fault is SKIP else fault.code)
    )


@pytest.fixture
def little_time_to_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that does not take part is waited for a moment, not for a minute."""
    monkeypatch.setattr(forming, "gather", functools.partial(forming.gather, timeout=FORMING))


@pytest.mark.usefixtures("little_time_to_form")
@spread(0)
def test_a_fault_while_a_new_world_is_formed(patients: Patients, size: int, fault: Fault) -> None:
    patient, culprit = patients(size), culprit_of(size, fault)
    world, epoch = patient.world, patient.world.epoch
    world.run(hit_when_forming(fault, culprit), [culprit]).result(PATIENCE)
    report = world.abort("a test asked for it")
    assert world.epoch > epoch
    if fault.kills:
        assert culprit in report.restarted
    patient.check(report.restarted, "\n".join(report.notes))


@attrs.define
class Start:
    """A start that a fault made fail, and the processes that there were when it did."""

    cluster: macluster.Cluster
    error: macluster.MaclusterError | None = None
    processes: list[psutil.Process] = attrs.field(factory=list)

    def attempt(self) -> Start:
        with pytest.raises(macluster.MaclusterError) as caught:
            self.cluster.start_sync()
        self.error = caught.value
        return self

    def check_gone(self, count: int) -> None:
        assert len(self.processes) >= count
        assert still_there(self.processes) == []
        assert files(self.cluster.name) == []


@pytest.fixture(scope="module")
def starts() -> dict[Fault, Future[Start]]:
    """A cluster for every fault, each of which fails while it forms its first world."""
    known = {fault: Start(macluster.Cluster(2, name=f"matrix-start-{fault}")) for fault in FAULTS}
    by_name = {start.cluster.name: (fault, start) for fault, start in known.items()}

    async def form(world: macluster.World, plan: forming.Plan) -> list[dict[str, object]]:
        fault, start = by_name[world.cluster.name]
        start.processes += family(start.cluster)
        code, view = hit_when_forming(fault, 1), world.client[1]
        await asyncio.to_thread(lambda: view.execute(code).get(timeout=PATIENCE))
        return await forming.form(world, plan)

    # Most of a start is waiting: for imports, for a rank that does not come, for ends.
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(AT_ONCE) as pool:
        patch.setattr(cluster_module, "form", form)
        patch.setattr(forming, "gather", functools.partial(forming.gather, timeout=FORMING))
        return {fault: pool.submit(start.attempt) for fault, start in known.items()}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_while_the_first_world_is_formed(
    starts: dict[Fault, Future[Start]], fault: Fault
) -> None:
    start = starts[fault].result()
    error = start.error
    assert error is not None
    if fault.kind == "dies" or fault is EXIT:  # outside of a cell it ends the process, as it should
        assert error.what == "Rank 1 died."
        says = "exit code 3" if fault is EXIT else fault.says
        assert re.match(rf"rank 1: its process (was )?ended (with|by) {says}", error.why)
    elif fault.kind == "raises":
        assert error.what.startswith(f"Rank 1 failed: {fault.says}")
    elif fault is STOP:
        assert error.what == "Rank 1 is stopped."
    else:
        late = "rank 0" if fault is SKIP else "ranks 0-1"
        assert error.what == f"{late} did not answer within {FORMING:.0f} s.", error.why
    assert error.why
    assert error.do
    start.check_gone(5)


def test_a_rank_that_fails_before_it_has_registered_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The other rank has registered long before; only a stopped one is waited for.
    monkeypatch.setattr(cluster_module, "START_TIMEOUT", 8.0)

    give_orders = RankSetLauncher.give_orders

    faults = [STOP, KILL, INTERRUPT]
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        faults.remove(INTERRUPT)  # a background job of a shell, whose children ignore it, too
    for fault in faults:
        start = Start(macluster.Cluster(2, name=f"matrix-register-{fault}"))

        def hit(ranks: RankSetLauncher) -> None:
            # Without its orders a rank cannot have registered.
            start.processes += family(start.cluster)  # noqa: B023
            os.kill(ranks.launchers["1"].pid, fault.signal)  # noqa: B023
            give_orders(ranks)

        monkeypatch.setattr(RankSetLauncher, "give_orders", hit)
        error = start.attempt().error
        assert isinstance(error, macluster.StartError)
        assert error.what.startswith("Rank 1 ")
        assert error.do
        start.check_gone(3)


# -- while a cluster ends --------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "faults"), [(8, FAULTS[:8]), (2, FAULTS[8:])], ids=["8", "2"])
def test_faults_while_a_cluster_stops(
    patients: Patients, size: int, faults: tuple[Fault, ...]
) -> None:
    patient = patients(size)
    for rank, fault in enumerate(faults):
        code = f"def hit():\n    {fault.code}\natexit.register(hit)"
        if fault is SKIP:
            code = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
        patient.world.run(code_of(code), [rank]).result(PATIENCE)
    began = time.monotonic()
    patient.cluster.stop_sync()
    assert time.monotonic() - began < PATIENCE
    patient.check_gone()


def test_the_end_of_the_controller_is_noticed_and_the_name_is_free_again() -> None:
    cluster = macluster.Cluster(2, name="matrix-headless")
    world = cluster.start_sync()
    processes = family(cluster)
    ranks = with_children([launcher.pid for launcher in cluster.engine_set.launchers.values()])
    cell = world.run(f"{SUM}\nwhile True: pass")
    until(lambda: world.ask("where")["started"] == 1, "the cell is under way", cell.wait)
    began = time.monotonic()
    os.kill(cluster.controller.pid, signal.SIGKILL)
    with pytest.raises(macluster.CellError, match="The controller of this cluster ended") as caught:
        cell.result(PATIENCE)
    assert time.monotonic() - began < 2.0
    assert caught.value.why
    assert caught.value.do == "%cluster start"
    assert "controller" in world.state
    with pytest.raises(macluster.WorldBroken, match="controller"):
        world.run("1")
    assert still_there(ranks) == []
    with macluster.Cluster(2, name="matrix-headless") as again:
        assert again.run(SUM).result(PATIENCE).done
        processes += family(again.cluster)
    cluster.stop_sync()
    assert still_there(processes) == []
    assert files("matrix-headless") == []
