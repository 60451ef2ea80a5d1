"""Tiny models of every family, and the deterministic weights that their GGUF files were made of."""

from __future__ import annotations

import zlib

import numpy as np
import transformers

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FACTORS = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.25],
    "long_factor": [2.0, 16.5],
    "original_max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128}


def _config(name, **changes):
    return getattr(transformers, f"{name}Config")(**{**SIZES, **changes})


def _gemma(name, **changes):
    return _config(name, head_dim=16, **changes)


def configs():
    """File name -> configuration."""
    experts = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    neox = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    linear = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
    return {
        "llama": _config("Llama", rms_norm_eps=1e-5),
        "llama_tied": _config("Llama", tie_word_embeddings=True, num_hidden_layers=1),
        "llama_bias": _config("Llama", attention_bias=True, mlp_bias=True, num_hidden_layers=1),
        "llama_rope": _config("Llama", rope_parameters=LLAMA3, head_dim=32, num_hidden_layers=1),
        "llama_rope_unknown": _config("Llama", rope_parameters={**LLAMA3, "high_freq_factor": 3.0}, head_dim=32),
        "mistral": _config("Mistral", head_dim=16, sliding_window=None),
        "mixtral": _config("Mixtral", num_local_experts=3, sliding_window=None),
        "qwen2": _config("Qwen2"),
        "qwen2_yarn": _config("Qwen2", rope_parameters=YARN, num_hidden_layers=1),
        "qwen3": _config("Qwen3", head_dim=16, tie_word_embeddings=True),
        "qwen2_moe": _config("Qwen2Moe", shared_expert_intermediate_size=96, **experts),
        "qwen3_moe": _config("Qwen3Moe", head_dim=16, norm_topk_prob=True, **experts),
        "gemma": _gemma("Gemma"),
        "gemma2": _gemma("Gemma2", query_pre_attn_scalar=16, sliding_window=128),
        "gemma3": _gemma("Gemma3Text", query_pre_attn_scalar=16, sliding_window=128, num_hidden_layers=7),
        "gemma3_linear": _gemma("Gemma3Text", query_pre_attn_scalar=16, rope_parameters=linear, num_hidden_layers=1),
        "phi3": _config("Phi3", original_max_position_embeddings=512),
        "phi3_long": _config("Phi3", rope_parameters=FACTORS, original_max_position_embeddings=128, sliding_window=64),
        "gpt_neox": transformers.GPTNeoXConfig(**neox, rotary_pct=0.5),
        "bitnet": _config("BitNet", hidden_act="silu", tie_word_embeddings=True),
    }


def weight(name, shape):
    """Any tensor: multiples of 1/256, so that adding 1 to a norm rounds nothing."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return (rng.integers(-300, 300, shape) / 256).astype(np.float32)
