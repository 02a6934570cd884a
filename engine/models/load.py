"""Load a model so that every rank holds its part of it, and keep it.

All ranks call these functions alike. A rank that fails alone would leave the others waiting in a
collective for ever, so after each step the ranks tell each other how it went, and when one failed,
all of them raise.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from ..errors import ModelError
from ..units import bytes_text
from . import hub
from .agree import by_one, exchange, together
from .folder import (
    Shape,
    arrays,
    check_same_files,
    check_strategy,
    explain,
    first_line,
    lazy_model,
    open_alone,
    open_together,
    shapes,
    text_config,
)
from .splitting import (
    Budget,
    Split,
    Strategy,
    Wish,
    choose,
    needs_by_width,
    read_split,
    split_depth,
    split_width,
)
from .trial import DryGroup

if TYPE_CHECKING:
    from mlx import nn

# mlx and mlx_lm are imported inside the functions: they are slow to import, and mlx_lm lowers
# RLIMIT_NOFILE of the whole process, which a notebook must not have.

ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors")
WHOLE = Split("tensor", "a draft, which every rank holds whole")
ALIKE = 0.99  # of two vocabularies, for one model to draft for the other

# One path for all hosts, or one for each: by rank, or by the name of the host.
ModelPath = str | Path | Mapping[int | str, str | Path]


@attrs.frozen(eq=False, repr=False)
class LoadedModel:
    """A model as one rank holds it. Made by `load`.

    `parameters` counts the whole model's, `nbytes` is what this rank holds of it, `split` says how
    it was divided and why; `source` and `adapter` are the paths as they were given, and `commit` is
    the revision where `source` is a repository on the hub. `draft` is the model that proposes
    tokens, whole on every rank.
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
    commit: str | None = None
    draft: LoadedModel | None = None
    # The parameters before they were cut; fused adapters are not in it.
    whole: Mapping[str, Shape] = attrs.field(factory=dict)

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
        held = f"rank {self.rank} holds {bytes_text(self.nbytes)}"
        how = f"{self.strategy} over {self.size} ranks, {held}"
        if self.size == 1:
            how = f"whole on one rank, {bytes_text(self.nbytes)}"
        draft = ""
        if self.draft is not None:
            small = self.draft
            draft = (
                f"; draft: {small.config['model_type']}, {count_text(small.parameters)}, "
                f"{bytes_text(small.nbytes)} on every rank"
            )
        return f"<{kind}, {count} parameters, {how}{draft}>"


