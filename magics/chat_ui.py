"""`macluster.chat_ui`: the conversation in a page, with this notebook's cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..engine.cluster import Cluster
from ..engine.errors import ClusterNotFound, UsageError
from ..engine.world import World
from .session import Session

if TYPE_CHECKING:
    from ..widgets.chat import ChatView


def chat_ui(
    model: str = "model", *, chat: str = "chat", cluster: Cluster | None = None
) -> ChatView:
    """Talk to a model that the ranks hold, in a page below the cell.

    `%%chat` and this go on with the same conversation. Stop ends an answer on all ranks after the
    same token.

    Args:
        model: the name that the model is bound to on the ranks.
        chat: the name of the conversation on the ranks.
        cluster: by default the one that this notebook uses.

    Raises:
        UsageError: outside of a notebook with macluster's magics, when no cluster is given.
        ClusterNotFound: when no cluster runs.
    """
    session = None if cluster is not None else current_session()

    def world() -> World:
        if session is not None:
            return session.world
        assert cluster is not None
        if cluster.world is None:
            raise ClusterNotFound(
                f"Cluster {cluster.name} does not run.",
                why="it was stopped, or was not started yet",
                do="start it: cluster.start_sync()",
            )
        return cluster.world

    for name in (model, chat):
        if not name.isidentifier():
            raise UsageError(
                f"{name!r} cannot be a name.",
                why="models and conversations are bound to Python names on the ranks",
                do="for example: macluster.chat_ui('model')",
            )
    world()
    # Late: a page is nothing that every notebook has.
    from ..widgets.chat import ChatView

    return ChatView(world, model=model, chat=chat)


def current_session() -> Session:
    """The session of the notebook that this process runs. Raises UsageError when there is none."""
    from IPython import get_ipython

    from .model import ModelMagics

    shell = get_ipython()
    magics = shell.magics_manager.registry.get("ModelMagics") if shell is not None else None
    if not isinstance(magics, ModelMagics):
        raise UsageError(
            "There is no notebook here that uses a cluster.",
            why="macluster's magics are not loaded in this process; ranks have none",
            do="%load_ext macluster, then %cluster start 2, in a cell without %%distributed; or "
            "give chat_ui(cluster=...)",
        )
    return magics.session
