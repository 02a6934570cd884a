"""The guardian: a real process that ends what a killed owner left running."""

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from macluster.engine.guardian import Guardian, watch

PATIENCE = 20.0  # seconds; everything here takes a fraction of one

# A session leader with a child in its session and another one in a session of its own. All of them
# hold standard output, so its end is the end of them all.
FAMILY = """
import signal, subprocess, sys
wait = [sys.executable, "-c", "import signal; signal.pause()"]
temper = sys.argv[1]

def leave(*_):
    if temper == "fertile":
        subprocess.Popen(wait)
    for child in children:
        child.wait()
    sys.exit(0)

# Children inherit that a signal is ignored.
signal.signal(signal.SIGTERM, signal.SIG_IGN if temper == "stubborn" else signal.SIG_DFL)
children = [subprocess.Popen(wait), subprocess.Popen(wait, start_new_session=True)]
if temper != "stubborn":
    signal.signal(signal.SIGTERM, leave)
print(*(child.pid for child in children), flush=True)
while True:
    signal.pause()
"""


class Family:
    """A session of real processes, as a rank with its workers is one."""

    def __init__(self, temper: str = "gentle") -> None:
        self.leader = subprocess.Popen(
            [sys.executable, "-c", FAMILY, temper],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.leader.stdout is not None
        self.output = self.leader.stdout
        self.children = [psutil.Process(int(pid)) for pid in self.output.readline().split()]

    @property
    def pid(self) -> int:
        return self.leader.pid

    def ended(self, timeout: float) -> bool:
        """Whether every process of it ends in time."""
        return bool(select.select([self.output], [], [], timeout)[0])

    def close(self) -> None:
        if self.leader.poll() is None:
            # Gently, so that it buries its children: not every container's process 1 does.
            family = psutil.Process(self.pid).children(recursive=True)
            for child in family:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            self.leader.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.leader.wait(2)
            self.leader.kill()
            self.leader.wait(PATIENCE)
        with contextlib.suppress(ProcessLookupError):
            # What has the session still.
            os.killpg(self.pid, signal.SIGKILL)
        self.output.close()


StartFamily = Callable[..., Family]


@pytest.fixture
def start() -> Iterator[StartFamily]:
    families: list[Family] = []

    def started(temper: str = "gentle") -> Family:
        families.append(Family(temper))
        return families[-1]

    yield started
    for family in families:
        family.close()


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    guardian = Guardian()
    yield guardian
    guardian.disarm()


def process_of(guardian: Guardian) -> subprocess.Popen[str]:
    assert guardian._process is not None
    return guardian._process


def lose_owner(guardian: Guardian) -> subprocess.Popen[str]:
    """Close the pipe without a word, as the kernel does for an owner that was killed."""
    process = process_of(guardian)
    assert process.stdin is not None
    process.stdin.close()
    return process


def wait_until_it_reads(guardian: Guardian) -> None:
    """A pipe holds far less than this, so the call returns once the guardian reads orders."""
    guardian.tell(forget=[-1] * 300_000)


def test_a_lost_owners_sessions_end_with_their_children_and_files(
    guardian: Guardian, start: StartFamily, tmp_path: Path
) -> None:
    family, spared = start(), start()
    key, kept = tmp_path / "key.json", tmp_path / "kept.json"
    key.write_text("secret")
    kept.write_text("mine")
    guardian.tell(leaders=[family.pid])
    guardian.tell(files=[str(tmp_path / "never written.json"), str(key)])
    process = lose_owner(guardian)
    assert family.ended(PATIENCE)
    # It was asked to leave, and had the time to.
    assert family.leader.wait(PATIENCE) == 0
    assert process.wait(PATIENCE) == 0
    assert not key.exists()
    assert kept.exists()
    assert not spared.ended(0)


OWNER = """
import signal, sys
from macluster.engine.guardian import Guardian
guardian = Guardian()
guardian.tell(leaders=[int(sys.argv[1])], files=[sys.argv[2]])
print(guardian._process.pid, flush=True)
signal.pause()
"""


def test_an_owner_that_is_killed_leaves_nothing_behind(start: StartFamily, tmp_path: Path) -> None:
    family, key = start(), tmp_path / "key.json"
    key.write_text("secret")
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(family.pid), str(key)], stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        guardian = psutil.Process(int(owner.stdout.readline()))
        owner.kill()
        owner.wait(PATIENCE)
    assert family.ended(PATIENCE)
    family.leader.wait(PATIENCE)
    _, alive = psutil.wait_procs([guardian], timeout=PATIENCE)
    assert alive == []
    assert not key.exists()


