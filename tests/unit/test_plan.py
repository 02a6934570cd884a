"""Plans of real architectures: exact bytes, what fits, what would make it fit, and how it is shown.

mlx_lm lowers RLIMIT_NOFILE for good, so models are made and divided in processes of their own.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from macluster.engine.errors import ModelError, UsageError
from macluster.engine.models import dry
from macluster.engine.plan import model as models
from macluster.engine.plan import planner, speed
from macluster.engine.plan.hosts import Hosts, PlannedHost, parse
from macluster.engine.plan.planner import Plan, plan
from macluster.engine.plan.speed import Calibration, Work

MAKE = """
import sys
from macluster.engine.models.tiny import make
make("llama", sys.argv[1])
make("deepseek_v3", sys.argv[2], quantize_bits=4)
"""

# What `python -m macluster.engine.models.dry` does for one request, for one request a line.
DIVIDE = """
import io, sys
from macluster.engine.models import dry
lines, out = sys.stdin, sys.stdout
for line in lines:
    sys.stdin, sys.stdout = io.StringIO(line), out
    dry.main()
    out.flush()
"""

# Billions of parameters, in all and for a token, as the publishers count them. The output layer is
# part of what a token visits; the embedding is not. Multi-token prediction is not in mlx-lm.
PUBLISHED = {
    "DeepSeek-V3.1": (671, 37),
    "GLM-4.6": (355, 32),
    "GLM-5": (744, 40),
    "Kimi-K2-Instruct": (1026, 32),
    "Kimi-K2-Thinking": (1026, 32),
    "Llama-3.1-70B": (70.6, 69.5),
    "Llama-3.1-8B": (8.03, 7.5),
    "Qwen3-0.6B": (0.6, 0.6),
    "Qwen3-235B-A22B": (235, 22),
    "Qwen3-4B": (4.0, 4.0),
    "Qwen3.5-122B-A10B": (122, 10),
    "Qwen3.6-27B": (27, 27),
    "gpt-oss-120b": (117, 5.1),
}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """All dry runs in one process, in place of one each: importing MLX takes longer than they do.

    The first is left as it is.
    """
    run, lock, first = subprocess.run, threading.Lock(), [True]
    with subprocess.Popen(
        [sys.executable, "-c", DIVIDE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def divide(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
            if first:
                first.clear()
                return run(command, **options)
            assert process.stdin is not None
            assert process.stdout is not None
            with lock:
                process.stdin.write(options["input"] + "\n")
                process.stdin.flush()
                return subprocess.CompletedProcess(command, 0, process.stdout.readline(), "")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dry, "subprocess", SimpleNamespace(run=divide))
            yield
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / name for name in ("llama", "deepseek_v3")}
    subprocess.run([sys.executable, "-c", MAKE, *map(str, paths.values())], check=True, timeout=120)
    return paths


@pytest.fixture(scope="module")
def config(tiny: dict[str, Path]) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((tiny["llama"] / "config.json").read_text())
    return loaded


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each parameter, from the table of contents of the weights."""
    with (folder / "model.safetensors").open("rb") as file:
        contents = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    contents.pop("__metadata__", None)
    spans = {name: entry["data_offsets"] for name, entry in contents.items()}
    return {name: end - begin for name, (begin, end) in spans.items()}


def on(*memory: int) -> Hosts:
    """Ranks whose GPU may use exactly so many bytes."""
    return Hosts(tuple(PlannedHost("a host", each, share=1.0) for each in memory))


# -- bytes -----------------------------------------------------------------------------------------


