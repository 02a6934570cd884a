"""Load a model so that every rank holds its part of it, and keep it.

All ranks call these functions alike. A rank that fails alone would leave the others waiting in a
collective for ever, so after each step the ranks tell each other how it went, and when one failed,
all of them raise.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from ..errors import ModelError
from ..units import bytes_text
from .agree import by_one, exchange, together
from .folder import arrays, check_same_files, find, first_line, lazy_model, text_config
from .splitting import (
    Budget,
    Split,
    Strategy,
    Wish,
    choose,
    read_split,
    split_depth,
    split_width,
)

if TYPE_CHECKING:
    from mlx import nn

# mlx and mlx_lm are imported inside the functions: they are slow to import, and mlx_lm lowers
# RLIMIT_NOFILE of the whole process, which a notebook must not have.

ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors")

# One path for all hosts, or one for each: by rank, or by the name of the host.
ModelPath = str | Path | Mapping[int | str, str | Path]


@attrs.frozen(eq=False, repr=False)
class LoadedModel:
    """A model as one rank holds it. Made by `load`.

    `parameters` counts the whole model's, `nbytes` is what this rank holds of it, `split` says how
    it was divided and why; `source` and `adapter` are the paths as they were given.
    """

    model: nn.Module
    tokenizer: Any
    config: dict[str, Any]
    path: Path
    split: Split
    rank: int
    size: int
    parameters: int
    nbytes: int
    source: ModelPath
    adapter: ModelPath | None

    @property
    def strategy(self) -> Strategy:
        return self.split.strategy

    @property
    def text_config(self) -> dict[str, Any]:
        """The configuration, with that of its language model where it has others, too."""
        return text_config(self.config)

    @property
    def reason(self) -> str:
        """Why it was split by this strategy."""
        return self.split.reason

    def __repr__(self) -> str:
        kind = self.config["model_type"]
        count = count_text(self.parameters)
        if self.size == 1:
            return f"<{kind}, {count} parameters, whole on one rank, {bytes_text(self.nbytes)}>"
        return (
            f"<{kind}, {count} parameters, {self.strategy} over {self.size} ranks, "
            f"rank {self.rank} holds {bytes_text(self.nbytes)}>"
        )


def load(
    path: ModelPath,
    strategy: Strategy | Literal["auto"] = "auto",
    *,
    split: Sequence[int] | None = None,
    adapter: ModelPath | None = None,
    context: int = 4096,
) -> LoadedModel:
    """Load the model in the folder `path`, split over all ranks. Every rank must call it.

    Before any weight is read, the ranks compare their files, and see that each one's part fits
    into its memory together with a prompt cache. The weights are read one parameter at a time, so
    a rank needs memory for its own part and one whole parameter. Rank 0 prints progress.

    Args:
        path: a folder with config.json, *.safetensors and a tokenizer, or the id of a repository
            on the Hugging Face hub, which each host then downloads for itself. Where the folder
            lies elsewhere on some hosts, a mapping from ranks or host names to paths; "*" is for
            those that it does not name.
        strategy: "tensor" splits every layer by width: all ranks work at once. "pipeline" gives
            whole layers to the ranks. "auto" takes "tensor" where mlx-lm can do that to the model,
            its heads divide by the number of ranks and the parts fit, and "pipeline" otherwise.
        split: for a pipeline, the number of layers of each rank; rank 0 has the last ones. By
            default as equal as possible, or by memory where the ranks have unequal memory.
        adapter: a folder with adapter_config.json and adapters.safetensors, as mlx_lm.lora writes
            them; it is fused into the weights before they are split.
        context: the tokens of prompt and answer that there must be memory for.

    Raises:
        ModelError: on every rank, when one of them cannot load its part: no such folder, different
            files on the ranks, a missing weight, a model that cannot be split this way or not over
            this number of ranks, too little memory.
    """
    import mlx.core as mx

    group = mx.distributed.init()
    rank, size = group.rank(), group.size()
    wish = Wish(strategy, None if split is None else tuple(split), context)
    folder = together(lambda: find(_path_here(path, rank), strategy, rank))
    check_same_files(folder)
    fused = together(lambda: adapter_folder(adapter, rank))
    _check_same_wish(wish, fused)
    budgets = _budgets(size)
    # One rank decides for all: what it finds in the files may depend on its machine.
    decided = read_split(
        by_one(
            lambda: attrs.asdict(
                choose(lambda: lazy_model(folder), wish, budgets, against_pipelines())
            ),
            rank,
        )
    )
    loaded = together(lambda: _assemble(path, decided, adapter, group))
    # The last exchange is the barrier too: nobody starts to generate while others still read.
    together(lambda: _read_weights(loaded))
    return loaded


def load_alone(path: ModelPath, split: Split, adapter: ModelPath | None) -> LoadedModel:
    """This rank's part of a model that the other ranks hold already, without any collective.

    Raises ModelError or OSError when the folder is not there any more.
    """
    import mlx.core as mx

    group = mx.distributed.init()
    loaded = _assemble(path, split, adapter, group)
    _read_weights(loaded)
    return loaded


# -- before any weight is read ---------------------------------------------------------------------


def _path_here(path: ModelPath, rank: int) -> str | Path:
    """The path for this rank."""
    if not isinstance(path, Mapping):
        return path
    name = socket.gethostname()
    for key in (rank, str(rank), name, name.partition(".")[0], "*"):
        if key in path:
            return path[key]
    raise ModelError(
        f"The paths name neither rank {rank} nor its host {name}.",
        why=f"they are for {', '.join(map(repr, path))}",
        do=f'add {rank}: "/path/to/model" or {name!r}: ..., or "*": ... for all others',
    )


def adapter_folder(adapter: ModelPath | None, rank: int) -> Path | None:
    if adapter is None:
        return None
    folder = Path(_path_here(adapter, rank)).expanduser()
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"There is no adapter in {folder} on {socket.gethostname()}: no {missing[0]}.",
            why="the path is wrong, or only the host of rank 0, where training wrote it, has it",
            do="copy the folder to every host, to the same path",
        )
    return folder.resolve()


def _check_same_wish(wish: Wish, adapter: Path | None) -> None:
    """Compare what the ranks were asked. A collective; raises ModelError on every rank."""
    files = [] if adapter is None else [adapter / name for name in ADAPTER_FILES]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files]
    asked = exchange({**attrs.asdict(wish), "adapter": digests})
    for rank, each in enumerate(asked):
        names = [name for name in each if each[name] != asked[0][name]]
        if names:
            raise ModelError(
                f"Rank {rank} was asked to load something else than rank 0: another {names[0]}.",
                why="the value depends on the rank, or another adapter was copied to its host",
                do="give all ranks the same, and copy the adapter's folder: rsync -a --delete",
            )


def _budgets(size: int) -> list[Budget]:
    """What each rank may fill. Ranks on one device share its memory. A collective."""
    facts = exchange([socket.gethostname(), *memory()])
    devices = [(host, device) for host, device, _, _ in facts]
    budgets = []
    for host, device, free, of in facts:
        sharing = devices.count((host, device))
        share = f"its share of {of}" if sharing > 1 else of
        budgets.append(Budget(free // sharing, f"{share} on {host}"))
    return budgets


def against_pipelines() -> str:
    """Why no pipeline can run here, or ""."""
    import mlx.core as mx

    if mx.default_device() == mx.gpu and not mx.metal.is_available():
        return "MLX has no send() and recv() on CUDA, which the ranks of a pipeline need"
    return ""


def memory() -> tuple[str, int, str]:
    """The device that models lie on, the bytes that they may fill, and what these are, in words."""
    import mlx.core as mx
    import psutil

    if mx.default_device() == mx.gpu:
        facts = mx.device_info()
        # With CUDA each rank sees its own device only, so its place among all is in the variable.
        device = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        for key, words in (
            ("max_recommended_working_set_size", "what macOS lets the GPU use (iogpu.wired_limit)"),
            ("free_memory", "the GPU's free memory"),
        ):
            if isinstance(facts.get(key), int):
                return device, int(facts[key]), words
    return "", int(psutil.virtual_memory().available), "the free memory"


def _assemble(path: ModelPath, split: Split, adapter: ModelPath | None, group: Any) -> LoadedModel:
    """The model with this rank's share of each parameter, none of them read yet."""
    from mlx_lm.utils import get_total_parameters, load_tokenizer

    folder = find(_path_here(path, group.rank()), split.strategy, group.rank())
    fused = adapter_folder(adapter, group.rank())
    model, config = lazy_model(folder)
    try:
        # A False rather than nothing: transformers would ask on the keyboard.
        tokenizer = load_tokenizer(
            folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id")
        )
    except Exception as error:
        raise ModelError(
            f"The tokenizer in {folder} cannot be loaded.",
            why=f"{type(error).__name__}: {first_line(error)}",
            do="copy tokenizer.json and tokenizer_config.json from where the model came from; "
            "macluster does not run code of a checkpoint",
        ) from error
    parameters = get_total_parameters(model)
    if fused is not None:
        fuse(model, fused)
    if group.size() > 1 and split.strategy == "tensor":
        split_width(model, config, group)
    elif group.size() > 1:
        split_depth(model, config, group, split.layers)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config=config,
        path=folder,
        split=split,
        rank=group.rank(),
        size=group.size(),
        parameters=parameters,
        nbytes=sum(value.nbytes for value in arrays(model).values()),
        source=path,
        adapter=adapter,
    )


