"""Llama 2 and 3 and the models with the same block: SmolLM2 and 3, Mistral, Granite.

transformers: models/{llama,mistral,smollm3,granite}.
"""

from __future__ import annotations

from tmac.runtime.description import ModelDescription, Sizes, attention, decoder, gated_mlp, llama_norms
from tmac.runtime.rope import rope
from tmac.runtime.settings import Settings


def llama(config: Settings) -> ModelDescription:
    """Llama, SmolLM2, and most models that were trained since."""
    sizes = Sizes.of(
        config, vocab=32000, hidden=4096, ffn=11008, layers=32, heads=32, key_heads=None, context=2048
    )  # fmt: skip
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    block = [*attention(sizes, bias), *gated_mlp(sizes, mlp_bias), *llama_norms(sizes)]
    return decoder(
        "llama",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_act", "silu"),
        rope=[rope(config, sizes.head, sizes.context)],
    )


def mistral(config: Settings) -> ModelDescription:
    """Mistral: a Llama whose layers see the last `sliding_window` positions."""
    sizes = Sizes.of(
        config, vocab=32000, hidden=4096, ffn=14336, layers=32, heads=32, key_heads=8, context=131072
    )  # fmt: skip
    config.refuse("attention_bias", False, "Mistral's attention has no biases")
    block = [*attention(sizes), *gated_mlp(sizes), *llama_norms(sizes)]
    return decoder(
        "llama",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_act", "silu"),
        rope=[rope(config, sizes.head, sizes.context)],
        windows=[config.optional_size("sliding_window", 4096) or 0] * sizes.layers,
    )


def smollm3(config: Settings) -> ModelDescription:
    """SmolLM3: a Llama that does not rotate the queries and keys of every fourth layer."""
    sizes = Sizes.of(
        config, vocab=128256, hidden=2048, ffn=11008, layers=36, heads=16, key_heads=4, context=32768
    )  # fmt: skip
    every = config.size("no_rope_layer_interval", 4)
    rotated = config.integers("no_rope_layers", [int((layer + 1) % every != 0) for layer in range(sizes.layers)])
    if len(rotated) < sizes.layers:
        raise config.error("no_rope_layers", f"expected a 0 or 1 for each of {sizes.layers} layers")
    window = config.optional_size("sliding_window", None) if config.flag("use_sliding_window", False) else None
    sliding = config.layer_types([window is not None and not rotated[layer] for layer in range(sizes.layers)])
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    block = [*attention(sizes, bias), *gated_mlp(sizes, mlp_bias), *llama_norms(sizes)]
    return decoder(
        "llama",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_act", "silu"),
        rope=[rope(config, sizes.head, sizes.context, theta=2000000.0)],
        layer_rope=[0 if rotated[layer] else -1 for layer in range(sizes.layers)],
        windows=config.windows(sliding, window),
        tied=True,
    )


def granite(config: Settings) -> ModelDescription:
    """Granite: a Llama with four factors."""
    sizes = Sizes.of(
        config, vocab=32000, hidden=4096, ffn=11008, layers=32, heads=32, key_heads=None, context=2048
    )  # fmt: skip
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    block = [*attention(sizes, bias), *gated_mlp(sizes, mlp_bias), *llama_norms(sizes)]
    return decoder(
        "llama",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_act", "silu"),
        rope=[rope(config, sizes.head, sizes.context)],
        embedding_scale=config.number("embedding_multiplier", 1.0),
        attention_scale=config.number("attention_multiplier", 1.0),
        residual_scale=config.number("residual_multiplier", 1.0),
        logit_scale=1 / config.positive("logits_scaling", 1.0),
    )
