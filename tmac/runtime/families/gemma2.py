"""Gemma 2. transformers: models/gemma2."""

from __future__ import annotations

from tmac.runtime.description import ModelDescription, Sizes, Weight, attention, decoder, gated_mlp, llama_top, norm
from tmac.runtime.families.gemma import embedding_scale
from tmac.runtime.rope import rope
from tmac.runtime.settings import Settings


def gemma2(config: Settings) -> ModelDescription:
    """Norms before and after the attention and the MLP, soft caps, and a window in every other layer."""
    sizes = Sizes.of(
        config, vocab=256000, hidden=2304, ffn=9216, layers=26, heads=8, key_heads=4, context=8192, head=256
    )  # fmt: skip
    config.refuse("use_bidirectional_attention", False, "the runtime is causal")
    bias = config.flag("attention_bias", False)
    block = [*attention(sizes, bias), *gated_mlp(sizes), *sandwich_norms(sizes)]
    sliding = config.layer_types([layer % 2 == 0 for layer in range(sizes.layers)])
    return decoder(
        "gemma2",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_activation", "gelu_pytorch_tanh"),
        rope=[rope(config, sizes.head, sizes.context)],
        windows=config.windows(sliding, config.optional_size("sliding_window", 4096)),
        tied=True,
        top=llama_top(sizes, shift=1.0),
        embedding_scale=embedding_scale(config, sizes),
        attention_scale=config.positive("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=config.optional_positive("attn_logit_softcapping", 50.0),
        logit_softcap=config.optional_positive("final_logit_softcapping", 30.0),
    )


def sandwich_norms(sizes: Sizes) -> list[Weight]:
    """Norms of 1 + w around the attention and around the MLP."""
    return [
        *norm("input_norm", "input_layernorm", sizes.hidden, 1.0),
        *norm("post_attention_norm", "post_attention_layernorm", sizes.hidden, 1.0),
        *norm("pre_mlp_norm", "pre_feedforward_layernorm", sizes.hidden, 1.0),
        *norm("post_mlp_norm", "post_feedforward_layernorm", sizes.hidden, 1.0),
    ]
