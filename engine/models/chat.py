"""A conversation with a model that is split over all ranks; what was said stays in the cache."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from ..errors import ModelError
from ..steps import turnstile
from .agree import exchange, together
from .folder import first_line
from .generate import draft_of, new_cache, prompt_tokens, stream_generate
from .load import LoadedModel

if TYPE_CHECKING:
    from mlx_lm.generate import GenerationResponse

PACE = 0.05  # seconds between two pieces of text that are shown


@attrs.frozen
class Answer:
    """What came back. Times are of this rank.

    `prompt_tokens` were computed, `reused` came from the cache; `first` are the seconds to the
    first token, `tokens_per_second` counts from there; `context` is what the cache holds now.
    `drafted` of the tokens were proposed by the draft.
    """

    text: str
    tokens: int
    prompt_tokens: int
    reused: int
    first: float
    tokens_per_second: float
    context: int
    limit: int | None
    finish_reason: str
    drafted: int = 0

    def __str__(self) -> str:
        room = f" of {self.limit:,}" if self.limit else ""
        drafted = f" ({self.drafted} drafted)" if self.drafted else ""
        return (
            f"[{self.tokens} tokens{drafted}, {self.tokens_per_second:.1f} tokens/s, first after "
            f"{self.first:.2f} s; {self.context:,}{room} tokens of context]"
        )


class Chat:
    """A conversation. Every rank makes one, and all of them speak to it alike.

        chat = macluster.Chat(model, system="Answer in one sentence.")
        chat.say("What is the capital of France?")
        chat.say("And of Japan?")

    Each turn computes only what is new: each rank keeps its part of the prompt cache. `messages`
    is the conversation so far, and may be edited between turns.

    Args:
        loaded: from `load`.
        system: a first message that sets the tone.
        options: for every turn: max_tokens, temperature, top_p, seed, and the others of
            `stream_generate`.
    """

    def __init__(self, loaded: LoadedModel, *, system: str = "", **options: Any) -> None:
        self.loaded = loaded
        self.system = system
        self.options = options
        self.messages: list[dict[str, Any]] = []
        self.last: Answer | None = None
        self._cache: list[Any] | None = None
        self._held: list[int] = []  # the tokens that the cache stands for
        self.reset()

    def __repr__(self) -> str:
        return (
            f"<Chat with {self.loaded.config['model_type']}: {len(self.messages)} messages, "
            f"{len(self._held):,} tokens in the cache>"
        )

    def reset(self) -> None:
        """Begin anew."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self._forget()

    def _forget(self) -> None:
        self._cache, self._held = None, []

    def say(self, text: str, **options: Any) -> Answer:
        """Say something; rank 0 prints the answer while it comes, and a line of figures."""
        shown, pending = time.monotonic(), ""
        for part in self.stream(text, **options):
            pending += part.text
            if self.loaded.rank == 0 and time.monotonic() - shown >= PACE:
                print(pending, end="", flush=True)
                shown, pending = time.monotonic(), ""
        assert self.last is not None
        if self.loaded.rank == 0:
            print(pending, self.last, sep="\n" if pending or self.last.text else "", flush=True)
        return self.last

    def stream(self, text: str, **options: Any) -> Iterator[GenerationResponse]:
        """Say something, and yield the answer token by token; `last` has the figures afterwards.

        A turn that fails leaves no trace: other ranks may not have come as far. One that is
        interrupted or left early is kept as far as it came. Raises ModelError on every rank when
        the ranks were told different things.
        """
        began = time.monotonic()
        self._agree()
        messages = [*self.messages, {"role": "user", "content": text}]
        tokens = together(lambda: prompt_tokens(self.loaded, messages))
        reused = self._keep(tokens, draft_of(self.loaded, {**self.options, **options}))
        answer, produced, first, reason, drafted = "", [], 0.0, "failed", 0
        options = {**self.options, **options, "prompt_cache": self._cache}
        turnstile.stopped = False
        try:
            for part in stream_generate(self.loaded, tokens[reused:], **options):
                first = first or time.monotonic()
                produced.append(int(part.token))
                answer += part.text
                drafted += part.from_draft
                reason = part.finish_reason or "stop"
                yield part
        except GeneratorExit:
            reason = "closed"
            raise
        except KeyboardInterrupt:
            # Between two steps the caches of all ranks hold the same; anywhere else nobody knows.
            reason = "interrupted" if turnstile.stopped else "failed"
            raise
        except BaseException:
            reason = "failed"
            raise
        finally:
            self._settle([*tokens, *produced], sound=reason != "failed")
            if produced and reason != "failed":
                self.messages = [*messages, {"role": "assistant", "content": answer}]
            took = time.monotonic() - first if first else 0.0
            self.last = Answer(
                text=answer,
                tokens=len(produced),
                prompt_tokens=len(tokens) - reused,
                reused=reused,
                first=first - began if first else 0.0,
                tokens_per_second=(len(produced) - 1) / took if took > 0 else 0.0,
                context=len(tokens) + len(produced),
                limit=context_limit(self.loaded),
                finish_reason=reason,
                drafted=drafted,
            )

    def _settle(self, spoken: list[int], *, sound: bool) -> None:
        """After a turn: know what the cache holds, or give it up."""
        from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

        cache, count = self._cache or [], len(new_cache(self.loaded, None))
        parts = [part for part in (cache[:count], cache[count:]) if part]
        # mlx-lm computes one token ahead, and this one was never seen. A draft has not read the
        # last of its proposals when all of them were right.
        length = min([len(spoken), *map(_length, parts)])
        for part in parts:
            if _length(part) > length and can_trim_prompt_cache(part):
                trim_prompt_cache(part, _length(part) - length)
        if not sound or length == 0 or {_length(part) for part in parts} != {length}:
            self._forget()
        else:
            self._held = spoken[:length]

    # -- what the ranks have in common -----------------------------------------------------------

    def _agree(self) -> None:
        """See that all ranks have the same conversation, and caches of the same length.

        A rank that was started anew has neither, and takes the conversation over. A turn that
        failed on some ranks only is dropped on the others. A collective; raises ModelError when
        two ranks hold different conversations.
        """
        facts = {"system": self.system, "options": _plain(self.options), "messages": self.messages}
        theirs = exchange({**facts, "held": _digest(self._held), "begun": self._begun})
        if all(each == theirs[0] for each in theirs):
            return
        begun = [rank for rank, each in enumerate(theirs) if each["begun"]] or [0]
        shortest = min(begun, key=lambda rank: len(theirs[rank]["messages"]))
        source, common = theirs[shortest], theirs[shortest]["messages"]
        for rank in begun:
            beyond = theirs[rank]["messages"][len(common) :]
            same = theirs[rank]["messages"][: len(common)] == common
            if not same or [each["role"] for each in beyond] not in ([], ["user", "assistant"]):
                raise ModelError(
                    f"Rank {rank} holds another conversation than rank {shortest}.",
                    why="`messages` was edited on some ranks only, or a restore failed on some",
                    do="edit it in a cell that runs on all ranks, or begin anew: chat.reset()",
                )
        if not self._begun:
            self.system = source["system"]
            self.options = {**self.options, **source["options"]}
        self.messages = list(common)
        self._forget()

    @property
    def _begun(self) -> bool:
        return any(message["role"] != "system" for message in self.messages)

    def _keep(self, tokens: Sequence[int], draft: Any) -> int:
        """Cut the cache back to what `tokens` begins with. Returns how many tokens that are."""
        from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

        empty = new_cache(self.loaded, draft)
        if self._cache is not None and len(self._cache) != len(empty):
            self._forget()  # it was made with another draft, or without one
        same = 0
        # One token at least has to be computed.
        for mine, wanted in zip(self._held, tokens[:-1], strict=False):
            if mine != wanted:
                break
            same += 1
        surplus = len(self._held) - same
        if self._cache is not None and surplus and can_trim_prompt_cache(self._cache):
            trim_prompt_cache(self._cache, surplus)
        elif self._cache is None or surplus:
            # Some layers sum up what they have read, and cannot forget the end of it.
            self._cache, same = empty, 0
        return same

    # -- kept on disk ----------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the conversation and every rank's cache into a folder. Every rank must call it.

        Raises ModelError on every rank when one of them cannot write.
        """
        together(lambda: self._write(Path(folder).expanduser()))

    def _write(self, folder: Path) -> None:
        from mlx_lm.models.cache import save_prompt_cache

        folder.mkdir(parents=True, exist_ok=True)
        facts = {"messages": self.messages, "held": self._held, "system": self.system}
        data = {**self._kind(), "chat": json.dumps(facts)}
        if self._cache is None:
            raise ModelError(
                "There is no conversation to save.",
                why="nothing was said yet, or a failure has cost the cache",
                do="say something first",
            )
        save_prompt_cache(str(self._file(folder)), self._cache, data)

    def restore(self, folder: str | Path) -> None:
        """Go on with a conversation that was saved with the same model over as many ranks.

        Raises ModelError on every rank when one of them does not find its file, or finds one of
        another model or split.
        """
        found = together(lambda: self._read(Path(folder).expanduser()))
        self._cache, facts = found
        self.messages, self.system = facts["messages"], facts["system"]
        self._held = facts["held"]

    def _read(self, folder: Path) -> tuple[list[Any], dict[str, Any]]:
        from mlx_lm.models.cache import load_prompt_cache

        file = self._file(folder)
        try:
            cache, data = load_prompt_cache(str(file), return_metadata=True)
        except Exception as error:
            raise ModelError(
                f"There is no conversation for rank {self.loaded.rank} in {folder}.",
                why=f"{type(error).__name__}: {first_line(error)}, on {socket.gethostname()}",
                do="save it with as many ranks as now; each rank writes on its own host",
            ) from error
        kind = self._kind()
        other = {name: data.get(name) for name in kind if data.get(name) != kind[name]}
        if other:
            name, value = next(iter(other.items()))
            raise ModelError(
                f"The conversation in {folder} was held with another model or split.",
                why=f"its {name} is {value}, and that of this model is {kind[name]}",
                do="load the model as it was then",
            )
        return cache, json.loads(data["chat"])

    def _file(self, folder: Path) -> Path:
        return folder / f"rank-{self.loaded.rank}-of-{self.loaded.size}.safetensors"

    def _kind(self) -> dict[str, str]:
        split, draft = self.loaded.split, self.loaded.draft
        other = {} if draft is None else {"draft": _model_digest(draft)}
        return {
            **other,
            "model": _model_digest(self.loaded),
            "strategy": split.strategy,
            "layers": str(split.layers),
        }


def conversation(
    chat: Any, loaded: LoadedModel, *, system: str | None = None, reset: bool = False
) -> Chat:
    """`chat`, or a new one where that is none with this model: for `%%chat`."""
    if not isinstance(chat, Chat) or chat.loaded is not loaded:
        return Chat(loaded, system=system or "")
    if reset or (system is not None and system != chat.system):
        chat.system = chat.system if system is None else system
        chat.reset()
    return chat


def context_limit(loaded: LoadedModel) -> int | None:
    """The most tokens that a model was made for, where its configuration says it."""
    limit = loaded.text_config.get("max_position_embeddings")
    return limit if isinstance(limit, int) else None


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that can be told to another rank."""
    kinds = (str, int, float, bool, type(None))
    return {name: value for name, value in options.items() if isinstance(value, kinds)}


def _length(cache: Sequence[Any] | None) -> int:
    """The tokens that a cache holds; 0 where its layers do not say."""
    lengths = [0]
    for each in cache or ():
        if hasattr(each, "caches"):
            lengths.append(_length(each.caches))
        elif isinstance(getattr(each, "offset", None), int):
            lengths.append(each.offset)
    return max(lengths)


def _model_digest(loaded: LoadedModel) -> str:
    text = json.dumps(loaded.config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(tokens: Sequence[int]) -> str:
    return hashlib.sha256(repr(list(tokens)).encode()).hexdigest()[:16]
