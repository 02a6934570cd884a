"""Load a model so that every rank holds its part of it, and keep it.

All ranks call these functions alike. A rank that fails alone would leave the others waiting in a
collective for ever, so after each step the ranks tell each other how it went, and when one failed,
all of them raise.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs

from ..errors import ModelError
from ..hostfile import describe_ranks
from ..units import bytes_text

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx import nn

# mlx and mlx_lm are imported inside the functions: they are slow to import, and mlx_lm lowers
# RLIMIT_NOFILE of the whole process, which a notebook must not have.

Result = TypeVar("Result")
Strategy = Literal["tensor", "pipeline"]

# What has to be the same on every rank. Anything else in the folder may differ.
_SAME = ("*config.json", "*.index.json", "tokenizer*", "chat_template*", "vocab*", "merges.txt")
_WEIGHTS = "model*.safetensors"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@attrs.frozen(eq=False, repr=False)
class LoadedModel:
    """A model as one rank holds it. Made by `load`.

    `parameters` counts the whole model's, `nbytes` is what this rank holds of it, and `reason`
    says in words why it was split by this `strategy`.
    """

    model: nn.Module
    tokenizer: Any
    config: dict[str, Any]
    path: Path
    strategy: Strategy
    reason: str
    rank: int
    size: int
    parameters: int
    nbytes: int

    def __repr__(self) -> str:
        kind = self.config["model_type"]
        count = count_text(self.parameters)
        if self.size == 1:
            return f"<{kind}, {count} parameters, whole on one rank, {bytes_text(self.nbytes)}>"
        return (
            f"<{kind}, {count} parameters, {self.strategy} over {self.size} ranks, "
            f"rank {self.rank} holds {bytes_text(self.nbytes)}>"
        )


def load(path: str | Path, strategy: Strategy | Literal["auto"] = "tensor") -> LoadedModel:
    """Load the model in the folder `path`, split over all ranks. Every rank must call it.

    The folder must be at the same path on every host. The weights are read one parameter at a
    time, so a rank needs memory for its own part and one whole parameter. Rank 0 prints progress.

    Args:
        path: a folder with config.json, *.safetensors and a tokenizer, or the id of a repository
            on the Hugging Face hub, which each host then downloads for itself.
        strategy: "tensor" splits every layer by width, "pipeline" gives whole layers to the ranks,
            "auto" takes "tensor" where mlx-lm can do that to the model, and "pipeline" otherwise.

    Raises:
        ModelError: on every rank, when one of them cannot load its part: no such folder, different
            files on the ranks, a missing weight, a model that cannot be split this way or not over
            this number of ranks.
    """
    import mlx.core as mx

    group = mx.distributed.init()
    folder = together(lambda: _find(path, strategy, group.rank()))
    _check_same_files(folder)
    loaded = together(lambda: _assemble(folder, strategy, group))
    # The last exchange is the barrier too: nobody starts to generate while others still read.
    together(lambda: _read_weights(loaded))
    return loaded


def load_alone(path: str | Path, strategy: Strategy) -> LoadedModel:
    """This rank's part of a model that the other ranks hold already, without any collective.

    Raises ModelError or OSError when the folder is not there any more.
    """
    import mlx.core as mx

    group = mx.distributed.init()
    loaded = _assemble(_find(path, strategy, group.rank()), strategy, group)
    _read_weights(loaded)
    return loaded


# -- agreement of the ranks ------------------------------------------------------------------------


def exchange(value: Any) -> list[Any]:
    """Send `value` (of JSON types) to all ranks, and return everybody's in the order of ranks.

    A collective. It goes on the calling thread's default communication stream, after everything
    that a generation left under way: collectives on two streams mix their data.
    """
    import mlx.core as mx
    import numpy as np

    if "mlx_lm.generate" in sys.modules:
        mx.synchronize(sys.modules["mlx_lm.generate"].generation_stream)
    data = json.dumps(value).encode()
    lengths = mx.distributed.all_gather(mx.array([len(data)]))
    longest = int(np.array(lengths).max())
    # JSON allows spaces at its end, so the padding needs no length beside it.
    row = mx.array(np.frombuffer(data.ljust(longest), np.uint8))[None]
    rows = np.array(mx.distributed.all_gather(row))
    return [json.loads(row.tobytes()) for row in rows]


def together(step: Callable[[], Result]) -> Result:
    """Run `step`, which must not contain a collective, and return its result when all succeeded.

    Raises ModelError on every rank when it failed on one of them.
    """
    results: list[Result] = []
    error: ModelError | None = None
    try:
        results.append(step())
    except ModelError as caught:
        error = caught
    except Exception as caught:
        error = ModelError(
            f"{type(caught).__name__}: {caught}",
            why="an error that macluster does not know",
            do="run the same lines in a plain cell, without a cluster, to see where it comes from",
        )
        error.__cause__ = caught
    reports = exchange(error and {"what": error.what, "why": error.why, "do": error.do})
    failed = {rank: report for rank, report in enumerate(reports) if report is not None}
    if not failed:
        return results[0]
    first = next(iter(failed.values()))
    if len(failed) == len(reports) and all(report == first for report in failed.values()):
        raise error or ModelError(**first)
    same = [rank for rank, report in failed.items() if report == first]
    what = f"{describe_ranks(same).capitalize()}: {first['what']}"
    raise ModelError(what, why=first["why"], do=first["do"]) from error


# -- before any weight is read ---------------------------------------------------------------------


def _find(path: str | Path, strategy: str, rank: int) -> Path:
    """The folder with the model's files; downloads it when `path` is the id of a repository."""
    if strategy not in ("tensor", "pipeline", "auto"):
        raise ModelError(
            f"There is no strategy {strategy!r}.",
            why="it is misspelt, or meant for another library",
            do='use strategy="tensor" (split by width), "pipeline" (by depth) or "auto"',
        )
    folder = Path(path).expanduser()
    if not folder.exists() and _REPO_ID.fullmatch(str(path)):
        folder = _download(str(path), rank)
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


