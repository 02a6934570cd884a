"""Commands of `macluster` in a process of their own, which tell how far they are.

What starts or ends processes is not done in the process that watches: a server must not wait for
it, and what is started must outlive the server.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from .. import errors
from ..errors import MaclusterError, WorldError

Step = Callable[[str], None]
Process = subprocess.Popen[str]


def command(
    verb: str,
    arguments: Sequence[str],
    step: Step = lambda _: None,
    text: str = "",
    begun: Callable[[Process], None] = lambda _: None,
) -> str:
    """Run a command of `macluster` with `--json` and return its last words.

    `step` is told each step, `begun` the process; `text` is what it reads on standard input.

    Raises the MaclusterError that the command ended with, or OSError when it cannot be run.
    """
    words, error = "", None
    # A file: a pipe that nobody reads meanwhile could be full.
    with tempfile.TemporaryFile("w+", errors="replace") as complaints:
        process = subprocess.Popen(
            # -P: nothing from the folder that the server happens to be in.
            [sys.executable, "-P", "-m", "macluster", verb, "--json", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            start_new_session=True,
        )
        begun(process)
        assert process.stdout is not None
        assert process.stdin is not None
        with process:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(text)
                process.stdin.close()
            for line in process.stdout:
                said = _read(line)
                if "step" in said:
                    step(said["step"])
                elif "error" in said:
                    error = said["error"]
                elif "words" in said:
                    words = said["words"]
        complaints.seek(0)
        complaint = complaints.read().strip()
    if error is not None:
        kind = getattr(errors, error["kind"], MaclusterError)
        raise kind(error["what"], why=error["why"], do=error["do"])
    if process.returncode != 0:
        raise WorldError(
            f"`macluster {verb}` ended with exit code {process.returncode}.",
            why=complaint[-1000:] or "it printed nothing; somebody may have killed it",
            do=f"run it in a terminal: macluster {verb} {' '.join(arguments)}",
        )
    return words


def _read(line: str) -> dict[str, Any]:
    """A line of the command; {} for what a library may have printed."""
    with contextlib.suppress(ValueError):
        said = json.loads(line)
        if isinstance(said, dict):
            return said
    return {}