def test_bytes_of_a_llama_are_those_of_its_files(tiny: dict[str, Path]) -> None:
    made = plan(tiny["llama"], 2, strategy="tensor", context=300, prompt=10)
    files = sizes(tiny["llama"])
    split = {n: size for n, size in files.items() if ".self_attn." in n or ".mlp." in n}
    for rank in made.options[0].ranks:
        assert rank.weights == sum(files.values()) - sum(split.values()) // 2
        # Keys and values of 2 of 4 heads of 16 floats, in 4 layers, for two blocks of 256 tokens.
        assert rank.cache == 2 * 2 * 16 * 4 * 4 * 512
    assert made.model_bytes == sum(files.values())
    assert made.fits
    assert made.best.terms is None


def test_bytes_of_a_quantised_mixture_of_experts_are_those_of_its_files(
    tiny: dict[str, Path],
) -> None:
    made = plan(tiny["deepseek_v3"], 4, strategy="tensor", context=300, prompt=10)
    files = sizes(tiny["deepseek_v3"])
    # Copied: norms, the latent projections, routers. The low-rank halves of attention are whole.
    copied = ("norm", "q_a_", "kv_a_", "mlp.gate.", "embed_tokens", "lm_head")
    whole = sum(size for name, size in files.items() if any(word in name for word in copied))
    assert made.options[0].ranks[3].weights == whole + (sum(files.values()) - whole) // 4
    assert made.model == "deepseek_v3 4-bit"


def test_a_sliding_window_does_not_grow_on() -> None:
    # Half of the layers of gpt-oss see 128 tokens, of 8 heads of 64 keys and values in two bytes.
    run = models.find("gpt-oss-120b").run(1, "tensor")
    each = 2 * 8 * 64 * 2
    for tokens in (4096, 8192):
        assert run.ranks[0].cache.bytes(tokens) == 18 * each * (tokens + 128)


# -- fitting ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def need(config: dict[str, Any]) -> int:
    """What one rank needs for the whole model with 8192 tokens."""
    return plan(config, on(1 << 40)).best.ranks[0].need


def test_a_model_fits_to_the_byte(config: dict[str, Any], need: int) -> None:
    enough = plan(config, on(need))
    assert enough.fits
    assert enough.best.ranks[0].headroom == 0
    short = plan(config, on(need - 1))
    assert short.fits is False
    assert short.best.ranks[0].headroom == -1


def test_the_limit_is_a_part_of_the_memory(config: dict[str, Any], need: int) -> None:
    hosts = Hosts((PlannedHost("a host", 2 * need),))
    assert plan(config, hosts, gpu_share=0.5).fits
    assert not plan(config, hosts, gpu_share=0.49).fits


def test_more_bits_and_more_context_are_more_bytes(config: dict[str, Any], need: int) -> None:
    weights = []
    for bits in (4, 8):
        small = {**config, "quantization": {"group_size": 32, "bits": bits}}
        weights.append(plan(small, on(need)).best.ranks[0].weights)
    weights.append(plan(config, on(need)).best.ranks[0].weights)
    assert weights == sorted(weights)
    assert len(set(weights)) == len(weights)
    caches = [plan(config, on(need), context=n).best.ranks[0].cache for n in (512, 1024, 8192)]
    assert caches == sorted(caches)


def changed(made: Plan) -> Plan:
    """The plan after the change that it proposes."""
    assert not made.fits
    assert made.best.change is not None
    assert made.best.change.text in " ".join(repr(made).split())
    return plan(**made.best.change.arguments)


def test_first_the_limit_is_raised(config: dict[str, Any], need: int) -> None:
    hosts = Hosts((PlannedHost("a host", int(need / 0.8)),))
    made = plan(config, hosts)
    assert made.best.change is not None
    assert made.best.change.kind == "limit"
    assert "sudo sysctl iogpu.wired_limit_mb=" in made.best.change.text
    after = changed(made)
    assert after.fits
    assert after.gpu_share <= planner.MOST_SHARE


def test_then_the_context_is_shortened(config: dict[str, Any], need: int) -> None:
    made = plan(config, on(need - 1))
    assert made.best.change is not None
    assert made.best.change.kind == "context"
    after = changed(made)
    assert after.fits
    # The longest that fits.
    assert after.context == 8192 - 256
    assert not plan(config, on(need - 1), context=after.context + 1).fits


