"""Answer questions about names and about the process, also while a cell runs.

These run in the control thread. They never read an array's value: that could run a collective on
one rank alone, and MLX's streams belong to the main thread.
"""

from __future__ import annotations

import inspect
import linecache
import os
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from IPython.utils.tokenutil import token_at_cursor

from .. import codec

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
    """{"pid", "rss", "mlx_active", "mlx_peak"}: bytes; the last two None before MLX is imported."""
    core = sys.modules.get("mlx.core")
    return {
        "pid": os.getpid(),
        "rss": psutil.Process().memory_info().rss,
        "mlx_active": core.get_active_memory() if core else None,
        "mlx_peak": core.get_peak_memory() if core else None,
    }, ()


def where(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """{"cell", "place"}: the id of the cell that runs and its line, in words; None when idle."""
    work = kernel.macluster_work
    cell = work.cell if work is not None else None
    cell_files = kernel.shell.compile._filename_map
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_code.co_filename not in cell_files:
        frame = frame.f_back
    if frame is None:
        frame = _suspended_frame(kernel, cell_files)
    if frame is None:
        return {"cell": cell, "place": None}, ()
    source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return {"cell": cell, "place": f"line {frame.f_lineno}: `{source}`"}, ()


def _suspended_frame(kernel: Any, cell_files: Mapping[str, Any]) -> types.FrameType | None:
    """The innermost frame of a cell that awaits something, or None when no cell does."""
    work = kernel.macluster_work
    inner = work.task.get_coro() if work is not None and work.task is not None else None
    found = None
    while inner is not None:
        frame = getattr(inner, "cr_frame", None)
        if frame is not None and frame.f_code.co_filename in cell_files:
            found = frame
        inner = getattr(inner, "cr_await", None)
    return found


def forget(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Do not run the cell `content["cell"]` when its turn comes."""
    kernel.macluster_forgotten.add(content["cell"])
    return {}, ()
