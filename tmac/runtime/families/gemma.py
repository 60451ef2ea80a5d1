"""Gemma. transformers: models/gemma."""

from __future__ import annotations

import math

import numpy as np

from tmac.runtime.description import (
    ModelDescription,
    Sizes,
    attention,
    decoder,
    gated_mlp,
    llama_norms,
    llama_top,
)
from tmac.runtime.rope import rope
from tmac.runtime.settings import Settings


def gemma(config: Settings) -> ModelDescription:
    """A Llama with GELU, norms of 1 + w, and a scaled embedding."""
    sizes = Sizes.of(
        config, vocab=256000, hidden=3072, ffn=24576, layers=28, heads=16, key_heads=16, context=8192, head=256
    )  # fmt: skip
    config.refuse("use_bidirectional_attention", False, "the runtime is causal")
    bias = config.flag("attention_bias", False)
    block = [*attention(sizes, bias), *gated_mlp(sizes), *llama_norms(sizes, shift=1.0)]
    activation = config.activation("hidden_act", "gelu_pytorch_tanh")
    return decoder(
        "gemma",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        activation="gelu_tanh" if activation == "gelu" else activation,  # the first files said gelu and meant this
        rope=[rope(config, sizes.head, sizes.context)],
        tied=True,
        top=llama_top(sizes, shift=1.0),
        embedding_scale=embedding_scale(config, sizes),
    )


def embedding_scale(config: Settings, sizes: Sizes) -> float:
    """The square root of the hidden size in the model's own type: models in bf16 were trained with it rounded."""
    scale = np.float32(math.sqrt(sizes.hidden))
    if not config.stored_in_bf16:
        return float(scale)
    bits = int(scale.view(np.uint32))
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000  # to nearest, ties to even
    return float(np.uint32(rounded).view(np.float32))