def _download(repo: str, rank: int) -> Path:
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from mlx_lm.utils import _download as download

    if rank != 0:
        disable_progress_bars()
    try:
        return Path(download(repo))
    except Exception as error:
        raise ModelError(
            f"{repo} is neither a folder on {socket.gethostname()} nor a model that could be "
            "downloaded.",
            why=f"{type(error).__name__}: {_first_line(error)}",
            do="give the full path of a folder with the model; or check the name and the network, "
            f"and try `hf download {repo}` in a terminal",
        ) from error


def _check_same_files(folder: Path) -> None:
    """Compare the model's files of all ranks. A collective; raises ModelError on every rank.

    Ranks with different weights compute nonsense without an error.
    """
    facts = exchange(together(lambda: _facts(folder)))
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


def _facts(folder: Path) -> dict[str, Any]:
    """The version of mlx-lm, and a short hash of each file that matters.

    Of the weights only their table of contents and their end are hashed: reading all takes minutes.
    """
    import mlx_lm

    digests = {}
    for file in sorted({file for pattern in _SAME for file in folder.glob(pattern)}):
        digests[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    for file in sorted(folder.glob(_WEIGHTS)):
        with file.open("rb") as opened:
            head = opened.read(8)
            # The format starts with the length of its table of contents, 64 bits.
            contents = opened.read(min(int.from_bytes(head, "little"), 1 << 27))
            size = opened.seek(0, 2)
            opened.seek(max(0, size - 4096))
            parts = (head, contents, str(size).encode(), opened.read())
        digests[file.name] = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    return {"version": mlx_lm.__version__, "folder": str(folder), "files": digests}


def _assemble(folder: Path, strategy: str, group: Any) -> LoadedModel:
    """The model with this rank's share of each parameter, none of them read yet."""
    from mlx_lm.utils import get_total_parameters, load_tokenizer

    model, config = lazy_model(folder)
    try:
        # A False rather than nothing: transformers would ask on the keyboard.
        tokenizer = load_tokenizer(
            folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id")
        )
    except Exception as error:
        raise ModelError(
            f"The tokenizer in {folder} cannot be loaded.",
            why=f"{type(error).__name__}: {_first_line(error)}",
            do="copy tokenizer.json and tokenizer_config.json from where the model came from; "
            "macluster does not run code of a checkpoint",
        ) from error
    parameters = get_total_parameters(model)
    chosen, reason = _choose(model, config, strategy, group.size())
    if group.size() > 1:
        (_split_width if chosen == "tensor" else _split_depth)(model, config, group)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config=config,
        path=folder,
        strategy=chosen,
        reason=reason,
        rank=group.rank(),
        size=group.size(),
        parameters=parameters,
        nbytes=sum(value.nbytes for value in arrays(model).values()),
    )


def arrays(model: nn.Module) -> dict[str, mx.array]:
    """The parameters that this rank holds, by name, in the order of the model."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.parameters(), destination={}))


def lazy_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The whole model and its configuration, without reading a weight (10 to 20 ms).

    Raises ModelError when a weight is missing, or mlx-lm does not know the architecture.
    """
    from mlx_lm.utils import load_model

    try:
        # mlx-lm's own sharded_load is not strict: it gives random numbers for missing weights.
        model, config = load_model(folder, lazy=True, strict=True)
    except Exception as error:
        raise _explain(folder, error) from error
    return model, config


def _explain(folder: Path, error: Exception) -> ModelError:
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
            f"There are no weights ({_WEIGHTS}) in {folder}.",
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


