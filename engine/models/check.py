"""Does the split model say what the whole one says? Logits and tokens, side by side."""

from __future__ import annotations

import hashlib
import html
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs

from ..errors import ModelError
from ..tables import Table
from . import hub
from .agree import exchange, together
from .chat import context_limit
from .folder import arrays, lazy_model
from .load import LoadedModel, adapter_folder, fuse

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx import nn

WIDTH = 100  # characters
PREFILL = 2048  # tokens that are computed at a time, as mlx-lm does it
NOISE = 2  # with the toy in 16 bits, honest splits lay between 0.84 and 1.33
LENGTHS = (1, 16, 128, 1024, PREFILL + 52)  # the last one needs two steps of prefill


@attrs.frozen
class CheckRow:
    """One prompt.

    `difference` is the root mean square of the differences between the logits of the split model
    and the reference, divided by the standard deviation of the latter, for the median token;
    `tolerance` is the most that it may be. `same` of `tokens` generated tokens are those that the
    whole model takes, too; `tied` more are others whose logits are less than four tolerances apart.
    `agree` says whether all ranks had the same logits to the bit.
    """

    length: int
    difference: float
    tolerance: float
    same: int
    tied: int
    tokens: int
    agree: bool

    @property
    def near(self) -> bool:
        return self.difference <= self.tolerance

    @property
    def ok(self) -> bool:
        return self.agree and self.near and self.same + self.tied == self.tokens


@attrs.frozen(repr=False)
class Check:
    """What `check` found. `ok` when every prompt is within its tolerance and all ranks agree."""

    rows: tuple[CheckRow, ...]
    why: str
    title: str

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)

    @property
    def verdict(self) -> str:
        """In words."""
        if self.ok:
            return f"the split model computes what the whole one does (tolerance: {self.why})"
        for row in self.rows:
            behind = f"with {row.length} tokens of prompt"
            if not row.agree:
                return f"the ranks disagree with each other, {behind}"
            if not row.near:
                return (
                    f"the split model computes something else: {behind} it is off by "
                    f"{row.difference:.1e}, and the tolerance is {row.tolerance:.1e} ({self.why})"
                )
            if row.same + row.tied < row.tokens:
                return (
                    f"the split model takes other tokens: {behind}, {row.same} of {row.tokens} "
                    "are those of the whole one"
                )
        return "nothing was compared"

    def _table(self) -> Table:
        heading = ("prompt", "difference", "tolerance", "tokens", "ranks agree")
        rows = [
            (
                f"{row.length:,}",
                f"{row.difference:.1e}",
                f"{row.tolerance:.1e}",
                f"{row.same} of {row.tokens}" + (f", {row.tied} tied" if row.tied else ""),
                "yes" if row.agree else "no",
            )
            for row in self.rows
        ]
        return Table(heading, rows, right=(0, 1, 2), title=self.title)

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

    Rank 0 computes the whole model one layer at a time, each read from disk and given up again, so
    this needs memory for one layer more, the embedding, and the whole model's cache. It reads the
    files once for every step of prefill and once for the tokens.

    On a CPU, a float32 model is compared with the whole one; the tolerance is that of rounding, see
    `rounding`. In 16 bits rounding is so coarse that a wrong shard could hide in it, and a GPU may
    compute float32 more coarsely than it says (TF32). There both are compared with the whole model
    computed in float32, for a float32 model on the CPU, and the split one may be NOISE times as far
    from that as the whole one is.

    Args:
        loaded: from `load`.
        lengths: the prompts' lengths in tokens, by default from 1 up to two steps of prefill, as
            far as the model's context goes.
        tokens: how many tokens to generate after each prompt, the likeliest each time.
        seed: of the prompts, which are random tokens.

    Raises:
        ModelError: on every rank, when a length does not fit into the model's context, or the
            model's files cannot be read any more.
    """
    import mlx.core as mx
    import numpy as np

    chosen = together(lambda: _lengths(loaded, lengths, tokens))
    repo = hub.of(loaded.path)
    # Rank 0 reads the whole model, and has only its own layers of a pipeline.
    hub.fetch_together(repo, repo.weights if repo is not None and loaded.rank == 0 else [])
    source = np.random.RandomState(seed)
    rows = []
    name, _, coarse = exchange(_precision(loaded))[0]
    layers = loaded.text_config["num_hidden_layers"]

    def row(length: int) -> CheckRow:
        prompt = source.randint(0, int(loaded.text_config["vocab_size"]), length).tolist()
        logits, produced = _generate(loaded.model, prompt, tokens)
        ours = np.array(logits)
        digests = exchange(hashlib.sha256(ours.tobytes()).hexdigest())
        found = together(lambda: _compare(loaded, ours, prompt, produced))
        difference, tolerance, same, tied = exchange(found)[0]
        mx.clear_cache()
        agree = len(set(digests)) == 1
        return CheckRow(length, difference, tolerance, same, tied, tokens, agree)

    for length in chosen:
        tries = [row(length)]
        if coarse and not tries[0].ok:
            # Rounding may have sent an early token to other experts, which all later ones see. It
            # does not do so with every prompt; a wrong shard is wrong with all.
            tries += [row(length) for _ in range(2)]
        tries.sort(
            key=lambda each: (each.agree, not each.ok, each.difference / (each.tolerance or 1))
        )
        rows.append(tries[0] if not tries[0].agree else tries[len(tries) // 2])
    return Check(
        rows=tuple(rows),
        why=f"{NOISE} times as far from float32 as the whole model in {name} is"
        if coarse
        else f"the rounding of {name} in {layers} layers",
        title=f"{loaded.config['model_type']}, {loaded.strategy} over {loaded.size} ranks, beside "
        "one rank",
    )


def _lengths(loaded: LoadedModel, asked: Sequence[int] | None, tokens: int) -> list[int]:
    limit = (context_limit(loaded) or max(LENGTHS) + tokens) - tokens
    if asked is None:
        return [length for length in LENGTHS if length <= limit] or [1]
    wrong = [length for length in asked if not 1 <= length <= limit]
    if wrong or not asked:
        raise ModelError(
            f"A prompt of {wrong[0]} tokens cannot be checked." if wrong else "No length is given.",
            why=f"with {tokens} tokens to generate, the model's context leaves 1 to {limit}",
            do=f"give lengths from 1 to {limit}, or leave them out",
        )
    return list(asked)


def _precision(loaded: LoadedModel) -> tuple[str, float, bool]:
    """(name, machine epsilon, whether its rounding must be measured) of a model's arithmetic."""
    import mlx.core as mx

    names = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}
    kinds = [value.dtype for value in arrays(loaded.model).values() if value.dtype in names]
    kind = max(names, key=kinds.count)
    coarse = kind != mx.float32 or mx.default_device() != mx.cpu
    return names[kind], float(mx.finfo(kind).eps), coarse


