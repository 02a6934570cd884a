"""Ways in which a rank can fail, and a world that is checked after each of them."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import attrs
import psutil
import pytest

import macluster
from macluster.engine.files import profile_dir
from macluster.engine.hostfile import describe_ranks
from tests.cluster.processes import PATIENCE, family, still_there

IMPORTS = "import atexit, ctypes, json, os, signal, sys, threading"
SUM = "mx.eval(mx.distributed.all_sum(mx.ones(3)))"
MODEL_RANKS = 4  # at most, with the toy model
LOOPING = 3.0  # seconds that a cell with an endless loop gets
TOKENS = 4

Kind = Literal["raises", "dies", "stops", "skips", "loops"]


@attrs.frozen
class Fault:
    """`code` makes a rank fail; `says` is what the error must then contain.

    A fault of the kind "skips" has no code: the rank leaves out what the others do.
    """

    name: str
    kind: Kind
    code: str = "pass"
    says: str = ""
    signal: int = 0  # does the same from outside

    def __str__(self) -> str:
        return self.name

    @property
    def kills(self) -> bool:
        """True when the rank needs a successor."""
        return self.kind in ("dies", "stops")


EXCEPTION = Fault("exception", "raises", "raise ValueError('boom')", "ValueError")
SKIP = Fault("skip", "skips")
EXIT = Fault("exit", "raises", "sys.exit(3)", "SystemExit")
OS_EXIT = Fault("os-exit", "dies", "os._exit(3)", "exit code 3")
SEGFAULT = Fault("segfault", "dies", "ctypes.string_at(0)", "SIGSEGV")
KILL = Fault("SIGKILL", "dies", "os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL", signal.SIGKILL)
STOP = Fault("SIGSTOP", "stops", "os.kill(os.getpid(), signal.SIGSTOP)", "SIGSTOP", signal.SIGSTOP)
INTERRUPT = Fault(
    "SIGINT", "raises", "os.kill(os.getpid(), signal.SIGINT)", "KeyboardInterrupt", signal.SIGINT
)
LOOP = Fault("loop", "loops", "while True: pass")
MEMORY = Fault("memory", "raises", "bytearray(1 << 60)", "MemoryError")
FAULTS = (EXCEPTION, SKIP, EXIT, OS_EXIT, SEGFAULT, KILL, STOP, INTERRUPT, LOOP, MEMORY)


def until(condition: Callable[[], bool], what: str, pause: Callable[[float], object]) -> None:
    """Return when `condition` holds. `pause(seconds)` is how to wait for the next look."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"after {PATIENCE:.0f} s still not: {what}")
        pause(0.02)


def end_of(cell: macluster.Cell, fault: Fault | None = None) -> macluster.CellError:
    """The error in which the cell ends; for an endless loop, after its time is up."""
    with pytest.raises(macluster.CellError) as caught:
        cell.result(LOOPING if fault is LOOP else PATIENCE)
    assert cell.elapsed < PATIENCE
    return caught.value


def check_error(
    error: macluster.CellError, fault: Fault, culprit: int, others: Sequence[int]
) -> None:
    """The error names the rank that failed, and how."""
    if fault.kind == "raises":
        assert type(error).__name__ == fault.says
        assert error.rank == culprit
        assert re.search(rf"raised on rank {culprit} at line \d+: `", error.why)
        assert "".join(error.traceback)
    elif fault.kind == "skips":
        assert error.what.startswith("The cell could not end: ")
        assert f"{describe_ranks(others)} at line " in error.what
        assert f"rank {culprit} ended the cell without it" in error.what
        assert error.rank == others[0]
    elif fault.kind == "loops":
        assert isinstance(error, macluster.CellTimeout)
        assert f"stopped after {LOOPING:g} s" in error.what
    else:
        ended = "is stopped" if fault.kind == "stops" else "died"
        assert error.what == f"Rank {culprit} {ended}."
        assert error.rank == culprit
        assert fault.says in error.why, error.why
        assert error.do


# Sets what must survive, on every rank that does not have it yet.
SET_UP = f"""
{IMPORTS}
if "token" not in globals():
    token = object()
    kept, kept_id = mx.arange(4) + 10 * rank, id(token)
"""

