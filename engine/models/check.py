"""Does the split model say what the whole one says? Logits and tokens, side by side."""

from __future__ import annotations

import hashlib
import html
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from ..tables import Table
from .agree import exchange, together
from .folder import arrays, lazy_model
from .load import LoadedModel, fuse

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx import nn

WIDTH = 100  # characters
PREFILL = 2048  # tokens that are computed at a time, as mlx-lm does it
LENGTHS = (1, 16, 128, 1024, PREFILL + 52)  # the last one needs two steps of prefill


@attrs.frozen
class CheckRow:
    """One prompt.

    `difference` is the root mean square of the differences between the logits of the split and of
    the whole model, divided by the standard deviation of the latter. `same` of `tokens` generated
    tokens are those that the whole model takes, too; `tied` more are others whose logits differ by
    less than the tolerance. `agree` says whether all ranks had the same logits to the bit.
    """

    length: int
    difference: float
    same: int
    tied: int
    tokens: int
    agree: bool


@attrs.frozen(repr=False)
class Check:
    """What `check` found. `ok` when every prompt is within the tolerance and all ranks agree."""

    rows: tuple[CheckRow, ...]
    tolerance: float
    why: str
    title: str

    @property
    def ok(self) -> bool:
        return all(
            row.agree and row.difference <= self.tolerance and row.same + row.tied == row.tokens
            for row in self.rows
        )

    @property
    def verdict(self) -> str:
        """In words."""
        if self.ok:
            return f"the split model computes what the whole one does (tolerance: {self.why})"
        apart = [row.length for row in self.rows if not row.agree]
        if apart:
            return f"the ranks disagree with each other, with {apart[0]} tokens of prompt"
        worst = max(self.rows, key=lambda row: row.difference)
        return (
            f"the split model computes something else: with {worst.length} tokens of prompt it is "
            f"off by {worst.difference:.1e} (tolerance: {self.why})"
        )

    def _table(self) -> Table:
        heading = ("prompt", "difference", "tokens", "ranks agree")
        rows = [
            (
                f"{row.length:,}",
                f"{row.difference:.1e}",
                f"{row.same} of {row.tokens}" + (f", {row.tied} tied" if row.tied else ""),
                "yes" if row.agree else "no",
            )
            for row in self.rows
        ]
        return Table(heading, rows, right=(0, 1), title=self.title)

    def _ending(self) -> str:
        return f"{'ok' if self.ok else 'WRONG'}: {self.verdict}"

    def __repr__(self) -> str:
        return f"{self._table().text(WIDTH)}\n\n{textwrap.fill(self._ending(), WIDTH)}"

    def _repr_html_(self) -> str:
        return f"{self._table()._repr_html_()}<p>{html.escape(self._ending())}</p>"


def check(
    loaded: LoadedModel,
    *,
    lengths: Sequence[int] | None = None,
    tokens: int = 8,
    seed: int = 0,
) -> Check:
    """Compare a split model with the same model on one rank. Every rank must call it.

    Rank 0 computes the whole model one layer at a time, each read from disk and given up again,
    so this needs memory for one layer more, and reads the model's files twice for each length.

    Args:
        loaded: from `load`.
        lengths: the prompts' lengths in tokens, by default from 1 up to two steps of prefill, as
            far as the model's context goes.
        tokens: how many tokens to generate after each prompt, the likeliest each time.
        seed: of the prompts, which are random tokens.

    Raises:
        ModelError: on every rank, when the model's files cannot be read any more.
    """
    import mlx.core as mx
    import numpy as np

    limit = loaded.config.get("max_position_embeddings") or max(LENGTHS) + tokens
    chosen = [n for n in lengths or LENGTHS if n + tokens <= limit]
    source = np.random.RandomState(seed)
    rows = []
    for length in chosen:
        prompt = source.randint(0, _vocabulary(loaded), length).tolist()
        logits, produced = _generate(loaded.model, prompt, tokens)
        ours = np.array(logits)
        digests = exchange(hashlib.sha256(ours.tobytes()).hexdigest())
        whole = together(lambda: _whole_logits(loaded, prompt, produced))  # noqa: B023
        mine = None
        if whole is not None:
            mine = _compare(ours, np.array(whole), produced, _tolerance(loaded))
        difference, same, tied = exchange(mine)[0]
        agree = len(set(digests)) == 1
        rows.append(CheckRow(length, difference, same, tied, tokens, agree))
        mx.clear_cache()
    kind = loaded.config["model_type"]
    return Check(
        rows=tuple(rows),
        tolerance=_tolerance(loaded),
        why=_reason(loaded),
        title=f"{kind}, {loaded.strategy} over {loaded.size} ranks, beside one rank",
    )


