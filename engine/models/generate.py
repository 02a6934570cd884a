"""Generate text on all ranks at once; each of them gets every token."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..counters import counters
from ..errors import ModelError
from ..steps import steps
from .agree import exchange, together
from .load import LoadedModel

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx import nn
    from mlx_lm.generate import GenerationResponse

UNLIMITED = 1 << 30  # tokens

# Text to answer, a conversation as messages with "role" and "content", or token ids.
Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]


def stream_generate(
    loaded: LoadedModel,
    prompt: Prompt | mx.array,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> Iterator[GenerationResponse]:
    """Answer `prompt`, token by token. Every rank must call it with the same arguments.

        for part in macluster.stream_generate(model, "What is the capital of France?"):
            rprint(part.text, end="")

    Ranks that stop reading must stop at the same token; an interrupt does that by itself, see
    `steps`. Leaving the loop early is fine: what is under way is waited for.

    Args:
        loaded: from `load`.
        prompt: a text, put through the chat template (where there is one) as one user message; or
            a list of messages such as {"role": "user", "content": "..."}; or token ids, used as
            they are.
        max_tokens: at most so many tokens, -1 for no limit.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        top_p: draw only from the likeliest tokens that have this share of the probability.
        seed: of mx.random, set on every rank at the start: ranks that draw different tokens drift
            apart without an error.
        options: of mlx_lm's `make_sampler` (min_p, top_k, ...) and `stream_generate`
            (prompt_cache, logits_processors, max_kv_size, num_draft_tokens, ...). The draft that
            the model was loaded with proposes tokens; draft_model=None does without it.

    Yields:
        mlx_lm's GenerationResponse: `text`, `token`, `logprobs` (vocabulary,), `prompt_tokens`,
        `prompt_tps` and `generation_tps` (tokens a second), `peak_memory` (GB), `finish_reason`.

    Raises:
        ModelError: on every rank, when a prompt cannot be used, or the ranks were given different
            ones.
    """
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.sample_utils import make_sampler

    sampling = _sampling(temperature, top_p, options)
    tokens = together(lambda: _checked_tokens(loaded, prompt, max_tokens))
    draft = draft_of(loaded, options)
    drafts = {"draft": draft is not None, "proposals": options.get("num_draft_tokens")}
    _begin([tokens], {**sampling, "seed": seed, "max_tokens": max_tokens, **drafts})
    stream = decoding_stream()
    parts = mlx_lm.stream_generate(
        loaded.model,
        loaded.tokenizer,
        mx.array(tokens),
        # With a draft mlx-lm takes -1 for a number.
        max_tokens=UNLIMITED if draft is not None and max_tokens < 0 else max_tokens,
        stream=stream,
        **{"sampler": make_sampler(**sampling), **options, "draft_model": draft},
    )
    try:
        for part in steps(parts):
            counters.tokens += 1
            yield part
    finally:
        # mlx-lm computes one token ahead, also of the last one that is read.
        parts.close()
        mx.synchronize(stream)


def generate(
    loaded: LoadedModel,
    prompt: Prompt | mx.array,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> str:
    """The whole answer to `prompt` as text; arguments and errors as for `stream_generate`."""
    parts = stream_generate(
        loaded,
        prompt,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        **options,
    )
    return "".join(part.text for part in parts)


def batch_generate(
    loaded: LoadedModel,
    prompts: Sequence[Prompt | mx.array],
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> list[str]:
    """Answer many prompts at once, and return the answers as texts, in the same order.

    Every rank must call it with the same arguments. A step computes one token of every answer, so
    many answers take little longer than one, until the arithmetic takes longer than reading the
    weights.

    Args:
        loaded, max_tokens, temperature, top_p, seed: as for `stream_generate`, for each answer.
        prompts: each as for `stream_generate`.
        options: of mlx_lm's `make_sampler` and `BatchGenerator` (completion_batch_size,
            prefill_batch_size, ...).

    Raises:
        ModelError: on every rank, when a prompt cannot be used, or the ranks were given different
            ones.
    """
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.sample_utils import make_sampler

    sampling = _sampling(temperature, top_p, options)
    tokens = together(lambda: [_checked_tokens(loaded, each, max_tokens) for each in prompts])
    _begin(tokens, {**sampling, "seed": seed, "max_tokens": max_tokens})
    stream = decoding_stream()
    batch = BatchGenerator(
        loaded.model,
        stop_tokens=[[token] for token in loaded.tokenizer.eos_token_ids],
        stream=stream,
        **{"sampler": make_sampler(**sampling), **options},
    )
    numbers = batch.insert(tokens, [max_tokens if max_tokens > 0 else UNLIMITED] * len(tokens))
    answers: dict[int, list[int]] = {number: [] for number in numbers}
    try:
        for responses in steps(iter(batch.next_generated, [])):
            counters.tokens += len(responses)
            for response in responses:
                if response.finish_reason != "stop":
                    answers[response.uid].append(response.token)
    finally:
        batch.close()
        mx.synchronize(stream)
    return [loaded.tokenizer.decode(answers[number]) for number in numbers]


def draft_of(loaded: LoadedModel, options: Mapping[str, Any]) -> nn.Module | None:
    """The model that proposes tokens when text is generated with these options."""
    own = None if loaded.draft is None else loaded.draft.model
    draft: nn.Module | None = options.get("draft_model", own)
    return draft


def new_cache(loaded: LoadedModel, draft: nn.Module | None) -> list[Any]:
    """An empty prompt cache: that of the model, and behind it that of the draft."""
    from mlx_lm.models.cache import make_prompt_cache

    cache: list[Any] = make_prompt_cache(loaded.model)
    return cache if draft is None else cache + make_prompt_cache(draft)


def _sampling(temperature: float, top_p: float, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `make_sampler`; takes its own out of `options`."""
    from mlx_lm.sample_utils import make_sampler

    sampling: dict[str, Any] = {"temp": temperature, "top_p": top_p}
    for name in inspect.signature(make_sampler).parameters.keys() & options.keys():
        sampling[name] = options.pop(name)
    return sampling