def load(
    path: ModelPath,
    strategy: Strategy | Literal["auto"] = "auto",
    *,
    split: Sequence[int] | None = None,
    adapter: ModelPath | None = None,
    draft: ModelPath | None = None,
    context: int = 4096,
) -> LoadedModel:
    """Load the model in the folder `path`, split over all ranks. Every rank must call it.

    Before any weight is read, the ranks compare their files, and see that each one's part fits
    into its memory together with a prompt cache. The weights are read one parameter at a time, so
    a rank needs memory for its own part and one whole parameter. Rank 0 prints progress.

    Args:
        path: a folder with config.json, *.safetensors and a tokenizer, or the id of a repository
            on the Hugging Face hub, of which each host then fetches the files that its ranks need.
            Where the folder lies elsewhere on some hosts, a mapping from ranks or host names to
            paths; "*" is for those that it does not name.
        strategy: "tensor" splits every layer by width: all ranks work at once. "pipeline" gives
            whole layers to the ranks. "auto" takes "tensor" where mlx-lm can do that to the model,
            its heads divide by the number of ranks and the parts fit, and "pipeline" otherwise.
        split: for a pipeline, the number of layers of each rank; rank 0 has the last ones. By
            default as equal as possible, or by memory where the ranks have unequal memory.
        adapter: a folder with adapter_config.json and adapters.safetensors, as mlx_lm.lora writes
            them; it is fused into the weights before they are split.
        draft: a small model with the same vocabulary, which every rank loads whole. It proposes the
            next tokens and the model checks several of them at once, which gives the same answers
            in less time where it often guesses right (speculative decoding).
        context: the tokens of prompt and answer that there must be memory for.

    Raises:
        ModelError: on every rank, when one of them cannot load its part: no such folder or
            repository, no network, a full disk, different files on the ranks, a missing weight, a
            model that cannot be split this way or not over this number of ranks, too little memory,
            a draft that does not go with the model.
    """
    import mlx.core as mx

    group = mx.distributed.init()
    rank = group.rank()
    wish = Wish(strategy, None if split is None else tuple(split), context)
    together(lambda: check_strategy(strategy))
    folder, repo = open_together(together(lambda: _path_here(path, rank)), rank)
    check_same_files(folder)
    fused = together(lambda: adapter_folder(adapter, rank))
    _check_same_wish(wish, fused, draft is not None)
    budgets = memory_budgets()
    small = None
    if draft is not None:
        small = _open_draft(draft, rank)
        budgets = _less(budgets, needs_by_width(small.model, 1, context)[0])
    # One rank decides for all: what it finds in the files may depend on its machine.
    decided = read_split(
        by_one(
            lambda: attrs.asdict(
                choose(lambda: lazy_model(folder), wish, budgets, against_pipelines())
            ),
            rank,
        )
    )

    def assemble() -> LoadedModel:
        loaded = _assemble(path, folder, repo, decided, adapter, group)
        return loaded if small is None else _with_draft(loaded, small)

    loaded = together(assemble)
    if hub.fetch_together(repo, together(lambda: _weight_files(loaded, repo))):
        # What was opened of the files before they were here cannot be read.
        loaded = together(assemble)
    # The last exchange is the barrier too: nobody starts to generate while others still read.
    together(lambda: _read_weights(loaded))
    return loaded


def load_alone(
    path: ModelPath,
    split: Split,
    adapter: ModelPath | None,
    *,
    commit: str | None = None,
    draft: ModelPath | None = None,
    draft_commit: str | None = None,
) -> LoadedModel:
    """This rank's part of a model that the other ranks hold already, without any collective.

    Of a repository on the hub it takes the same commit, and asks the hub only for files that are
    not on this host. Raises ModelError or OSError when the folder is not there any more.
    """
    import mlx.core as mx

    def part(path: ModelPath, split: Split, adapter: Any, commit: Any, group: Any) -> LoadedModel:
        folder, repo = open_alone(_path_here(path, group.rank()), commit)
        loaded = _assemble(path, folder, repo, split, adapter, group)
        if repo is not None and hub.fetch_alone(repo, _weight_files(loaded, repo)):
            loaded = _assemble(path, folder, repo, split, adapter, group)
        return loaded

    group = mx.distributed.init()
    loaded = part(path, split, adapter, commit, group)
    if draft is not None:
        small = part(draft, WHOLE, None, draft_commit, DryGroup(group.rank(), 1))
        loaded = _with_draft(loaded, small)
    _read_weights(loaded)
    return loaded


# -- a draft ---------------------------------------------------------------------------------------


def _open_draft(path: ModelPath, rank: int) -> LoadedModel:
    """A draft, of which nothing is read yet. A collective; raises ModelError on every rank."""
    alone = DryGroup(rank, 1)
    folder, repo = open_together(together(lambda: _path_here(path, rank)), rank)
    check_same_files(folder)
    # It is small, and whole on every rank: there is nothing to decide before it is fetched.
    hub.fetch_together(repo, [] if repo is None else repo.weights)
    return together(lambda: _assemble(path, folder, repo, WHOLE, None, alone))


def _less(budgets: Sequence[Budget], need: int) -> list[Budget]:
    words = f"less {bytes_text(need)} for the draft with its cache,"
    return [Budget(max(0, each.bytes - need), f"{each.of}, {words}") for each in budgets]


