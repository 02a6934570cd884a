"""Run a model on shapes alone: how large its cache gets, and what crosses the wire.

MLX computes nothing until it is asked for a value. So a model whose weights were never read can be
called with a cache, and the sizes of everything that it would make are there to be read, exactly.
The collectives are replaced meanwhile by functions that note what goes in and give back the shape
of what would come out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from ..errors import ModelError

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx import nn


BLOCK = 256  # tokens; mlx-lm's caches grow by as many
FEW = 8  # tokens, after which states of a fixed size have it


class DryGroup:
    """The place of one rank in a world that does not exist. Takes the place of MLX's group."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank = rank
        self._size = size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


@attrs.frozen
class Wire:
    """One collective that a rank starts: its name, and the bytes that the rank puts into it."""

    op: str
    bytes: int


@attrs.frozen
class CacheSize:
    """How large a prompt cache gets.

    `fixed` bytes however long the prompt, `block` bytes for every BLOCK tokens that are begun,
    `token` bytes for every token, and for each of `windows` (bytes of one token, tokens at most)
    those of the last tokens. While a prompt is read, a window holds up to 2,047 tokens more.
    """

    fixed: int = 0
    block: int = 0
    token: int = 0
    windows: tuple[tuple[int, int], ...] = ()

    def bytes(self, tokens: int) -> int:
        """The bytes for a context of so many tokens, as they lie in memory."""
        blocks = -(-tokens // BLOCK)
        # A window that is not full yet grows by a block when it has to.
        seen = sum(each * min(most, tokens + BLOCK - 1) for each, most in self.windows)
        return self.fixed + self.block * blocks + self.token * tokens + seen

    def __add__(self, other: CacheSize) -> CacheSize:
        return CacheSize(
            self.fixed + other.fixed,
            self.block + other.block,
            self.token + other.token,
            self.windows + other.windows,
        )


def cache_size(model: nn.Module, size: int) -> CacheSize:
    """The prompt cache on the rank that `model` is of.

    Raises ModelError when the model cannot run here; so do the next two.
    """
    return sum(_caches(model, size), CacheSize())


def cache_by_layer(model: nn.Module) -> list[CacheSize]:
    """The same for each layer of a model that is whole."""
    return _caches(model, 1)


def _caches(model: nn.Module, size: int) -> list[CacheSize]:
    with _on_shapes(size):
        found = [_law(each) for each in _call(model, [FEW])]
        if None not in found:
            return [each for each in found if each is not None]
        # A cache of the model's own: see how it grows, once its windows are full.
        short, long = (_call(model, [count * BLOCK]) for count in (2, 4))
        sizes = [(_nbytes(one), _nbytes(two)) for one, two in zip(short, long, strict=True)]
        return [
            CacheSize(fixed=2 * one - two, token=(two - one) // (2 * BLOCK)) for one, two in sizes
        ]


def _law(cache: Any) -> CacheSize | None:
    """How a cache that holds a FEW tokens grows, where that is known."""
    from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

    if hasattr(cache, "caches"):
        laws = [_law(each) for each in cache.caches]
        known = [each for each in laws if each is not None]
        return sum(known, CacheSize()) if len(known) == len(laws) else None
    bytes_ = _nbytes(cache)
    if isinstance(cache, ArraysCache):
        return CacheSize(fixed=bytes_)
    if type(cache) not in (KVCache, RotatingKVCache):
        return None
    if cache.keys is None:  # of a layer that another rank has
        return CacheSize()
    if type(cache) is KVCache:
        return CacheSize(block=bytes_)
    return CacheSize(windows=((bytes_ // cache.keys.shape[2], cache.max_size),))


def wire_per_token(model: nn.Module, size: int) -> list[Wire]:
    """What a rank sends while it generates one token, in order."""
    with _on_shapes(size) as wires:
        _call(model, [4])
        prompt = len(wires)
        _call(model, [4, 1])
    return wires[2 * prompt :]


def _call(model: Any, lengths: Sequence[int]) -> list[Any]:
    """Give a model so many tokens at a time, and return its cache. Raises ModelError."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    try:
        cache: list[Any] = make_prompt_cache(model)
        for length in lengths:
            model(mx.zeros((1, length), mx.int32), cache=cache)
    except Exception as error:
        raise ModelError(
            "The model cannot be tried out on this machine.",
            why=f"{type(error).__name__}: {error}",
            do="try it on a Mac: some models have parts for Metal only",
        ) from error
    return cache


def _nbytes(cache: Any) -> int:
    """Of the arrays that a cache holds, as they lie in memory: whole blocks of tokens."""
    from mlx.utils import tree_flatten

    if hasattr(cache, "caches"):
        return sum(_nbytes(each) for each in cache.caches)
    held = {name: value for name, value in vars(cache).items() if not isinstance(value, int)}
    leaves: list[Any] = list(dict(tree_flatten(held, destination={})).values())
    return sum(value.nbytes for value in leaves if hasattr(value, "nbytes"))


@contextlib.contextmanager
def _on_shapes(size: int) -> Iterator[list[Wire]]:
    """Replace MLX's collectives by functions that only keep account."""
    import mlx.core as mx

    wires: list[Wire] = []

    def note(op: str, result: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def account(value: Any, *args: Any, **_: Any) -> mx.array:
            array = value if isinstance(value, mx.array) else mx.array(value)
            wires.append(Wire(op, array.nbytes))
            return result(array, *args)

        return account

    def same(array: mx.array, *_: Any) -> mx.array:
        return array

    def nothing(shape: Any, dtype: Any, *_: Any, **__: Any) -> mx.array:
        return mx.zeros(shape, dtype)

    stand_ins: dict[str, Callable[..., Any]] = {
        "all_sum": note("all_sum", same),
        "all_max": note("all_max", same),
        "all_min": note("all_min", same),
        "all_gather": note("all_gather", lambda array, *_: mx.concatenate([array] * size)),
        "send": note("send", same),
        "recv": nothing,
        "recv_like": lambda array, *_, **__: mx.zeros_like(array),
    }
    before = {name: getattr(mx.distributed, name) for name in stand_ins}
    # A compiled function is traced at its first call only: later ones would not be counted.
    compiles = "MLX_DISABLE_COMPILE" not in os.environ
    try:
        if compiles:
            mx.disable_compile()
        for name, stand_in in stand_ins.items():
            setattr(mx.distributed, name, stand_in)
        yield wires
    finally:
        for name, function in before.items():
            setattr(mx.distributed, name, function)
        if compiles:
            mx.enable_compile()
