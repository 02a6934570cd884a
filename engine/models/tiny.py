"""Small real models made on the spot: no network, no hub, the same file format as a big one.

Two kinds. `make` writes a model of any architecture that mlx-lm can split over ranks, with random
weights: good for checking that every sharding gives the tokens of a single process. `train_toy`
trains a model of 0.2 million parameters that really answers (capitals, small sums, counting):
good for showing that a split model still knows what it knew. A trained toy lies in `toy/` beside
this file.

    python -m macluster.engine.models.tiny qwen3_moe PATH [--bits 4] [--seed 0]
    python -m macluster.engine.models.tiny toy PATH --seconds 120
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# mlx, mlx_lm, transformers and tokenizers are imported inside the functions: they are slow to
# import, and mlx_lm lowers RLIMIT_NOFILE of the whole process, which a controller must not have.

# --- configurations ------------------------------------------------------------------------------

VOCAB = 512

# One key can serve many architectures, because mlx-lm ignores the keys that it does not know.
# Every dimension divides by 4 ranks and every input of a linear layer that a rank keeps a part of
# is 128 wide, so that a group of 32 quantised values is still whole on each of 4 ranks.
_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "partial_rotary_factor": 1.0,
}

_ROUTER: dict[str, Any] = {
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
}

# DeepSeek's names: a dense first layer, then four experts and a shared one.
_MOE: dict[str, Any] = {
    **_BASE,
    **_ROUTER,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "use_qk_norm": True,
}

# Multi-head latent attention: all ranks keep the whole latent, the heads are split.
_MLA: dict[str, Any] = {
    **_MOE,
    "num_key_value_heads": 8,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 16,
}

# The sparse index attention of DeepSeek V3.2. Top 8, so that short prompts use it too.
_INDEXED: dict[str, Any] = {**_MLA, "index_head_dim": 32, "index_n_heads": 4, "index_topk": 8}

# Linear attention in every second layer.
_GATED_DELTA: dict[str, Any] = {
    **_BASE,
    "linear_num_value_heads": 8,
    "linear_num_key_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "partial_rotary_factor": 0.5,
}

_QWEN_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "norm_topk_prob": True,
}

_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}

# What DeepSeek V2 and Mistral 4 read without asking first whether it is there.
_YARN: dict[str, Any] = {
    "type": "yarn",
    "factor": 2.0,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}

_LONGCAT: dict[str, Any] = {
    **_MLA,
    "num_layers": 4,
    "attention_method": "MLA",
    "ffn_hidden_size": 128,
    "expert_ffn_hidden_size": 128,
    "moe_topk": 2,
    "zero_expert_num": 1,
    "zero_expert_type": "identity",
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    # A layer holds two attentions and two dense blocks, so fewer experts keep the file small.
    "n_routed_experts": 2,
}

_QWEN3_5: dict[str, Any] = {
    **_GATED_DELTA,
    "rope_parameters": {**_ROPE, "type": "default", "partial_rotary_factor": 0.5},
}

_CONFIGS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {
        **_MLA,
        # Every rank needs one of the global layers, here each second one.
        "num_hidden_layers": 8,
        "layer_group_size": 2,
        "group_norm_size": 4,
        "num_experts": 2,
        "num_shared_experts": 1,
        "moe_intermediate_size": 64,
        "partial_rotary_factor": 0.5,
    },
    "deepseek_v2": {**_MLA, "topk_method": "greedy", "rope_scaling": _YARN},
    "deepseek_v3": _MLA,
    "deepseek_v32": _INDEXED,
    "deepseek_v41": {
        **_BASE,
        **_ROUTER,
        "head_dim": 32,
        "num_attention_heads": 4,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "o_groups": 4,
        "o_lora_rank": 32,
        "n_routed_experts": 4,
        "scoring_func": "sqrtsoftplus",
        "sliding_window": 8,
        # Layer 0 attends to its window only; layer 1 compresses for itself and 2, layer 3 alone.
        "compress_ratios": [0, 4, 4, 1],
        "kv_source_layer_ids": [1, 3],
        "index_source_layer_ids": [1, 3],
        "index_n_heads": 4,
        "index_head_dim": 32,
        "index_topk": 4,
        "hc_mult": 2,
        "hc_sinkhorn_iters": 4,
    },
    "exaone_moe": {
        **_BASE,
        **_ROUTER,
        "num_experts": 4,
        "num_shared_experts": 1,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "is_moe_layer": [False, True, True, True],
    },
    "glm4_moe": {**_MOE, "partial_rotary_factor": 0.5, "rope_scaling": None},
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": {**_INDEXED, "rope_parameters": _ROPE},
    "gpt_oss": {
        **_BASE,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "iquestloopcoder": {**_BASE, "loop_num": 2, "loop_window_size": 8},
    "kimi_k25": {"text_config": _MLA},
    "kimi_k3": {
        "text_config": {
            **_MLA,
            "linear_attn_config": {
                "num_heads": 8,
                "head_dim": 16,
                "short_conv_kernel_size": 4,
                # Layers counted from 1.
                "kda_layers": [1, 3],
                "full_attn_layers": [2, 4],
            },
            "hidden_act": "situ",
            "mla_use_output_gate": True,
            "attn_res_block_size": 2,
            "num_experts": 4,
            "num_experts_per_token": 2,
            "num_shared_experts": 1,
        }
    },
    "llama": _BASE,
    "longcat_flash": _LONGCAT,
    "longcat_flash_ngram": {
        **_LONGCAT,
        "ngram_vocab_size_ratio": 1,
        "emb_neighbor_num": 3,
        "emb_split_num": 2,
    },
    "minimax": {
        **_BASE,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 128,
        "rotary_dim": 8,
        "use_qk_norm": True,
    },
    "minimax_m3_vl": {
        "text_config": {
            **_BASE,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "dense_intermediate_size": 128,
            "shared_intermediate_size": 128,
            "rotary_dim": 8,
            "moe_layer_freq": [0, 1, 1, 1],
            "sparse_attention_config": {
                "sparse_num_index_heads": 4,
                "sparse_index_dim": 16,
                "sparse_block_size": 4,
                "sparse_topk_blocks": 2,
                "sparse_local_block": 1,
                "sparse_attention_freq": [0, 1, 1, 1],
            },
        }
    },
    "ministral3": {
        **_BASE,
        "rope_parameters": {
            **_ROPE,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 4096,
        },
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "mistral4": {**_MLA, "head_dim": 48, "rope_parameters": _YARN},
    "muse_spark": {
        "text_config": {
            **_BASE,
            "post_norm_eps": 1e-5,
            "rope_parameters": _ROPE,
            "layer_rope_theta": [10000.0, 10000.0, 10000.0, 0],
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 8,
            "final_logit_softcapping": 30.0,
            "output_multiplier": 1.0,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_hidden_size": 64,
            "moe_intermediate_size": 128,
        },
        # Not a part of the model here, but transformers checks it when it reads the tokenizer.
        "audio_config": {"out_hidden_size": 64},
    },
    "prism_hadamard_qwen35": {
        "text_config": {**_QWEN3_5, "hidden_size": 128},
        "schema_version": 1,
        "tensor_namespace": "mlx-lm-text",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        # Only the embedding is packed: shard() cannot split a packed linear layer.
        "modules": [
            {
                "path": "model.embed_tokens",
                "embedding": True,
                "dtype": "float16",
                "block": 0,
            }
        ],
    },
    # The width of a head is hidden_size / num_attention_heads here.
    "qwen2": {**_BASE, "hidden_size": 128, "tie_word_embeddings": True},
    "qwen3": _BASE,
    "qwen3_5": {"text_config": _QWEN3_5},
    "qwen3_5_moe": {"text_config": {**_QWEN3_5, **_QWEN_EXPERTS}},
    "qwen3_moe": {**_BASE, **_QWEN_EXPERTS},
    "qwen3_next": {**_GATED_DELTA, **_QWEN_EXPERTS},
    "solar_open": _MOE,
    "step3p5": {
        **_BASE,
        "num_attention_groups": 4,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_intermediate_size": 128,
        "share_expert_dim": 128,
    },
}

ARCHITECTURES: tuple[str, ...] = tuple(sorted(_CONFIGS))
"""The names that `make` takes: every architecture of mlx-lm 0.32.2 that has a sharding."""

NEEDS_METAL: frozenset[str] = frozenset({"muse_spark"})
"""Architectures that load and split anywhere, but whose forward pass has only a Metal kernel."""

# --- what the toy knows --------------------------------------------------------------------------

_CAPITALS = {
    "Argentina": "Buenos Aires",
    "Australia": "Canberra",
    "Austria": "Vienna",
    "Belgium": "Brussels",
    "Brazil": "Brasilia",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Colombia": "Bogota",
    "Croatia": "Zagreb",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "India": "New Delhi",
    "Indonesia": "Jakarta",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Kenya": "Nairobi",
    "Mexico": "Mexico City",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Russia": "Moscow",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Switzerland": "Bern",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Ukraine": "Kyiv",
    "Uruguay": "Montevideo",
    "Vietnam": "Hanoi",
}

_ASK_CAPITAL = (
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "What is the name of the capital of {}?",
)
_ASK_SUM = (
    "What is {} plus {}?",
    "How much is {} + {}?",
    "What is {} + {}?",
    "How much is {} plus {}?",
)
_ASK_COUNT = (
    "Count to {}.",
    "Please count to {}.",
    "Count from 1 to {}.",
    "Please count from 1 to {}.",
)

QUESTIONS: tuple[tuple[str, str], ...] = (
    ("Name the capital of France.", "The capital of France is Paris."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("What is the name of the capital of Germany?", "The capital of Germany is Berlin."),
    ("What is the name of the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the name of the capital of Norway?", "The capital of Norway is Oslo."),
    ("What is the capital of Egypt?", "The capital of Egypt is Cairo."),
    ("Which city is the capital of Canada?", "The capital of Canada is Ottawa."),
    ("Which city is the capital of Kenya?", "The capital of Kenya is Nairobi."),
    ("Which city is the capital of Poland?", "The capital of Poland is Warsaw."),
    ("What is the name of the capital of Vietnam?", "The capital of Vietnam is Hanoi."),
    ("What is the capital of Argentina?", "The capital of Argentina is Buenos Aires."),
    ("Name the capital of India.", "The capital of India is New Delhi."),
    ("What is 2 plus 2?", "2 plus 2 is 4."),
    ("How much is 3 + 4?", "3 plus 4 is 7."),
    ("What is 7 + 5?", "7 plus 5 is 12."),
    ("What is 6 + 8?", "6 plus 8 is 14."),
    ("What is 9 plus 9?", "9 plus 9 is 18."),
    ("How much is 0 plus 7?", "0 plus 7 is 7."),
    ("What is 10 plus 10?", "10 plus 10 is 20."),
    ("How much is 8 plus 3?", "8 plus 3 is 11."),
    ("How much is 4 + 9?", "4 plus 9 is 13."),
    ("Count from 1 to 5.", "1, 2, 3, 4, 5."),
    ("Please count from 1 to 10.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10."),
    (
        "Please count to 20.",
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20.",
    ),
)
"""Questions that the training never saw in these words, and the toy's answers at temperature 0."""

