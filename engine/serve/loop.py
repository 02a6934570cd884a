"""What every rank runs while a model is served: rounds of steps that rank 0 decides on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import attrs

from ..errors import ModelError, UsageError
from ..models.agree import together
from ..models.generate import decoding_stream
from ..models.load import LoadedModel
from ..steps import steps
from .batch import Batch, Work
from .front import Front, Settings
from .http import LOCAL
from .room import Room, room_for

RECORD = 256  # bytes that are shared in each round; most decisions are shorter


@attrs.define
class Here:
    """What this process keeps beyond a failure of the ranks.

    `front` is the server, whose clients only wait meanwhile; `key` is what they have to know, told
    by the notebook apart from the cell, so that it stands in no source code.
    """

    front: Front | None = None
    key: str | None = None


here = Here()


def serve(
    loaded: LoadedModel,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    name: str | None = None,
    api_key: str | None = None,
    max_tokens: int = 2048,
    concurrency: int = 16,
    prompt_caches: int = 16,
    prefill_step_size: int = 1024,
    owner: str = "",
) -> None:
    """Serve a model over HTTP, as OpenAI's API does it, until it is stopped. Every rank calls it.

    Rank 0's host listens. In each round rank 0 tells the others which answers begin and which are
    given up, then all of them compute the same steps, so they stay in step whatever clients do.

    Args:
        loaded: from `load`.
        host: the address to listen at; only this machine can reach the default.
        port: 0 takes a free one.
        name: what clients call the model, by default the last part of its path.
        api_key: what clients must send; needed when `host` is not this machine alone.
        max_tokens: of an answer, where a request does not say it.
        concurrency: answers that are computed at once.
        prompt_caches: caches kept for prompts that begin with the same tokens.
        prefill_step_size: tokens of a prompt that are read in one step.
        owner: for whom the server waits after a failure of the ranks, see `Serving`.

    Raises:
        ModelError: on every rank, when it cannot listen there, or the ranks draw different tokens.
        UsageError: on every rank, for a number that cannot be meant.
    """
    for what, value, least in (
        ("max_tokens", max_tokens, 1),
        ("concurrency", concurrency, 1),
        ("prompt_caches", prompt_caches, 0),
        ("prefill_step_size", prefill_step_size, 1),
    ):
        if value < least:
            raise UsageError(
                f"{what} cannot be {value}.",
                why=f"it must be at least {least}",
                do="leave it out, or give a larger number",
            )
    room = room_for(loaded)
    batch = Batch(
        loaded,
        room,
        kept=prompt_caches,
        prefill_step_size=prefill_step_size,
        concurrency=concurrency,
        stream=decoding_stream(),
    )
    # The folder of a model of the hub is named after its commit.
    label = name or (str(loaded.source) if loaded.commit else loaded.path.name)
    key = (api_key or here.key or "").strip() or None
    settings = Settings(owner, label, host, port, key, max_tokens, concurrency)
    done = False
    try:
        together(lambda: _open(loaded, settings, room) if loaded.rank == 0 else None)
        front = here.front if loaded.rank == 0 else None
        if front is not None:
            print(f"serving {front.name} at {front.url}", flush=True)
        for record in steps(_records(front, batch)):
            if record["end"]:
                break
            _round(record, front, batch)
        done = True
    finally:
        if here.front is not None:
            if owner and not done:
                here.front.suspend()
            else:
                here.front.close()
                here.front = None
        batch.close()


def _open(loaded: LoadedModel, settings: Settings, room: Room) -> None:
    """Listen, or go on with the server of before. Raises ModelError."""
    if settings.key is None and settings.host not in LOCAL:
        raise ModelError(
            f"A server at {settings.host} needs a key.",
            why="others can reach that address, and could use the model",
            do="in the notebook: os.environ['MACLUSTER_API_KEY'] = getpass.getpass(), in a "
            "terminal: export it; then serve again. macluster.serve in a cell takes api_key=",
        )
    if here.front is not None:
        if here.front.resume(loaded, settings, room):
            return
        here.front.close()
    here.front = Front(loaded, settings, room)


def _records(front: Front | None, batch: Batch) -> Iterator[dict[str, Any]]:
    while True:
        record = share(front.decide(batch) if front is not None else None, batch.loaded.size)
        if record["digest"] != batch.digest:
            raise ModelError(
                f"Rank {batch.loaded.rank} has drawn another token than rank 0.",
                why="its logits are not the same to the bit: another chip, another version of MLX, "
                "or a wrong shard",
                do="%model check says which; hosts of one kind, with the same software, agree",
            )
        yield record


def _round(record: dict[str, Any], front: Front | None, batch: Batch) -> None:
    for number in record["cancel"]:
        batch.remove(number)
    for fields in record["add"]:
        batch.add(Work(**fields))
    if not batch.works:
        time.sleep(record["pause"])
        return
    reused = dict(batch.reused)
    began, tokens, count = time.perf_counter(), [], 0
    while batch.works and count < record["steps"]:
        tokens += batch.step(details=front is not None)
        count += 1
    if front is not None:
        front.deliver(tokens, reused, (time.perf_counter() - began) / count)


def share(record: dict[str, Any] | None, size: int) -> dict[str, Any]:
    """Rank 0's record, on all ranks; the others give None. A collective."""
    if size == 1:
        assert record is not None
        return record
    data = b"" if record is None else json.dumps(record).encode()
    if record is None or len(data) <= RECORD:
        found = json.loads(_broadcast(data, RECORD))
    else:
        found = json.loads(_broadcast(str(len(data)).encode(), RECORD))
    if isinstance(found, int):
        found = json.loads(_broadcast(data, found))
    return dict(found)


def _broadcast(data: bytes, length: int) -> bytes:
    """Rank 0's `data`, filled up with spaces to `length` bytes; the others give none."""
    import mlx.core as mx
    import numpy as np

    row = np.frombuffer(data.ljust(length), np.uint8) if data else np.zeros(length, np.uint8)
    return np.array(mx.distributed.all_sum(mx.array(row))).tobytes()