def _vocabulary(loaded: LoadedModel) -> int:
    return int(_text(loaded)["vocab_size"])


def _text(loaded: LoadedModel) -> dict[str, Any]:
    """The configuration, with that of its language model where it has others, too."""
    return {**loaded.config, **loaded.config.get("text_config", {})}


def _precision(loaded: LoadedModel) -> tuple[str, float, int]:
    """(name, machine epsilon, layers) of what the model computes with."""
    import mlx.core as mx

    names = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}
    kinds = [value.dtype for value in arrays(loaded.model).values() if value.dtype in names]
    kind = max(set(kinds), key=kinds.count)
    return names[kind], float(mx.finfo(kind).eps), int(_text(loaded)["num_hidden_layers"])


def _tolerance(loaded: LoadedModel) -> float:
    """Adding up in another order costs about one rounding at each of two places per layer, which
    add up like a random walk. A factor of 16 leaves room for what the layers do with it.
    """
    _, epsilon, layers = _precision(loaded)
    return float(min(0.3, 16 * epsilon * (2 * layers) ** 0.5))


def _reason(loaded: LoadedModel) -> str:
    name, _, layers = _precision(loaded)
    return f"{_tolerance(loaded):.1e}, for the rounding of {name} in {layers} layers"


def _generate(model: Any, prompt: list[int], count: int) -> tuple[mx.array, list[int]]:
    """Logits (count, vocabulary) behind a prompt and each of the tokens that follow, and these."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    for start in range(0, len(prompt) - 1, PREFILL):
        part = prompt[start : min(start + PREFILL, len(prompt) - 1)]
        mx.eval(model(mx.array([part]), cache=cache), [each.state for each in cache])
    rows, produced, last = [], [], prompt[-1]
    for _ in range(count):
        row = model(mx.array([[last]]), cache=cache)[0, -1].astype(mx.float32)
        mx.eval(row)
        last = int(row.argmax().item())
        rows.append(row)
        produced.append(last)
    return mx.stack(rows), produced


def _whole_logits(loaded: LoadedModel, prompt: list[int], produced: list[int]) -> mx.array | None:
    """The whole model's logits behind the same tokens, on rank 0."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    if loaded.rank != 0:
        return None
    model = _streamed(loaded)
    cache = make_prompt_cache(model)
    for start in range(0, len(prompt) - 1, PREFILL):
        # Its logits are not asked for, so they are not computed.
        model(mx.array([prompt[start : min(start + PREFILL, len(prompt) - 1)]]), cache=cache)
    rest = mx.array([[prompt[-1], *produced[:-1]]])
    logits: mx.array = model(rest, cache=cache)[0].astype(mx.float32)
    mx.eval(logits)
    return logits


def _compare(
    ours: Any, whole: Any, produced: Sequence[int], tolerance: float
) -> tuple[float, int, int]:
    import numpy as np

    spread = float(whole.std())
    difference = float(np.sqrt(np.mean((ours - whole) ** 2)) / spread)
    same = tied = 0
    for row, token in zip(whole, produced, strict=True):
        if int(row.argmax()) == token:
            same += 1
        elif float(row.max() - row[token]) <= 4 * tolerance * spread:
            tied += 1
    return (difference if np.isfinite(difference) else float("inf")), same, tied


# -- one layer at a time ---------------------------------------------------------------------------


def _open(loaded: LoadedModel) -> nn.Module:
    model, _ = lazy_model(loaded.path)
    if loaded.adapter is not None:
        fuse(model, loaded.adapter)
    return model


def _streamed(loaded: LoadedModel) -> Any:
    """The whole model, whose layers are read when they are called and given up afterwards."""
    model: Any = _open(loaded)
    layers = model.layers
    for _, module in model.named_modules():
        held = module.get("layers")
        if isinstance(held, list) and len(held) == len(layers) and held[0] is layers[0]:
            module.layers = [_Streamed(loaded, index, layer) for index, layer in enumerate(held)]
    return model


class _Streamed:
    """Stands for a layer. `pattern` answers questions about it, and is never read."""

    def __init__(self, loaded: LoadedModel, index: int, pattern: Any) -> None:
        self._loaded = loaded
        self._index = index
        self._pattern = pattern

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pattern, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import mlx.core as mx
        from mlx.utils import tree_flatten

        # Opened anew each time: an array that was read once stays in memory with its model.
        fresh: Any = _open(self._loaded)
        result = fresh.layers[self._index](*args, **kwargs)
        caches = [
            vars(each) for each in (*args, *kwargs.values()) if hasattr(each, "update_and_fetch")
        ]
        held = dict(tree_flatten(caches)).values()
        mx.eval(result, [value for value in held if isinstance(value, mx.array)])
        return result