def _begin(prompts: Sequence[Sequence[int]], numbers: Mapping[str, Any]) -> None:
    """See that all ranks were asked the same, and draw the same random numbers from now on."""
    import mlx.core as mx

    _check_same_request(prompts, numbers)
    mx.random.seed(numbers["seed"])


def decoding_stream() -> Any:
    """The stream to generate on.

    Without a GPU mlx-lm's own stream would be a second CPU stream, and collectives on two streams
    mix their data. With one, collectives have the CPU's default stream for themselves.
    """
    import mlx.core as mx
    from mlx_lm.generate import generation_stream

    return mx.default_stream(mx.cpu) if mx.default_device() == mx.cpu else generation_stream


def _checked_tokens(loaded: LoadedModel, prompt: Any, max_tokens: int) -> list[int]:
    if max_tokens == 0:
        raise ModelError(
            "max_tokens=0 leaves nothing to generate.",
            why="a limit was computed as zero",
            do="give a positive number, or -1 for no limit",
        )
    return prompt_tokens(loaded, prompt)


def prompt_tokens(loaded: LoadedModel, prompt: Any) -> list[int]:
    """A prompt of any kind as token ids. Raises ModelError for one that cannot be used."""
    tokenizer = loaded.tokenizer
    if isinstance(prompt, str):
        if not tokenizer.has_chat_template:
            tokens = tokenizer.encode(prompt)
        else:
            message = {"role": "user", "content": prompt}
            tokens = tokenizer.apply_chat_template([message], add_generation_prompt=True)
    else:
        items = prompt.tolist() if hasattr(prompt, "tolist") else prompt
        if isinstance(items, Sequence) and items and isinstance(items[0], Mapping):
            if not tokenizer.has_chat_template:
                raise ModelError(
                    "This model cannot take a conversation.",
                    why="its tokenizer has no chat template: it was trained to continue text",
                    do="give the prompt as one text, or choose an instruct model",
                )
            tokens = tokenizer.apply_chat_template(list(items), add_generation_prompt=True)
        elif isinstance(items, Sequence) and all(isinstance(item, int) for item in items):
            tokens = items
        else:
            raise ModelError(
                f"A prompt cannot be of type {type(prompt).__name__}.",
                why="it is neither text, nor a list of messages, nor a flat list of token ids",
                do='give a text, or [{"role": "user", "content": "..."}]',
            )
    if not tokens:
        raise ModelError(
            "The prompt is empty.",
            why="the text, or the list of messages or tokens, has nothing in it",
            do="give at least one token",
        )
    return list(tokens)


def _check_same_request(prompts: Sequence[Sequence[int]], numbers: Mapping[str, Any]) -> None:
    """Compare what the ranks were asked. A collective, after which all start at the same time.

    Ranks that generate from different prompts wait for each other for ever, or answer nonsense.
    """
    request = {"prompt": hashlib.sha256(repr(prompts).encode()).hexdigest()[:16], **numbers}
    texts = {name: str(value) for name, value in request.items()}
    requests = exchange(texts)
    for rank, other in enumerate(requests):
        names = [name for name in requests[0] if other.get(name) != requests[0][name]]
        if names:
            raise ModelError(
                f"Rank {rank} was asked something else than rank 0: another {', '.join(names)}.",
                why="the value depends on the rank, on the time, or on a random number",
                do="make it once in a plain cell, and send it to all ranks: %push prompt",
            )
