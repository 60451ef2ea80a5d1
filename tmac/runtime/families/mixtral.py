"""Mixtral. transformers: models/mixtral."""

from __future__ import annotations

from tmac.runtime.description import (
    ModelDescription,
    Sizes,
    attention,
    check_experts,
    decoder,
    experts,
    llama_norms,
)
from tmac.runtime.rope import rope
from tmac.runtime.settings import Settings

# Names of transformers 5, and those of the files on the hub.
MODULES = {"mlp": ("gate_proj", "up_proj", "down_proj"), "block_sparse_moe": ("w1", "w3", "w2")}


def mixtral(config: Settings) -> ModelDescription:
    """A Mistral whose MLP is a choice of experts; the weights of the chosen ones are made to sum to one."""
    sizes = Sizes.of(
        config, vocab=32000, hidden=4096, ffn=14336, layers=32, heads=32, key_heads=8, context=131072
    )  # fmt: skip
    config.refuse("attention_bias", False, "Mixtral's attention has no biases")
    key = "num_local_experts" if config.has("num_local_experts") else "num_experts"
    count = config.size(key, 8)
    chosen = config.size("num_experts_per_tok", 2, count + 1)
    check_experts(config, key, sizes, count)
    block = [*attention(sizes), *llama_norms(sizes), *experts(sizes, count, sizes.ffn, MODULES)]
    return decoder(
        "mixtral",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("rms_norm_eps", 1e-5),
        activation=config.activation("hidden_act", "silu"),
        rope=[rope(config, sizes.head, sizes.context, theta=1e6)],
        windows=[config.optional_size("sliding_window", None) or 0] * sizes.layers,
        num_experts=count,
        experts_per_token=chosen,
        normalize_experts=True,
        moe_intermediate_size=sizes.ffn,
        sparse_layers=[True] * sizes.layers,
    )
