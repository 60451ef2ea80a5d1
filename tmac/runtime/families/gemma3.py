"""Gemma 3, and the text part of those that see pictures. transformers: models/gemma3."""

from __future__ import annotations

from typing import Any

from tmac.runtime.description import ModelDescription, Sizes, attention, decoder, gated_mlp, head_norms, llama_top
from tmac.runtime.families.gemma import embedding_scale
from tmac.runtime.families.gemma2 import sandwich_norms
from tmac.runtime.rope import rope_entry
from tmac.runtime.settings import Settings

# Where the text model is: by itself, and inside of the whole one as transformers 5 and 4 name it.
TEXT = ("model",)
TEXT_OF_WHOLE = ("model.language_model", "language_model.model")
PICTURES = ("*vision_tower.*", "*multi_modal_projector.*")


def gemma3_text(config: Settings) -> ModelDescription:
    """Gemma 2's block with norms of queries and keys; most layers have a window and frequencies of their own."""
    return _gemma3(config, TEXT, ())


def gemma3(config: Settings) -> ModelDescription:
    """The text part of a model that sees pictures."""
    if not config.has("text_config"):
        raise config.error("text_config", "expected the configuration of the text model")
    text = {"tie_word_embeddings": config.flag("tie_word_embeddings", True), **config.part("text_config").values}
    if config.stored_in_bf16:
        text.setdefault("dtype", "bfloat16")
    return _gemma3(Settings(text), TEXT_OF_WHOLE, PICTURES)


def _gemma3(config: Settings, model: tuple[str, ...], ignored: tuple[str, ...]) -> ModelDescription:
    sizes = Sizes.of(
        config, vocab=262208, hidden=2304, ffn=9216, layers=26, heads=8, key_heads=4, context=131072, head=256
    )  # fmt: skip
    config.refuse("use_bidirectional_attention", False, "the runtime is causal")
    bias = config.flag("attention_bias", False)
    block = [*attention(sizes, bias), *head_norms(sizes, 1.0), *gated_mlp(sizes), *sandwich_norms(sizes)]
    every = config.size("sliding_window_pattern", 6)
    sliding = config.layer_types([(layer + 1) % every != 0 for layer in range(sizes.layers)])
    return decoder(
        "gemma3",
        config,
        sizes,
        lambda layer: block,
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        activation=config.activation("hidden_activation", "gelu_pytorch_tanh"),
        rope=_ropes(config, sizes),
        layer_rope=[int(local) for local in sliding],
        windows=config.windows(sliding, config.optional_size("sliding_window", 4096)),
        tied=True,
        top=llama_top(sizes, model, shift=1.0),
        layers=[f"{name}.layers" for name in model],
        ignored=ignored,
        embedding_scale=embedding_scale(config, sizes),
        attention_scale=config.positive("query_pre_attn_scalar", 256) ** -0.5,
        # transformers reads attn_logit_softcapping and does not use it (Gemma3Attention.forward): no model has it
        logit_softcap=config.optional_positive("final_logit_softcapping", None),
    )


def _ropes(config: Settings, sizes: Sizes) -> list[dict[str, Any]]:
    """Frequencies of the layers without a window, and of those with one; `rope_scaling` is for the first."""
    given = config.part("rope_parameters")
    entries = []
    for name, key, theta in (
        ("full_attention", "rope_theta", 1e6),
        ("sliding_attention", "rope_local_base_freq", 1e4),
    ):
        scaling = config.part("rope_scaling").values if name == "full_attention" else {}
        values = {**given.part(name).values, **scaling}
        values.setdefault("rope_theta", config.positive(key, theta))
        values.setdefault("original_max_position_embeddings", sizes.context)
        Settings(values).refuse("partial_rotary_factor", 1.0, "models of this family rotate whole heads")
        entries.append(rope_entry(Settings(values), sizes.head, sizes.context))
    return entries
