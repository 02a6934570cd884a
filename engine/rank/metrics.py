"""Publish what this rank does and holds, while somebody watches.

A thread sends it on the output channel, under a topic of its own, so it also comes while the main
thread is in a long computation. Nobody has to ask a busy rank, and nothing is sent, or looked at,
unless a watcher has asked for it during the last seconds.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil

from ..client import METRICS
from ..counters import counters
from ..topology.facts import output
from . import introspect, topology
from .collectives import collectives

SHORTEST = 0.1  # seconds between two messages
SLOW = 2.0  # seconds between two looks at what takes a millisecond or more
LONGEST = 300  # characters of a line of the user's cell
GPU_LIMIT = 2.0  # seconds for the program that tells how busy the GPU is

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


class Metrics:
    """The watchers of a rank, and the thread that keeps them informed."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._watchers: dict[str, tuple[float, float]] = {}  # until when, and how often
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process = psutil.Process()
        self._cpu = Rate()
        self._tokens = Rate()
        self._bytes = Rate()
        self._slow: dict[str, Any] = {}
        self._slow_at = 0.0
        self._parts: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._gpu: Callable[[], float | None] | None = None

    def watch(self, watcher: str, seconds: float, period: float) -> None:
        """Send a message every `period` seconds for the next `seconds`; 0 ends it."""
        with self._changed:
            self._watchers[watcher] = (time.monotonic() + seconds, max(period, SHORTEST))
            self._changed.notify()
            if self._thread is None and seconds > 0:
                self._thread = threading.Thread(
                    target=self._run, name="macluster-metrics", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        kernel = self._kernel
        topic = METRICS + f".{kernel.engine_id}".encode()
        while True:
            now = time.monotonic()
            with self._changed:
                self._watchers = {
                    name: each for name, each in self._watchers.items() if each[0] > now
                }
                if not self._watchers:
                    self._thread = None
                    return
                period = min(each for _, each in self._watchers.values())
            try:
                message = self.look()
                kernel.session.send(
                    kernel.iopub_socket, METRICS.decode(), content=message, ident=topic
                )
            except Exception:
                # The next one may be better; a watcher sees the silence.
                kernel.log.exception("a message about this rank could not be sent")
            with self._changed:
                self._changed.wait(max(0.0, now + period - time.monotonic()))

    def look(self) -> dict[str, Any]:
        """What there is to say now. Times are seconds ago: hosts' clocks differ.

        Beside what `introspect.where` says: "elapsed" of the request under way, None when idle;
        "memory" and "models" as the page shows them; "cpu" (percent of a core), "host_cpu" and
        "gpu" (percent); "collectives" {"count", "bytes", "rate"}; "tokens" a second, None when none
        were made; when a measurement was "measured" last; and the last "failure" of a cell here.
        """
        now = time.monotonic()
        main = self._kernel.macluster
        where, _ = introspect.where(self._kernel, {}, ())
        work, failure = main.work, main.failure
        broken = collectives.broken
        if now >= self._slow_at + SLOW:
            self._slow, self._slow_at = self._slowly(), now
        times = self._process.cpu_times()
        cpu = self._cpu.of(times.user + times.system, now)
        tokens = self._tokens.of(counters.tokens, now)
        core = sys.modules.get("mlx.core")
        return {
            **where,
            "place": where["place"] and where["place"][:LONGEST],
            "pid": self._process.pid,
            "rank": self._kernel.engine_id,
            "elapsed": None if work is None else now - work.began,
            "broken": "" if broken is None else broken.why or broken.what,
            "memory": {
                **self._slow["memory"],
                "process": self._process.memory_info().rss,
                "arrays": core.get_active_memory() if core else None,
                "peak": core.get_peak_memory() if core else None,
                "cache": core.get_cache_memory() if core else None,
            },
            "cpu": None if cpu is None else round(100 * cpu, 1),
            "host_cpu": self._slow["host_cpu"],
            "gpu": self._slow["gpu"],
            "collectives": {
                "count": counters.collectives,
                "bytes": counters.bytes,
                "rate": round(self._bytes.of(counters.bytes, now) or 0),
            },
            "tokens": round(tokens, 1) if tokens else None,
            "models": self._slow["models"],
            "measured": topology.taken(),
            "failure": None if failure is None else {**failure, "ago": now - failure["at"]},
        }

    def _slowly(self) -> dict[str, Any]:
        if self._gpu is None:
            # Not at the start of a rank, which nobody may ever watch.
            self._gpu = gpu_reader()
        host = psutil.virtual_memory()
        return {
            "memory": {
                "total": host.total,
                "used": host.total - host.available,
                "wired": getattr(host, "wired", None),  # macOS and BSD
                "limit": memory_limit(),
            },
            "host_cpu": psutil.cpu_percent(None),
            "gpu": self._gpu(),
            "models": self._models(),
        }

    def _models(self) -> dict[str, Any]:
        """The loaded models: {"source", "strategy", "bytes", "layers", "of" so many}.

        "layers" are the first of this rank in a pipeline and the one behind its last, or None."""
        load: Any = sys.modules.get("macluster.engine.models.load")
        found: dict[str, Any] = {}
        # The main thread may be importing it.
        if not hasattr(load, "models_in"):
            return found
        for name, model in load.models_in(dict(self._kernel.shell.user_ns)).items():
            if model not in self._parts:
                self._parts[model] = part_of(model, load.plain_path(model.source))
            found[name] = self._parts[model]
        return found


class Rate:
    """How fast a count grows."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def of(self, count: float, now: float) -> float | None:
        """A second, since the last call; None at the first."""
        last, self._last = self._last, (count, now)
        if last is None or now <= last[1]:
            return None
        return (count - last[0]) / (now - last[1])


def part_of(model: Any, source: Any) -> dict[str, Any]:
    """What this rank holds of a loaded model. Looks at names and shapes only."""
    from ..models.folder import arrays

    by_depth = model.strategy == "pipeline"
    here = arrays(model.model) if by_depth else ()
    numbers = {int(found[1]) for name in here if (found := _LAYER.search(name))}
    whole = {int(found[1]) for name in model.whole if (found := _LAYER.search(name))}
    return {
        "source": source if isinstance(source, str) else str(model.path),
        "strategy": model.strategy,
        "bytes": model.nbytes,
        "layers": [min(numbers), max(numbers) + 1] if numbers else None,
        "of": len(whole),
    }


def memory_limit() -> int | None:
    """The bytes that MLX may fill where the system sets a limit, as macOS does for its GPU."""
    load: Any = sys.modules.get("macluster.engine.models.load")
    core = sys.modules.get("mlx.core")
    if core is None or not hasattr(load, "memory") or not load.counts_loaded():
        return None
    return int(load.memory()[1])


def gpu_reader() -> Callable[[], float | None]:
    """What says how busy the GPU is, in percent, without root; None where nothing does."""
    if sys.platform == "darwin":
        command = ("ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator")
        return lambda: apple_gpu(output(*command, limit=GPU_LIMIT))
    import pynvml

    try:
        pynvml.nvmlInit()
        # The first that this process may use: MLX takes that one.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
        device = pynvml.nvmlDeviceGetHandleByIndex(int(visible) if visible.isdecimal() else 0)
    except pynvml.NVMLError:
        return lambda: None  # no NVIDIA driver

    def nvidia_gpu() -> float | None:
        try:
            return float(pynvml.nvmlDeviceGetUtilizationRates(device).gpu)
        except pynvml.NVMLError:
            return None

    return nvidia_gpu


def apple_gpu(text: str | None) -> float | None:
    """From what `ioreg -c IOAccelerator` prints."""
    found = re.search(r'"Device Utilization %"\s*=\s*(\d+)', text or "")
    return float(found[1]) if found else None


def watch(kernel: Any, content: Mapping[str, Any], buffers: Sequence[memoryview]) -> Any:
    """Keep `content["watcher"]` informed for `seconds`, with a message every `period` seconds."""
    kernel.macluster.metrics.watch(content["watcher"], content["seconds"], content["period"])
    return {}, ()
