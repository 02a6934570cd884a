"""A model split over real ranks computes what one process computes, and its map is exact."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest

import macluster
from macluster.engine.models import tiny
from macluster.engine.models.shards import ShardMap, ShardRow
from tests.cluster.models import ENV, answers, fails, start

QUESTION = "Count from 1 to 15."
LONG = 48  # tokens
IDS = [5, 99, 300, 42, 7]

# In a process of its own: mlx_lm lowers RLIMIT_NOFILE of its process for good.
REFERENCE = """
import json, shutil, sys
from pathlib import Path
import mlx.core as mx, mlx_lm
from mlx_lm.models import qwen2
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import save_model
from macluster.engine.models import tiny

toy, folder = map(Path, sys.argv[1:3])
question, ids, count = sys.argv[3], json.loads(sys.argv[4]), int(sys.argv[5])
tiny.make("qwen2", folder / "random")
tiny.make("llama", folder / "llama")

def tokens(path, prompt, **sampling):
    model, tokenizer = mlx_lm.load(str(path))
    if isinstance(prompt, str):
        message = {"role": "user", "content": prompt}
        prompt = tokenizer.apply_chat_template([message], add_generation_prompt=True)
    mx.random.seed(3)
    parts = mlx_lm.stream_generate(
        model, tokenizer, prompt, max_tokens=count, sampler=make_sampler(**sampling)
    )
    return [part.token for part in parts]

# One weight less than the model needs.
shutil.copytree(toy, folder / "missing")
file = folder / "missing" / "model.safetensors"
weights = dict(mx.load(str(file)))
mx.eval(weights)
del weights["model.layers.1.mlp.up_proj.weight"]
mx.save_safetensors(str(file), weights)

# Two key-value heads: mlx-lm splits them over four ranks without an error, and leaves none.
shutil.copytree(toy, folder / "odd")
config = json.loads((toy / "config.json").read_text()) | {"num_key_value_heads": 2}
save_model(folder / "odd", qwen2.Model(qwen2.ModelArgs.from_dict(config)))
(folder / "odd" / "config.json").write_text(json.dumps(config))

json.dump(
    {
        "toy": tokens(toy, question),
        "random": tokens(folder / "random", ids),
        "drawn": tokens(toy, question, temp=1.0),
    },
    sys.stdout,
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, list[int]]:
    """What plain mlx_lm says in one process. Also makes the models in `folder`."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            REFERENCE,
            *(str(tiny.toy_path()), str(folder), QUESTION, json.dumps(IDS), str(LONG)),
        ],
        env={**os.environ, **ENV},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tokens: dict[str, list[int]] = json.loads(done.stdout)
    return tokens


@pytest.fixture(scope="module")
def two(expected: object) -> Iterator[macluster.World]:
    yield from start(2)


@pytest.fixture(scope="module")
def four(expected: object) -> Iterator[macluster.World]:
    yield from start(4)


def check_tokens(
    world: macluster.World,
    strategy: str,
    folder: Path,
    expected: dict[str, list[int]],
    count: int = LONG,
) -> None:
    toy, random = str(tiny.toy_path()), str(folder / "random")
    code = f"""
def tokens(model, prompt, **options):
    parts = macluster.stream_generate(model, prompt, max_tokens={count}, **options)
    return [part.token for part in parts]

toy = macluster.load({toy!r}, {strategy!r})
random_ = macluster.load({random!r}, {strategy!r})
print(json.dumps({{
    "toy": tokens(toy, {QUESTION!r}),
    "random": tokens(random_, {IDS}),
    "drawn": tokens(toy, {QUESTION!r}, temperature=1.0, seed=3),
}}))
"""
    first = {kind: tokens[:count] for kind, tokens in expected.items()}
    assert answers(world, code) == [first] * world.size


@pytest.mark.parametrize("strategy", ["tensor", "pipeline"])
def test_two_ranks_say_what_one_says(
    two: macluster.World, strategy: str, folder: Path, expected: dict[str, list[int]]
) -> None:
    assert len(expected["random"]) == LONG
    check_tokens(two, strategy, folder, expected)


def test_four_ranks_say_what_one_says(
    four: macluster.World, folder: Path, expected: dict[str, list[int]]
) -> None:
    # Few: on two busy cores one token of four ranks can take half a second.
    check_tokens(four, "tensor", folder, expected, count=6)


def test_prompts_of_every_kind_are_the_same_prompt(two: macluster.World) -> None:
    message = [{"role": "user", "content": QUESTION}]
    code = f"""
