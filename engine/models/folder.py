"""The folder of a model: find it, compare it across the ranks, open it without reading a weight."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from ..errors import ModelError
from . import hub
from .agree import exchange, together
from .hub import WEIGHTS

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx import nn

first_line = hub.first_line

# What has to be the same on every rank. Anything else in the folder may differ.
_SAME = ("*config.json", "*.index.json", "tokenizer*", "chat_template*", "vocab*", "merges.txt")


def check_strategy(strategy: str) -> None:
    """Raise ModelError for a strategy that does not exist."""
    if strategy not in ("tensor", "pipeline", "auto"):
        raise ModelError(
            f"There is no strategy {strategy!r}.",
            why="it is misspelt, or meant for another library",
            do='use strategy="tensor" (split by width), "pipeline" (by depth) or "auto"',
        )


def find(path: str | Path) -> Path:
    """The folder with the model's files. Raises ModelError when there is none."""
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        found = "has no config.json" if folder.is_dir() else "is not a folder"
        raise ModelError(
            f"{folder} {found} on {socket.gethostname()}, so there is no model to load.",
            why=f"the path is wrong, or relative to another folder than {Path.cwd()}, or the model "
            "was not copied to this host",
            do="give the full path of a folder with config.json, *.safetensors and tokenizer.json; "
            "it must be there on every host",
        )
    return folder.resolve()


def open_together(path: str | Path, rank: int) -> tuple[Path, hub.Repo | None]:
    """The folder of a model, and the revision that it is of, where it comes from the hub.

    Of a repository only the small files are fetched. A collective; raises ModelError on every rank.
    """
    names = exchange(hub.repo_id(path))
    if not any(names):
        return together(lambda: find(path)), None
    repo = hub.agree(names[rank], rank)
    hub.prepare_together(repo)
    return together(lambda: find(path) if repo is None else hub.prepare(repo)), repo


def open_alone(path: str | Path, commit: str | None) -> tuple[Path, hub.Repo | None]:
    """The same without the other ranks, who have settled on a commit. Raises ModelError."""
    name = hub.repo_id(path)
    if name is None or commit is None:
        return find(path), None
    repo = hub.at(name, commit)
    return hub.prepare(repo), repo


def check_same_files(folder: Path) -> None:
    """Compare the model's files of all ranks. A collective; raises ModelError on every rank.

    Ranks with different weights compute nonsense without an error.
    """
    # Of a file that stays on the hub, a rank has the table of contents only.
    partly = any(exchange(hub.of(folder) is not None))
    facts = exchange(together(lambda: _facts(folder, partly)))
    versions = [fact["version"] for fact in facts]
    if len(set(versions)) > 1:
        raise ModelError(
            f"The ranks run different versions of mlx-lm: {', '.join(versions)}.",
            why="the hosts were not installed together",
            do=f"pip install mlx-lm=={versions[0]} on every host, then %cluster restart",
        )
    first = facts[0]["files"]
    for rank, fact in enumerate(facts):
        names = sorted(first.keys() | fact["files"].keys())
        other = [name for name in names if first.get(name) != fact["files"].get(name)]
        if other:
            listing = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if other[3:] else "")
            raise ModelError(
                f"Rank {rank} has other files in {fact['folder']} than rank 0: {listing}.",
                why="another version of the model was copied to that host, or a copy is incomplete",
                do="copy the folder from the host of rank 0 to the others: rsync -a --delete",
            )


def _facts(folder: Path, partly: bool) -> dict[str, Any]:
    """The version of mlx-lm, and a short hash of each file that matters.

    Of the weights only their table of contents and, but for `partly`, their end are hashed: reading
    all takes minutes.
    """
    import mlx_lm

    digests = {}
    for file in sorted({file for pattern in _SAME for file in folder.glob(pattern)}):
        digests[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    repo = hub.of(folder)
    files = folder.glob(WEIGHTS) if repo is None else [folder / name for name in repo.weights]
    for file in sorted(files):
        if partly:
            table = json.dumps(hub.contents(folder, file.name), sort_keys=True)
            digests[file.name] = hashlib.sha256(table.encode()).hexdigest()[:16]
            continue
        with file.open("rb") as opened:
            head = opened.read(8)
            # The format starts with the length of its table of contents, 64 bits.
            contents = opened.read(min(int.from_bytes(head, "little"), 1 << 27))
            size = opened.seek(0, 2)
            opened.seek(max(0, size - 4096))
            parts = (head, contents, str(size).encode(), opened.read())
        digests[file.name] = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    return {"version": mlx_lm.__version__, "folder": str(folder), "files": digests}


def lazy_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The whole model and its configuration, without reading a weight (10 to 20 ms).

    Raises ModelError when a weight is missing, or mlx-lm does not know the architecture.
    """
    from mlx_lm.utils import load_model

    try:
        # mlx-lm's own sharded_load is not strict: it gives random numbers for missing weights.
        with hub.opened(folder) as whole:
            model, config = load_model(whole, lazy=True, strict=True)
    except Exception as error:
        raise explain(folder, error) from error
    return model, config


def arrays(model: nn.Module) -> dict[str, mx.array]:
    """The parameters that this rank holds, by name, in the order of the model."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.parameters(), destination={}))


@attrs.frozen
class Shape:
    """The shape of a parameter, and its size in bytes."""

    shape: tuple[int, ...]
    nbytes: int


def shapes(model: nn.Module) -> dict[str, Shape]:
    """Those of all parameters, by name; nothing is computed."""
    return {name: Shape(tuple(each.shape), each.nbytes) for name, each in arrays(model).items()}


def explain(folder: Path, error: Exception) -> ModelError:
    text = str(error)
    again = f"copy or download the whole folder again, and compare with `ls -l {folder}`"
    if found := re.match(r"(Missing|Received) (\d+) parameters[^\n]*\n([^,]*?)(?:,|\.?$)", text):
        kind, count, name = found.groups()
        more = f" and {int(count) - 1} more" if int(count) > 1 else ""
        if kind == "Missing":
            return ModelError(
                f"Missing weights: {name}{more} in {folder}.",
                why="the checkpoint is incomplete: a file was not copied or its download stopped",
                do=again,
            )
        return ModelError(
            f"Unknown weights: {name}{more} in {folder}.",
            why="the model is newer than the installed mlx-lm, or was converted for another one",
            do="pip install -U mlx-lm on every host, or convert the model with mlx_lm.convert",
        )
    if isinstance(error, FileNotFoundError):
        return ModelError(
            f"There are no weights ({WEIGHTS}) in {folder}.",
            why="only the small files were copied or downloaded",
            do=again,
        )
    if "custom module" in text:
        return ModelError(
            f"The model in {folder} needs Python code that comes with it.",
            why="macluster does not run code of a checkpoint",
            do="convert the model to an architecture of mlx-lm with mlx_lm.convert",
        )
    if "not supported" in text:
        return ModelError(
            f"mlx-lm cannot run the model in {folder}: {text}",
            why="its architecture is too new for the installed mlx-lm, or not a text model",
            do="pip install -U mlx-lm on every host, or choose another model",
        )
    return ModelError(
        f"The model in {folder} cannot be loaded.",
        why=f"{type(error).__name__}: {text[:500]}",
        do=again,
    )


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration, with that of its language model where it has others, too."""
    return {**config, **config.get("text_config", {})}