def test_then_there_are_fewer_bits(config: dict[str, Any], need: int) -> None:
    eight = {**config, "quantization": {"group_size": 64, "bits": 8}}
    arguments: dict[str, Any] = {"context": 1024, "prompt": 16}
    room = plan(eight, on(need), **arguments).best.ranks[0].need
    made = plan(config, on(room), **arguments)
    assert made.best.change is not None
    assert (made.best.change.kind, made.best.change.text) == ("bits", "8 bits a weight")
    assert changed(made).fits


def test_then_there_are_more_hosts(config: dict[str, Any]) -> None:
    two_bits = {**config, "quantization": {"group_size": 32, "bits": 2}}
    arguments: dict[str, Any] = {"context": 1024, "prompt": 16, "strategy": "tensor"}
    half = plan(two_bits, on(1 << 40, 1 << 40), **arguments).best.ranks[0].need
    made = plan(two_bits, on(half), **arguments)
    assert made.best.change is not None
    assert made.best.change.kind == "hosts"
    after = changed(made)
    assert after.fits
    assert len(after.hosts) == 2
    hopeless = plan(two_bits, on(1000), **arguments)
    assert hopeless.best.change is None
    assert "No single change is enough" in repr(hopeless)


# -- speeds ----------------------------------------------------------------------------------------


def test_a_plan_of_macs_is_shown_and_compared(config: dict[str, Any]) -> None:
    made = plan(config, "2 x M3 Ultra 96GB, mesh", context=1024, prompt=16)
    # mlx-lm has no pipeline() for llama; the other way still is an answer.
    tensor, pipeline = made.options
    assert made.best is tensor
    assert pipeline.why_not is not None
    assert tensor.tokens_per_second is not None
    assert tensor.first_token is not None
    text = repr(made)
    for said in (
        "predicted tokens/s",
        "predicted first token",
        "Predicted, not measured",
        "MLX_METAL_FAST_SYNCH=1",
        "mlx-lm has no pipeline() for llama",
    ):
        assert said in " ".join(text.split())
        assert said in made._repr_html_()
    assert max(map(len, text.splitlines())) <= planner.WIDTH
    rate = tensor.tokens_per_second
    compared = made.compare(rate.value / 2, measured_first_token=tensor.first_token.value)
    assert [round(row.error) for row in compared.rows] == [100, 0]
    assert [row.inside for row in compared.rows] == [rate.low <= rate.value / 2, True]
    assert "+100 %" in repr(compared)
    assert "+100 %" in compared._repr_html_()
    for arguments in ({}, {"measured_tokens_per_second": 0.0}, {"strategy": "pipeline"}):
        with pytest.raises(UsageError):
            made.compare(**arguments)  # type: ignore[arg-type]


def test_a_measurement_of_one_rank_calibrates_the_plan(config: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"context": 2, "prompt": 1}
    for hosts in ("M4 16GB", on(1 << 40)):
        made = plan(config, hosts, calibration=Calibration(tokens_per_second=123.0), **arguments)
        assert made.best.tokens_per_second is not None
        assert made.best.tokens_per_second.value == pytest.approx(123.0, rel=0.01)
        assert "with measured tokens per second" in repr(made)


def test_an_unknown_host_gets_its_bytes_and_no_more(config: dict[str, Any]) -> None:
    made = plan(config, Hosts((PlannedHost("mac-0"),)), context=1024, prompt=16)
    assert made.fits is None
    assert made.best.tokens_per_second is None
    assert made.best.ranks[0].weights > 0
    assert "unknown" in repr(made)
    with pytest.raises(UsageError, match="cannot be compared"):
        made.compare(1.0)


# -- the catalogue ---------------------------------------------------------------------------------


