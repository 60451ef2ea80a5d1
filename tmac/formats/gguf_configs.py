"""What `config.json` says of each family, as transformers 5 writes it, from the metadata of a GGUF file.

Every function raises FormatError for numbers that are missing or cannot be. What only a configuration knows of the
sizes of tensors is added to `model.sizes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tmac.formats.gguf_family import Model
from tmac.formats.gguf_rope import llama_rope, longrope, rope_parameters


def _sizes(model: Model) -> dict[str, Any]:
    """The keys that all families share."""
    sizes = model.sizes
    return {
        "vocab_size": sizes["vocab"],
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["ffn"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "max_position_embeddings": model.positive("context_length"),
    }


def _base_config(model: Model) -> dict[str, Any]:
    """The keys that most families share."""
    return {
        **_sizes(model),
        "num_key_value_heads": model.sizes["key_heads"],
        "rms_norm_eps": model.number("attention.layer_norm_rms_epsilon"),
    }


def llama(model: Model) -> dict[str, Any]:
    """Llama, SmolLM2, Mistral."""
    rotary = model.positive("rope.dimension_count", model.sizes["head"])
    if rotary != model.sizes["head"]:
        raise model.error("rope.dimension_count", f"expected {model.sizes['head']}, the size of a head, found {rotary}")
    return {
        **_base_config(model),
        "head_dim": model.sizes["head"],
        "hidden_act": "silu",
        "rope_parameters": llama_rope(model),
        "attention_bias": "blk.0.attn_q.bias" in model.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in model.tensors,
    }


def mixtral(model: Model) -> dict[str, Any]:
    """Mixtral."""
    config = llama(model)
    del config["attention_bias"], config["mlp_bias"]
    if model.sizes["q"] == model.sizes["hidden"]:
        del config["head_dim"]
    return {
        **config,
        "sliding_window": None,
        "num_local_experts": model.sizes["experts"],
        "num_experts_per_tok": model.positive("expert_used_count"),
    }


def qwen2(model: Model) -> dict[str, Any]:
    """Qwen 2 and 2.5."""
    return {**_base_config(model), "hidden_act": "silu", "rope_parameters": rope_parameters(model)}


def qwen3(model: Model) -> dict[str, Any]:
    """Qwen 3."""
    bias = "blk.0.attn_q.bias" in model.tensors
    return {**qwen2(model), "head_dim": model.sizes["head"], "attention_bias": bias}


def _expert_config(model: Model) -> dict[str, Any]:
    if not model.sizes["experts"]:
        raise model.error("expert_count", "expected a positive number, found none")
    size = model.positive("expert_feed_forward_length", _rows(model, "blk.0.ffn_up_exps.weight"))
    model.sizes["expert_ffn"] = size
    return {
        "moe_intermediate_size": size,
        "num_experts": model.sizes["experts"],
        "num_experts_per_tok": model.positive("expert_used_count"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _rows(model: Model, name: str) -> int:
    return model.tensors.find(name)[1].shape[-2:][0]


def qwen2_moe(model: Model) -> dict[str, Any]:
    """Qwen 1.5 and 2 with experts and one shared by all tokens."""
    size = model.positive("expert_shared_feed_forward_length", _rows(model, "blk.0.ffn_up_shexp.weight"))
    model.sizes["shared_ffn"] = size
    return {
        **qwen2(model),
        **_expert_config(model),
        "shared_expert_intermediate_size": size,
        "norm_topk_prob": False,
    }


def qwen3_moe(model: Model) -> dict[str, Any]:
    """Qwen 3 with experts."""
    # The file does not say it; llama.cpp always normalizes (llama-model.cpp, build_moe_ffn), as released models do.
    return {**qwen3(model), **_expert_config(model), "norm_topk_prob": True}


def gemma(model: Model) -> dict[str, Any]:
    """Gemma."""
    return {
        **_base_config(model),
        "head_dim": model.sizes["head"],
        "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": rope_parameters(model),
    }


def gemma2(model: Model) -> dict[str, Any]:
    """Gemma 2."""
    config = gemma(model)
    config["hidden_activation"] = config.pop("hidden_act")
    layers = model.sizes["layers"]
    return {
        **config,
        "query_pre_attn_scalar": _query_scale(model, 46),
        "sliding_window": model.positive("attention.sliding_window", 4096),
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)],
        "attn_logit_softcapping": model.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": model.number("final_logit_softcapping", 30.0),
    }


def _query_scale(model: Model, layers: int) -> int:
    """The square root of this divides the products; the largest model, known by its layers, differs (llama.cpp)."""
    sizes = model.sizes
    return sizes["hidden"] // sizes["heads"] if sizes["layers"] == layers else sizes["head"]


def gemma3(model: Model) -> dict[str, Any]:
    """The text part of Gemma 3."""
    config = gemma(model)
    config["hidden_activation"] = config.pop("hidden_act")
    local = {"rope_type": "default", "rope_theta": model.number("rope.freq_base_swa", 10000.0)}
    layers, every = model.sizes["layers"], 6 if model.has("attention.sliding_window") else 1
    return {
        **config,
        "rope_parameters": {"full_attention": rope_parameters(model, 1e6), "sliding_attention": local},
        "query_pre_attn_scalar": _query_scale(model, 62),
        "sliding_window": model.positive("attention.sliding_window", 4096),
        "layer_types": ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)],
        "final_logit_softcapping": (
            model.number("final_logit_softcapping") if model.has("final_logit_softcapping") else None
        ),
        "attn_logit_softcapping": None,
    }


def phi3(model: Model) -> dict[str, Any]:
    """Phi-3 and Phi-4."""
    rotary = model.positive("rope.dimension_count", model.sizes["head"])
    if rotary > model.sizes["head"] or rotary % 2:
        raise model.error(
            "rope.dimension_count", f"expected an even number up to {model.sizes['head']}, found {rotary}"
        )
    config = _base_config(model)
    return {
        **config,
        "hidden_act": "silu",
        "rope_parameters": longrope(model, rotary),
        "original_max_position_embeddings": model.positive(
            "rope.scaling.original_context_length", config["max_position_embeddings"]
        ),
        "sliding_window": model.file.get(model.key("attention.sliding_window"), int, 0) or None,
    }


def gpt_neox(model: Model) -> dict[str, Any]:
    """GPT-NeoX, Pythia."""
    config = _base_config_neox(model)
    rotary = model.positive("rope.dimension_count", model.sizes["head"])
    rope = rope_parameters(model)
    return {
        **config,
        "hidden_act": "gelu",
        "rope_parameters": {**rope, "partial_rotary_factor": rotary / model.sizes["head"]},
        "use_parallel_residual": model.file.get(model.key("use_parallel_residual"), bool, True),
        "attention_bias": "blk.0.attn_qkv.bias" in model.tensors,
    }


def _base_config_neox(model: Model) -> dict[str, Any]:
    """As `base_config`, for layer norms and no groups of heads."""
    sizes = model.sizes
    if sizes["heads"] != sizes["key_heads"]:
        raise model.error("attention.head_count_kv", f"expected {sizes['heads']}, found {sizes['key_heads']}")
    return {**_sizes(model), "layer_norm_eps": model.number("attention.layer_norm_epsilon")}


def bitnet(activation: str) -> Callable[[Model], dict[str, Any]]:
    """BitNet; its first models used another activation than those of 2025."""

    def config(model: Model) -> dict[str, Any]:
        return {
            **_base_config(model),
            "hidden_act": activation,
            "rope_parameters": rope_parameters(model),
            "attention_bias": False,
        }

    return config
