"""What comes after a failure: new ranks are refilled, others look on, stale things are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import macluster
from macluster.engine import transfer
from macluster.engine.backends.ring import Ring
from macluster.engine.files import profile_dir
from tests.cluster.faults import SUM, end_of
from tests.cluster.processes import PATIENCE, family, still_there

RANKS = 2
KILL = f"import os\nif rank == 1:\n    os.kill(os.getpid(), 9)\n{SUM}"
BOOM = f"if rank:\n    raise ValueError('boom')\n{SUM}"


@pytest.fixture(scope="module")
def world() -> Iterator[macluster.World]:
    with macluster.Cluster(RANKS, name="recovery") as world:
        yield world


def texts(world: macluster.World, code: str, **options: bool) -> list[str]:
    cell = world.run(code, **options).result(PATIENCE)
    return [cell.runs[rank].text().rstrip("\n") for rank in world.ranks]


def works(world: macluster.World) -> bool:
    """True when a collective over all ranks gives the right sum."""
    total = world.size * (world.size + 1) // 2
    code = "print(mx.distributed.all_sum(mx.array(rank + 1)).item())"
    return texts(world, code) == [str(total)] * world.size


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def stands(world: macluster.World, places: dict[int, str]) -> bool:
    """True when each of these ranks stands at its line."""
    where = world.where()
    return all(line in (where.get(rank, {}).get("place") or "") for rank, line in places.items())


# -- refilling -------------------------------------------------------------------------------------


def test_setup_cells_run_on_the_rank_that_is_new(world: macluster.World) -> None:
    world.run("table = {'rank': rank}\nkept = object()\nmark = id(kept)").result(PATIENCE)
    world.cluster.add_setup_cell_sync("table = {'rank': rank, 'again': True}")
    error = end_of(world.run(KILL))
    assert "Rank 1 died" in error.what
    assert "the setup cell ran again on rank 1" in error.why
    assert "rank 1 started anew, with no variables; rank 0 kept its variables" in error.why
    assert texts(world, "print(table)") == ["{'rank': 0}", "{'rank': 1, 'again': True}"]
    code = "print('kept' in globals() and mark == id(kept))"
    assert texts(world, code) == ["True", "False"]
    assert works(world)


def test_a_setup_cell_with_a_collective_is_told_that_it_runs_alone(world: macluster.World) -> None:
    world.cluster.add_setup_cell_sync("total = mx.distributed.all_sum(mx.ones(1))")
    try:
        error = end_of(world.run(KILL))
        assert "all_sum needs all ranks, but this setup cell runs on rank 1 only" in error.why
        assert works(world)
    finally:
        world.cluster.setup_cells = []
        world.cluster.update_cluster_file()


def test_a_model_is_loaded_again_on_the_rank_that_is_new(world: macluster.World) -> None:
    world.run("model = macluster.load(macluster.toy_path())").result(PATIENCE)
    ask = "print(macluster.generate(model, 'What is the capital of France?'))"
    before = texts(world, ask)
    error = end_of(world.run(KILL))
    assert "`model` was loaded again on rank 1" in error.why
    assert texts(world, ask) == before


def test_a_rank_that_dies_while_idle_is_replaced_and_told_of(world: macluster.World) -> None:
    epoch = world.epoch
    os.kill(world.client.pids[1], signal.SIGKILL)
    until(lambda: world.epoch > epoch and world.state == "ok" and bool(world.notices))
    assert "Rank 1 died while it was idle" in world.notices[0]
    assert "SIGKILL" in world.notices[0]
    world.notices.clear()
    assert works(world)


def test_a_registration_that_was_begun_by_a_process_that_is_gone_is_forgotten(
    world: macluster.World,
) -> None:
    epoch, client = world.epoch, world.client
    departed = threading.Event()

    def begin(rank: int) -> None:
        # In the client's own thread, right after the number became free; nobody beats its heart.
        content = {"uuid": "somebody-else", "id": rank}
        client.session.send(client._query_stream, "registration_request", content=content)
        departed.set()

    mend, client.on_departure = client.on_departure, begin
    try:
        os.kill(client.pids[1], signal.SIGKILL)
        assert departed.wait(PATIENCE)
        assert works(world)
    finally:
        client.on_departure = mend
    assert world.epoch == epoch + 1  # at the first attempt


# -- what belongs to a world that is gone ----------------------------------------------------------


def test_what_was_not_computed_yet_is_named_and_holds_nan(world: macluster.World) -> None:
    world.run(
        "later = mx.distributed.all_sum(mx.ones(2))\nhidden = {'deep': [later * 2]}\n"
        "def closure(inner=mx.distributed.all_sum(mx.ones(1))):\n    return inner\n"
        "kept = mx.ones(2) * 3"
    ).result(PATIENCE)
    report = world.abort()
    assert report.notes[0].startswith("`later` on ranks 0-1 had not been computed yet")
    code = "print(kept.tolist(), later.tolist(), hidden['deep'][0].tolist(), closure().item())"
    assert texts(world, code) == ["[3.0, 3.0] [nan, nan] [nan, nan] nan"] * RANKS
    assert works(world)


def test_what_was_being_computed_is_named(world: macluster.World) -> None:
    code = "if rank == 1:\n    raise ValueError('boom')\ntotal = mx.distributed.all_sum(mx.ones(2))"
    error = end_of(world.run(code + "\nmx.eval(total)"))
    assert "boom" in error.what
    assert "`total` on rank 0 holds NaN" in error.why
    assert works(world)


def test_a_compiled_function_works_in_the_next_world(world: macluster.World) -> None:
    world.run(
        "@mx.compile\ndef twice(x):\n    return mx.distributed.all_sum(x) * 2\n"
        "first = twice(mx.array(1.0)).item()"
    ).result(PATIENCE)
    world.abort()
    code = "print(first, twice(mx.array(1.0)).item())"
    assert texts(world, code) == [f"{2.0 * RANKS} {2.0 * RANKS}"] * RANKS


def test_group_leads_to_the_world_of_now(world: macluster.World) -> None:
    world.run("old, before = group, mx.distributed.init()").result(PATIENCE)
    world.abort()
    code = (
        "print(old is group is before, old.rank(), old.size(),"
        " mx.distributed.all_sum(mx.array(1), group=old).item())"
    )
    assert texts(world, code) == [f"True {rank} {RANKS} {RANKS}" for rank in range(RANKS)]


def test_a_collective_in_a_thread_is_refused(world: macluster.World) -> None:
    code = """
