"""Phi-3 and Phi-4. transformers: models/phi3."""

from __future__ import annotations

from tmac.runtime.description import ModelDescription, Sizes, Weight, decoder, llama_norms
from tmac.runtime.rope import rope
from tmac.runtime.settings import Settings


def phi3(config: Settings) -> ModelDescription:
    """A Llama whose q, k and v are one matrix, in this order, and gate and up another."""
    sizes = Sizes.of(
        config, vocab=32064, hidden=3072, ffn=8192, layers=32, heads=32, key_heads=None, context=4096
    )  # fmt: skip
    for key in ("attention_bias", "mlp_bias"):
        config.refuse(key, False, "Phi-3 has no biases")
    queries, keys = sizes.heads * sizes.head, sizes.key_heads * sizes.head
    block = [
        Weight("qkv", ("self_attn.qkv_proj",), (queries + 2 * keys, sizes.hidden)),
        Weight("o", ("self_attn.o_proj",), (sizes.hidden, queries)),
        Weight("gate_up", ("mlp.gate_up_proj",), (2 * sizes.ffn, sizes.hidden)),
        Weight("down", ("mlp.down_proj",), (sizes.hidden, sizes.ffn)),
        *llama_norms(sizes),
    ]
    return decoder(
        "phi3",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("rms_norm_eps", 1e-5),
        activation=config.activation("hidden_act", "silu"),
        rope=[
            rope(_with_new_names(config), sizes.head, sizes.context, partial_key="partial_rotary_factor", original=4096)
        ],
        windows=[config.optional_size("sliding_window", None) or 0] * sizes.layers,
    )


def _with_new_names(config: Settings) -> Settings:
    """The first files call longrope "su" or "yarn"."""
    values = dict(config.values)
    for name in ("rope_scaling", "rope_parameters"):
        parameters = dict(config.part(name).values)
        for key in ("rope_type", "type"):
            if parameters.get(key) in ("su", "yarn"):
                parameters[key] = "longrope"
        if parameters:
            values[name] = parameters
    return Settings(values)