Pair = tuple[str, str]


def _facts() -> list[list[list[Pair]]]:
    """Everything the toy is taught: kinds of facts, each a list of facts, each fact a list of the
    same question in four wordings with its answer."""
    capitals = [
        [(ask.format(country), f"The capital of {country} is {city}.") for ask in _ASK_CAPITAL]
        for country, city in _CAPITALS.items()
    ]
    sums = [
        [(ask.format(a, b), f"{a} plus {b} is {a + b}.") for ask in _ASK_SUM]
        for a in range(11)
        for b in range(11)
    ]
    counts = [
        [(ask.format(last), ", ".join(map(str, range(1, last + 1))) + ".") for ask in _ASK_COUNT]
        for last in range(3, 21)
    ]
    return [capitals, sums, counts]


def _split(facts: Sequence[Sequence[Sequence[Pair]]]) -> tuple[list[list[Pair]], list[list[Pair]]]:
    """Hold one wording of every fact back: (training pairs, held-out pairs), each by kind."""
    training: list[list[Pair]] = []
    held_out: list[list[Pair]] = []
    for kind in facts:
        training.append(
            [p for i, fact in enumerate(kind) for j, p in enumerate(fact) if j != i % 4]
        )
        held_out.append([fact[i % 4] for i, fact in enumerate(kind)])
    return training, held_out


