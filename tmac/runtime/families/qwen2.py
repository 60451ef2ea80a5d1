"""Qwen 2 and 2.5. transformers: models/qwen2."""

from __future__ import annotations

from tmac.runtime.description import ModelDescription, Sizes, attention, decoder, gated_mlp, llama_norms
from tmac.runtime.rope import rope
from tmac.runtime.settings import Settings


def qwen2(config: Settings) -> ModelDescription:
    """A Llama with biases on q, k and v; the layers from `max_window_layers` on may have a window."""
    sizes = Sizes.of(
        config, vocab=151936, hidden=4096, ffn=22016, layers=32, heads=32, key_heads=32, context=32768
    )  # fmt: skip
    block = [*attention(sizes, bias=True, out_bias=False), *gated_mlp(sizes), *llama_norms(sizes)]
    return decoder(
        "qwen2",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_act", "silu"),
        rope=[rope(config, sizes.head, sizes.context)],
        windows=qwen_windows(config, sizes),
    )


def qwen_windows(config: Settings, sizes: Sizes) -> list[int]:
    """Windows of the later layers, where `use_sliding_window` asks for them."""
    window = config.optional_size("sliding_window", 4096) if config.flag("use_sliding_window", False) else None
    first = config.number("max_window_layers", 28)
    sliding = config.layer_types([window is not None and layer >= first for layer in range(sizes.layers)])
    return config.windows(sliding, window)
