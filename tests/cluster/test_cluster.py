"""Clusters of real processes: start, stop, connect, restart, and what is left behind."""

from __future__ import annotations

import json
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

import macluster
from macluster.engine.files import profile_dir
from tests.cluster.processes import PATIENCE, family, still_there

SUM = "total = mx.distributed.all_sum(mx.array(rank + 1)).item()\nprint(rank, size, total)"


def printed(world: macluster.World, code: str) -> list[str]:
    """What each rank prints."""
    cell = world.run(code).result(PATIENCE)
    return [cell.runs[rank].text().strip() for rank in world.ranks]


def run_python(source: str, *arguments: str) -> subprocess.Popen[str]:
    """Another process that runs `source`, with its own end of a pipe to read from."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source), *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


# -- life ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_world_forms_and_nothing_is_left_after_it(ranks: int) -> None:
    steps: list[str] = []
    cluster = macluster.Cluster(ranks, name=f"life-{ranks}")
    world = cluster.start_sync(steps.append)
    processes = family(cluster)
    try:
        expected = [f"{rank} {ranks} {ranks * (ranks + 1) // 2}" for rank in range(ranks)]
        assert printed(world, SUM) == expected
        assert world.state == "ok"
        assert len(processes) >= 2 * ranks + 1  # each rank with its nanny, and the controller
    finally:
        cluster.stop_sync()
    assert still_there(processes) == []
    assert list((profile_dir() / "security").glob(f"*life-{ranks}*")) == []
    assert steps[0] == f"starting {ranks} ranks on ring"
    assert steps[-1].startswith(f"{ranks} ranks on ring are ready (")


def test_the_context_manager_starts_and_stops() -> None:
    cluster = macluster.Cluster(2, name="context")
    with cluster as world:
        processes = family(cluster)
        assert printed(world, SUM) == ["0 2 3", "1 2 3"]
    assert still_there(processes) == []
    with pytest.raises(macluster.WorldBroken, match="connection to the cluster was closed"):
        world.run("1")


async def test_the_coroutines_do_the_same() -> None:
    cluster = macluster.Cluster(2, name="async")
    async with cluster as world:
        processes = family(cluster)
        cell = world.run("print(rank)").result(PATIENCE)
        assert [cell.runs[rank].text() for rank in (0, 1)] == ["0\n", "1\n"]
        again = await cluster.restart()
        assert again is world
    assert still_there(processes) == []


def test_two_worlds_at_once_do_not_mix() -> None:
    with macluster.Cluster(2, name="one") as one, macluster.Cluster(2, name="two") as two:
        cells = [one.run(f"{SUM}\n" * 20), two.run(f"rank += 10\n{SUM}\n" * 1)]
        cells[0].result(PATIENCE)
        cells[1].result(PATIENCE)
        assert set(cells[0].runs[0].text().split("\n")) == {"0 2 3", ""}
        assert cells[1].runs[1].text() == "11 2 23\n"


def test_files_are_private_and_no_secret_is_in_an_argument() -> None:
    cluster = macluster.Cluster(2, name="private")
    with cluster:
        security = profile_dir() / "security"
        assert stat.S_IMODE(security.stat().st_mode) == 0o700
        connection = security / "ipcontroller-private-client.json"
        assert stat.S_IMODE(connection.stat().st_mode) == 0o600
        key = json.loads(connection.read_text())["key"]
        for process in family(cluster):
            assert key not in " ".join(process.cmdline())
            assert key not in " ".join(process.environ().values())
            for listener in process.net_connections(kind="tcp"):
                if listener.status == psutil.CONN_LISTEN:
                    assert listener.laddr.ip == "127.0.0.1"


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun: install openmpi-bin")
def test_mpi_runs_the_same_cells() -> None:
    cluster = macluster.Cluster(2, name="mpi", backend="mpi")
    with cluster as world:
        processes = family(cluster)
        assert printed(world, SUM) == ["0 2 3", "1 2 3"]
        cluster.restart_sync()
        assert printed(world, SUM) == ["0 2 3", "1 2 3"]
    assert still_there(processes) == []


# -- other processes -------------------------------------------------------------------------------


def test_another_process_connects_runs_cells_and_restarts() -> None:
    with macluster.Cluster(2, name="shared", env={"COLOUR": "green"}) as world:
        printed(world, "mine = 7")
        visitor = run_python(
            """
            import macluster
            cluster = macluster.Cluster.connect("shared")
            world = cluster.world
            print([world.run("print(mine)").result(60).runs[r].text().strip() for r in (0, 1)])
            cluster.restart_sync()
            code = "import os; print(os.environ['COLOUR'], size)"
            print([world.run(code).result(60).runs[r].text().strip() for r in (0, 1)])
            """
        )
        out, _ = visitor.communicate(timeout=PATIENCE)
        assert out.splitlines() == ["['7', '7']", "['green 2', 'green 2']"]
        # The visitor's ranks stay when it leaves, and the owner uses them.
        assert printed(world, SUM) == ["0 2 3", "1 2 3"]
        assert [each.name for each in macluster.Cluster.running()] == ["shared"]
    assert macluster.Cluster.running() == []


def test_restart_gives_fresh_ranks_and_the_same_world() -> None:
    with macluster.Cluster(2, name="again") as world:
        before = printed(world, "import os; kept = 1; print(os.getpid())")
        world.cluster.restart_sync()
        after = printed(world, "import os; print(os.getpid(), 'kept' in globals())")
        assert [line.endswith("False") for line in after] == [True, True]
        assert {line.split()[0] for line in after}.isdisjoint(before)
        assert printed(world, SUM) == ["0 2 3", "1 2 3"]


def test_a_name_that_runs_cannot_be_started_again() -> None:
    with macluster.Cluster(1, name="taken") as world:
        with pytest.raises(macluster.ClusterExists, match="'taken' runs already") as caught:
            macluster.Cluster(1, name="taken").start_sync()
        assert "%cluster connect taken" in caught.value.do
        assert printed(world, "print(rank)") == ["0"]


def test_a_name_that_does_not_run_is_not_found() -> None:
    with pytest.raises(macluster.ClusterNotFound, match="No cluster named 'nobody' runs"):
        macluster.Cluster.connect("nobody")


def test_views_of_stock_ipyparallel_work_beside_our_own_cells() -> None:
    with macluster.Cluster(2, name="views") as world:
        view = world.client[:]
        assert view.apply_async(lambda: 6 * 7).get(timeout=PATIENCE) == [42, 42]
        view.execute("stock = rank").get(timeout=PATIENCE)
        assert printed(world, "print(stock)") == ["0", "1"]


# -- owners that go --------------------------------------------------------------------------------

OWNER = """
import sys
import macluster
cluster = macluster.Cluster(2, name=sys.argv[1])
world = cluster.start_sync()
pids = [cluster.controller.pid] + [each.pid for each in cluster.engine_set.launchers.values()]
if sys.argv[2] == "hung":
    world.run("if rank == 0: mx.eval(mx.distributed.all_sum(mx.ones(3)))")