import threading
errors = []
def work():
    try:
        mx.eval(mx.distributed.all_sum(mx.ones(2)))
    except Exception as error:
        errors.append(error)
thread = threading.Thread(target=work, name="side")
thread.start()
thread.join()
print(*errors)
"""
    assert all("in the thread 'side'" in text for text in texts(world, code))
    assert works(world)


# -- from elsewhere --------------------------------------------------------------------------------


def command(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "macluster", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_stacks_and_abort_from_a_terminal_while_a_cell_runs(world: macluster.World) -> None:
    world.run("kept = rank").result(PATIENCE)
    epoch = world.epoch
    cell = world.run(f"import threading\nif rank:\n    threading.Event().wait()\n{SUM}")
    until(lambda: stands(world, {0: SUM, 1: "threading.Event().wait()"}))
    stacks = command("stacks", "recovery")
    assert "mx.eval(mx.distributed.all_sum(mx.ones(3)))" in stacks
    assert "threading.Event().wait()" in stacks
    assert "ranks 0-1 kept their variables" in command("abort", "recovery")
    error = end_of(cell)
    assert "The cell was ended" in error.what
    assert "`macluster abort` ended it" in error.why
    assert "rank 1 stood at line 3: `threading.Event().wait()`" in error.why
    assert texts(world, "print(kept)") == ["0", "1"]
    assert world.epoch == epoch + 1
    assert works(world)


def test_two_users_of_one_cluster_mend_it_once(world: macluster.World) -> None:
    other = macluster.Cluster.connect("recovery")
    theirs = other.world
    assert theirs is not None
    try:
        epoch = world.epoch
        error = end_of(theirs.run(BOOM))
        assert "boom" in error.what
        assert works(theirs)
        assert works(world)
        assert texts(world, "from macluster.engine.rank.collectives import collectives\n"
                     "print(collectives.epoch)") == [str(epoch + 1)] * RANKS  # fmt: skip
        # A rank that is replaced by one user is known to the other, who ends it at stop.
        error = end_of(theirs.run(KILL))
        assert "Rank 1 died" in error.what
        assert works(theirs)
        assert works(world)
    finally:
        other.disconnect()


def test_ranks_replaced_by_another_process_end_with_the_cluster() -> None:
    cluster = macluster.Cluster(2, name="replaced")
    with cluster as world:
        os.kill(world.client.pids[1], signal.SIGSTOP)
        code = (
            "import macluster\n"
            "world = macluster.Cluster.connect('replaced').world\n"
            "world.run('mx.eval(mx.distributed.all_sum(mx.ones(1)))').wait()\n"
            "print(world.ask('status', rank=1)['pid'])\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE
        )
        successor = psutil.Process(int(done.stdout))
        assert works(world)
    assert still_there([successor]) == []


def test_a_cluster_that_is_kept_is_found_again_with_its_variables() -> None:
    code = (
        "import macluster, os\n"
        "world = macluster.Cluster(2, name='kept', keep=True).start_sync()\n"
        "world.run('model = macluster.load(macluster.toy_path())').result()\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=PATIENCE)
    cluster = macluster.Cluster.connect("kept")
    world = cluster.running_world
    pids = [world.ask("status", rank=rank)["pid"] for rank in world.ranks]
    try:
        [first, second] = texts(world, "print(macluster.generate(model, 'What is 2 plus 2?'))")
        assert first == second != ""
        error = end_of(world.run(KILL))
        assert "Rank 1 died" in error.what
        assert works(world)
        processes = [psutil.Process(pid) for pid in (*pids[:1], cluster.controller.pid)]
    finally:
        cluster.stop_sync()
    assert still_there(processes) == []
    assert [each.name for each in macluster.Cluster.running()].count("kept") == 0


# -- checked mode ----------------------------------------------------------------------------------

MISMATCHES = {
    "shape": "y = mx.distributed.all_sum(mx.ones(3 + rank))",
    "type": "y = mx.distributed.all_sum(mx.ones(3, dtype=mx.int32 if rank else mx.float32))",
    "operation": (
        "if rank:\n    y = mx.distributed.all_sum(mx.ones(3))\nelse:\n"
        "    y = mx.distributed.all_max(mx.ones(3))"
    ),
    "order": (
        "def a(): return mx.distributed.all_sum(mx.ones(3))\n"
        "def b(): return mx.distributed.all_gather(mx.ones(3))\n"
        "y = [call() for call in ((a, b) if rank else (b, a))]"
    ),
    "call site": (
        "if rank:\n    y = mx.distributed.all_sum(mx.ones(3))\nelse:\n"
        "    y = mx.distributed.all_sum(mx.ones(3))"
    ),
}


@pytest.mark.parametrize("kind", MISMATCHES)
def test_a_mismatch_is_told_before_data_moves(world: macluster.World, kind: str) -> None:
    epoch = world.epoch
    error = end_of(world.run(MISMATCHES[kind], checked=True))
    assert error.ename == "CollectiveMismatch"
    text = "".join(error.traceback)
    assert "rank 0: all_" in text
    assert "rank 1: all_" in text
    assert text.count(" at line ") >= 2
    # Nothing has moved, so the ranks are still in step.
    assert world.epoch == epoch
    assert works(world)


def test_a_receiver_that_expects_something_else_is_told(world: macluster.World) -> None:
    code = (
        "if rank:\n    mx.eval(mx.distributed.send(mx.ones(4), 0))\nelse:\n"
        "    mx.eval(mx.distributed.recv((3,), mx.float32, 1))"
    )
    error = end_of(world.run(code, checked=True))
    text = "".join(error.traceback)
    assert "rank 0: recv float32 (3,)" in text
    assert "rank 1: send float32 (4,)" in text
    assert works(world)


def test_checked_mode_leaves_what_is_right_alone(world: macluster.World) -> None:
    code = """