from macluster.engine.models.generate import generate
toy = macluster.load({str(tiny.toy_path())!r})
ids = toy.tokenizer.apply_chat_template({message}, add_generation_prompt=True)
prompts = [{QUESTION!r}, {message}, ids, mx.array(ids)]
print(json.dumps([generate(toy, prompt) for prompt in prompts]))
"""
    texts = answers(two, code)
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 1
    assert texts[0][0].startswith("1, 2, 3, 4")


def test_model_stays_loaded_between_cells(two: macluster.World) -> None:
    load = f"model = macluster.load({str(tiny.toy_path())!r})\nprint(json.dumps(id(model.model)))"
    first = answers(two, load)
    assert answers(two, "print(json.dumps(id(model.model)))") == first
    assert "over 2 ranks, rank 1 holds" in answers(two, "print(json.dumps(repr(model)))")[1]


# -- who holds what --------------------------------------------------------------------------------


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each parameter, from the file's table of contents."""
    with (folder / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    return {name: 4 * prod(entry["shape"]) for name, entry in header.items()}


def mapped(world: macluster.World, strategy: str) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of the map, equal on all ranks, and the bytes that each rank says it holds."""
    code = f"""
import attrs
model = macluster.load({str(tiny.toy_path())!r}, {strategy!r})
found = macluster.shards(model)
print(json.dumps([[attrs.asdict(row) for row in found.rows], found.totals(), found.whole_bytes,
                  model.nbytes, repr(found), found._repr_html_()]))
"""
    maps = answers(world, code)
    rows, totals, whole, _, text, html = maps[0]
    for other in maps:
        assert other[:3] + other[4:] == [rows, totals, whole, text, html]
    assert totals == [other[3] for other in maps]
    assert whole == sum(sizes(tiny.toy_path()).values())
    assert max(map(len, text.splitlines())) <= 100
    assert html.startswith("<table>")
    assert "self_attn: q_proj k_proj v_proj" in text
    assert "self_attn: q_proj k_proj v_proj" in html
    return rows, totals


def test_map_of_width_adds_up(four: macluster.World) -> None:
    rows, totals = mapped(four, "tensor")
    held: dict[str, list[int]] = defaultdict(list)
    kinds = {}
    for row in rows:
        held[row["parameter"]].append(row["bytes"])
        kinds[row["parameter"]] = (row["kind"], row["axis"])
    whole = sizes(tiny.toy_path())
    assert held.keys() == whole.keys()
    for name, parts in held.items():
        if kinds[name][0] == "split":
            assert sum(parts) == whole[name]
        else:
            assert parts == [whole[name]] * 4
    assert kinds["model.layers.2.self_attn.q_proj.weight"] == ("split", 0)
    assert kinds["model.layers.2.mlp.down_proj.weight"] == ("split", 1)
    assert kinds["model.embed_tokens.weight"] == ("replicated", None)
    assert totals == [sum(row["bytes"] for row in rows if row["rank"] == rank) for rank in range(4)]


def test_map_of_depth_has_each_layer_once(two: macluster.World) -> None:
    rows, totals = mapped(two, "pipeline")
    whole = sizes(tiny.toy_path())
    holders = defaultdict(set)
    for row in rows:
        assert row["kind"] in ("replicated", "absent")
        assert row["bytes"] == (whole[row["parameter"]] if row["kind"] == "replicated" else 0)
        if row["layer"] is not None and row["bytes"]:
            holders[row["layer"]].add(row["rank"])
    assert all(len(ranks) == 1 for ranks in holders.values())
    assert sorted(holders) == [0, 1, 2, 3]
    shared = sum(count for name, count in whole.items() if ".layers." not in name)
    assert sum(totals) == sum(whole.values()) + shared


def test_many_ranks_share_a_column() -> None:
    rows = [
        ShardRow(rank, layer, "mlp.up_proj", f"layers.{layer}.mlp.up_proj.weight", 2000, "split", 0)
        for rank in range(8)
        for layer in range(3)
    ]
    text = repr(ShardMap(tuple(rows), title="eight", size=8, whole_bytes=48000))
    assert text.splitlines()[-1].split() == ["total", "ranks", "0-7:", "6.0", "kB", "each"]
    assert "0-2 mlp.up_proj axis 0 ranks 0-7: 6.0 kB each" in " ".join(text.split())


# -- what goes wrong, goes wrong on all ranks ------------------------------------------------------


def test_missing_weight_is_named(two: macluster.World, folder: Path) -> None:
    text = fails(two, f"macluster.load({str(folder / 'missing')!r})")
    assert text.startswith("Missing weights: model.layers.1.mlp.up_proj.weight in ")
    assert "incomplete" in text


def test_failure_of_one_rank_reaches_all(two: macluster.World) -> None:
    toy = str(tiny.toy_path())
    text = fails(two, f"macluster.load({toy!r} if rank == 0 else '/no/such/folder')")
    assert text.startswith("Rank 1: /no/such/folder is not a folder")


def test_weights_that_break_while_they_are_read(two: macluster.World, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny.toy_path(), broken)
    # As if the file changed between the checks and the reading, on one host.
    code = f"""
from macluster.engine.models import load as loading
read = loading._read_weights
def breaks(loaded):
    if rank == 1:
        raise OSError("read error")
    read(loaded)
loading._read_weights = breaks
try:
    macluster.load({str(broken)!r})
finally:
    loading._read_weights = read
"""
    assert fails(two, code).startswith("Rank 1: OSError: read error")


def test_different_files_are_found(two: macluster.World, folder: Path, tmp_path: Path) -> None:
    toy, other = str(tiny.toy_path()), tmp_path / "other"
    shutil.copytree(toy, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    text = fails(two, f"macluster.load({toy!r} if rank == 0 else {str(other)!r})")
    assert text.startswith("Rank 1 has other files in ")
    assert "than rank 0: model.safetensors." in text


def test_heads_that_do_not_divide(four: macluster.World, folder: Path) -> None:
    odd = str(folder / "odd")
    text = fails(four, f"macluster.load({odd!r}, 'tensor')")
    assert text.startswith("The qwen2 model cannot be split by width over 4 ranks.")
    assert "4 does not divide its 2 key-value heads" in text
    assert 'use 2 ranks, or use strategy="pipeline"' in text
    loaded = f"model = macluster.load({odd!r})\nprint(json.dumps([model.strategy, model.reason]))"
    for strategy, reason in answers(four, loaded):
        assert strategy == "pipeline"
        assert "not tensor: 4 does not divide its 2 key-value heads" in reason


def test_unknown_strategy(two: macluster.World) -> None:
    assert "There is no strategy 'width'" in fails(two, "macluster.load('.', 'width')")


def test_strategy_that_the_model_lacks(two: macluster.World, folder: Path) -> None:
    llama = str(folder / "llama")
    text = fails(two, f"macluster.load({llama!r}, 'pipeline')")
    assert "mlx-lm has no pipeline() for llama" in text
    assert 'use strategy="tensor"' in text
    reasons = answers(two, f"print(json.dumps(macluster.load({llama!r}, 'auto').reason))")
    assert reasons == ["tensor, because mlx-lm has shard() for llama: all ranks work at once"] * 2


def test_ranks_must_ask_the_same(two: macluster.World) -> None:
    toy = str(tiny.toy_path())
    code = f"model = macluster.load({toy!r})\nnext(macluster.stream_generate(model, [5 + rank]))"
    assert "another prompt" in fails(two, code)


# -- collectives after a generation ----------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["tensor", "pipeline"])
def test_collectives_after_leaving_a_generation_early(
    two: macluster.World, strategy: str, folder: Path
) -> None:
    code = f"""
model = macluster.load({str(folder / "random")!r}, {strategy!r})
sums = []
for turn in range(10):
    for count, part in enumerate(macluster.stream_generate(model, {IDS}, max_tokens=-1)):
        if count == turn:
            break
    sums.append(mx.distributed.all_gather(mx.array([7.5 + rank + turn])).tolist())
# A generation that nobody closes, with its next token under way.
held = macluster.stream_generate(model, {IDS}, max_tokens=-1)
next(held)
sums.append(mx.distributed.all_gather(mx.array([7.5 + rank + 10])).tolist())
held.close()
sums.append(mx.distributed.all_gather(mx.array([7.5 + rank + 11])).tolist())
print(json.dumps(sums))
"""
    expected = [[7.5 + turn, 8.5 + turn] for turn in range(12)]
    assert answers(two, code) == [expected] * 2
