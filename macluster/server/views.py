"""What the tabs draw: the traits that the widgets of a notebook have."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs

from ..engine.errors import MaclusterError, UsageError

if TYPE_CHECKING:
    from ..engine.monitor.fleet import Fleet
    from ..widgets.topology import Drawing

Kind = Literal["topology", "measurement", "shards"]


@attrs.frozen
class View:
    """One picture of one cluster; `model` is the variable that holds the model of "shards"."""

    cluster: str
    kind: Kind
    model: str | None = None


def shows(view: View, state: Mapping[str, Any], failed: bool) -> Any:
    """What a view depends on: while this stays as it is, the view need not be made again.

    `failed`: it could not be made the last time, and may be in another state.
    """
    cluster = state["clusters"].get(view.cluster)
    if cluster is None:
        return None
    turn = (cluster["state"], cluster["since"], cluster["busy"])
    if view.kind == "measurement":
        return cluster["measured"], cluster["backend"], cluster["size"]
    if view.kind == "shards":
        return cluster["models"], turn if failed else None
    ranks = [
        (rank["host"], rank["state"], memory.get("total"), memory.get("used"), memory.get("arrays"))
        for rank in cluster["ranks"].values()
        for memory in [rank["memory"] or {}]
    ]
    return turn, cluster["backend"], ranks


class Painter:
    """Makes one view, again and again; in threads, one at a time."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._drawing: Drawing | None = None
        self._written: dict[str, tuple[Any, str]] = {}  # traits, and the same as JSON

    def paint(self, fleet: Fleet) -> dict[str, str]:
        """Its traits, each as JSON; {"error": in words} when it cannot be shown."""
        try:
            traits = getattr(self, f"_{self.view.kind}")(fleet)
        except MaclusterError as error:
            traits = {"error": str(error)}
        self._written = {name: (each, self._json(name, each)) for name, each in traits.items()}
        return {name: text for name, (_, text) in self._written.items()}

    def _json(self, name: str, value: Any) -> str:
        # The figures of thousands of links seldom change, and are megabytes.
        before, text = self._written.get(name, (None, ""))
        if text and before is value:
            return text
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    def _topology(self, fleet: Fleet) -> dict[str, Any]:
        from ..widgets.topology import Drawing

        self._drawing = self._drawing or Drawing()
        return self._drawing.traits(fleet.topology(self.view.cluster))

    def _measurement(self, fleet: Fleet) -> dict[str, Any]:
        from ..widgets.measure import page_data

        found = fleet.measurement(self.view.cluster)
        if found is None:
            return {"data": None}
        topology = None
        # It knows the negotiated rates, and is not needed.
        with contextlib.suppress(MaclusterError):
            topology = fleet.topology(self.view.cluster)
        return {"data": page_data(found, topology)}

    def _shards(self, fleet: Fleet) -> dict[str, Any]:
        from ..widgets.shards import traits

        return traits(fleet.shards(self.view.cluster, self._model(fleet)))

    def _model(self, fleet: Fleet) -> str:
        if self.view.model is not None:
            return self.view.model
        cluster = fleet.state()["clusters"].get(self.view.cluster, {})
        for name in cluster.get("models", ()):
            return str(name)
        raise UsageError(
            f"No model is loaded on {self.view.cluster!r}.",
            why="the ranks hold none, or have not said so yet",
            do="load one in a notebook: %model load PATH",
        )