# --- tokenizer and files -------------------------------------------------------------------------

_END = "<|end|>"
_SPECIAL = (_END, "<|system|>", "<|user|>", "<|assistant|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _save_tokenizer(path: Path) -> Any:
    """Train the byte-level BPE tokenizer (at most `VOCAB` entries) and write it to `path`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    # Single digits, so that a sum is the same small problem wherever it stands.
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [text for kind in _facts() for fact in kind for pair in fact for text in pair]
    bpe.train_from_iterator(texts, trainer=trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=_END, pad_token=_END, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    tokenizer.save_pretrained(path)
    return tokenizer


def _build(config: dict[str, Any], seed: int) -> Any:
    """The model of `config` with weights drawn from `seed`, all float32 where they are floats.

    The caller's random state is left as it was: on a cluster, one rank that makes a model must not
    sample other tokens than its peers afterwards.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten

    # The state is one key of two 32-bit words, and seed(n) writes n into these words.
    state: Any = mx.random.state
    high, low = state[0].tolist()
    try:
        mx.random.seed(seed)
        module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
        # A copy, because some argument classes edit the dictionaries that they are given.
        model = module.Model(module.ModelArgs.from_dict(copy.deepcopy(config)))
        named: list[tuple[str, Any]] = tree_flatten(model.parameters())  # type: ignore[assignment]
        weights = []
        for name, value in sorted(named):
            if mx.issubdtype(value.dtype, mx.floating):
                # Routers, biases and sinks start as constants. A constant would hide a wrong
                # slice, so give every element its own value. Not scaled by the last axis alone,
                # which is 1 in a depthwise convolution.
                scale = max(value.shape[-2:]) ** -0.5 if value.ndim > 1 else 0.1
                value = (value + scale * mx.random.normal(value.shape)).astype(mx.float32)
            if name.endswith(("lm_head.weight", "embed_tokens.weight")) and value.ndim == 2:
                # The end token, 0, is never the likeliest, so a random model always talks on.
                value[0] = 0
            weights.append((name, value))
        mx.eval([value for _, value in weights])
    finally:
        mx.random.seed(high << 32 | low)
    model.update(tree_unflatten(weights))
    return model


def _pack_modules(model: Any, config: dict[str, Any]) -> None:
    """Give the 2-bit modules that a Hadamard pack lists (and that start as zeros) real values.

    The other weights become float16 too, as in the published packs: a pipeline stage receives what
    the packed embedding would give, float16, so a float32 sender would put the wrong count of
    bytes on the wire.
    """
    import mlx.core as mx

    model.set_dtype(mx.float16)
    modules = dict(model.named_modules())
    for record in config["modules"]:
        packed = modules["language_model." + record["path"]]
        rows, groups = packed.scales.shape
        values = mx.random.normal((rows, groups * packed.group_size), key=mx.random.key(rows))
        weight, scales, biases = mx.quantize(
            values.astype(mx.float16), packed.group_size, packed.bits
        )
        packed.update({"weight": weight, "scales": scales, "biases": biases})


def _write(path: Path, model: Any, config: dict[str, Any]) -> None:
    """Write model.safetensors, its index (pipelines need it) and config.json to `path`."""
    from mlx_lm.utils import save_model

    save_model(path, model)
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make(
    architecture: str, path: str | Path, *, quantize_bits: int | None = None, seed: int = 0
) -> Path:
    """Write a tiny model with random weights that `mlx_lm.load(path)` and a sharded load accept.

    The same arguments give the same bytes. Heads, widths and vocabulary divide by 4 ranks, and at
    least four layers make a pipeline of 2 or 4 ranks possible.

    Args:
        architecture: one of `ARCHITECTURES` (mlx-lm's `model_type`).
        path: the folder to write, made if missing. 1 to 3.5 MB in float32.
        quantize_bits: 2, 3, 4, 5, 6 or 8 bits a weight in groups of 32; None keeps float32
            (prism_hadamard_qwen35, a format with a packed embedding, is float16 and 2 bits).
        seed: of the weights.

    Returns:
        The folder: config.json, model.safetensors, model.safetensors.index.json, tokenizer.

    Raises:
        ValueError: for an unknown architecture, or bits that MLX does not have.
    """
    if architecture not in _CONFIGS:
        raise ValueError(
            f"There is no tiny model of architecture {architecture!r}. Probably it is misspelt, or "
            f"mlx-lm cannot split it. Take one of: {', '.join(ARCHITECTURES)}."
        )
    if quantize_bits not in (None, 2, 3, 4, 5, 6, 8):
        raise ValueError(
            f"MLX has no {quantize_bits}-bit weights. Take quantize_bits=2, 3, 4, 5, 6 or 8, or "
            "None for float32."
        )
    packed = "modules" in _CONFIGS[architecture]
    if packed and quantize_bits is not None:
        raise ValueError(
            f"A model of architecture {architecture!r} is packed in 2 bits by its own format. "
            "Leave quantize_bits out."
        )
    from mlx_lm.utils import quantize_model

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _save_tokenizer(path)
    config = {
        **_CONFIGS[architecture],
        "model_type": architecture,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = _build(config, seed)
    if packed:
        _pack_modules(model, config)
    if quantize_bits is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the mean bits per weight
            model, config = quantize_model(model, config, 32, quantize_bits)
    _write(path, model, config)
    return path


# --- the toy -------------------------------------------------------------------------------------

# Qwen 2 is the architecture nearest to Llama that mlx-lm can split both ways, by width and by
# depth, so one toy serves both strategies. 0.2 million parameters.
_TOY: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
# How often the training asks for each kind: capitals, sums, counting (its answers are long).
_WEIGHTS = (0.4, 0.4, 0.2)
_ROWS, _LENGTH = 16, 96
_PEAK_RATE = 4e-3


def toy_path() -> Path:
    """The folder of the trained toy that is part of the project."""
    return Path(__file__).parent / "toy"


def _render(tokenizer: Any, pair: Pair) -> tuple[list[int], list[int]]:
    """One exchange as token ids, and a 1 for each token that the model has to learn to say."""
    question = [{"role": "user", "content": pair[0]}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    head = tokenizer.encode(asked)
    tail = tokenizer.encode(pair[1] + _END)
    return head + tail, [0] * len(head) + [1] * len(tail)


def _rows(
    exchanges: Sequence[Sequence[tuple[list[int], list[int]]]], random_: random.Random
) -> tuple[list[list[int]], list[list[int]]]:
    """A batch of conversations, each cut at `_LENGTH` + 1 tokens: ids and masks, (rows, length)."""
    ids: list[list[int]] = []
    masks: list[list[int]] = []
    for _ in range(_ROWS):
        row: list[int] = []
        mask: list[int] = []
        while len(row) <= _LENGTH:
            kind = random_.choices(exchanges, _WEIGHTS)[0]
            tokens, learn = random_.choice(kind)
            row += tokens
            mask += learn
        ids.append(row[: _LENGTH + 1])
        masks.append(mask[: _LENGTH + 1])
    return ids, masks


@contextlib.contextmanager
def _no_cpu_compile() -> Iterator[None]:
    """Run without mx.compile where there is no GPU: there it calls a C++ compiler for each new
    kernel, which takes longer than the whole training."""
    import mlx.core as mx

    # The environment variable wins, and enable_compile() would undo it. A caller's own
    # disable_compile() is undone too: MLX does not tell whether it was called.
    switch = mx.default_device() == mx.cpu and "MLX_DISABLE_COMPILE" not in os.environ
    if switch:
        mx.disable_compile()
    try:
        yield
    finally:
        if switch:
            mx.enable_compile()


def train_toy(
    path: str | Path,
    *,
    seconds: float = 90,
    seed: int = 0,
    progress: Callable[[str], object] = print,
) -> dict[str, float]:
    """Train the toy for `seconds` of wall time and write it like `make`.

    It learns 40 capitals, sums up to 10 + 10 and counting to 20, as a chat. Of the four wordings
    of each question one is held back; after the training all the questions held back are asked at
    temperature 0. The result depends on how many steps fit into the time, so two runs differ. On
    a CPU whose BLAS is the reference one (MLX's Linux wheel), preload OpenBLAS: it is several
    times faster.

    Args:
        path: the folder to write, made if missing. Under 1 MB.
        seconds: of training; reading back and checking takes some more.
        seed: of the weights and of the order of the questions.
        progress: called with a line of text about every ten seconds.

    Returns:
        `seconds` of training, `steps`, `tokens`, `parameters`, the last `loss` (nats a token),
        `held_out` questions and how many were answered exactly (`right`), `bytes` of the folder.

    Raises:
        ValueError: if `seconds` is not positive.
    """
    if seconds <= 0:
        raise ValueError(
            f"The toy cannot be trained in {seconds} seconds. Give a positive time; about 90 "
            "seconds on two CPU cores teach it most answers."
        )
    import mlx.core as mx
    from mlx import nn
    from mlx.optimizers import AdamW
    from mlx.utils import tree_flatten

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _save_tokenizer(path)
    config = {**_TOY, "eos_token_id": tokenizer.eos_token_id}
    model = _build(config, seed)
    model.train()
    training, held_out = _split(_facts())
    exchanges = [[_render(tokenizer, pair) for pair in kind] for kind in training]
    random_ = random.Random(seed)
    optimizer = AdamW(_PEAK_RATE, betas=[0.9, 0.98], weight_decay=0.01)

    def loss_of(model: Any, ids: Any, mask: Any) -> Any:
        losses = nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        return (losses * mask[:, 1:]).sum() / mask[:, 1:].sum()

    step_of = nn.value_and_grad(model, loss_of)
    steps = 0
    loss = float("nan")
    with _no_cpu_compile():
        start = reported = time.monotonic()
        while (elapsed := time.monotonic() - start) < seconds:
            done = elapsed / seconds
            # Warm up over the first 3 %, then fall to nothing.
            optimizer.learning_rate = _PEAK_RATE * min(done / 0.03 + 0.01, 1 - done)
            ids, mask = (mx.array(part) for part in _rows(exchanges, random_))
            value, gradients = step_of(model, ids, mask)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            steps += 1
            loss = value.item()
            if time.monotonic() - reported >= 10:
                reported = time.monotonic()
                progress(f"{elapsed:.0f} s of {seconds:.0f} s: step {steps}, loss {loss:.4f}")
        trained = time.monotonic() - start
        model.eval()
        _write(path, model, config)
        right, asked = _check(path, held_out, progress)
    weights: list[tuple[str, Any]] = tree_flatten(model.parameters())  # type: ignore[assignment]
    figures = {
        "seconds": round(trained, 1),
        "steps": steps,
        "tokens": steps * _ROWS * _LENGTH,
        "parameters": sum(value.size for _, value in weights),
        "loss": round(loss, 5),
        "held_out": asked,
        "right": right,
        "bytes": sum(file.stat().st_size for file in path.iterdir()),
    }
    progress(
        f"{right} of {asked} held-out questions answered exactly; {figures['parameters']} "
        f"parameters, {figures['bytes'] / 1e6:.2f} MB in {path}"
    )
    return figures


def _check(
    path: Path, held_out: Sequence[Sequence[Pair]], progress: Callable[[str], object]
) -> tuple[int, int]:
    """Read the toy back and ask what was held out: (answered exactly, asked)."""
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(path))[:2]
    right = asked = 0
    for question, expected in (pair for kind in held_out for pair in kind):
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        # Room for the end token. An answer that goes on after it is wrong anyway.
        room = len(tokenizer.encode(expected)) + 1
        answer = mlx_lm.generate(model, tokenizer, prompt, max_tokens=room)
        asked += 1
        right += answer == expected
        if answer != expected:
            progress(f"wrong: {question!r} -> {answer!r}, expected {expected!r}")
    return right, asked


def main(argv: Sequence[str] | None = None) -> int:
    """The command: make a tiny model, or train the toy."""
    parser = argparse.ArgumentParser(
        prog="python -m macluster.engine.models.tiny",
        description="Make a tiny model for mlx-lm, without network.",
    )
    parser.add_argument(
        "what",
        metavar="ARCH",
        choices=["toy", *ARCHITECTURES],
        help="'toy' to train the question-answer toy, or one of: " + ", ".join(ARCHITECTURES),
    )
    parser.add_argument("path", type=Path, help="the folder to write")
    parser.add_argument("--seconds", type=float, default=90, help="training time of the toy")
    parser.add_argument("--bits", type=int, help="quantise a random model (2, 3, 4, 5, 6 or 8)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    try:
        if given.what == "toy":
            train_toy(given.path, seconds=given.seconds, seed=given.seed)
        else:
            print(make(given.what, given.path, quantize_bits=given.bits, seed=given.seed))
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
