"""Answer questions about names and about the process, also while a cell runs.

These run in the control thread. They never read an array's value: that could run a collective on
one rank alone, and MLX's streams belong to the main thread.
"""

from __future__ import annotations

import inspect
import linecache
import os
import sys
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from IPython.utils.tokenutil import token_at_cursor

from .. import codec
from ..steps import turnstile
from . import serving, world
from .collectives import collectives

DESCRIBED_BY_IPYTHON = (types.ModuleType, type)


def complete(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Completions of `content["code"]` at `content["cursor"]`, as in a complete_reply."""
    reply = kernel.do_complete(content["code"], content["cursor"])
    keys = ("matches", "cursor_start", "cursor_end", "metadata")
    return {key: reply[key] for key in keys if key in reply}, ()


def inspect_name(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Help for the name at `content["cursor"]` in `content["code"]`, as in an inspect_reply."""
    code, cursor, detail = content["code"], content["cursor"], content.get("detail", 0)
    name = token_at_cursor(code, cursor)
    found = kernel.shell._ofind(name) if name else None
    if found is None or not found.found:
        return {"found": False, "data": {}}, ()
    value = found.obj
    if callable(value) or isinstance(value, DESCRIBED_BY_IPYTHON):
        reply = kernel.do_inspect(code, cursor, detail)
        return {"found": reply["found"], "data": {"text/plain": reply["data"]["text/plain"]}}, ()
    facts = {key: fact for key, fact in codec.describe(value).items() if fact is not None}
    if isinstance(value, (bool, int, float, complex, str)):
        facts["value"] = repr(value)[:1000]
    elif hasattr(type(value), "__len__") and "shape" not in facts:
        facts["length"] = len(value)
    lines = [f"{key + ':':<8}{fact}" for key, fact in facts.items()]
    doc = inspect.getdoc(type(value)) or ""
    text = "\n".join(lines) + (f"\n\n{doc}" if doc else "")
    return {"found": True, "data": {"text/plain": text}}, ()


def status(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """What the process is, in bytes and counts; `mlx_*` are None before MLX is imported."""
    core = sys.modules.get("mlx.core")
    main = kernel.macluster
    return {
        "pid": os.getpid(),
        "rss": psutil.Process().memory_info().rss,
        "mlx_active": core.get_active_memory() if core else None,
        "mlx_peak": core.get_peak_memory() if core else None,
        "epoch": collectives.epoch,
        "broken": collectives.broken is not None,
        "started": collectives.started,
        "unread": world.unread(),
        "busy": main.work is not None,
    }, ()


def where(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Where the main thread stands.

    `cell` is the id of the cell that runs, `place` its line in words (None when idle), `moment`
    changes whenever the thread moves on, `started` counts the collectives that it has started in
    the world `epoch`, `unread` the bytes that others have sent to it for one that it has not, and
    `serving` the address at which it serves a model, "" when it does not.
    """
    main = kernel.macluster
    work = main.work
    return {
        "cell": work.cell if work is not None else None,
        "place": main.place(),
        "moment": main.moment(),
        "epoch": collectives.epoch,
        "started": collectives.started,
        "unread": world.unread(),
        "serving": serving.address(),
    }, ()


def stacks(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """The main thread's stack, the cell's own line first: {"elapsed", "frames"}.

    `elapsed` counts the seconds since the request began, None when idle. Each frame is a dict of
    file, line, function and source; a cell's file is given as "cell".
    """
    main = kernel.macluster
    work, cell_files = main.work, kernel.shell.compile._filename_map
    frames = []
    for frame in main.frames():
        file = frame.f_code.co_filename
        frames.append(
            {
                "file": "cell" if file in cell_files else file,
                "line": frame.f_lineno,
                "function": frame.f_code.co_name,
                "source": linecache.getline(file, frame.f_lineno).strip(),
            }
        )
    elapsed = time.monotonic() - work.began if work is not None else None
    return {"elapsed": elapsed, "frames": frames, "started": collectives.started}, ()


def interrupt(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Interrupt the cell `content["cell"]`, or see to it that it does not run at all.

    `how` is "hold" (before the next step of a loop over `macluster.steps`), "stop" (before step
    `content["step"]`), "go" (take a hold back) or "now". The answer's `stage` is "running",
    "waiting" or "ended"; `begun` counts the steps, None where no such loop runs, and `pace` is the
    seconds that the last one took.
    """
    main, how = kernel.macluster, content["how"]
    stage = main.stage(content["cell"])
    begun = None
    if stage == "running":
        if how == "hold":
            begun = turnstile.hold()
        elif how == "stop":
            turnstile.stop_before(content["step"])
        else:
            turnstile.release()
            if how == "now":
                main.interrupt_cell(content["cell"])
    return {"stage": stage, "begun": begun, "pace": turnstile.pace}, ()