def test_every_model_of_the_catalogue_is_divided() -> None:
    assert set(models.catalogue()) == set(PUBLISHED)
    for name, (total, active) in PUBLISHED.items():
        whole = models.find(f"{name} bf16")
        run = whole.run(1, "tensor")
        assert run.parameters / 1e9 == pytest.approx(total, rel=0.02), name
        assert whole.active_parameters() / 1e9 == pytest.approx(active, rel=0.12), name


@pytest.mark.parametrize(("name", "published"), [("Kimi-K2-Thinking", 658), ("gpt-oss-120b", 65)])
def test_native_weights_have_their_published_size(name: str, published: int) -> None:
    """In GB; only the experts are quantised."""
    run = models.find(name).run(1, "tensor")
    assert run.shards.whole_bytes / 1e9 == pytest.approx(published, abs=1)


@pytest.mark.parametrize(
    ("text", "name", "bits"),
    [
        ("DeepSeek-V3.1 8-bit", "DeepSeek-V3.1 8-bit", 8),
        ("deepseek-ai/DeepSeek-V3.1-4bit", "DeepSeek-V3.1 4-bit", 4),
        ("Qwen3-235B 4-bit", "Qwen3-235B 4-bit", 4),
        ("qwen3 0.6b", "Qwen3-0.6B bf16", 16),
        ("GLM-5 mxfp8", "GLM-5 mxfp8", 8),
        ("Llama-3.1-8B bf16", "Llama-3.1-8B bf16", 16),
        ("Kimi-K2.6", "Kimi-K2.6 4-bit experts", 4),
        ("gpt-oss-120b bf16", "gpt-oss-120b bf16", 16),
    ],
)
def test_a_name_may_carry_the_precision(text: str, name: str, bits: int) -> None:
    found = models.find(text)
    assert (found.name, found.bits) == (name, bits)
    fewer = found.with_bits(3)
    assert fewer.bits == 3
    assert fewer.name.endswith(" 3-bit")
    assert fewer.name.count("bit") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Qwen3-253B", "did you mean Qwen3-235B"),
        ("DeepSeek-V3.1 7-bit", "MLX has no 7-bit weights"),
        ("no such model at all, ever", "the catalogue has DeepSeek-V3.1"),
    ],
)
def test_a_model_that_is_not_there_is_explained(text: str, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        plan(text, 1)
    assert said in str(caught.value)
    assert caught.value.do


def test_a_folder_without_configuration_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no configuration of a model"):
        plan(tmp_path, 1)
    (tmp_path / "config.json").write_text('{"model_type": "no_such_architecture"}')
    with pytest.raises(ModelError, match="no_such_architecture"):
        plan(tmp_path, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"strategy": "data"},
        {"context": 0},
        {"prompt": 0},
        {"prompt": 9000},
        {"gpu_share": 0.0},
        {"gpu_share": 75},
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        plan("Qwen3-0.6B", 1, **wrong)
    assert caught.value.do


# -- published figures -----------------------------------------------------------------------------


def test_published_figures_are_within_the_promised_band() -> None:
    """Single Macs, one of each kind; bench/planner.py has all figures."""
    figures = [
        ("Llama-3.1-70B bf16", "M2 Ultra 192GB", 4.7, 0.15),  # mlx-examples#1069
        ("Llama-3.1-8B 4-bit", "M3 Ultra 256GB", 119.4, 0.15),  # Rapid-MLX#586
        ("Qwen3-235B 8-bit", "M3 Ultra 512GB", 19.5, 0.30),  # exo, Geerling 2025-12
    ]
    for model, hosts, published, allowed in figures:
        run = models.find(model).run(1, "tensor")
        terms = speed.token(Work(run, parse(hosts)), 512, speed.EXPECTED)
        assert terms is not None
        assert 1 / terms.total == pytest.approx(published, rel=allowed), model


def test_calibration_lists_what_can_be_measured() -> None:
    assert all(value is None for value in attrs.asdict(Calibration()).values())
