"""Split a model over ranks, by width or by depth: which of the two, and where to cut."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs

from ..errors import ModelError
from ..hostfile import describe_ranks
from ..units import bytes_text
from .folder import arrays, first_line, text_config
from .trial import CacheSize, DryGroup, cache_by_layer, cache_size

if TYPE_CHECKING:
    from mlx import nn

Strategy = Literal["tensor", "pipeline"]
Whole = tuple["nn.Module", dict[str, Any]]  # a model of which nothing was read, its configuration

UNEQUAL = 1.1  # budgets that differ by more make the parts of a pipeline differ, too


@attrs.frozen
class Split:
    """How a model is divided.

    `layers` are the layers of each rank, where they are not simply as equal as possible. Rank 0
    has the last ones of the model.
    """

    strategy: Strategy
    reason: str
    layers: tuple[int, ...] | None = None


def read_split(facts: Mapping[str, Any]) -> Split:
    """A Split that came as JSON."""
    layers = facts["layers"]
    return Split(facts["strategy"], facts["reason"], None if layers is None else tuple(layers))


@attrs.frozen
class Wish:
    """What `load` was asked for. `context` is in tokens."""

    strategy: Strategy | Literal["auto"] = "auto"
    layers: tuple[int, ...] | None = None
    context: int = 4096


@attrs.frozen
class Budget:
    """The bytes that a rank may fill with a model, and what they are of, in words."""

    bytes: int
    of: str


def choose(
    whole: Callable[[], Whole], wish: Wish, budgets: Sequence[Budget], no_pipeline: str = ""
) -> Split:
    """Decide how to divide a model.

    `whole()` makes the model anew, and `no_pipeline` says why this MLX cannot run one. Raises
    ModelError when the model cannot be divided as wished, or when the parts, with a prompt cache of
    `wish.context` tokens, do not fit into the budgets.
    """
    size = len(budgets)
    model, config = whole()
    kind = config["model_type"]
    can = {
        "tensor": hasattr(model, "shard"),
        "pipeline": hasattr(getattr(model, "model", None), "pipeline"),
    }
    if wish.layers is not None:
        _check_layers(wish, model, size)
        wish = attrs.evolve(wish, strategy="pipeline")
    if size == 1:
        strategy: Strategy = "pipeline" if wish.strategy == "pipeline" else "tensor"
        split = Split(strategy, "there is one rank, which holds the whole model")
        _require_room(kind, split, needs_by_width(model, 1, wish.context), budgets)
        return split
    if no_pipeline and can["pipeline"] and (wish.strategy == "pipeline" or not can["tensor"]):
        raise ModelError(
            f"A {kind} model cannot be split by depth here.",
            why=no_pipeline,
            do='use strategy="tensor"'
            if can["tensor"]
            else "load it on one rank (%cluster start 1), or choose another model",
        )
    if not any(can.values()):
        raise ModelError(
            f"A {kind} model cannot be split over {size} ranks.",
            why=f"mlx-lm has neither shard() nor pipeline() for {kind}",
            do="load it on one rank (%cluster start 1), or choose a model such as llama, qwen3, "
            "qwen3_moe, gpt_oss or deepseek_v3",
        )
    if wish.strategy != "auto" and not can[wish.strategy]:
        other = "pipeline" if wish.strategy == "tensor" else "tensor"
        function = "shard" if wish.strategy == "tensor" else "pipeline"
        raise ModelError(
            f"A {kind} model cannot be split with strategy={wish.strategy!r}.",
            why=f"mlx-lm has no {function}() for {kind}",
            do=f'use strategy="{other}" or strategy="auto"',
        )
    if wish.strategy == "tensor":
        split = Split("tensor", "tensor, as asked for")
        _require_room(kind, split, _width(model, config, size, wish.context), budgets)
        return split
    if wish.strategy == "pipeline":
        return _by_depth(model, config, wish, budgets, "pipeline, as asked for")
    against = f"mlx-lm has no shard() for {kind}"
    if can["tensor"]:
        try:
            split = Split(
                "tensor", f"tensor, because mlx-lm has shard() for {kind}: all ranks work at once"
            )
            _require_room(kind, split, _width(model, config, size, wish.context), budgets)
        except ModelError as error:
            if not can["pipeline"] or no_pipeline:
                raise
            # The model was cut by the attempt.
            model, config = whole()
            against = f"not tensor: {error.why}"
        else:
            return split
    return _by_depth(model, config, wish, budgets, f"pipeline, because {against}")


def _check_layers(wish: Wish, model: Any, size: int) -> None:
    layers = wish.layers or ()
    total = len(model.layers)
    if wish.strategy == "tensor" or len(layers) != size or sum(layers) != total or min(layers) < 1:
        raise ModelError(
            f"split={list(layers)} does not fit.",
            why='it goes with strategy="pipeline"'
            if wish.strategy == "tensor"
            else f"it needs one number for each of the {size} ranks, at least 1, and a sum of "
            f"{total}, the layers of the model",
            do='leave split out, or use strategy="pipeline" with numbers that add up',
        )


# -- memory ----------------------------------------------------------------------------------------


def _width(model: Any, config: dict[str, Any], size: int, context: int) -> list[int]:
    split_width(model, config, DryGroup(0, size))
    return needs_by_width(model, size, context)


def needs_by_width(part: nn.Module, size: int, context: int) -> list[int]:
    """Bytes of weights and cache on each rank, from one rank's part: all have the same."""
    # A model that cannot be tried out here may be loaded all the same; its cache counts nothing.
    cache = 0
    with contextlib.suppress(ModelError):
        cache = cache_size(part, size).bytes(context)
    return [_weight_bytes(part) + cache] * size


