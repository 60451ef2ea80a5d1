"""BitNet b1.58. transformers: models/bitnet."""

from __future__ import annotations

from tmac.runtime.description import ModelDescription, Sizes, attention, decoder, gated_mlp, llama_norms, norm
from tmac.runtime.rope import rope
from tmac.runtime.settings import Settings


def bitnet(config: Settings) -> ModelDescription:
    """A Llama with norms in front of o and down, and the square of ReLU."""
    sizes = Sizes.of(
        config, vocab=128256, hidden=2560, ffn=6912, layers=30, heads=20, key_heads=5, context=2048
    )  # fmt: skip
    block = [
        *attention(sizes, config.flag("attention_bias", False)),
        *norm("attention_sub_norm", "self_attn.attn_sub_norm", sizes.hidden),
        *gated_mlp(sizes),
        *norm("mlp_sub_norm", "mlp.ffn_sub_norm", sizes.ffn),
        *llama_norms(sizes),
    ]
    return decoder(
        "bitnet",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("rms_norm_eps", 1e-5),
        activation=config.activation("hidden_act", "relu2"),
        rope=[rope(config, sizes.head, sizes.context, theta=500000.0)],
    )
