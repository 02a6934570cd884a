"""Divide a model that is not there: the parts, caches and messages of every rank, from its files.

With a folder that has the weights, all figures are exact to the byte; no weight is read. With a
config.json alone, the weights are taken to be of the type that it names, and quantised as it says.

mlx_lm lowers RLIMIT_NOFILE of its process for good, so `dry_run` works in a process of its own:

    python -m macluster.engine.models.dry <request.json >answer.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from ..errors import ModelError
from .shards import Part, ShardMap, compare, shard_map
from .splitting import Split, Strategy, Wish, read_split
from .trial import CacheSize

if TYPE_CHECKING:
    from mlx import nn

TIMEOUT = 300.0  # seconds

# What the number of experts that a token visits is called in configurations.
_TOP_K = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts",
    "moe_k",
)  # fmt: skip


@attrs.frozen
class RankPart:
    """One rank's share of a model.

    Bytes of `weights`, the size of its prompt `cache`, the bytes that it reads for one token
    (`active`: without the experts and the rows of the embedding that a token does not use), and the
    collectives of one token as (name, bytes put in).
    """

    weights: int
    active: int
    cache: CacheSize
    wire: tuple[tuple[str, int], ...]


@attrs.frozen(eq=False)
class DryRun:
    """A model divided over `size` ranks on paper. `layers` counts the model's."""

    kind: str
    split: Split
    shards: ShardMap
    ranks: tuple[RankPart, ...]
    layers: int
    hidden: int
    parameters: int


def dry_run(
    source: str | Path | dict[str, Any],
    size: int,
    strategy: Strategy | Literal["auto"] = "auto",
    *,
    layers: Sequence[int] | None = None,
    context: int = 4096,
    budgets: Sequence[int] | None = None,
) -> DryRun:
    """Divide a model over `size` ranks without loading it.

    Args:
        source: a folder with config.json and perhaps the weights, a configuration file, or a
            configuration as a dict.
        strategy: as for `load`.
        layers: for a pipeline, the layers of each rank; rank 0 has the last ones.
        budgets: bytes of memory of each rank, for its part and a cache of `context` tokens. Where
            the strategy is "auto" or the parts of a pipeline are not given, they decide.

    Raises:
        ModelError: when the model cannot be divided this way, does not fit into `budgets`, or
            mlx-lm does not know it.
    """
    request = {
        "source": source if isinstance(source, dict) else str(Path(source).expanduser()),
        "size": size,
        "strategy": strategy,
        "layers": None if layers is None else list(layers),
        "context": context,
        "budgets": None if budgets is None else list(budgets),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "macluster.engine.models.dry"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"The model could not be divided on paper within {TIMEOUT:.0f} s.",
            why="it has very many layers, or the machine is overloaded",
            do="try again, with fewer ranks",
        ) from None
    if done.returncode != 0:
        raise ModelError(
            "The model could not be divided on paper.",
            why=done.stderr.strip()[-1000:] or f"exit code {done.returncode}",
            do="see the last lines above; a folder with config.json is needed",
        )
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise ModelError(**answer["error"])
    split = read_split(answer["split"])
    parts = [[Part(*part) for part in each["parts"]] for each in answer["ranks"]]
    return DryRun(
        kind=answer["kind"],
        split=split,
        shards=shard_map(answer["kind"], split, answer["whole"], parts),
        ranks=tuple(
            RankPart(
                weights=sum(part.bytes for part in mine),
                active=each["active"],
                cache=read_cache(*each["cache"]),
                wire=tuple((op, count) for op, count in each["wire"]),
            )
            for mine, each in zip(parts, answer["ranks"], strict=True)
        ),
        layers=answer["layers"],
        hidden=answer["hidden"],
        parameters=answer["parameters"],
    )


def read_cache(fixed: int, block: int, token: int, windows: Sequence[Sequence[int]]) -> CacheSize:
    """A CacheSize that came as JSON."""
    return CacheSize(fixed, block, token, tuple((each, most) for each, most in windows))


# -- in the child process --------------------------------------------------------------------------


