"""Every error that macluster raises on purpose, in one tree.

MaclusterError
 ├── UsageError            a magic or a function was called in a way it cannot serve
 ├── HostfileError         a hostfile is missing, malformed or does not fit the backend
 ├── BackendError          a backend is unknown or cannot run here
 ├── ClusterError
 │    ├── ClusterNotFound  no running cluster has that name
 │    ├── ClusterExists    a cluster with that name runs already
 │    └── StartError       the cluster did not come up; nothing of it is left running
 ├── WorldError
 │    ├── RankDied         a rank's process ended, or is stopped
 │    ├── WorldBroken      the world cannot be used: it was given up, or could not be formed
 │    └── CollectiveMismatch  the ranks are about to run different collectives (checked mode)
 ├── CellError             a cell failed on a rank; carries that rank's traceback
 │    ├── CellTimeout      a cell ran longer than its `--timeout`
 │    └── CellCancelled    a cell was cancelled or interrupted
 ├── TransferError         a value cannot be pushed, pulled, scattered or gathered
 └── ModelError            a model cannot be loaded, sharded or run as asked
"""

from __future__ import annotations

from collections.abc import Sequence


class MaclusterError(Exception):
    """An error in three parts: what happened, the probable cause, and the exact remedy."""

    def __init__(self, what: str, *, why: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.do = do

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(_labelled("Why", self.why))
        if self.do:
            parts.append(_labelled("Do", self.do))
        return "\n".join(parts)

    def _render_traceback_(self) -> list[str]:
        # IPython prints these lines in place of a stack through our own code,
        # which would push the remedy off the screen.
        red, reset = "\x1b[0;31m", "\x1b[0m"
        return [f"{red}{type(self).__name__}{reset}: {line}" if i == 0 else line
                for i, line in enumerate(str(self).splitlines())]  # fmt: skip


def _labelled(label: str, text: str) -> str:
    lines = text.splitlines() or [""]
    head = f"  {label + ':':<5}"
    return "\n".join([head + lines[0], *(" " * len(head) + line for line in lines[1:])])


class UsageError(MaclusterError):
    """A magic or a function was called in a way it cannot serve."""


class HostfileError(MaclusterError):
    """A hostfile is missing, malformed or does not fit the backend."""


class BackendError(MaclusterError):
    """A backend is unknown or cannot run here."""


class ClusterError(MaclusterError):
    """Something about a cluster as a whole."""


class ClusterNotFound(ClusterError):
    """No running cluster has that name."""


class ClusterExists(ClusterError):
    """A cluster with that name runs already."""


class StartError(ClusterError):
    """The cluster did not come up; nothing of it is left running."""


class WorldError(MaclusterError):
    """Something about the group of ranks."""


class RankDied(WorldError):
    """A rank's process ended, or is stopped."""


class WorldBroken(WorldError):
    """The world cannot be used: it was given up, or could not be formed."""


class CollectiveMismatch(WorldError):
    """The ranks are about to run different collectives. Raised in checked mode, on each of them."""


class CellError(MaclusterError):
    """A cell failed on a rank.

    `rank` is the rank whose error is shown, `ename` the name of its exception, and `traceback`
    holds that exception's formatted lines, with the source lines of the cell.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str = "",
        do: str = "",
        rank: int | None = None,
        ename: str = "",
        traceback: Sequence[str] = (),
    ) -> None:
        super().__init__(what, why=why, do=do)
        self.rank = rank
        self.ename = ename
        self.traceback = list(traceback)

    @classmethod
    def named(cls, ename: str) -> type[CellError]:
        """A subclass with the name of the rank's exception, which notebooks show as the error."""
        return type(ename, (cls,), {"__module__": "macluster"}) if ename.isidentifier() else cls

    def _render_traceback_(self) -> list[str]:
        if not self.traceback:
            return super()._render_traceback_()
        return [*self.traceback, "", self.why]


class CellTimeout(CellError):
    """A cell ran longer than its `--timeout`."""


class CellCancelled(CellError):
    """A cell was cancelled or interrupted."""


class TransferError(MaclusterError):
    """A value cannot be pushed, pulled, scattered or gathered."""


class ModelError(MaclusterError):
    """A model cannot be loaded, sharded or run as asked."""
