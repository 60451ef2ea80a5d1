"""Qwen 3. transformers: models/qwen3."""

from __future__ import annotations

from tmac.runtime.description import ModelDescription, Sizes, attention, decoder, gated_mlp, head_norms, llama_norms
from tmac.runtime.families.qwen2 import qwen_windows
from tmac.runtime.rope import rope
from tmac.runtime.settings import Settings


def qwen3(config: Settings) -> ModelDescription:
    """A Llama that normalizes every query and key."""
    sizes = Sizes.of(
        config, vocab=151936, hidden=4096, ffn=22016, layers=32, heads=32, key_heads=32, context=32768, head=128
    )  # fmt: skip
    bias = config.flag("attention_bias", False)
    block = [*attention(sizes, bias), *head_norms(sizes), *gated_mlp(sizes), *llama_norms(sizes)]
    return decoder(
        "qwen3",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_act", "silu"),
        rope=[rope(config, sizes.head, sizes.context)],
        windows=qwen_windows(config, sizes),
    )
