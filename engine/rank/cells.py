"""Run the source of one cell in a rank, as ipykernel would run it in a notebook."""

from __future__ import annotations

import builtins
import getpass
import sys
from collections.abc import Mapping
from typing import Any

from IPython.core.error import StdinNotImplementedError

NO_INPUT = (
    "input() does not work in a distributed cell: a rank has no keyboard, and only one of the "
    "ranks could be answered. Ask in a plain cell, then send the answer to all ranks: "
    "%push answer"
)


def prepare_shell(shell: Any) -> None:
    """Make a rank's shell fit for cells that come from a notebook."""

    def no_input(*_: Any, **__: Any) -> str:
        raise StdinNotImplementedError(NO_INPUT)

    builtins.input = no_input
    getpass.getpass = no_input
    # Jedi's first import takes seconds, and it would be paid by every rank.
    shell.Completer.use_jedi = False


async def run(shell: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """Run `content["code"]` and return the reply.

    `content["execution_count"]` is the notebook's own count, so that tracebacks say `In[5]` where
    the notebook does. Output goes out as usual; an error comes back in the reply too.
    """
    code = content["code"]
    shell.execution_count = content["execution_count"]
    shell._last_traceback = None
    transformed, problem = code, None
    try:
        transformed = shell.transform_cell(code)
    except Exception:
        # `run_cell_async` shows it as the cell's error.
        problem = sys.exc_info()
    # IPython prints a magic's UsageError, and the notebook shows the cell's error: one is enough.
    usage_errors: list[BaseException] = []
    shell.show_usage_error = usage_errors.append
    try:
        # Also for cells without an `await`: `run_cell` would transform the source a second time.
        result = await shell.run_cell_async(
            code,
            store_history=True,
            transformed_cell=transformed,
            preprocessing_exc_tuple=problem,
        )
    finally:
        del shell.show_usage_error
    shell.events.trigger("post_execute")
    shell.events.trigger("post_run_cell", result)
    error = result.error_before_exec or result.error_in_exec
    for each in usage_errors:
        if each is not error:
            shell.show_usage_error(each)
    reply: dict[str, Any] = {
        "status": "ok" if result.success else "error",
        "execution_count": content["execution_count"],
        "payload": shell.payload_manager.read_payload(),
    }
    shell.payload_manager.clear_payload()
    if error is not None:
        reply["ename"] = type(error).__name__
        reply["evalue"] = _text(error)
        reply["traceback"] = list(shell._last_traceback or [])
    return reply


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:
        return f"<the exception has no text: {second!r}>"
