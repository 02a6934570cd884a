"""`mpi`: the machine's own MPI library. One `mpirun` starts all ranks."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import BackendError
from ..hostfile import Hostfile
from .base import Addresses, Backend, RankEnvironment


class Mpi(Backend):
    name = "mpi"
    init_name = "mpi"
    summary = "the machine's own MPI library"

    def check(self, hostfile: Hostfile) -> None:
        if shutil.which("mpirun") is None:
            raise BackendError(
                "The mpi backend cannot run on this machine.",
                why="there is no mpirun on PATH",
                do="install Open MPI (Debian: apt-get install openmpi-bin; macOS: "
                "brew install open-mpi),\nor use --backend ring",
            )

    def launch_environment(self, hostfile: Hostfile, rank: int) -> dict[str, str]:
        name = library_name()
        if name is None:
            return {}
        return {"DYLD_LIBRARY_PATH": str(_mpirun().parent.parent / "lib"), "MLX_MPI_LIBNAME": name}

    def world_environment(
        self, hostfile: Hostfile, rank: int, addresses: Sequence[Addresses]
    ) -> RankEnvironment:
        # mpirun gives every process its rank; MLX asks the library for it.
        return RankEnvironment()

    def command(self, hostfile: Hostfile) -> list[str] | None:
        command = [str(_mpirun()), "-n", str(len(hostfile))]
        if hostfile.is_local:
            # More ranks than cores is a normal rehearsal on one machine.
            command.append("--oversubscribe")
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--allow-run-as-root")
        return command


def _mpirun() -> Path:
    return Path(shutil.which("mpirun") or "mpirun")


@functools.cache
def library_name() -> str | None:
    """The file name of the MPI library that `ompi_info` links, or None when it cannot be told.

    MLX looks for `libmpi.dylib` or `libmpi.so`, which run-time packages do not carry; `mlx.launch`
    finds the real name in the same way.
    """
    info = shutil.which("ompi_info")
    if info is None:
        return None
    tool = ["otool", "-L", info] if sys.platform == "darwin" else ["ldd", info]
    try:
        listing = subprocess.run(tool, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    for line in listing.stdout.splitlines():
        if "libmpi" in line:
            return line.split()[0].removeprefix("@rpath/")
    return None
