"""Turn the Macs on a desk into one notebook: `%load_ext macluster`, then `%cluster start`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.cell import Cell
    from .engine.cluster import Cluster
    from .engine.errors import (
        BackendError,
        CellCancelled,
        CellError,
        CellTimeout,
        ClusterError,
        ClusterExists,
        ClusterNotFound,
        CollectiveMismatch,
        HostfileError,
        MaclusterError,
        ModelError,
        RankDied,
        StartError,
        TransferError,
        UsageError,
        WorldBroken,
        WorldError,
    )
    from .engine.hostfile import Host, Hostfile
    from .engine.measure.job import measure
    from .engine.measure.record import Measurement
    from .engine.models.chat import Chat
    from .engine.models.check import check
    from .engine.models.generate import batch_generate, generate, stream_generate
    from .engine.models.load import LoadedModel, load
    from .engine.models.shards import shards
    from .engine.models.timing import token_time
    from .engine.models.tiny import toy_path
    from .engine.plan.calibrate import calibrate
    from .engine.plan.compare import compare_plan
    from .engine.plan.measured import Measured
    from .engine.plan.planner import plan
    from .engine.recovery import Recovery
    from .engine.serve.loop import serve
    from .engine.serve.serving import Serving
    from .engine.simulate.simulation import Simulation, simulate
    from .engine.steps import steps
    from .engine.topology.topology import Topology
    from .engine.world import World
    from .magics.chat_ui import chat_ui
    from .widgets.measure import MeasureView
    from .widgets.topology import TopologyView

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Cell",
    "CellCancelled",
    "CellError",
    "CellTimeout",
    "Chat",
    "Cluster",
    "ClusterError",
    "ClusterExists",
    "ClusterNotFound",
    "CollectiveMismatch",
    "Host",
    "Hostfile",
    "HostfileError",
    "LoadedModel",
    "MaclusterError",
    "MeasureView",
    "Measured",
    "Measurement",
    "ModelError",
    "RankDied",
    "Recovery",
    "Serving",
    "Simulation",
    "StartError",
    "Topology",
    "TopologyView",
    "TransferError",
    "UsageError",
    "World",
    "WorldBroken",
    "WorldError",
    "batch_generate",
    "calibrate",
    "chat_ui",
    "check",
    "compare_plan",
    "generate",
    "load",
    "load_ipython_extension",
    "measure",
    "plan",
    "serve",
    "shards",
    "simulate",
    "steps",
    "stream_generate",
    "token_time",
    "toy_path",
    "unload_ipython_extension",
]

# Where each public name lives. They are imported at their first use: ipyparallel imports this
# package for its launchers, and a rank's start should not wait for a model library.
_HOMES = {
    "Cell": "engine.cell",
    "Chat": "engine.models.chat",
    "Cluster": "engine.cluster",
    "Host": "engine.hostfile",
    "Hostfile": "engine.hostfile",
    "LoadedModel": "engine.models.load",
    "MeasureView": "widgets.measure",
    "Measured": "engine.plan.measured",
    "Measurement": "engine.measure.record",
    "Recovery": "engine.recovery",
    "Serving": "engine.serve.serving",
    "Simulation": "engine.simulate.simulation",
    "Topology": "engine.topology.topology",
    "TopologyView": "widgets.topology",
    "World": "engine.world",
    "batch_generate": "engine.models.generate",
    "calibrate": "engine.plan.calibrate",
    "chat_ui": "magics.chat_ui",
    "check": "engine.models.check",
    "compare_plan": "engine.plan.compare",
    "generate": "engine.models.generate",
    "load": "engine.models.load",
    "measure": "engine.measure.job",
    "plan": "engine.plan.planner",
    "serve": "engine.serve.loop",
    "shards": "engine.models.shards",
    "simulate": "engine.simulate.simulation",
    "steps": "engine.steps",
    "stream_generate": "engine.models.generate",
    "token_time": "engine.models.timing",
    "toy_path": "engine.models.tiny",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'engine.errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext macluster`."""
    from .magics.extension import load

    load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext macluster`: the magics go; a running cluster ends with the kernel."""
    from .magics.extension import unload

    unload(shell)


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """What a Jupyter server loads for the sidebar."""
    from .server.extension import ServerExtension

    return [{"module": "macluster.server", "app": ServerExtension}]