# Prints what a rank has: its own variables, the model's tokens, and two collectives.
LOOK = f"""
has = "token" in globals()
if has:
    assert id(token) == kept_id
    assert kept.tolist() == [10 * rank + i for i in range(4)]
tokens = []
if size <= {MODEL_RANKS}:
    parts = macluster.stream_generate(model, "Count from 1 to 15.", max_tokens={TOKENS})
    tokens = [part.token for part in parts]
total = mx.distributed.all_sum(mx.array([rank + 1, 1])).tolist()
order = mx.distributed.all_gather(mx.array([7 + rank])).tolist()
print(__import__("json").dumps([has, tokens, total, order]))
"""


@attrs.define(eq=False)
class Patient:
    """A cluster that one fault after the other is tried on."""

    cluster: macluster.Cluster
    tokens: list[int] = attrs.field(factory=list)  # of the model, before any fault
    processes: dict[int, psutil.Process] = attrs.field(factory=dict)

    @property
    def world(self) -> macluster.World:
        return self.cluster.running_world

    @property
    def size(self) -> int:
        return len(self.cluster.hosts)

    def others(self, culprit: int) -> list[int]:
        return [rank for rank in range(self.size) if rank != culprit]

    def be_ready(self) -> None:
        """Run, and hold the variables and the model that every fault must spare."""
        if self.cluster.world is None:
            self.cluster.start_sync()
            if self.size <= MODEL_RANKS:
                # The toy has four heads and four layers.
                strategy = "pipeline" if self.size == 3 else "tensor"
                path = str(macluster.toy_path())
                self.world.run(f"model = macluster.load({path!r}, {strategy!r})").result(PATIENCE)
        self.world.run(SET_UP).result(PATIENCE)
        self.remember()
        if not self.tokens:
            self.tokens = self.look()[0]["tokens"]

    def remember(self) -> None:
        """Keep hold of every process, so that none can be left without being seen."""
        for process in family(self.cluster):
            self.processes[process.pid] = process

    def look(self) -> list[dict[str, Any]]:
        """What each rank has now."""
        runs = self.world.run(LOOK).result(PATIENCE).runs
        answers = [json.loads(runs[rank].text("stdout")) for rank in self.world.ranks]
        return [dict(zip(("has", "tokens", "sum", "order"), each, strict=True)) for each in answers]

    def check(self, replaced: Sequence[int], told: str) -> None:
        """The world works, and every rank has what it had but for those that were replaced."""
        assert self.world.state == "ok"
        kept = [rank for rank in self.world.ranks if rank not in replaced]
        total = [self.size * (self.size + 1) // 2, self.size]
        order = [7 + rank for rank in self.world.ranks]
        for rank, found in enumerate(self.look()):
            expected = {"has": rank in kept, "tokens": self.tokens, "sum": total, "order": order}
            assert found == expected, f"rank {rank}"
        if replaced and kept:
            new = f"{describe_ranks(replaced)} started anew, with no variables"
            theirs = "its" if len(kept) == 1 else "their"
            assert f"{new}; {describe_ranks(kept)} kept {theirs} variables." in told
            if self.tokens:
                assert f"`model` was loaded again on {describe_ranks(replaced)}" in told
        elif not replaced:
            assert "started anew" not in told
        self.remember()

    def check_end(self, fault: Fault, culprit: int, error: macluster.CellError) -> None:
        """A cell has ended with the right error, and the world is as good as before."""
        check_error(error, fault, culprit, self.others(culprit))
        self.check([culprit] if fault.kills else [], error.why)

    def check_others_stood(self, culprit: int, line: str, error: macluster.CellError) -> None:
        """The error says at which line of the cell the other ranks waited."""
        stood = rf"{describe_ranks(self.others(culprit))} stood at line \d+: `{re.escape(line)}`\."
        assert re.search(stood, error.why), error.why

    def check_gone(self) -> None:
        """No process that ever was one of the cluster's is left, and no file."""
        assert still_there(list(self.processes.values())) == []
        assert files(self.cluster.name) == []


def files(name: str) -> list[str]:
    """The files of a cluster."""
    return [str(path) for path in profile_dir().rglob(f"*{name}*")]
