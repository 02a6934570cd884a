"""The tiny models and the trained toy: made without a network, read by mlx-lm, right answers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten

from macluster.engine.models import tiny

pytestmark = pytest.mark.filterwarnings("default::FutureWarning:transformers")


@pytest.fixture(autouse=True)
def no_compile() -> Iterator[None]:
    """On a CPU mx.compile calls a C++ compiler for seconds; none of these tests is about it.

    For each test again, because train_toy switches it on when it ends.
    """
    if "MLX_DISABLE_COMPILE" in os.environ:
        yield
        return
    mx.disable_compile()
    yield
    mx.enable_compile()


def load(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer and configuration, as a single process reads them."""
    loaded: Any = mlx_lm.load(str(path), return_config=True)
    model, tokenizer, config = loaded
    return model, tokenizer, config


def dtypes(model: Any) -> set[mx.Dtype]:
    named: Any = tree_flatten(model.parameters())
    return {value.dtype for _, value in named}


def strategies(model: Any) -> list[str]:
    """What mlx-lm's sharded_load would accept."""
    found = []
    if hasattr(model, "shard"):
        found.append("tensor")
    if hasattr(getattr(model, "model", None), "pipeline"):
        found.append("pipeline")
    return found


def tokens(model: Any, tokenizer: Any, count: int) -> list[int]:
    """The first tokens after a fixed prompt, at temperature 0."""
    replies = mlx_lm.stream_generate(model, tokenizer, "Count to 7.", max_tokens=count)
    return [reply.token for reply in replies]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- the toy


@pytest.fixture(scope="module")
def toy() -> tuple[Any, Any]:
    return load(tiny.toy_path())[:2]


def test_the_toy_is_small() -> None:
    assert sum(file.stat().st_size for file in tiny.toy_path().iterdir()) < 1_000_000


@pytest.mark.parametrize(("question", "expected"), tiny.QUESTIONS)
def test_the_toy_answers(toy: tuple[Any, Any], question: str, expected: str) -> None:
    model, tokenizer = toy
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert mlx_lm.generate(model, tokenizer, prompt, max_tokens=96) == expected


def test_the_toy_was_never_taught_these_wordings() -> None:
    training, held_out = tiny._split(tiny._facts())
    taught = {question for kind in training for question, _ in kind}
    assert len(tiny.QUESTIONS) >= 20
    assert not taught & {question for question, _ in tiny.QUESTIONS}
    assert {pair for kind in held_out for pair in kind} >= set(tiny.QUESTIONS)


def test_the_toy_keeps_up_a_conversation(toy: tuple[Any, Any]) -> None:
    model, tokenizer = toy
    messages = [
        {"role": "user", "content": "What is 2 plus 2?"},
        {"role": "assistant", "content": "2 plus 2 is 4."},
        {"role": "user", "content": "Name the capital of France."},
    ]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    answer = mlx_lm.generate(model, tokenizer, prompt, max_tokens=32)
    assert answer == "The capital of France is Paris."


def test_the_toy_splits_both_ways_over_four_ranks(toy: tuple[Any, Any]) -> None:
    model, _ = toy
    assert strategies(model) == ["tensor", "pipeline"]
    config = json.loads((tiny.toy_path() / "config.json").read_text())
    for name in ("num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size"):
        assert config[name] % 4 == 0, name
    assert config["vocab_size"] % 4 == 0
    assert config["num_hidden_layers"] >= 4
    assert dtypes(model) == {mx.float32}


def test_training_writes_a_toy_and_tells_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An untrained toy is asked here, so a few facts of each kind are enough.
    few = [kind[:4] for kind in tiny._facts()]
    monkeypatch.setattr(tiny, "_facts", lambda: few)
    lines: list[str] = []
    figures = tiny.train_toy(tmp_path / "toy", seconds=0.2, progress=lines.append)
    assert figures["steps"] >= 1
    assert figures["seconds"] >= 0.2
    assert figures["parameters"] == 197_952
    assert figures["held_out"] == 12
    assert 0 <= figures["right"] <= figures["held_out"]
    assert figures["bytes"] == sum(f.stat().st_size for f in (tmp_path / "toy").iterdir())
    assert "questions answered exactly" in lines[-1]
    assert set(contents(tmp_path / "toy")) == set(contents(tiny.toy_path()))


def test_training_needs_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Give a positive time"):
        tiny.train_toy(tmp_path, seconds=0)


