"""Commands of `macluster` in a process of their own, which tell how far they are.

What starts or ends processes is not done in the process that watches: a server must not wait for
it, and what is started must outlive the server.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence

from .. import errors
from ..errors import MaclusterError, WorldError

Step = Callable[[str], None]


def command(arguments: Sequence[str], step: Step = lambda _: None, text: str = "") -> str:
    """Run `macluster` with `--json` and return its last words; `step` is told each step.

    `text` is what it reads on standard input.

    Raises the MaclusterError that the command ended with.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "macluster", *arguments, "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    words, error = "", None
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdin is not None
    with process:
        process.stdin.write(text)
        process.stdin.close()
        for line in process.stdout:
            said = json.loads(line)
            if "step" in said:
                step(said["step"])
            elif "error" in said:
                error = said["error"]
            else:
                words = said["words"]
        complaint = process.stderr.read().strip()
    if error is not None:
        kind = getattr(errors, error["kind"], MaclusterError)
        raise kind(error["what"], why=error["why"], do=error["do"])
    if process.returncode != 0:
        raise WorldError(
            f"`macluster {arguments[0]}` ended with exit code {process.returncode}.",
            why=complaint[-1000:] or "it printed nothing; somebody may have killed it",
            do=f"run it in a terminal: macluster {' '.join(arguments)}",
        )
    return words
