"""Loading: which way a model is split and why, what it needs, and that the paper was right."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import macluster
from macluster.engine.models import dry, splitting, tiny
from tests.cluster.faults import KILL, SUM, end_of
from tests.cluster.models import ENV, TIMEOUT, answers, fails, start

TOY = str(tiny.toy_path())
CONTEXT = 300  # tokens

# In a process of its own: mlx_lm lowers RLIMIT_NOFILE of its process for good. Makes a model of
# every architecture, divides it on paper in both ways, and trains an adapter for the toy.
ON_PAPER = """
import json, sys
from pathlib import Path
import mlx.core as mx, mlx_lm
from mlx_lm.tuner.utils import linear_to_lora_layers
from macluster.engine.errors import ModelError
from macluster.engine.models import dry, splitting, tiny

toy, folder, context = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
paper = {}
for name in tiny.ARCHITECTURES:
    tiny.make(name, folder / name)
    for strategy in ("tensor", "pipeline"):
        request = {"source": str(folder / name), "size": 2, "strategy": strategy, "layers": None,
                   "context": context, "budgets": None}
        try:
            paper[f"{name} {strategy}"] = dry.answer_request(request)
        except ModelError as error:
            paper[f"{name} {strategy}"] = {"error": str(error)}

adapter = folder / "adapter"
adapter.mkdir()
settings = {"rank": 4, "scale": 20.0, "dropout": 0.0}
(adapter / "adapter_config.json").write_text(json.dumps(
    {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": settings}))
model, _ = mlx_lm.load(str(toy))
linear_to_lora_layers(model, 4, settings)
mx.random.seed(1)
weights = {}
for name, module in model.named_modules():
    if "lora_b" in module:
        weights[name + ".lora_a"] = 0.3 * mx.random.normal(module.lora_a.shape)
        weights[name + ".lora_b"] = 0.3 * mx.random.normal(module.lora_b.shape)
mx.save_safetensors(str(adapter / "adapters.safetensors"), weights)

def tokens(**options):
    model, tokenizer = mlx_lm.load(str(toy), **options)
    parts = mlx_lm.stream_generate(model, tokenizer, [5, 99, 300, 42, 7], max_tokens=24)
    return [part.token for part in parts]

print(json.dumps([paper, tokens(), tokens(adapter_path=str(adapter))]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loading")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """What was found on paper, and what plain mlx_lm says without and with the adapter."""
    done = subprocess.run(
        [sys.executable, "-c", ON_PAPER, TOY, str(folder), str(CONTEXT)],
        env={**os.environ, **ENV},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def two(reference: object) -> Iterator[macluster.World]:
    yield from start(2)


# -- on paper, and live ----------------------------------------------------------------------------

LIVE = """
import attrs
from mlx_lm.models.cache import make_prompt_cache
from macluster.engine.models.trial import _nbytes
calls = []
def counted(function):
    def call(*args, **options):
        calls.append(function)
        return function(*args, **options)
    return call
loaded = macluster.load({path!r}, {strategy!r})
parts = [[row.parameter, row.bytes, row.kind, row.axis]
         for row in macluster.shards(loaded).rows if row.rank == rank]
held = started = None
if {runs}:
    cache = make_prompt_cache(loaded.model)
    # As mlx-lm does it: the last token by itself.
    mx.eval(loaded.model(mx.zeros((1, {context} - 1), mx.int32), cache=cache))
    mx.eval(loaded.model(mx.zeros((1, 1), mx.int32), cache=cache))
    held = sum(_nbytes(each) for each in cache)
    before = dict(vars(mx.distributed))
    for name in ("all_sum", "all_gather", "send"):
        setattr(mx.distributed, name, counted(before[name]))
    try:
        mx.eval(loaded.model(mx.zeros((1, 1), mx.int32), cache=cache))
    finally:
        for name in ("all_sum", "all_gather", "send"):
            setattr(mx.distributed, name, before[name])
    started = len(calls)
print(json.dumps([parts, held, started]))
"""


@pytest.mark.parametrize("strategy", ["tensor", "pipeline"])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_the_paper_is_right_to_the_byte(
    two: macluster.World, reference: Any, folder: Path, name: str, strategy: str
) -> None:
    paper, runs = reference[0][f"{name} {strategy}"], name not in tiny.NEEDS_METAL
    code = LIVE.format(path=str(folder / name), strategy=strategy, runs=runs, context=CONTEXT)
    if "error" in paper:
        if runs:
            assert f"cannot be split with strategy='{strategy}'" in paper["error"]
            assert f"cannot be split with strategy='{strategy}'" in fails(two, code)
        else:
            assert "cannot be tried out on this machine" in paper["error"]
            answers(two, code)
        return
    for rank, (parts, held, started) in enumerate(answers(two, code)):
        part = paper["ranks"][rank]
        assert parts == part["parts"]
        if runs:
            assert held == dry.read_cache(*part["cache"]).bytes(CONTEXT)
        assert [started, runs] == [len(part["wire"]), True]


def test_only_as_much_is_read_as_is_kept(two: macluster.World, folder: Path) -> None:
    code = f"""
import gc
loaded = None
gc.collect()
mx.clear_cache()
before = mx.get_active_memory()
mx.reset_peak_memory()
loaded = macluster.load({str(folder / "qwen3_moe")!r}, "tensor")
gc.collect()
kept = mx.get_active_memory() - before
from macluster.engine.models.folder import arrays
print(json.dumps([loaded.nbytes, len(arrays(loaded.model)), kept, mx.get_peak_memory() - before]))
"""
    for promised, count, kept, peak in answers(two, code):
        # MLX copies a part out of the whole only when that saves more than 16 KiB.
        assert promised <= kept <= promised + 16384 * count
        assert peak <= 1.3 * kept


# -- which way -------------------------------------------------------------------------------------


def with_memory(sizes: str, code: str) -> str:
    """A cell in whose loads the ranks have so many bytes of memory."""
    return f"""
from macluster.engine.models import load as loading
memory, loading.memory = loading.memory, lambda: (
    "", 2 * ({sizes})[rank], "the memory of a test")
try:
    {code}
finally:
    loading.memory = memory
"""


def layers(world: macluster.World) -> list[Any]:
    """(layers of each rank, strategy, reason), as each rank has it in `loaded`."""
    return answers(
        world,
        "print(json.dumps([[len(list(filter(None, loaded.model.layers))), "
        "loaded.strategy, loaded.reason]]))",
    )


def test_a_model_that_is_too_large_is_refused_before_it_is_read(two: macluster.World) -> None:
    text = fails(two, with_memory("[10**9, 10**5]", f"macluster.load({TOY!r}, 'tensor')"))
    assert text.startswith("The qwen2 model does not fit on rank 1 (tensor).")
    assert "its share of the memory of a test on" in text
    assert "is 100.0 kB" in text
    text = fails(two, with_memory("[10**5, 10**5]", f"macluster.load({TOY!r})"))
    assert text.startswith("The qwen2 model does not fit on rank 0 (pipeline).")
    assert "too small, too: rank 1" in text


def test_where_no_pipeline_can_run_none_is_chosen(two: macluster.World) -> None:
    # What MLX lacks on CUDA.
    code = """
from macluster.engine.models import load as loading
against, loading.against_pipelines = loading.against_pipelines, lambda: "MLX has no send()"
try:
    {}
finally:
    loading.against_pipelines = against
"""
    text = fails(two, code.format(f"macluster.load({TOY!r}, 'pipeline')"))
    assert text.startswith("A qwen2 model cannot be split by depth here.")
    assert "MLX has no send()" in text
    two.run(code.format(f"loaded = macluster.load({TOY!r})")).result(TIMEOUT)
    assert [each[0][1] for each in layers(two)] == ["tensor", "tensor"]


def test_unequal_memory_makes_unequal_parts(two: macluster.World) -> None:
    load = f"loaded = macluster.load({TOY!r}, context=64)"
    # Half of the toy with its cache needs some 600 kB; a rank with one layer fewer.
    two.run(with_memory("[500_000, 2_000_000]", load)).result(TIMEOUT)
    found = layers(two)
    assert [each[0][0] for each in found] == [1, 3]
    for [[_, strategy, reason]] in found:
        assert strategy == "pipeline"
        assert "not tensor: it needs" in reason
        assert "1, 3 layers, by the memory of each rank" in reason


def test_a_pipeline_is_cut_where_it_was_asked_for(two: macluster.World, reference: Any) -> None:
    load = f"loaded = macluster.load({TOY!r}, split=[3, 1])"
    tokens = (
        "print(json.dumps([part.token for part in macluster.stream_generate(loaded, "
        "[5, 99, 300, 42, 7], max_tokens=24)]))"
    )
    assert answers(two, f"{load}\n{tokens}") == [reference[1]] * 2
    assert [each[0][0] for each in layers(two)] == [3, 1]
    # A rank that is started anew gets the same part.
    end_of(two.run(f"import os, signal\nif rank == 1:\n    {KILL.code}\n{SUM}"))
    assert [each[0][0] for each in layers(two)] == [3, 1]
    assert answers(two, tokens) == [reference[1]] * 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("split=[4, 1]", "a sum of 4, the layers of the model"),
        ("split=[4]", "one number for each of the 2 ranks"),
        ("split=[4, 0]", "at least 1"),
        ("strategy='tensor', split=[2, 2]", 'it goes with strategy="pipeline"'),
    ],
)
def test_a_cut_that_does_not_fit_is_refused(two: macluster.World, options: str, why: str) -> None:
    text = fails(two, f"macluster.load({TOY!r}, {options})")
    assert "does not fit" in text
    assert why in text


# -- where from ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("{toy}, 'tensor' if rank else 'pipeline'", "strategy"),
        ("{toy}, context=100 + rank", "context"),
        ("{toy}, adapter={adapter} if rank else None", "adapter"),
    ],
)
def test_ranks_that_are_asked_for_different_things_are_stopped(
    two: macluster.World, folder: Path, call: str, what: str
) -> None:
    arguments = call.format(toy=repr(TOY), adapter=repr(str(folder / "adapter")))
    text = fails(two, f"macluster.load({arguments})")
    assert f"Rank 1 was asked to load something else than rank 0: another {what}." in text


def test_no_memory_at_all_is_an_answer() -> None:
    assert splitting.by_memory(10, [5] * 4, [100, 15]) == (3, 1)
    with pytest.raises(macluster.ModelError, match="does not fit on rank 1"):
        dry.dry_run(TOY, 2, "pipeline", budgets=[10**9, 0])


def test_each_host_may_have_another_path(two: macluster.World, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(TOY, other)
    paths = {0: TOY, "*": str(other)}
    code = f"print(json.dumps(macluster.load({paths!r}).size))"
    assert answers(two, code) == [2, 2]
    # A rank that is started anew finds its own, too.
    two.run(f"loaded = macluster.load({paths!r})").result(TIMEOUT)
    where = "print(json.dumps(str(loaded.path)))"
    before = answers(two, where)
    end_of(two.run(f"import os, signal\nif rank == 1:\n    {KILL.code}\n{SUM}"))
    assert answers(two, where) == before == [str(Path(TOY).resolve()), str(other)]
    text = fails(two, f"macluster.load({{0: {TOY!r}}})")
    assert "The paths name neither rank 1 nor its host" in text


@pytest.mark.parametrize("strategy", ["tensor", "pipeline"])
def test_an_adapter_is_fused_before_the_model_is_split(
    two: macluster.World, reference: Any, folder: Path, strategy: str
) -> None:
    _, plain, adapted = reference
    assert plain != adapted
    code = f"""
loaded = macluster.load({TOY!r}, {strategy!r}, adapter={str(folder / "adapter")!r})
print(json.dumps([part.token for part in macluster.stream_generate(
    loaded, [5, 99, 300, 42, 7], max_tokens=24)]))
"""
    assert answers(two, code) == [adapted] * 2


def test_an_adapter_that_is_not_there_or_does_not_fit_is_named(
    two: macluster.World, folder: Path, tmp_path: Path
) -> None:
    text = fails(two, f"macluster.load({TOY!r}, adapter={str(tmp_path)!r})")
    assert f"There is no adapter in {tmp_path}" in text
    other = str(folder / "llama")
    text = fails(two, f"macluster.load({other!r}, adapter={str(folder / 'adapter')!r})")
    assert "does not fit this model" in text