def paper_model(source: str | dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A model of which nothing is or can be read, and its configuration. Raises ModelError."""
    import mlx.core as mx
    from mlx import nn
    from mlx_lm.utils import _get_classes

    from . import hub
    from .folder import explain, lazy_model, text_config

    if isinstance(source, str):
        path = Path(source)
        if path.is_dir() and (any(path.glob("model*.safetensors")) or hub.of(path)):
            return lazy_model(path)
        file = path / "config.json" if path.is_dir() else path
        if not file.is_file():
            raise ModelError(
                f"There is no configuration in {source}.",
                why="it is neither a folder with config.json nor such a file",
                do="give the folder of the model, or download its config.json",
            )
        config = json.loads(file.read_text())
    else:
        path, config = Path("the configuration"), dict(source)
    try:
        model_class, arguments = _get_classes(config)
        model = model_class(arguments.from_dict(config))
    except Exception as error:
        raise explain(path, error) from error
    text = text_config(config)
    kind = str(text.get("torch_dtype") or text.get("dtype") or "bfloat16")
    model.set_dtype(getattr(mx, kind, mx.bfloat16))
    quantization = text.get("quantization")
    if quantization:

        def quantised(name: str, module: Any) -> Any:
            if name in quantization:
                return quantization[name]
            fits = hasattr(module, "to_quantized")
            return fits and module.weight.shape[-1] % quantization["group_size"] == 0

        nn.quantize(
            model,
            quantization["group_size"],
            quantization["bits"],
            mode=quantization.get("mode", "affine"),
            class_predicate=quantised,
        )
    return model, config


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """What `dry_run` reads: see there."""
    from mlx_lm.utils import get_total_parameters

    from .folder import shapes, text_config
    from .splitting import Budget, choose, split_depth, split_width
    from .trial import DryGroup, cache_size, wire_per_token

    def whole() -> tuple[Any, dict[str, Any]]:
        return paper_model(request["source"])

    size, layers = request["size"], request["layers"]
    model, config = whole()
    text = text_config(config)
    wish = Wish(request["strategy"], layers and tuple(layers), request["context"])
    room = request["budgets"] or [1 << 62] * size
    split = choose(whole, wish, [Budget(each, "its memory") for each in room])
    full = shapes(model)
    ranks: list[dict[str, Any]] = []
    for rank in range(size):
        part, _ = whole()
        group = DryGroup(rank, size)
        if size > 1 and split.strategy == "tensor":
            split_width(part, config, group)
        elif size > 1:
            split_depth(part, config, group, split.layers)
        ranks.append(
            {
                "parts": [attrs.astuple(each) for each in compare(full, shapes(part))],
                "active": _active_bytes(part, text),
                "cache": attrs.astuple(cache_size(part, size)),
                "wire": [[wire.op, wire.bytes] for wire in wire_per_token(part, size)],
            }
        )
    return {
        "kind": config["model_type"],
        "split": attrs.asdict(split),
        "whole": sum(value.nbytes for value in full.values()),
        "layers": len(model.layers),
        "hidden": text.get("hidden_size") or text.get("n_embd", 0),
        "parameters": get_total_parameters(model),
        "ranks": ranks,
    }


def _active_bytes(part: nn.Module, text: dict[str, Any]) -> int:
    """The bytes of weights that one token makes this rank read."""
    from mlx import nn
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    from .folder import arrays

    top_k = next((text[name] for name in _TOP_K if isinstance(text.get(name), int)), None)
    tied = bool(text.get("tie_word_embeddings"))
    total = 0
    for name, module in part.named_modules():
        own = [value for key, value in arrays(module).items() if "." not in key]
        count = sum(value.nbytes for value in own)
        # deepseek_v41 uses one for its output groups, too, all of which a token visits.
        expert = "switch" in name or "expert" in name
        if expert and isinstance(module, (SwitchLinear, QuantizedSwitchLinear)) and top_k:
            experts = module.weight.shape[0]
            count = count * min(top_k, experts) // experts
        elif isinstance(module, (nn.Embedding, nn.QuantizedEmbedding)) and not tied:
            # One row; where the embedding is the output layer, too, all of it is read.
            count //= module.weight.shape[0]
        total += count
    return total


def main() -> None:
    request = json.load(sys.stdin)
    try:
        answer = answer_request(request)
    except ModelError as error:
        answer = {"error": {"what": error.what, "why": error.why, "do": error.do}}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
