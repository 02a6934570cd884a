"""MLX's collective backends: what each one needs, and which one to use when nobody says."""

from __future__ import annotations

import attrs

from ..errors import BackendError, MaclusterError
from ..hostfile import Hostfile
from .base import Backend, RankEnvironment
from .jaccl import Jaccl
from .jaccl_ring import JacclRing
from .mpi import Mpi
from .nccl import Nccl, cuda_gpus
from .ring import Ring

__all__ = ["BACKENDS", "Backend", "Choice", "RankEnvironment", "choose", "get"]

BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (Jaccl(), JacclRing(), Ring(), Mpi(), Nccl())
}


@attrs.frozen
class Choice:
    """A backend and the reason it was chosen, in words for the person who did not choose it."""

    backend: Backend
    reason: str


def get(name: str) -> Backend:
    """The backend of that name. Raises BackendError."""
    try:
        return BACKENDS[name]
    except KeyError:
        raise BackendError(
            f"There is no backend {name!r}.",
            why="MLX has " + ", ".join(BACKENDS),
            do="leave --backend out to let macluster choose, or use --backend ring",
        ) from None


def choose(hostfile: Hostfile, asked: str | None = None) -> Choice:
    """The backend for `hostfile`: as asked, as the hostfile says, or the fastest that fits.

    Raises BackendError or HostfileError when the one that was named cannot work.
    """
    if asked:
        return _checked(hostfile, asked, "it was asked for")
    if hostfile.backend:
        return _checked(hostfile, hostfile.backend, f"{hostfile.source or 'the hostfile'} says so")
    if len(hostfile) == 1:
        return Choice(BACKENDS["ring"], "one rank talks to nobody")
    if hostfile.is_local and cuda_gpus():
        return Choice(BACKENDS["nccl"], "this machine has an NVIDIA driver")
    for name, wiring in (("jaccl", "a mesh"), ("jaccl-ring", "a ring")):
        try:
            BACKENDS[name].check(hostfile)
        except MaclusterError:
            continue
        return Choice(BACKENDS[name], f"the hostfile's RDMA devices form {wiring}")
    return _checked(hostfile, "ring", _why_ring(hostfile))


def _checked(hostfile: Hostfile, name: str, reason: str) -> Choice:
    backend = get(name)
    if len(hostfile) > 1 or not isinstance(backend, Ring):
        backend.check(hostfile)
    return Choice(backend, reason)


def _why_ring(hostfile: Hostfile) -> str:
    if hostfile.is_local:
        return "all ranks are on this machine"
    without = [i for i, host in enumerate(hostfile.hosts) if not any(host.rdma)]
    if without:
        return f"rank {without[0]} ({hostfile.hosts[without[0]].ssh}) has no RDMA device"
    return "the RDMA devices form neither a mesh nor a ring, or this machine is no Mac"
