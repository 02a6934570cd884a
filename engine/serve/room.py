"""The memory that there is for prompt caches, and the prompt caches that are kept in it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np

from ..errors import ModelError
from ..models.agree import exchange
from ..models.load import LoadedModel, counts_loaded, memory_budgets
from ..models.trial import CacheSize, cache_size

SHARE = 0.8  # of the free memory: caches are copied when a batch changes
LEAST = 8  # tokens that a cache must save to be worth its copy


@attrs.frozen
class Room:
    """What prompt caches may take, on every rank: its cache's law, and the bytes that are free.

    It is the same on all ranks, so that each of them can decide alike.
    """

    ranks: Sequence[tuple[CacheSize, int]]

    def fits(self, answers: Sequence[int], kept: Sequence[int] = ()) -> bool:
        """Whether there is room for answers under way and caches kept, given in tokens.

        A batch is as long as its longest answer, for each of them.
        """
        longest = max(answers, default=0)
        return all(
            len(answers) * law.bytes(longest) + sum(law.bytes(each) for each in kept) <= free
            for law, free in self.ranks
        )

    def most(self) -> int | None:
        """The tokens that one answer, with its prompt, can have; None without a limit."""
        if all(law == CacheSize() for law, _ in self.ranks):
            return None
        low, high = 0, 1 << 40
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits([middle]) else (low, middle - 1)
        return low if low < 1 << 40 else None


def room_for(loaded: LoadedModel) -> Room:
    """See how much room there is on all ranks. A collective."""
    import mlx.core as mx

    try:
        law = cache_size(loaded.model, loaded.size)
    except ModelError:
        law = CacheSize()  # it cannot be tried out here: nothing is known, and nothing counted
    filled = int(mx.get_active_memory()) if counts_loaded() else 0
    ranks = []
    for (fields, taken), budget in zip(
        exchange([attrs.asdict(law), filled]), memory_budgets(), strict=True
    ):
        windows = tuple((each, most) for each, most in fields.pop("windows"))
        free = int(SHARE * max(0, budget.bytes - taken))
        ranks.append((CacheSize(**fields, windows=windows), free))
    return Room(ranks)


class Prefixes:
    """Prompt caches of answers that have ended, for prompts that begin with the same tokens.

    What is kept depends on tokens only, so it is the same on all ranks, though their caches have
    different sizes and kinds. `forgets`: on every rank, the end of a cache can always be cut off.
    """

    def __init__(self, most: int, forgets: bool) -> None:
        self.most = most  # caches
        self.forgets = forgets
        self._kept: list[tuple[np.ndarray, list[Any]]] = []  # the one used last is at the end

    @property
    def lengths(self) -> list[int]:
        """The tokens of each cache."""
        return [len(tokens) for tokens, _ in self._kept]

    def take(self, tokens: Sequence[int]) -> tuple[list[Any] | None, int]:
        """A cache to begin with, and how many of `tokens` it stands for: not all of them."""
        from mlx_lm.models.cache import trim_prompt_cache

        wanted = np.array(tokens[:-1])
        best, reused = -1, LEAST - 1
        for place, (held, _) in enumerate(self._kept):
            same = _common(held, wanted)
            if same > reused and (same == len(held) or self.forgets):
                best, reused = place, same
        if best < 0:
            return None, 0
        held, cache = self._kept.pop(best)
        if reused == len(held):
            # The conversation goes on: what comes of it will take the place of this one.
            return cache, reused
        self._kept.append((held, cache))
        cache = copy.deepcopy(cache)
        trim_prompt_cache(cache, len(held) - reused)
        return cache, reused

    def put(self, tokens: Sequence[int], cache: list[Any]) -> None:
        """Keep the cache of an answer that has ended, and of `tokens` all that it stands for."""
        import mlx.core as mx

        new = np.array(tokens)
        # Otherwise it would hold on to the whole batch that it was a part of.
        mx.eval([each.state for each in cache])
        self._kept = [
            (held, each)
            for held, each in self._kept
            if _common(held, new) < (len(held) if self.forgets else max(len(held), len(new)))
        ]
        self._kept.append((new, cache))
        while len(self._kept) > self.most:
            self.drop()

    def drop(self) -> bool:
        """Give up the one that was used longest ago. False when there is none."""
        if self._kept:
            del self._kept[0]
            return True
        return False


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two sequences have in common at their beginning."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length
