"""Backends: why one is chosen, what rules one out, and that ranks see what mlx.launch gives them.

The real `mlx.launch` starts a program that writes its environment down. Ports are the one thing
that differs (ours are free ones of each rank's own), so ours are made from mlx.launch's.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import pytest
from mlx._distributed_utils import launch as mlx_launch

from macluster.engine import backends
from macluster.engine.backends import mpi
from macluster.engine.backends.base import Backend
from macluster.engine.errors import BackendError, HostfileError, MaclusterError
from macluster.engine.hostfile import Host, Hostfile

PORT = 32323


def mesh(n: int, *, ssh: str = "mac-{}", **more: Any) -> Hostfile:
    rows = [
        Host(
            ssh.format(rank),
            (f"10.0.0.{rank + 1}",),
            tuple(None if other == rank else f"rdma_en{other}" for other in range(n)),
        )
        for rank in range(n)
    ]
    return Hostfile(tuple(rows), **more)


def cut(hostfile: Hostfile, *cables: tuple[int, int]) -> Hostfile:
    """The hostfile without the RDMA devices from one rank to another."""
    rows = [list(host.rdma) for host in hostfile.hosts]
    for here, there in cables:
        rows[here][there] = None
    changed = [
        attrs.evolve(host, rdma=tuple(row)) for host, row in zip(hostfile.hosts, rows, strict=True)
    ]
    return attrs.evolve(hostfile, hosts=tuple(changed))


def rdma_ring(n: int, **more: Any) -> Hostfile:
    far = [(i, j) for i in range(n) for j in range(n) if (i - j) % n not in (0, 1, n - 1)]
    return cut(mesh(n, **more), *far)


def tcp(n: int, *, ssh: str = "mac-{}", **more: Any) -> Hostfile:
    hosts = [Host(ssh.format(rank), (f"10.0.0.{rank + 1}",)) for rank in range(n)]
    return Hostfile(tuple(hosts), **more)


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def only_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder on PATH, empty: what a machine without that software looks like."""
    folder = tmp_path / "prefix" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "platform", "linux")
    return folder


@pytest.fixture(autouse=True)
def fresh_library_name() -> None:
    mpi.library_name.cache_clear()


def assert_explained(error: MaclusterError, *places: str) -> None:
    assert error.why
    assert error.do
    for place in places:
        assert place in error.what


# -- which one ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("only_path")
@pytest.mark.parametrize(
    ("hostfile", "asked", "name", "reason"),
    [
        (Hostfile.local(2), "ring", "ring", "it was asked for"),
        (mesh(3, backend="jaccl"), "jaccl-ring", "jaccl-ring", "it was asked for"),
        (mesh(3, backend="ring", source="x.json"), None, "ring", "x.json says so"),
        (mesh(3, backend="jaccl-ring"), None, "jaccl-ring", "the hostfile says so"),
        (Hostfile.local(1), None, "ring", "one rank talks to nobody"),
        (mesh(1), None, "ring", "one rank talks to nobody"),
        (Hostfile.local(2), None, "ring", "all ranks are on this machine"),
        (mesh(4), None, "jaccl", "the hostfile's RDMA devices form a mesh"),
        (mesh(2), None, "jaccl", "the hostfile's RDMA devices form a mesh"),
        (rdma_ring(4), None, "jaccl-ring", "the hostfile's RDMA devices form a ring"),
        (mesh(9), None, "jaccl-ring", "the hostfile's RDMA devices form a ring"),
        (tcp(2), None, "ring", "rank 0 (mac-0) has no RDMA device"),
        (
            cut(mesh(3), (2, 0), (2, 1)),
            None,
            "ring",
            "rank 2 (mac-2) has no RDMA device",
        ),
        (
            cut(mesh(4), (0, 1)),
            None,
            "ring",
            "the RDMA devices form neither a mesh nor a ring, or this machine is no Mac",
        ),
    ],
)
def test_a_choice_says_its_reason(
    hostfile: Hostfile, asked: str | None, name: str, reason: str
) -> None:
    choice = backends.choose(hostfile, asked)
    assert (choice.backend.name, choice.reason) == (name, reason)