def rounding(epsilon: float, layers: int) -> float:
    """What adding up in another order may cost, as a share of the logits' standard deviation.

    About one rounding at each of two places per layer, which add up like a random walk. A factor
    of 16 leaves room for what the layers do with it.
    """
    return float(16 * epsilon * (2 * layers) ** 0.5)


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


def _compare(
    loaded: LoadedModel, ours: Any, prompt: list[int], produced: list[int]
) -> tuple[float, float, int, int] | None:
    """(difference, tolerance, same, tied) on rank 0, which computes the whole model."""
    import mlx.core as mx
    import numpy as np

    if loaded.rank != 0:
        return None
    name, epsilon, coarse = _precision(loaded)
    whole = _whole_logits(loaded, prompt, produced, exact=False)
    difference = _apart(ours, whole)
    tolerance = rounding(epsilon, int(loaded.text_config["num_hidden_layers"]))
    if coarse:
        with mx.stream(mx.cpu if name == "float32" else mx.default_device()):
            exact = _whole_logits(loaded, prompt, produced, exact=True)
        difference, tolerance = _apart(ours, exact), NOISE * _apart(whole, exact)
    same = tied = 0
    for row, token in zip(whole, produced, strict=True):
        if int(row.argmax()) == token:
            same += 1
        elif float(row.max() - row[token]) <= 4 * tolerance * float(whole.std()):
            tied += 1
    return (difference if np.isfinite(difference) else float("inf")), tolerance, same, tied


def _apart(one: Any, reference: Any) -> float:
    import numpy as np

    each = np.sqrt(np.mean((one - reference) ** 2, axis=-1))
    # The median: in 16 bits rounding can send single tokens to other experts.
    return float(np.median(each) / reference.std())


def _whole_logits(
    loaded: LoadedModel, prompt: list[int], produced: list[int], *, exact: bool
) -> Any:
    """The whole model's logits behind the same tokens; with `exact`, computed in float32."""
    import mlx.core as mx
    import numpy as np
    from mlx_lm.models.cache import make_prompt_cache

    model = _streamed(loaded, exact)
    cache = make_prompt_cache(model)
    for start in range(0, len(prompt) - 1, PREFILL):
        # Its logits are not asked for, so they are not computed.
        model(mx.array([prompt[start : min(start + PREFILL, len(prompt) - 1)]]), cache=cache)
    rest = mx.array([[prompt[-1], *produced[:-1]]])
    return np.array(model(rest, cache=cache)[0].astype(mx.float32))


# -- one layer at a time ---------------------------------------------------------------------------


def _open(loaded: LoadedModel, exact: bool) -> nn.Module:
    import mlx.core as mx

    model, _ = lazy_model(loaded.path)
    adapter = adapter_folder(loaded.adapter, loaded.rank)
    if adapter is not None:
        fuse(model, adapter)
    if exact:
        model.set_dtype(mx.float32)
    return model


def _streamed(loaded: LoadedModel, exact: bool) -> Any:
    """The whole model, whose layers are read when they are called and given up afterwards."""
    model: Any = _open(loaded, exact)
    layers = model.layers
    for _, module in model.named_modules():
        held = module.get("layers")
        if isinstance(held, list) and len(held) == len(layers) and held[0] is layers[0]:
            module.layers = [
                _Streamed(loaded, exact, index, layer) for index, layer in enumerate(held)
            ]
    return model


class _Streamed:
    """Stands for a layer. `pattern` answers questions about it, and is never read."""

    def __init__(self, loaded: LoadedModel, exact: bool, index: int, pattern: Any) -> None:
        self._loaded = loaded
        self._exact = exact
        self._index = index
        self._pattern = pattern

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pattern, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import mlx.core as mx
        from mlx.utils import tree_flatten

        # Opened anew each time: an array that was read once stays in memory with its model.
        fresh: Any = _open(self._loaded, self._exact)
        result = fresh.layers[self._index](*args, **kwargs)
        caches = [
            vars(each) for each in (*args, *kwargs.values()) if hasattr(each, "update_and_fetch")
        ]
        held = dict(tree_flatten(caches)).values()
        mx.eval(result, [value for value in held if isinstance(value, mx.array)])
        return result
