"""GPT-NeoX and Pythia. transformers: models/gpt_neox."""

from __future__ import annotations

from tmac.runtime.description import ModelDescription, Sizes, Weight, decoder, norm
from tmac.runtime.rope import rope
from tmac.runtime.settings import Settings

MASKS = ("*.attention.bias", "*.attention.masked_bias")  # buffers that old files hold


def gpt_neox(config: Settings) -> ModelDescription:
    """LayerNorm, an MLP without a gate, heads that are rotated in part; attention and MLP may read the same input.

    Rows of `qkv` are query, key and value of the first head, then of the second, and so on.
    """
    plain = Settings(
        {key: value for key, value in config.values.items() if key not in ("num_key_value_heads", "head_dim")}
    )
    sizes = Sizes.of(
        plain, vocab=50432, hidden=6144, ffn=24576, layers=44, heads=64, key_heads=None, context=2048
    )  # fmt: skip
    bias = config.flag("attention_bias", True)
    block = [
        *norm("input_norm", "input_layernorm", sizes.hidden, bias=True),
        *norm("pre_mlp_norm", "post_attention_layernorm", sizes.hidden, bias=True),
        Weight("qkv", ("attention.query_key_value",), (3 * sizes.hidden, sizes.hidden), bias),
        Weight("o", ("attention.dense",), (sizes.hidden, sizes.hidden), bias),
        Weight("up", ("mlp.dense_h_to_4h",), (sizes.ffn, sizes.hidden), True),
        Weight("down", ("mlp.dense_4h_to_h",), (sizes.hidden, sizes.ffn), True),
    ]
    top = [
        Weight("embedding", ("gpt_neox.embed_in",), (sizes.vocab, sizes.hidden)),
        *norm("final_norm", "gpt_neox.final_layer_norm", sizes.hidden, bias=True),
        Weight("head", ("lm_head", "embed_out"), (sizes.vocab, sizes.hidden)),
    ]
    entry = rope(
        plain, sizes.head, sizes.context, theta_key="rotary_emb_base", partial_key="rotary_pct", partial=0.25
    )  # fmt: skip
    return decoder(
        "gpt_neox",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("layer_norm_eps", 1e-5),
        activation=config.activation("hidden_act", "gelu"),
        rope=[entry],
        top=top,
        layers=["gpt_neox.layers"],
        ignored=MASKS,
        parallel_residual=config.flag("use_parallel_residual", True),
    )
