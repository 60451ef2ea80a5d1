"""Qwen 3 with experts. transformers: models/qwen3_moe."""

from __future__ import annotations

from tmac.runtime.description import (
    ModelDescription,
    Sizes,
    attention,
    decoder,
    experts,
    gated_mlp,
    head_norms,
    llama_norms,
    sparse_layers,
)
from tmac.runtime.rope import rope
from tmac.runtime.settings import Settings

MODULES = {"mlp": ("gate_proj", "up_proj", "down_proj")}


def qwen3_moe(config: Settings) -> ModelDescription:
    """A Qwen 3 whose MLP is a choice of experts; a window, where there is one, holds for every layer."""
    sizes = Sizes.of(
        config, vocab=151936, hidden=2048, ffn=6144, layers=24, heads=32, key_heads=4, context=32768
    )  # fmt: skip
    count = config.size("num_experts" if config.has("num_experts") else "num_local_experts", 128)
    width = config.size("moe_intermediate_size", 768)
    dense = [*attention(sizes, config.flag("attention_bias", False)), *head_norms(sizes), *llama_norms(sizes)]
    chooses, sparse = sparse_layers(config, sizes, count), experts(sizes, count, width, MODULES)
    window = config.optional_size("sliding_window", 4096) if config.flag("use_sliding_window", False) else None
    return decoder(
        "qwen3_moe",
        config,
        sizes,
        lambda layer: [*dense, *(sparse if chooses[layer] else gated_mlp(sizes))],
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_act", "silu"),
        rope=[rope(config, sizes.head, sizes.context)],
        windows=[window or 0] * sizes.layers,
        num_experts=count,
        experts_per_token=config.size("num_experts_per_tok", 8, count + 1),
        normalize_experts=config.flag("norm_topk_prob", False),
        moe_intermediate_size=width,
        sparse_layers=chooses,
    )
