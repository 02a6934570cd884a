"""The model of a plan: a folder, a configuration, a name from a small catalogue, or of the hub.

The catalogue holds the configurations of published models, without what mlx-lm does not read. A
name may carry a precision: "DeepSeek-V3.1 8-bit", "Qwen3-235B 4-bit", "Llama-3.1-8B bf16".
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
import re
from pathlib import Path
from typing import Any

import attrs

from ..errors import ModelError
from ..models import hub
from ..models.dry import DryRun, dry_run
from ..models.splitting import Strategy

GROUP_SIZE = 64  # mlx-lm's default
BITS = (8, 6, 5, 4, 3, 2)  # what MLX quantises to
_CATALOGUE = Path(__file__).parent / "catalogue"

_PRECISION = re.compile(
    r"(?P<name>.+?)[\s_-]+(?:(?P<bits>\d+)[\s-]?bits?|(?P<word>bf16|bfloat16|mxfp4|mxfp8))",
    re.IGNORECASE,
)
_MODES = {
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
}


@attrs.frozen(eq=False)
class PlannedModel:
    """A model to plan for.

    `source` is what `dry_run` takes, `config` its configuration as a dict. `bits` are the bits a
    weight is stored in, 16 where it is not quantised.
    """

    name: str
    source: str | dict[str, Any]
    config: dict[str, Any]

    @property
    def bits(self) -> int:
        return int(_quantization(self.config).get("bits", 16))

    def with_bits(self, bits: int) -> PlannedModel:
        """The same model, all of it quantised to `bits` in groups of 64."""
        config = _quantised(self.config, {"group_size": GROUP_SIZE, "bits": bits})
        base = _PRECISION.fullmatch(self.name.removesuffix(" experts"))
        return PlannedModel(f"{base['name'] if base else self.name} {bits}-bit", config, config)

    def run(self, size: int, strategy: Strategy, memory: tuple[int | None, ...] = ()) -> DryRun:
        """Divide it over `size` ranks on paper. `memory` decides the parts of a pipeline.

        Raises ModelError when it cannot be divided this way.
        """
        known = [each for each in memory if each is not None]
        # Larger by far than any need: only their proportions count here. What fits is our question.
        budgets = tuple(each << 20 for each in known) if len(known) == size else None
        if isinstance(self.source, str):
            return dry_run(self.source, size, strategy, budgets=budgets)
        return _run(json.dumps(self.source), size, strategy, budgets)

    def active_parameters(self) -> int:
        """The parameters that one token visits: all that it reads, when each takes two bytes."""
        return (
            _run(json.dumps(_quantised(self.config, None)), 1, "tensor", None).ranks[0].active // 2
        )


@functools.lru_cache(maxsize=64)
def _run(source: str, size: int, strategy: Strategy, budgets: tuple[int, ...] | None) -> DryRun:
    return dry_run(json.loads(source), size, strategy, budgets=budgets)


def find(model: str | Path | dict[str, Any]) -> PlannedModel:
    """The model that is meant. Raises ModelError when there is none.

    A name that the catalogue does not have is looked for on the hub.
    """
    if isinstance(model, dict):
        config = copy.deepcopy(model)
        return PlannedModel(_title(str(config.get("model_type", "model")), config), config, config)
    path = Path(model).expanduser()
    if path.exists():
        file = path / "config.json" if path.is_dir() else path
        try:
            config = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ModelError(
                f"There is no configuration of a model in {model}.",
                why=f"{file.name}: {error}",
                do="give a folder with config.json, such a file, or a name of the catalogue",
            ) from None
        name = path.resolve().name if path.is_dir() else path.resolve().parent.name
        return PlannedModel(_title(name, config), str(path), config)
    try:
        return _from_catalogue(str(model))
    except ModelError as error:
        if hub.repo_id(model) is None:
            raise
        folder = _from_hub(str(model), error)
    config = json.loads((folder / "config.json").read_text())
    return PlannedModel(_title(str(model).rpartition("/")[2], config), str(folder), config)


def _from_hub(name: str, unknown: ModelError) -> Path:
    """The small files of a repository and the tables of contents of its weights: enough for a plan.

    Raises ModelError, which also says what the catalogue has to say about that name.
    """
    try:
        return hub.prepare(hub.resolve(name))
    except ModelError as error:
        raise ModelError(
            error.what,
            why=f"{error.why}; {unknown.why}",
            do=f"{error.do};\n{unknown.do}",
        ) from error


def catalogue() -> dict[str, dict[str, Any]]:
    """The models that can be named, each with `source`, `aliases` and `config`."""
    entries = [json.loads(file.read_text()) for file in sorted(_CATALOGUE.glob("*.json"))]
    return {entry["name"]: entry for entry in entries}


def _from_catalogue(text: str) -> PlannedModel:
    entries = catalogue()
    names = dict(entries)
    names.update({alias: entry for entry in entries.values() for alias in entry["aliases"]})
    keys = {_key(name): (name, entry) for name, entry in names.items()}
    asked = text.strip().rpartition("/")[2]
    found = keys.get(_key(asked))
    precision = None if found else _PRECISION.fullmatch(asked)
    if precision:
        found = keys.get(_key(precision["name"]))
    if found is None:
        wanted = _key(precision["name"] if precision else asked)
        near = [keys[key][0] for key in difflib.get_close_matches(wanted, keys, 3, 0.5)]
        raise ModelError(
            f"{text} is neither a folder, a configuration file, nor in the catalogue.",
            why="the catalogue has " + ", ".join(entries),
            do=(f"did you mean {' or '.join(near)}? Or " if near else "")
            + "give the path of its config.json",
        )
    name, entry = found
    config = entry["config"]
    if precision is None:
        native = entry.get("native")
        if native is None:
            return PlannedModel(f"{name} bf16", config, config)
        layers = _text(config)["num_hidden_layers"]
        kept = [one.format(layer=i) for one in entry["unquantised"] for i in range(layers)]
        config = _quantised(config, {**native, **dict.fromkeys(kept, False)})
        return PlannedModel(f"{name} {native['bits']}-bit experts", config, config)
    if precision["word"]:
        word = precision["word"].lower()
        config = _quantised(config, _MODES.get(word))
        return PlannedModel(f"{name} {word if word in _MODES else 'bf16'}", config, config)
    bits = int(precision["bits"])
    if bits == 16:
        return PlannedModel(f"{name} bf16", config, config)
    if bits not in BITS:
        raise ModelError(
            f"MLX has no {bits}-bit weights.",
            why=f"it quantises to {', '.join(map(str, sorted(BITS)))} bits",
            do=f'for example: "{name} 4-bit", or "{name} bf16"',
        )
    config = _quantised(config, {"group_size": GROUP_SIZE, "bits": bits})
    return PlannedModel(f"{name} {bits}-bit", config, config)


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.lower())


def _text(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, **config.get("text_config", {})}


def _quantization(config: dict[str, Any]) -> dict[str, Any]:
    return _text(config).get("quantization") or {}


def _title(name: str, config: dict[str, Any]) -> str:
    bits = _quantization(config).get("bits")
    return name if bits is None else f"{name} {bits}-bit"


def _quantised(config: dict[str, Any], quantization: dict[str, Any] | None) -> dict[str, Any]:
    """A copy of a configuration that is quantised so, or not at all and in bfloat16."""
    new = copy.deepcopy(config)
    for part in (new, new.get("text_config", {})):
        for key in ("quantization", "quantization_config"):
            part.pop(key, None)
        if quantization is None and part:
            part.pop("dtype", None)
            part["torch_dtype"] = "bfloat16"
    if quantization is not None:
        new["quantization"] = quantization
    return new
