"""Qwen 1.5 and 2 with experts. transformers: models/qwen2_moe."""

from __future__ import annotations

from tmac.runtime.description import (
    ModelDescription,
    Sizes,
    Weight,
    attention,
    decoder,
    experts,
    gated_mlp,
    llama_norms,
    sparse_layers,
)
from tmac.runtime.rope import rope
from tmac.runtime.settings import Settings

MODULES = {"mlp": ("gate_proj", "up_proj", "down_proj")}


def qwen2_moe(config: Settings) -> ModelDescription:
    """A Qwen 2 whose MLP is a choice of experts and one more for every token, weighed by a gate of its own."""
    sizes = Sizes.of(
        config, vocab=151936, hidden=2048, ffn=5632, layers=24, heads=16, key_heads=16, context=32768
    )  # fmt: skip
    count, width = config.size("num_experts", 60), config.size("moe_intermediate_size", 1408)
    shared = config.size("shared_expert_intermediate_size", 5632)
    dense = [*attention(sizes, config.flag("qkv_bias", True), out_bias=False), *llama_norms(sizes)]
    everywhere = gated_mlp(sizes, source="mlp.shared_expert", width=shared)
    sparse = [
        *experts(sizes, count, width, MODULES),
        *(Weight(f"shared.{each.name}", each.sources, each.shape) for each in everywhere),
        Weight("shared_gate", ("mlp.shared_expert_gate",), (1, sizes.hidden), exact=True),
    ]
    chooses = sparse_layers(config, sizes, count)
    return decoder(
        "qwen2_moe",
        config,
        sizes,
        lambda layer: [*dense, *(sparse if chooses[layer] else gated_mlp(sizes))],
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_act", "silu"),
        rope=[rope(config, sizes.head, sizes.context)],
        windows=_windows(config, sizes),
        num_experts=count,
        experts_per_token=config.size("num_experts_per_tok", 4, count + 1),
        normalize_experts=config.flag("norm_topk_prob", False),
        moe_intermediate_size=width,
        shared_intermediate_size=shared,
        sparse_layers=chooses,
    )


def _windows(config: Settings, sizes: Sizes) -> list[int]:
    """Unlike Qwen 2's: every other one of the first `max_window_layers`."""
    used = config.flag("use_sliding_window", False)
    window = config.optional_size("sliding_window", 4096) if used else None
    last = config.number("max_window_layers", 28)
    sliding = config.layer_types([used and layer % 2 == 0 and layer < last for layer in range(sizes.layers)])
    return config.windows(sliding, window)