def needs_by_depth(whole: Any, layers: Sequence[int], context: int) -> list[int]:
    """Bytes of weights and cache on each rank, where rank 0 has the last `layers[0]` layers."""
    fixed, costs = _layer_costs(whole, context)
    needs, end = [], len(costs)
    for count in layers:
        needs.append(fixed + sum(costs[end - count : end]))
        end -= count
    return needs


def _layer_costs(whole: Any, context: int) -> tuple[int, list[int]]:
    """What every rank holds beside its layers, and what each layer costs, with its cache."""
    caches = [CacheSize()] * len(whole.layers)
    with contextlib.suppress(ModelError):
        caches = cache_by_layer(whole)
    weights = [_weight_bytes(layer) for layer in whole.layers]
    fixed = _weight_bytes(whole) - sum(weights)
    return fixed, [
        weight + cache.bytes(context) for weight, cache in zip(weights, caches, strict=True)
    ]


def even(layers: int, size: int) -> tuple[int, ...]:
    """As mlx-lm divides by itself: the first ranks get one more."""
    base, extra = divmod(layers, size)
    return tuple(base + (rank < extra) for rank in range(size))


def by_memory(fixed: int, costs: Sequence[int], budgets: Sequence[int]) -> tuple[int, ...]:
    """Layers for each rank so that the fullest rank, as a share of its budget, is least full.

    `costs` are the bytes of each layer in the model's order; rank 0 takes from the end. Every
    budget must be above `fixed`.
    """
    size = len(budgets)

    def cut(share: float) -> tuple[int, ...] | None:
        """Each rank takes what fits into this share of its budget, and leaves one for the rest."""
        counts, end = [], len(costs)
        for rank, budget in enumerate(budgets):
            room, count = share * budget - fixed, 0
            while end - count > size - rank - 1 and room >= costs[end - count - 1]:
                room -= costs[end - count - 1]
                count += 1
            if count == 0:
                return None
            counts.append(count)
            end -= count
        return tuple(counts) if end == 0 else None

    low, high = 0.0, 1.0
    while cut(high) is None:
        low, high = high, 2 * high
    found = cut(high)
    for _ in range(40):
        middle = (low + high) / 2
        if (counts := cut(middle)) is None:
            low = middle
        else:
            high, found = middle, counts
    assert found is not None
    return found


def _by_depth(
    model: Any, config: dict[str, Any], wish: Wish, budgets: Sequence[Budget], reason: str
) -> Split:
    size, total = len(budgets), len(model.layers)
    if total < size:
        raise _too_few_layers(config, total, size, "")
    fixed, costs = _layer_costs(model, wish.context)
    layers, room = wish.layers, [budget.bytes for budget in budgets]
    if layers is None and min(room) > fixed and max(room) > UNEQUAL * min(room):
        layers = by_memory(fixed, costs, room)
        if layers == even(total, size):
            layers = None
        else:
            reason += f"; {', '.join(map(str, layers))} layers, by the memory of each rank"
    split = Split("pipeline", reason, layers)
    needs = needs_by_depth(model, layers or even(total, size), wish.context)
    _require_room(config["model_type"], split, needs, budgets)
    return split


def _require_room(kind: str, split: Split, needs: Sequence[int], budgets: Sequence[Budget]) -> None:
    """Raise ModelError when a rank's part is larger than its budget."""
    short = [rank for rank, budget in enumerate(budgets) if needs[rank] > budget.bytes]
    if not short:
        return
    rank = short[0]
    more = f"; too small, too: {describe_ranks(short[1:])}" if len(short) > 1 else ""
    raise ModelError(
        f"The {kind} model does not fit on rank {rank} ({split.strategy}).",
        why=f"it needs {bytes_text(needs[rank])} there with its cache, and {budgets[rank].of} is "
        f"{bytes_text(budgets[rank].bytes)}{more}",
        do="use more ranks, a model of fewer bits, or a smaller context=",
    )


def _weight_bytes(module: Any) -> int:
    return sum(value.nbytes for value in arrays(module).values())


# -- cutting ---------------------------------------------------------------------------------------


def split_width(model: Any, config: dict[str, Any], group: Any) -> None:
    size = group.size()
    before = _integers(model)
    try:
        model.shard(group)
    except Exception as error:
        # Not only ValueError: models assert, and gpt_oss divides by the 0 heads that are left.
        raise _indivisible(model, config, size, first_line(error)) from error
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
    text = text_config(config)
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


def split_depth(
    model: Any, config: dict[str, Any], group: Any, layers_of: Sequence[int] | None = None
) -> None:
    layers = len(model.layers)
    try:
        if layers_of is None:
            model.model.pipeline(group)
        else:
            model.model.pipeline(group, split=list(layers_of))
    except Exception as error:
        raise _too_few_layers(config, layers, group.size(), first_line(error)) from error


def _too_few_layers(config: dict[str, Any], layers: int, size: int, detail: str) -> ModelError:
    more = f" ({detail})" if detail else ""
    return ModelError(
        f"The {config['model_type']} model cannot be split by depth over {size} ranks.",
        why=f"it has {layers} layers, and each rank needs at least one that can lead its part"
        + more,
        do=f'use at most {layers} ranks, or strategy="tensor"',
    )