def test_a_disarmed_guardian_ends_without_touching_anything(
    start: StartFamily, tmp_path: Path
) -> None:
    family, key, guardian = start(), tmp_path / "key.json", Guardian()
    key.write_text("mine")
    guardian.tell(leaders=[family.pid], files=[str(key)])
    process = process_of(guardian)
    guardian.disarm()
    assert process.returncode == 0
    assert not family.ended(0)
    assert family.leader.poll() is None
    assert key.exists()
    # Both are fine on a guardian that is gone.
    guardian.tell(leaders=[family.pid])
    guardian.disarm()


def test_a_forgotten_session_is_spared(guardian: Guardian, start: StartFamily) -> None:
    kept, lost = start(), start()
    guardian.tell(leaders=[kept.pid, lost.pid])
    guardian.tell(forget=[kept.pid])
    process = lose_owner(guardian)
    assert lost.ended(PATIENCE)
    lost.leader.wait(PATIENCE)
    assert process.wait(PATIENCE) == 0
    assert not kept.ended(0)


def test_a_session_that_is_gone_already_is_no_trouble(
    guardian: Guardian, start: StartFamily, tmp_path: Path
) -> None:
    family, key = start(), tmp_path / "key.json"
    key.write_text("secret")
    guardian.tell(leaders=[family.pid], files=[str(key)])
    family.close()
    assert lose_owner(guardian).wait(PATIENCE) == 0
    assert not key.exists()


def test_signals_from_a_terminal_do_not_end_the_guardian(
    guardian: Guardian, start: StartFamily
) -> None:
    family = start()
    guardian.tell(leaders=[family.pid])
    wait_until_it_reads(guardian)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        process_of(guardian).send_signal(number)
    process = lose_owner(guardian)
    assert family.ended(PATIENCE)
    family.leader.wait(PATIENCE)
    assert process.wait(PATIENCE) == 0


def test_the_guardian_is_in_no_terminals_foreground_group(guardian: Guardian) -> None:
    pid = process_of(guardian).pid
    assert os.getsid(pid) == os.getpgid(pid) == pid


def test_orders_to_a_guardian_that_was_killed_are_no_error() -> None:
    guardian = Guardian()
    process = process_of(guardian)
    process.kill()
    process.wait(PATIENCE)
    guardian.tell(leaders=[1])
    guardian.disarm()
    assert process.returncode == -signal.SIGKILL


def test_an_owner_killed_in_the_middle_of_an_order_is_avenged(
    guardian: Guardian, start: StartFamily
) -> None:
    family = start()
    guardian.tell(leaders=[family.pid])
    stdin = process_of(guardian).stdin
    assert stdin is not None
    stdin.write('{"files": ["/tmp/a')
    process = lose_owner(guardian)
    assert family.ended(3.0)
    family.leader.wait(PATIENCE)
    assert process.wait(PATIENCE) == 0


def test_a_process_that_ignores_the_request_is_killed_after_the_grace(
    guardian: Guardian, start: StartFamily
) -> None:
    family = start("stubborn")
    guardian.tell(leaders=[family.pid], grace=0.1)
    lose_owner(guardian)
    assert family.ended(PATIENCE)
    assert family.leader.wait(PATIENCE) == -signal.SIGKILL


def test_a_process_that_is_started_in_the_grace_is_killed_as_well(
    guardian: Guardian, start: StartFamily
) -> None:
    family = start("fertile")
    guardian.tell(leaders=[family.pid], grace=0.1)
    process = lose_owner(guardian)
    assert family.leader.wait(PATIENCE) == 0
    process.wait(PATIENCE)
    assert family.ended(0.5)


def test_a_file_that_cannot_be_removed_does_not_save_the_others(
    guardian: Guardian, tmp_path: Path
) -> None:
    key = tmp_path / "key.json"
    key.write_text("secret")
    # A folder is no file.
    guardian.tell(files=[str(tmp_path), str(key)])
    lose_owner(guardian).wait(PATIENCE)
    assert not key.exists()


# -- reading orders -------------------------------------------------------------------------------


def orders(*lines: object) -> io.StringIO:
    return io.StringIO("".join(json.dumps(line) + "\n" for line in lines))


def test_orders_add_up() -> None:
    read = watch(
        orders(
            {"leaders": [1, 2]},
            {"files": ["a"], "grace": 5.0},
            {"leaders": [3], "files": ["b"]},
            {"a later order": 1},
        )
    )
    assert read == ({1, 2, 3}, ["a", "b"], 5.0, False)


def test_a_number_that_comes_back_after_it_was_forgotten_counts() -> None:
    leaders, *_ = watch(orders({"leaders": [1, 2]}, {"forget": [1, 2, 9]}, {"leaders": [1]}))
    assert leaders == {1}


def test_disarming_holds() -> None:
    *_, disarmed = watch(orders({"disarm": True}, {"leaders": [1]}))
    assert disarmed is True


def test_no_orders_are_nothing_to_do() -> None:
    leaders, files, _, disarmed = watch(io.StringIO(""))
    assert (leaders, files, disarmed) == (set(), [], False)