def test_an_nvidia_driver_here_chooses_nccl(only_path: Path) -> None:
    executable(only_path / "nvidia-smi", "exit 0")
    choice = backends.choose(Hostfile.local(2))
    assert (choice.backend.name, choice.reason) == ("nccl", "this machine has an NVIDIA driver")
    assert backends.choose(tcp(2)).backend.name == "ring"


def test_rdma_devices_of_this_machine_count_on_a_mac_only(monkeypatch: pytest.MonkeyPatch) -> None:
    here = mesh(2, ssh="127.0.0.1")
    monkeypatch.setattr(sys, "platform", "linux")
    assert backends.choose(attrs.evolve(here, backend="ring")).backend.name == "ring"
    with pytest.raises(BackendError):
        backends.choose(here, "jaccl")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert backends.choose(here).backend.name == "jaccl"


@pytest.mark.parametrize("where", ["asked", "hostfile"])
def test_an_unknown_backend_lists_the_known_ones(where: str) -> None:
    hostfile = mesh(2, backend="gloo" if where == "hostfile" else "")
    with pytest.raises(BackendError) as caught:
        backends.choose(hostfile, "gloo" if where == "asked" else None)
    assert_explained(caught.value, "'gloo'")
    assert all(name in caught.value.why for name in backends.BACKENDS)


def test_a_backend_that_was_named_is_not_silently_replaced() -> None:
    with pytest.raises(HostfileError):
        backends.choose(tcp(2), "jaccl")
    with pytest.raises(HostfileError):
        backends.choose(tcp(2, backend="jaccl-ring"))


def test_a_single_rank_needs_no_address_for_ring() -> None:
    assert backends.choose(Hostfile((Host("mac-0"),)), "ring").backend.name == "ring"


# -- what rules one out ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", backends.BACKENDS)
def test_a_backend_goes_by_its_hostfile_name_and_an_mlx_name(name: str) -> None:
    backend = backends.get(name)
    assert backend.name == name
    assert backend.summary
    # The two RDMA wirings are one library of MLX.
    assert backend.init_name == name.removesuffix("-ring")
    assert mx.distributed.is_available(backend.init_name) in (True, False)