total = mx.distributed.all_sum(mx.ones(3) * (rank + 1))
rows = mx.distributed.all_gather(mx.array([[rank]]))
peer = (rank + 1) % size
if rank == 0:
    mx.eval(mx.distributed.send(mx.full((2,), 7.0), 1))
else:
    got = mx.distributed.recv_like(mx.zeros(2), 0)
    assert got.tolist() == [7.0, 7.0]
gradient = mx.grad(lambda x: mx.distributed.all_sum(x * x).sum())(mx.ones(2))
compiled = mx.compile(lambda x: mx.distributed.all_sum(x) + 1)(mx.ones(1))
print(total.tolist(), rows.tolist(), gradient.tolist(), compiled.item())
"""
    plain = texts(world, code)
    assert texts(world, code, checked=True) == plain
    assert plain[0].startswith("[3.0, 3.0, 3.0] [[0], [1]]")


def test_a_cluster_can_check_every_cell() -> None:
    with macluster.Cluster(2, name="checked", checked=True) as world:
        error = end_of(world.run(MISMATCHES["shape"]))
        assert error.ename == "CollectiveMismatch"
        world.abort()
        end_of(world.run(MISMATCHES["shape"]))


def test_collectives_that_not_all_ranks_start_are_told_of(world: macluster.World) -> None:
    cell = world.run("if rank == 0:\n    y = mx.distributed.all_sum(mx.ones(1))").result(PATIENCE)
    [warning] = cell.warnings
    assert "rank 0 started collectives that rank 1 did not start" in warning
    world.abort()
    assert works(world)


# -- backends that cannot free a rank --------------------------------------------------------------


def test_a_backend_that_cannot_free_ranks_gets_all_of_them_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Ring, "rebuilds_in_place", False)
    with macluster.Cluster(2, name="kill-first") as world:
        world.run("model = macluster.load(macluster.toy_path())\nkept = 1").result(PATIENCE)
        world.cluster.add_setup_cell_sync("ready = mx.distributed.all_sum(mx.array(1)).item()")
        error = end_of(world.run(BOOM))
        assert "boom" in error.what
        assert "rank 0 stood at line 3" in error.why
        assert "All ranks were started anew: their variables are gone." in error.why
        assert "`model` was loaded again on ranks 0-1" in error.why
        assert texts(world, "print('kept' in globals(), ready)") == ["False 2"] * 2
        assert works(world)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="this machine has no Open MPI")
def test_mpi_gets_all_ranks_anew_when_one_fails() -> None:
    with macluster.Cluster(2, backend="mpi", name="recovery-mpi") as world:
        error = end_of(world.run(BOOM))
        assert "boom" in error.what
        assert "All ranks were started anew" in error.why
        assert works(world)


def test_a_terminal_starts_lists_and_stops_clusters() -> None:
    assert "%cluster connect terminal" in command("start", "2", "--name", "terminal")
    try:
        listed = [json.loads(line) for line in command("list", "--json").splitlines()]
        assert [each["ranks"] for each in listed if each["name"] == "terminal"] == [2]
        assert "idle" in command("stacks", "terminal")
        cluster = macluster.Cluster.connect("terminal")
        assert works(cluster.running_world)
        cluster.disconnect()
    finally:
        assert "stopped 'terminal'" in command("stop", "terminal")
    failed = subprocess.run(
        [sys.executable, "-m", "macluster", "stop", "terminal"], capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert "No cluster named 'terminal' runs." in failed.stderr


# -- what can go wrong at the start ----------------------------------------------------------------


def test_a_rank_that_never_comes_up_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("macluster.engine.cluster.START_TIMEOUT", 3.0)
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(600)\n")
    cluster = macluster.Cluster(2, name="sleepers", env={"PYTHONPATH": str(tmp_path)})
    with pytest.raises(macluster.StartError, match="did not register within 3 s"):
        cluster.start_sync()
    nothing_is_left("sleepers")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        monkeypatch.setenv("IPYTHONDIR", str(disk / "ipython"))
        (disk / "ipython").mkdir()
        with pytest.raises(OSError, match="No space left"), open(disk / "fill", "wb") as file:
            file.write(bytes(2**20))
        with pytest.raises(macluster.StartError, match="No space left on device") as caught:
            macluster.Cluster(2, name="full").start_sync()
        assert "free some space" in caught.value.do
        nothing_is_left("full")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_port_that_is_taken_costs_an_attempt_and_no_variables(world: macluster.World) -> None:
    world.run("""
