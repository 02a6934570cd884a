"""The files of this user's clusters: who has a name, which clusters run, who may change one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import glob
import json
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import psutil
from IPython.paths import get_ipython_dir

from .errors import ClusterExists, UsageError
from .processes import runs

# As patterns: a star would also match what comes behind the number of another cluster's name.
_NUMBERS = ["[0-9]" * digits for digits in range(1, 9)]
ORPHAN_TIMEOUT = 20.0  # seconds that a dead owner's cluster gets to end


@attrs.frozen
class Listing:
    """One line of `Cluster.running`."""

    name: str
    size: int
    backend: str
    owner_pid: int
    cluster_file: str


def profile_dir() -> Path:
    """The folder, private to the user, that keeps the files of the running clusters."""
    return Path(get_ipython_dir()) / "profile_macluster"


def cluster_file(folder: Path, name: str) -> Path:
    """What describes a cluster that runs.

    Not named as ipyparallel names its own: its sidebar and its commands cannot handle ours.
    """
    return folder / "security" / f"macluster-{name}.json"


def running() -> list[Listing]:
    """The running clusters of this user, by name."""
    found = []
    for path in sorted((profile_dir() / "security").glob("macluster-*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if is_alive(path):
                facts = json.loads(path.read_text())["cluster"]
                found.append(
                    Listing(
                        facts["cluster_id"],
                        facts["n"],
                        facts["backend"],
                        facts["owner_pid"],
                        str(path),
                    )
                )
    return found


def is_alive(path: Path, *, ready: bool = False) -> bool:
    """True when the cluster of a cluster file runs, or, unless `ready`, is just being started."""
    try:
        facts = json.loads(path.read_text())
        starting = "controller" not in facts
        pid = facts["cluster"]["owner_pid"] if starting else facts["controller"]["state"]["pid"]
        return runs(pid) and not (starting and ready)
    except (OSError, ValueError, KeyError, TypeError):
        return False


class ClusterFiles:
    """The files of one cluster. Whoever has written the cluster file has the name.

    `birth` tells a cluster from an earlier or later one of the same name. It is "" for one that
    does not run, or whose name was given back: then nothing here touches a file.
    """

    def __init__(self, folder: Path, name: str, birth: str = "") -> None:
        self.folder = folder
        self.name = name
        self.cluster_file = cluster_file(folder, name)
        self.lock_file = folder / "security" / f"macluster-{name}.lock"
        self.birth = birth

    @property
    def patterns(self) -> list[str]:
        """All of them, as patterns for `glob`."""
        folder, name = glob.escape(str(self.folder)), glob.escape(self.name)
        return [
            f"{folder}/security/macluster-{name}.json",
            f"{folder}/security/macluster-{name}.lock",
            f"{folder}/security/ipcontroller-{name}-client.json",
            f"{folder}/security/ipcontroller-{name}-engine.json",
            f"{folder}/log/engines{name}.json",
            *(f"{folder}/log/macluster-{name}-rank-{number}.log" for number in _NUMBERS),
            *(f"{folder}/log/ipcontroller-{name}-{number}.log" for number in _NUMBERS),
        ]

    @property
    def logs(self) -> dict[str, Path]:
        """What each process prints outside of cells: "rank 0" and so on, "controller"."""
        folder, name = glob.escape(str(self.folder)), glob.escape(self.name)
        found = {}
        for kind, start in (("rank", f"macluster-{name}-rank"), ("", f"ipcontroller-{name}")):
            paths = [
                path
                for number in _NUMBERS
                for path in sorted(glob.glob(f"{folder}/log/{start}-{number}.log"))
            ]
            for path in paths:
                number = path.rpartition("-")[2].removesuffix(".log")
                found[f"rank {number}" if kind else "controller"] = Path(path)
        return found

    @property
    def gone(self) -> bool:
        """True when another process has stopped the cluster."""
        try:
            return not self.birth or self.read()["cluster"]["birth"] != self.birth
        except (OSError, ValueError, KeyError):
            return True

    def give_back(self) -> None:
        """Remove all files: from now on the name is free."""
        if not self.gone:
            self._remove()
        self.birth = ""

    def _remove(self) -> None:
        for path in (path for pattern in self.patterns for path in glob.glob(pattern)):
            with contextlib.suppress(OSError):
                os.remove(path)

    def write(self, facts: Mapping[str, Any]) -> None:
        """Write the cluster file of a running cluster.

        ipyparallel writes it whenever something ends, also when that was a stop from elsewhere.
        """
        if not self.gone:
            self._write(facts)

    def _write(self, facts: Mapping[str, Any]) -> None:
        """As a whole, readable by its owner only: it holds the variables given for the ranks."""
        path = self.cluster_file
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(facts, file)
            os.replace(scratch, path)
        except OSError:
            os.remove(scratch)
            raise

    def read(self) -> dict[str, Any]:
        """What the cluster file says. Raises OSError or ValueError."""
        facts: dict[str, Any] = json.loads(self.cluster_file.read_text())
        return facts

    async def take_name(self, facts: Mapping[str, Any]) -> None:
        """Write the cluster file for the first time, and clear away what a dead cluster left.

        Raises ClusterExists when the name is taken, UsageError when it is none.
        """
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise UsageError(
                f"{self.name!r} cannot be the name of a cluster.",
                why="the name becomes part of a file name",
                do="use letters, digits and dashes",
            )
        for each in (self.folder, self.folder / "security", self.folder / "log"):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
            each.chmod(0o700)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ORPHAN_TIMEOUT
        while not self._taken(facts):
            listing = next((each for each in running() if each.name == self.name), None)
            # After a kernel was restarted, the guardian needs a moment to end its cluster.
            gone = listing is None or not psutil.pid_exists(listing.owner_pid)
            if listing and (not gone or loop.time() > deadline):
                raise ClusterExists(
                    f"A cluster named {self.name!r} runs already "
                    f"({listing.size} ranks on {listing.backend}, process {listing.owner_pid}).",
                    why="another notebook of yours started it, or this one did before",
                    do=f"%cluster connect {self.name}, or %cluster start N --name another-name",
                )
            await asyncio.sleep(0.1)

    def _taken(self, facts: Mapping[str, Any]) -> bool:
        with open(self.folder / "security" / "names.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if is_alive(self.cluster_file):
                return False
            self._remove()
            self._write(facts)
            self.birth = facts["cluster"]["birth"]
            return True

    @contextlib.asynccontextmanager
    async def exclusive(self, patience: float | None = None) -> AsyncIterator[None]:
        """Keep other processes that use this cluster from changing it meanwhile.

        After `patience` seconds, go on without.
        """
        if self.gone:
            yield
            return
        loop = asyncio.get_running_loop()
        deadline = None if patience is None else loop.time() + patience
        lock = os.open(self.lock_file, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if deadline is not None and loop.time() > deadline:
                        break
                    await asyncio.sleep(0.02)
            yield
        finally:
            os.close(lock)
            if not self.cluster_file.exists():
                # The cluster was stopped meanwhile, and its lock goes, too.
                with contextlib.suppress(OSError):
                    os.remove(self.lock_file)