def _choose(
    model: nn.Module, config: dict[str, Any], asked: str, size: int
) -> tuple[Strategy, str]:
    """The strategy and, in words, why. Raises ModelError when mlx-lm cannot do it."""
    kind = config["model_type"]
    can: dict[Strategy, bool] = {
        "tensor": hasattr(model, "shard"),
        "pipeline": hasattr(getattr(model, "model", None), "pipeline"),
    }
    strategy: Strategy = "tensor" if can["tensor"] or not can["pipeline"] else "pipeline"
    if asked != "auto":
        strategy = "pipeline" if asked == "pipeline" else "tensor"
    if size == 1:
        return strategy, "there is one rank, which holds the whole model"
    if not any(can.values()):
        raise ModelError(
            f"A {kind} model cannot be split over {size} ranks.",
            why=f"mlx-lm has neither shard() nor pipeline() for {kind}",
            do="load it on one rank (%cluster start 1), or choose a model such as llama, qwen3, "
            "qwen3_moe, gpt_oss or deepseek_v3",
        )
    if not can[strategy]:
        other = "pipeline" if strategy == "tensor" else "tensor"
        raise ModelError(
            f"A {kind} model cannot be split with strategy={strategy!r}.",
            why=f"mlx-lm has no {'shard' if strategy == 'tensor' else 'pipeline'}() for {kind}",
            do=f'use strategy="{other}" or strategy="auto"',
        )
    if asked != "auto":
        return strategy, f"{strategy}, as asked for"
    if strategy == "tensor":
        return strategy, f"tensor, because mlx-lm has shard() for {kind}: all ranks work at once"
    return strategy, f"pipeline, because mlx-lm has no shard() for {kind}"


def _split_width(model: Any, config: dict[str, Any], group: Any) -> None:
    size = group.size()
    before = _integers(model)
    try:
        model.shard(group)
    except Exception as error:
        # Not only ValueError: models assert, and gpt_oss divides by the 0 heads that are left.
        raise _indivisible(model, config, size, _first_line(error)) from error
    after = _integers(model)
    for place, count in before.items():
        part = after.get(place, count)
        # mlx-lm divides the head counts without looking at the remainder. A model that copies its
        # few key-value heads to more ranks ends up with one on each.
        copied = part == 1 and count < size and size % count == 0
        if part != count and part * size != count and not copied:
            raise _indivisible(model, config, size, f"{place[1]} is {count}")


def _integers(model: nn.Module) -> dict[tuple[str, str], int]:
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) is int
    }


def _indivisible(model: nn.Module, config: dict[str, Any], size: int, detail: str) -> ModelError:
    text = {**config, **config.get("text_config", {})}
    words = {"num_attention_heads": "attention heads", "num_key_value_heads": "key-value heads"}
    counts = {text[key]: word for key, word in words.items() if isinstance(text.get(key), int)}
    odd = [f"{count} {word}" for count, word in counts.items() if count % size]
    why = f"{size} does not divide its {' and its '.join(odd)} ({detail})" if odd else detail
    sizes = [n for n in range(2, size) if all(count % n == 0 for count in counts)]
    remedies = [f"use {' or '.join(map(str, sizes))} ranks"] if sizes else []
    if hasattr(getattr(model, "model", None), "pipeline"):
        remedies.append('use strategy="pipeline", which splits between layers')
    return ModelError(
        f"The {config['model_type']} model cannot be split by width over {size} ranks.",
        why=why,
        do=", or ".join(remedies) or "load it on one rank (%cluster start 1)",
    )


def _split_depth(model: Any, config: dict[str, Any], group: Any) -> None:
    layers = len(model.layers)
    try:
        model.model.pipeline(group)
    except Exception as error:
        raise ModelError(
            f"The {config['model_type']} model cannot be split by depth over {group.size()} ranks.",
            why=f"it has {layers} layers, and each rank needs at least one that can lead its part "
            f"({_first_line(error)})",
            do=f'use at most {layers} ranks, or strategy="tensor"',
        ) from error


# -- reading ---------------------------------------------------------------------------------------


def _read_weights(loaded: LoadedModel) -> None:
    """Read this rank's share. Rank 0 shows how far it is, on one line, once a second."""
    import mlx.core as mx

    start = shown = time.monotonic()
    done = 0
    line = ""
    for value in arrays(loaded.model).values():
        # One at a time: a parameter is read whole before it is cut, and one mx.eval of everything
        # would hold all of them whole (and is too long for Metal's watchdog above 300 GB).
        mx.eval(value)
        done += value.nbytes
        now = time.monotonic()
        if now - shown >= 1:
            shown = now
            mx.clear_cache()
            if loaded.rank == 0:
                left = (now - start) * (loaded.nbytes - done) / done
                line = (
                    f"rank 0: {bytes_text(done)} of {bytes_text(loaded.nbytes)}, "
                    f"{bytes_text(done / (now - start))}/s, {left:.0f} s left"
                ).ljust(len(line))
                print(f"\r{line}", end="", flush=True)
    # The buffers of the whole parameters: nothing will need that size again.
    mx.clear_cache()
    if loaded.rank == 0:
        seconds = max(time.monotonic() - start, 1e-3)
        speed = f"{bytes_text(done / seconds)}/s"
        last = f"rank 0: {bytes_text(done)} in {seconds:.1f} s, {speed}"
        print(f"\r{last.ljust(len(line))}" if line else last, flush=True)


# -- words -----------------------------------------------------------------------------------------


def count_text(count: int) -> str:
    """ "0.17 M", "26.9 B" (billions)."""
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