kept = rank
if rank == 0:
    import socket
    import macluster.engine.rank.world as joining
    release = joining.release_ports
    def release_and_lose():
        if not joining._reserved:
            return release()
        [holder] = joining._reserved
        address = holder.getsockname()
        release()
        global thief
        thief = socket.create_server(address)
        joining.release_ports = release
    joining.release_ports = release_and_lose
""").result(PATIENCE)
    report = world.abort()
    assert world.state == "ok"
    assert works(world)
    kept = texts(world, "print(globals().get('kept'))")
    assert [kept[rank] for rank in world.ranks if rank not in report.restarted] == [
        str(rank) for rank in world.ranks if rank not in report.restarted
    ]
    world.run("if rank == 0 and 'thief' in globals(): thief.close()").result(PATIENCE)


def test_the_end_of_the_controller_is_told_and_a_new_cluster_starts() -> None:
    cluster = macluster.Cluster(2, name="orphans")
    world = cluster.start_sync()
    processes = family(cluster)
    psutil.Process(cluster.controller.pid).kill()
    until(lambda: world.client.lost is not None)
    # The owner ends the ranks without being asked.
    assert still_there(processes) == []
    cluster.stop_sync()
    with macluster.Cluster(2, name="orphans") as second:
        assert works(second)


def nothing_is_left(name: str) -> None:
    mine = psutil.Process().children(recursive=True)
    assert [each.cmdline() for each in mine if name in " ".join(each.cmdline())] == []
    security = profile_dir() / "security"
    assert list(security.glob(f"*{name}*")) == []


def test_an_object_of_a_cluster_that_is_gone_leaves_the_next_one_alone() -> None:
    first = macluster.Cluster(1, name="same-name")
    first.start_sync()
    command("stop", "same-name")
    with macluster.Cluster(1, name="same-name") as world:
        late = macluster.Cluster(1, name="same-name")
        with pytest.raises(macluster.ClusterExists):
            late.start_sync()
        world.run("kept = 42").result(PATIENCE)
        late.stop_sync()
        first.stop_sync()
        assert texts(world, "print(kept)") == ["42"]
        assert [each.name for each in macluster.Cluster.running()].count("same-name") == 1
    nothing_is_left("same-name")


def test_a_cluster_that_was_stopped_from_elsewhere_says_so() -> None:
    cluster = macluster.Cluster(2, name="elsewhere")
    world = cluster.start_sync()
    processes = family(cluster)
    command("stop", "elsewhere")
    with pytest.raises(macluster.WorldBroken, match=r"was stopped from elsewhere|controller"):
        world.run("1").result(PATIENCE)
    cluster.stop_sync()
    assert still_there(processes) == []
    nothing_is_left("elsewhere")


def test_a_skipped_collective_is_found_in_checked_mode_too(world: macluster.World) -> None:
    error = end_of(world.run(f"if rank == 0:\n    {SUM}", checked=True))
    assert "The cell could not end" in error.what
    assert works(world)


def test_a_cell_that_follows_a_failed_one_does_not_meet_its_collective(
    world: macluster.World,
) -> None:
    first = world.run("if rank == 0:\n    raise ValueError('boom')\n" + SUM)
    second = world.run("mixed = mx.distributed.all_sum(mx.array(1.0)).item()")
    error = end_of(first)
    assert "boom" in error.what
    error = end_of(second)
    assert "a cell before it failed on this rank" in error.what
    assert texts(world, "print(globals().get('mixed'))") == ["None"] * RANKS
    assert works(world)


def test_a_call_does_not_wait_for_a_rank_that_died(world: macluster.World) -> None:
    world.run("if rank == 0:\n    lazy = mx.distributed.all_sum(mx.ones(2))").result(PATIENCE)
    with ThreadPoolExecutor() as pool:
        pulled = pool.submit(transfer.pull, world, ["lazy"], [0])
        until(lambda: world.ask("status")["busy"])
        os.kill(world.client.pids[1], signal.SIGKILL)
        with pytest.raises(macluster.MaclusterError):
            pulled.result(PATIENCE)
    assert works(world)