def _with_draft(loaded: LoadedModel, draft: LoadedModel) -> LoadedModel:
    """Both together. Raises ModelError when the one cannot draft for the other."""
    ours, theirs = loaded.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
    same = len(ours.items() & theirs.items())
    if same < ALIKE * max(len(ours), len(theirs)):
        raise ModelError(
            f"The {draft.config['model_type']} model in {draft.path} cannot draft for this one.",
            why=f"they have different vocabularies: {same:,} tokens of {len(ours):,} and "
            f"{len(theirs):,} are the same",
            do="take a small model of the same family, or load the model without a draft",
        )
    for each in (loaded, draft):
        if not forgets(each.model):
            raise ModelError(
                f"There can be no draft with a {each.config['model_type']} model.",
                why="proposals that turn out wrong must be forgotten, and its cache cannot do that",
                do="load the model without a draft"
                if each is loaded
                else "take another draft, with full attention in all layers",
            )
    return attrs.evolve(loaded, draft=draft)


def forgets(model: nn.Module) -> bool:
    """Whether the last tokens of a cache can be taken back at any time."""
    from mlx_lm.models import cache as caches

    def full(each: Any) -> bool:
        if hasattr(each, "caches"):
            return all(map(full, each.caches))
        # A window can take tokens back only until it is full, and is silent about it afterwards.
        return bool(each.is_trimmable()) and not hasattr(each, "max_size")

    return all(map(full, caches.make_prompt_cache(model)))


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


def _check_same_wish(wish: Wish, adapter: Path | None, draft: bool) -> None:
    """Compare what the ranks were asked. A collective; raises ModelError on every rank."""
    files = [] if adapter is None else [adapter / name for name in ADAPTER_FILES]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files]
    asked = exchange({**attrs.asdict(wish), "adapter": digests, "draft": draft})
    for rank, each in enumerate(asked):
        names = [name for name in each if each[name] != asked[0][name]]
        if names:
            raise ModelError(
                f"Rank {rank} was asked to load something else than rank 0: another {names[0]}.",
                why="the value depends on the rank, or another adapter was copied to its host",
                do="give all ranks the same, and copy the adapter's folder: rsync -a --delete",
            )


def memory_budgets() -> list[Budget]:
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


def counts_loaded() -> bool:
    """Whether what `memory` says is a limit that also counts what this process has loaded.

    What Metal lets a process fill does; free memory does not.
    """
    import mlx.core as mx

    return bool(mx.default_device() == mx.gpu and mx.metal.is_available())


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


def _weight_files(loaded: LoadedModel, repo: hub.Repo | None) -> list[str]:
    """The files that hold this rank's part, where they come from the hub."""
    if repo is None:
        return []
    whole = loaded.size == 1 or loaded.strategy == "tensor"
    return hub.needed(repo, None if whole else arrays(loaded.model))


def _assemble(
    path: ModelPath,
    folder: Path,
    repo: hub.Repo | None,
    split: Split,
    adapter: ModelPath | None,
    group: Any,
) -> LoadedModel:
    """The model with this rank's share of each parameter, none of them read yet."""
    from mlx_lm.utils import get_total_parameters, load_tokenizer

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
    whole = shapes(model)
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
        commit=None if repo is None else repo.commit,
        whole=whole,
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

    values = list(arrays(loaded.model).values())
    if loaded.draft is not None:
        values += arrays(loaded.draft.model).values()
    total = sum(value.nbytes for value in values)
    progress = hub.Progress(f"rank {loaded.rank}", total, shown=loaded.rank == 0)
    for value in values:
        # One at a time: a parameter is read whole before it is cut, and one mx.eval of everything
        # would hold all of them whole (and is too long for Metal's watchdog above 300 GB).
        try:
            mx.eval(value)
        except RuntimeError as error:
            if "[read]" not in str(error):
                raise
            # The end of a file is missing, or all of it but for its table of contents.
            raise explain(loaded.path, error) from error
        if progress.add(value.nbytes):
            mx.clear_cache()
    # The buffers of the whole parameters: nothing will need that size again.
    mx.clear_cache()
    progress.close()


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
