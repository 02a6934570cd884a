"""Run the source of one cell in a rank, as ipykernel would run it in a notebook."""

from __future__ import annotations

import builtins
import getpass
import sys
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from IPython.core.error import StdinNotImplementedError

from .work import line_text

# What stands at the end of a traceback when a signal or a collective raised.
OUR_FRAMES = (str(Path(__file__).parent), str(Path(__file__).parent.parent / "steps.py"))
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
    get_exc_info = shell._get_exc_info

    def trimmed(exc_tuple: Any = None) -> Any:
        kind, value, trace = get_exc_info(exc_tuple)
        return kind, value, without_our_frames(trace)

    shell._get_exc_info = trimmed
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
        reply["place"] = _place(shell, error)
    return reply


def _place(shell: Any, error: BaseException) -> str:
    """The innermost line of a cell that `error` came through."""
    place = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename in shell.compile._filename_map:
            place = line_text(frame.f_code.co_filename, number)
    return place


def without_our_frames(trace: types.TracebackType | None) -> types.TracebackType | None:
    """A traceback that ends where the user's code does, not in a handler of ours."""
    last = each = trace
    while each is not None:
        if not each.tb_frame.f_code.co_filename.startswith(OUR_FRAMES):
            last = each
        each = each.tb_next
    if last is not None:
        last.tb_next = None
    return trace


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:
        return f"<the exception has no text: {second!r}>"
