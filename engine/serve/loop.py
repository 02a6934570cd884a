"""What every rank runs while a model is served: rounds of steps that rank 0 decides on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import attrs

from ..errors import ModelError
from ..models.agree import together
from ..models.generate import decoding_stream
from ..models.load import LoadedModel
from ..steps import steps
from .batch import Batch, Work
from .front import Front
from .room import room_for

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
    survives: bool = False,
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
        survives: let the server wait for the ranks after a failure, see `Serving`.

    Raises:
        ModelError: on every rank, when it cannot listen there, or there is no room for a cache.
    """
    room = room_for(loaded)
    key = api_key or here.key

    def open_front() -> Front | None:
        if loaded.rank != 0:
            return None
        if key is None and host not in ("localhost", "127.0.0.1", "::1"):
            raise ModelError(
                f"A server at {host} needs a key.",
                why="others can reach that address, and could use the model",
                do="put one into the environment of the notebook, MACLUSTER_API_KEY=..., or give "
                "api_key=",
            )
        if here.front is not None and here.front.alive:
            if survives and port in (0, here.front.port):
                here.front.resume(loaded)
                return here.front
            here.front.close()
        # The folder of a model of the hub is named after its commit.
        label = str(loaded.source) if loaded.commit else loaded.path.name
        return Front(loaded, name or label, host, port, key, max_tokens)

    front = together(open_front)
    batch = Batch(
        loaded,
        room,
        concurrency=concurrency,
        kept=prompt_caches,
        prefill_step_size=prefill_step_size,
        stream=decoding_stream(),
    )
    if front is not None:
        here.front, front.most = front, room.most()
        print(f"serving {front.name} at {front.url}", flush=True)
    done = False
    try:
        for record in steps(_records(front, batch)):
            if record["end"]:
                break
            _round(record, front, batch)
        done = True
    finally:
        if front is not None:
            if survives and not done:
                front.suspend()
            else:
                front.close()
        batch.close()


def _records(front: Front | None, batch: Batch) -> Iterator[dict[str, Any]]:
    while True:
        yield share(front.decide(batch) if front is not None else None, batch.loaded.size)


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