@pytest.mark.parametrize("name", ["jaccl", "jaccl-ring"])
def test_rdma_is_refused_off_a_mac_and_ring_offered(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(BackendError) as caught:
        backends.get(name).check(mesh(2, ssh="127.0.0.1"))
    assert_explained(caught.value, name, "linux")
    assert "--backend ring" in caught.value.do
    # Other machines may be Macs.
    assert backends.choose(mesh(2), name).backend.name == name


@pytest.mark.parametrize("name", ["jaccl", "jaccl-ring"])
def test_rdma_without_devices_says_which_cables_are_missing(name: str) -> None:
    with pytest.raises(HostfileError) as caught:
        backends.get(name).check(tcp(2, source="x.json"))
    assert_explained(caught.value, "x.json", "mac-0 to mac-1, mac-1 to mac-0.")
    assert "a cable" in caught.value.why


def test_a_mesh_names_the_first_three_missing_cables_and_counts_the_rest() -> None:
    hostfile = cut(mesh(4), (0, 1), (0, 2), (0, 3), (2, 1), (3, 0))
    with pytest.raises(HostfileError) as caught:
        backends.get("jaccl").check(hostfile)
    assert_explained(
        caught.value, "mac-0 to mac-1, mac-0 to mac-2, mac-0 to mac-3 and 2 more.", "The hostfile"
    )


def test_three_missing_cables_are_all_of_them() -> None:
    with pytest.raises(HostfileError, match=r"mac-3 to mac-0\.") as caught:
        backends.get("jaccl").check(cut(mesh(4), (0, 1), (2, 1), (3, 0)))
    assert "more" not in caught.value.what


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_a_ring_of_cables_is_enough_for_jaccl_ring(n: int) -> None:
    backends.get("jaccl-ring").check(rdma_ring(n))
    for rank in range(n):
        with pytest.raises(HostfileError) as caught:
            backends.get("jaccl-ring").check(cut(rdma_ring(n), (rank, (rank + 1) % n)))
        assert f"mac-{rank} to mac-{(rank + 1) % n}." in caught.value.what


def test_a_ring_of_four_is_no_mesh() -> None:
    with pytest.raises(HostfileError, match="mac-0 to mac-2"):
        backends.get("jaccl").check(rdma_ring(4))


def test_a_mesh_has_at_most_eight_macs_and_a_ring_more() -> None:
    backends.get("jaccl").check(mesh(8))
    with pytest.raises(BackendError) as caught:
        backends.get("jaccl").check(mesh(9))
    assert_explained(caught.value, "8", "9")
    backends.get("jaccl-ring").check(mesh(9))


@pytest.mark.parametrize("name", ["jaccl", "jaccl-ring", "nccl"])
def test_the_first_host_needs_an_address_to_meet_at(name: str) -> None:
    hosts = mesh(2).hosts
    homeless = Hostfile((attrs.evolve(hosts[0], ips=()), hosts[1]))
    with pytest.raises(HostfileError) as caught:
        backends.get(name).check(homeless)
    assert_explained(caught.value, "Host 0 (mac-0)")
    backends.get(name).check(Hostfile((hosts[0], attrs.evolve(hosts[1], ips=()))))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_every_host_of_a_ring_needs_an_address(rank: int) -> None:
    hosts = list(tcp(3).hosts)
    hosts[rank] = attrs.evolve(hosts[rank], ips=())
    with pytest.raises(HostfileError) as caught:
        backends.get("ring").check(Hostfile(tuple(hosts), source="x.json"))
    assert_explained(caught.value, f"Host {rank} (mac-{rank})", "x.json")
    assert f"192.168.1.1{rank}" in caught.value.do


def test_nccl_needs_a_driver_here_but_not_for_other_machines(only_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        backends.get("nccl").check(Hostfile.local(2))
    assert_explained(caught.value, "nccl")
    backends.get("nccl").check(tcp(2))
    executable(only_path / "nvidia-smi", "exit 0")
    backends.get("nccl").check(Hostfile.local(2))


def test_mpi_needs_mpirun(only_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        backends.get("mpi").check(Hostfile.local(2))
    assert_explained(caught.value, "mpi")
    executable(only_path / "mpirun", "exit 0")
    backends.get("mpi").check(Hostfile.local(2))


def test_mpirun_is_told_the_number_of_ranks(
    only_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(only_path / "mpirun", "exit 0")
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    command = backends.get("mpi").command
    assert command(Hostfile.local(3)) == [str(only_path / "mpirun"), "-n", "3", "--oversubscribe"]
    assert command(tcp(2)) == [str(only_path / "mpirun"), "-n", "2"]
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert command(tcp(2)) == [str(only_path / "mpirun"), "-n", "2", "--allow-run-as-root"]


@pytest.mark.parametrize("name", [name for name in backends.BACKENDS if name != "mpi"])
def test_the_other_backends_start_each_rank_alone(name: str) -> None:
    assert backends.get(name).command(mesh(2)) is None


def test_nccl_counts_the_gpus_of_each_host_from_zero() -> None:
    names = ["a", "b", "a", "b", "b"]
    hostfile = Hostfile(tuple(Host(name, ("10.0.0.1",)) for name in names))
    seen = [backends.get("nccl").launch_environment(hostfile, rank) for rank in range(5)]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in seen] == ["0", "0", "1", "1", "2"]


# -- against mlx.launch ---------------------------------------------------------------------------

PROGRAM = """
import json, os, sys
env = dict(os.environ)
paths = {name: env.pop(name) for name in ("MLX_HOSTFILE", "MLX_IBV_DEVICES") if name in env}
files = {name: json.load(open(path)) for name, path in paths.items()}
with open(os.path.join(sys.argv[1], env["MLX_RANK"] + ".json"), "w") as out:
    json.dump({"env": env, "files": files}, out)
"""
# bash sets the first three by itself; mlx.launch tells the size of the terminal.
NOT_MLX = {"_", "SHLVL", "PWD", "OLDPWD", "COLUMNS", "LINES", "LC_CTYPE", "__CF_USER_TEXT_ENCODING"}

Seen = dict[str, Any]


def mlx_launch_command() -> list[str]:
    """The program beside this Python, or the same thing by module where there is none."""
    program = Path(sys.executable).with_name("mlx.launch")
    if program.exists():
        return [str(program)]
    return [sys.executable, "-c", "from mlx._distributed_utils.launch import main; main()"]


def run_mlx_launch(folder: Path, *arguments: str) -> list[Seen]:
    """What mlx.launch adds to each rank's environment, and the files that it names."""
    # mlx.launch leaves its temporary files behind.
    base = {"PATH": os.environ["PATH"], "TMPDIR": str(folder)}
    # It reads its standard input from a descriptor, so there has to be one.
    done = subprocess.run(
        [*mlx_launch_command(), *arguments, "--", sys.executable, "-c", PROGRAM, str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=base,
        timeout=60,
    )
    ranks: list[Seen] = []
    # It ends with 0 also when its ranks fail, so the files are the proof.
    while (path := folder / f"{len(ranks)}.json").exists():
        seen = json.loads(path.read_text())
        seen["env"] = {
            name: value
            for name, value in seen["env"].items()
            if name not in NOT_MLX and base.get(name) != value
        }
        ranks.append(seen)
    assert ranks, done.stderr
    return ranks


def our_ranks(backend: Backend, hostfile: Hostfile) -> list[Seen]:
    """The same from us, with mlx.launch's ports: one up for each address."""
    ports = iter(range(PORT, PORT + 100))
    addresses = [
        [f"{ip}:{next(ports)}" for ip in backend.ports(hostfile, rank)]
        for rank in range(len(hostfile))
    ]
    ranks = []
    for rank in range(len(hostfile)):
        world = backend.world_environment(hostfile, rank, addresses)
        launch = backend.launch_environment(hostfile, rank)
        env = {**hostfile.environment(), **launch, **world.env}
        files = {name: json.loads(text) for name, text in world.files.items()}
        ranks.append({"env": env, "files": files})
    return ranks


def local(hostfile: Hostfile) -> Hostfile:
    """The hostfile with every rank here, so that mlx.launch needs no ssh."""
    return attrs.evolve(
        hostfile, hosts=tuple(attrs.evolve(host, ssh="127.0.0.1") for host in hostfile.hosts)
    )


def two_addresses(n: int) -> Hostfile:
    return Hostfile((Host("127.0.0.1", ("127.0.0.1", "127.0.0.2")),) * n)


def two_cables(hostfile: Hostfile) -> Hostfile:
    first = hostfile.hosts[0]
    row = (None, ("rdma_en2", "rdma_en3"), *first.rdma[2:])
    return attrs.evolve(hostfile, hosts=(attrs.evolve(first, rdma=row), *hostfile.hosts[1:]))


@pytest.mark.parametrize(
    ("name", "hostfile"),
    [
        ("ring", two_addresses(2)),
        ("ring", attrs.evolve(two_addresses(3), envs=("A=it's b=c", "EMPTY="))),
        ("jaccl", attrs.evolve(two_cables(mesh(3)), envs=("MLX_METAL_FAST_SYNCH=1",))),
        ("jaccl-ring", rdma_ring(4)),
    ],
    ids=["ring of 2", "ring of 3 with variables", "jaccl with fast synch", "jaccl-ring"],
)
def test_ranks_find_what_mlx_launch_gives_them(
    tmp_path: Path, name: str, hostfile: Hostfile
) -> None:
    hostfile = local(hostfile)
    hostfile.save(tmp_path / "hosts.json")
    theirs = run_mlx_launch(
        tmp_path,
        *("--hostfile", str(tmp_path / "hosts.json")),
        *("--backend", name, "--starting-port", str(PORT)),
    )
    ours = our_ranks(backends.get(name), hostfile)
    assert ours == theirs
    assert len(theirs) == len(hostfile)
    # Only the hostfile switches this on.
    fast = {rank["env"].get("MLX_METAL_FAST_SYNCH") for rank in ours}
    assert fast == ({"1"} if "MLX_METAL_FAST_SYNCH=1" in hostfile.envs else {None})


def test_nccl_ranks_find_what_mlx_launch_gives_them(tmp_path: Path) -> None:
    theirs = run_mlx_launch(tmp_path, "-n", "2", "--backend", "nccl", "--nccl-port", str(PORT))
    assert our_ranks(backends.get("nccl"), Hostfile.local(2)) == theirs
    assert len(theirs) == 2


def ldd_prints(folder: Path, line: str) -> None:
    """An Open MPI whose `ompi_info` links the library in `line`."""
    executable(folder / "ompi_info", "exit 0")
    for tool in ("ldd", "otool"):
        executable(folder / tool, f"echo 'linux-vdso.so.1 (0x7ff)'\necho '{line}'")


def test_mpi_ranks_find_what_mlx_launch_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "opt" / "bin"
    # Open MPI 4 has no `--output :raw`, which mlx.launch passes, so this mpirun takes notes only.
    executable(folder / "mpirun", f"printf '%s\\n' \"$@\" > '{tmp_path}/arguments'")
    ldd_prints(folder, "	libmpi.so.40 => /lib/libmpi.so.40 (0x7fd)")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    hostfile = attrs.evolve(Hostfile.local(2), envs=("A=b=c",))
    hostfile.save(tmp_path / "hosts.json")
    subprocess.run(
        [
            *mlx_launch_command(),
            *("--hostfile", str(tmp_path / "hosts.json"), "--backend", "mpi", "--", "true"),
        ],
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    words = (tmp_path / "arguments").read_text().splitlines()
    pairs = [words[i + 1].partition("=") for i, word in enumerate(words) if word == "-x"]
    theirs = {name: value for name, _, value in pairs if name not in NOT_MLX}
    for ours in our_ranks(backends.get("mpi"), hostfile):
        assert ours == {"env": theirs, "files": {}}
    assert theirs["MLX_MPI_LIBNAME"] == "libmpi.so.40"


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun on this machine")
def test_the_mpi_library_is_the_one_that_mlx_launch_finds() -> None:
    name = mlx_launch.get_mpi_libname()
    assert mpi.library_name() == name
    mpirun = Path(shutil.which("mpirun") or "")
    expected = {"DYLD_LIBRARY_PATH": f"{mpirun.parent.parent}/lib", "MLX_MPI_LIBNAME": name}
    ours = backends.get("mpi").launch_environment(Hostfile.local(2), 1)
    assert ours == (expected if name is not None else {})


@pytest.mark.parametrize(
    ("platform", "line", "name"),
    [
        ("linux", "	libmpi.so.40 => /lib/libmpi.so.40 (0x7fd)", "libmpi.so.40"),
        ("darwin", "	@rpath/libmpi.40.dylib (compatibility version 71.0.0)", "libmpi.40.dylib"),
        (
            "darwin",
            "	/opt/homebrew/lib/libmpi.40.dylib (x)",
            "/opt/homebrew/lib/libmpi.40.dylib",
        ),
        ("linux", "	libc.so.6 => /lib/libc.so.6 (0x7fd)", None),
    ],
)
def test_the_mpi_library_is_read_from_the_linker(
    only_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    platform: str,
    line: str,
    name: str | None,
) -> None:
    ldd_prints(only_path, line)
    monkeypatch.setattr(sys, "platform", platform)
    assert mpi.library_name() == name


@pytest.mark.parametrize("broken", ["no ompi_info", "no ldd", "ldd fails"])
def test_an_unknown_mpi_library_leaves_the_environment_alone(only_path: Path, broken: str) -> None:
    prepare: dict[str, Callable[[], None]] = {
        "no ompi_info": (only_path / "ompi_info").unlink,
        "no ldd": (only_path / "ldd").unlink,
        "ldd fails": lambda: executable(only_path / "ldd", "exit 1"),
    }
    ldd_prints(only_path, "	libmpi.so.40 => /lib/libmpi.so.40 (0x7fd)")
    prepare[broken]()
    assert backends.get("mpi").launch_environment(Hostfile.local(2), 0) == {}