# --- the random models


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_is_made_loaded_and_can_be_split(
    architecture: str, tmp_path: Path
) -> None:
    path = tiny.make(architecture, tmp_path / architecture)
    model, tokenizer, config = load(path)
    assert config["model_type"] == architecture
    assert strategies(model)
    assert len(model.layers) >= 4
    index = json.loads((path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {"model.safetensors"}
    assert 300_000 < (path / "model.safetensors").stat().st_size < 3_500_000
    if architecture in tiny.NEEDS_METAL and not mx.metal.is_available():
        return
    # Random weights never say the end token, so all of the tokens come.
    assert len(tokens(model, tokenizer, 4)) == 4


def test_there_are_experts_and_both_strategies() -> None:
    assert {"qwen3_moe", "deepseek_v3", "glm4_moe", "gpt_oss"} <= set(tiny.ARCHITECTURES)
    assert {"llama", "qwen2", "qwen3_next"} <= set(tiny.ARCHITECTURES)
    assert set(tiny.ARCHITECTURES) >= tiny.NEEDS_METAL


def test_no_architecture_of_mlx_lm_that_can_be_split_is_missing() -> None:
    folder = Path(mlx_lm.__file__).parent / "models"
    defined = {
        file.stem
        for file in folder.glob("*.py")
        if "class Model(" in (text := file.read_text())
        and ("    def shard(" in text or "PipelineMixin" in text)
    }
    assert defined <= set(tiny.ARCHITECTURES)


def test_made_models_are_float32(tmp_path: Path) -> None:
    model, _, _ = load(tiny.make("deepseek_v3", tmp_path))
    assert dtypes(model) == {mx.float32}


def test_no_weight_is_a_constant(tmp_path: Path) -> None:
    # A wrong slice of a constant looks right.
    weights = mx.load(str(tiny.make("gpt_oss", tmp_path) / "model.safetensors"))
    assert isinstance(weights, dict)
    assert [name for name, value in weights.items() if value.max() == value.min()] == []


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = contents(tiny.make("qwen3_moe", tmp_path / "first", seed=3))
    again = contents(tiny.make("qwen3_moe", tmp_path / "again", seed=3))
    other = contents(tiny.make("qwen3_moe", tmp_path / "other", seed=4))
    assert first == again
    assert first["tokenizer.json"] == other["tokenizer.json"]
    assert first["model.safetensors"] != other["model.safetensors"]


def test_making_leaves_the_random_state_alone(tmp_path: Path) -> None:
    mx.random.seed(2**40 + 7)
    expected = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(2**40 + 7)
    tiny.make("llama", tmp_path)
    assert mx.random.uniform(shape=(4,)).tolist() == expected


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe"])
def test_a_quantised_model_loads_and_talks(architecture: str, tmp_path: Path) -> None:
    full = tiny.make(architecture, tmp_path / "full")
    small = tiny.make(architecture, tmp_path / "small", quantize_bits=4)
    sizes = [(path / "model.safetensors").stat().st_size for path in (full, small)]
    assert sizes[1] < sizes[0] / 3
    model, tokenizer, config = load(small)
    assert config["quantization"]["bits"] == 4
    assert mx.uint32 in dtypes(model)
    assert len(tokens(model, tokenizer, 4)) == 4


def test_unknown_names_and_bits_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "none"
    with pytest.raises(ValueError, match=r"no tiny model of architecture 'gemma3'.*qwen3_moe"):
        tiny.make("gemma3", path)
    with pytest.raises(ValueError, match="MLX has no 7-bit weights"):
        tiny.make("llama", path, quantize_bits=7)
    with pytest.raises(ValueError, match="Leave quantize_bits out"):
        tiny.make("prism_hadamard_qwen35", path, quantize_bits=4)
    assert not path.exists()


# --- the command and the import


def test_the_command_makes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model"
    assert tiny.main(["llama", str(path), "--bits", "8", "--seed", "1"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert json.loads((path / "config.json").read_text())["quantization"]["bits"] == 8


def test_the_command_explains_a_wrong_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tiny.main(["llama", str(tmp_path), "--bits", "7"])
    assert "MLX has no 7-bit weights" in capsys.readouterr().err


def test_the_import_is_cheap() -> None:
    # mlx_lm lowers RLIMIT_NOFILE of the whole process, so importing the module must not load it.
    code = (
        "import sys, macluster.engine.models.tiny; "
        "print([m for m in ('mlx', 'mlx_lm', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