print(*pids, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "exit"])
@pytest.mark.parametrize("ranks_are", ["idle", "hung"])
def test_nothing_outlives_its_owner(how: str, ranks_are: str) -> None:
    name = f"orphan-{how.lower()}-{ranks_are}"
    owner = run_python(OWNER, name, ranks_are)
    assert owner.stdout is not None
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    # Also the guardian, which is the last one to leave.
    processes = psutil.Process(owner.pid).children(recursive=True)
    assert {*pids} < {process.pid for process in processes}
    assert len(processes) >= 6
    if how == "exit":
        owner.communicate("go\n", timeout=PATIENCE)
    else:
        owner.send_signal(getattr(signal, how))
        owner.communicate(timeout=PATIENCE)
    assert still_there(processes) == []
    assert list((profile_dir() / "security").glob(f"*{name}*")) == []


# -- starts that fail ------------------------------------------------------------------------------


def nothing_runs(name: str) -> bool:
    mine = psutil.Process().children(recursive=True)
    left = still_there([each for each in mine if each.is_running()], patience=20)
    return left == [] and not list((profile_dir() / "security").glob(f"*{name}*"))


def test_a_rank_that_dies_at_its_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    # Only the ranks get this folder on their path; Python runs the file before anything else.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "print('the disk of this host is full', file=sys.stderr, flush=True)\n"
        "os._exit(3)\n"
    )
    cluster = macluster.Cluster(2, name="stillborn", env={"PYTHONPATH": str(tmp_path)})
    with pytest.raises(macluster.StartError, match=r"Rank [01] ended while it started") as caught:
        cluster.start_sync()
    assert "the disk of this host is full" in caught.value.why
    assert caught.value.do
    assert nothing_runs("stillborn")


def test_a_world_that_cannot_form_names_the_address() -> None:
    hosts = [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}, {"ssh": "127.0.0.1", "ips": ["192.0.2.1"]}]
    cluster = macluster.Cluster(macluster.Hostfile.from_json(hosts), name="unformed")
    with pytest.raises(macluster.WorldError, match=r"cannot listen on 192\.0\.2\.1") as caught:
        cluster.start_sync()
    assert "correct the address" in caught.value.do
    assert nothing_runs("unformed")


@pytest.mark.parametrize(
    ("hosts", "backend", "error"),
    [
        (0, None, macluster.UsageError),
        (-2, None, macluster.UsageError),
        (2, "tcp", macluster.BackendError),
        ("no-such-file.json", None, macluster.HostfileError),
    ],
)
def test_bad_input_starts_nothing(
    hosts: int | str, backend: str | None, error: type[macluster.MaclusterError]
) -> None:
    with pytest.raises(error) as caught:
        macluster.Cluster(hosts, backend=backend, name="bad").start_sync()
    assert caught.value.why
    assert caught.value.do
    assert len(str(caught.value).splitlines()) < 10
    assert nothing_runs("bad")


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have jaccl")
def test_a_backend_that_this_machine_lacks_says_so() -> None:
    with pytest.raises(macluster.BackendError, match="cannot run on this machine"):
        macluster.Cluster(2, backend="jaccl")


def test_a_host_elsewhere_is_refused_in_words() -> None:
    hosts = [{"ssh": "studio-0", "ips": ["192.0.2.1"]}, {"ssh": "studio-1", "ips": ["192.0.2.2"]}]
    cluster = macluster.Cluster(macluster.Hostfile.from_json(hosts), name="elsewhere")
    with pytest.raises(macluster.BackendError, match="on studio-0 yet"):
        cluster.start_sync()
    assert nothing_runs("elsewhere")