def plain_path(path: ModelPath | None) -> Any:
    """A path, or a mapping of paths, as JSON."""
    if isinstance(path, Mapping):
        return {str(key): str(value) for key, value in path.items()}
    return None if path is None else str(path)


def fuse(model: nn.Module, adapter: Path) -> None:
    """Add an adapter to the weights, before they are cut: shard() knows no adapter."""
    from mlx.utils import tree_unflatten
    from mlx_lm.tuner.utils import load_adapters

    try:
        load_adapters(model, str(adapter))
        fused = [
            (name, module.fuse()) for name, module in model.named_modules()
            if hasattr(module, "fuse")
        ]  # fmt: skip
    except Exception as error:
        raise ModelError(
            f"The adapter in {adapter} does not fit this model.",
            why=f"{type(error).__name__}: {first_line(error)}",
            do="load the model that it was trained for",
        ) from error
    model.update_modules(tree_unflatten(fused))


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


def held(names: Mapping[str, Any], name: str) -> LoadedModel:
    """The model that a name is bound to on this rank. Raises ModelError when there is none."""
    models = models_in(names)
    if name in models:
        return models[name]
    raise ModelError(
        f"There is no model named {name!r} on the ranks.",
        why=f"they hold {', '.join(models)}" if models else "they hold none yet",
        do="%model load PATH" + (f", or name {next(iter(models))!r}" if models else ""),
    )


def models_in(names: Mapping[str, Any]) -> dict[str, LoadedModel]:
    """The models among the variables of a rank, by name."""
    return {
        name: value
        for name, value in names.items()
        if isinstance(value, LoadedModel) and not name.startswith("_")
    }


# -- words -----------------------------------------------------------------------------------------


def count_text(count: int) -> str:
    """ "0.17 M", "26.9 B" (billions)."""
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
