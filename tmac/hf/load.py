"""Float Hugging Face models from GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tmac.formats.errors import format_error
from tmac.formats.gguf import GgufFile, llama_tensors
from tmac.formats.gguf_tokenizer import read_tokenizer, special_token_id

ARCHITECTURES = ("llama",)


def load_gguf(
    path: str | Path, on_tensor: Callable[[str], None] | None = None
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A float32 Hugging Face model and its tokenizer, with nothing but the GGUF file.

    Args:
        path: a GGUF file of the `llama` architecture.
        on_tensor: called with each tensor's name after it is read, for a progress bar.

    Raises:
        FormatError: the file is damaged, of another architecture, or uses something that is not supported.
        OSError: the file cannot be opened.

    Example:
        >>> model, tokenizer = load_gguf("SmolLM2-135M-Instruct.Q4_1.gguf")
    """
    file = GgufFile(path)
    if file.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise format_error(file.path, f"expected one of {known}, found {file.architecture!r}", "general.architecture")
    config, tokenizer = llama_config(file), load_tokenizer(file)
    if len(tokenizer) > config.vocab_size:
        message = f"expected no more tokens than the {config.vocab_size} rows of token_embd.weight"
        raise format_error(file.path, f"{message}, found {len(tokenizer)}", "tokenizer.ggml.tokens")
    return _load_model(file, config, on_tensor), tokenizer


def load_tokenizer(file: GgufFile) -> PreTrainedTokenizerFast:
    """The tokenizer of an open GGUF file, with its chat template.

    Raises:
        FormatError: the metadata is inconsistent, or the tokenizer is of an unsupported kind.
    """
    data = read_tokenizer(file)
    try:
        backend = Tokenizer.from_str(data.text())
    except Exception as error:  # tokenizers raises bare Exceptions
        raise format_error(
            file.path, f"the tokenizers package refuses it ({error})", "tokenizer.ggml.tokens"
        ) from error
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast  # untyped in transformers
    return build(tokenizer_object=backend, chat_template=data.chat_template, **data.special)


def llama_config(file: GgufFile) -> LlamaConfig:
    """The configuration of a `llama` file, compared with the shapes of its tensors before anything is built from it.

    Raises:
        FormatError: keys are missing, or disagree with the tensors, or ask for what plain llama models do not have.
    """
    _refuse_variants(file)
    vocab_size, hidden_size = _matrix(file, "token_embd.weight")
    heads = _positive(file, "attention.head_count")
    key_heads = _positive(file, "attention.head_count_kv", heads)
    head_dim = _positive(file, "attention.key_length", hidden_size // heads or 1)
    layers = _layers(file)
    intermediate_size = _positive(file, "feed_forward_length")
    _expect(file, "llama.embedding_length", _positive(file, "embedding_length"), hidden_size)
    _expect(file, "llama.rope.dimension_count", _positive(file, "rope.dimension_count", head_dim), head_dim)
    _expect(file, "blk.0.attn_q.weight", _matrix(file, "blk.0.attn_q.weight"), (heads * head_dim, hidden_size))
    _expect(file, "blk.0.attn_k.weight", _matrix(file, "blk.0.attn_k.weight"), (key_heads * head_dim, hidden_size))
    _expect(file, "blk.0.ffn_up.weight", _matrix(file, "blk.0.ffn_up.weight"), (intermediate_size, hidden_size))
    if head_dim % 2 or heads % key_heads:
        message = f"expected heads of an even size, in groups, found {heads} and {key_heads} of size {head_dim}"
        raise format_error(file.path, message, "llama.attention.head_count_kv")
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        max_position_embeddings=_positive(file, "context_length"),
        rms_norm_eps=_positive_float(file, "llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _positive_float(file, "llama.rope.freq_base", 10000.0),
        },
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        tie_word_embeddings="output.weight" not in file.tensors,
        bos_token_id=special_token_id(file, "bos", vocab_size),
        eos_token_id=special_token_id(file, "eos", vocab_size),
        pad_token_id=special_token_id(file, "padding", vocab_size),
        dtype="float32",
    )


def _refuse_variants(file: GgufFile) -> None:
    """The `llama` architecture also covers mixtures of experts and scaled rotary frequencies."""
    for key in ("llama.expert_count", "llama.rope.scaling.factor"):
        if file.metadata.get(key, 0) not in (0, 1):
            raise format_error(file.path, f"expected a plain llama model, found {file.metadata[key]!r}", key)
    scaling = file.metadata.get("llama.rope.scaling.type", "none")
    if scaling not in ("none", ""):
        raise format_error(
            file.path, f"expected unscaled rotary frequencies, found {scaling!r}", "llama.rope.scaling.type"
        )


def _positive(file: GgufFile, key: str, default: int | None = None) -> int:
    key = f"llama.{key}"
    value = file.get(key, int, default)
    if value <= 0:
        raise format_error(file.path, f"expected a positive number, found {value}", key)
    return value


def _positive_float(file: GgufFile, key: str, default: float | None = None) -> float:
    value = file.get(key, float, default)
    if not 0 < value < float("inf"):
        raise format_error(file.path, f"expected a positive number, found {value}", key)
    return value


def _layers(file: GgufFile) -> int:
    """The number of layers, no more than the file has tensors for: memory is taken for every one of them."""
    layers = _positive(file, "block_count")
    expected = f"expected the tensors of {layers} layers"
    if layers > len(file.tensors):
        raise format_error(file.path, f"{expected}, found {len(file.tensors)} tensors", "llama.block_count")
    for layer in range(layers):
        name = f"blk.{layer}.attn_q.weight"
        if name not in file.tensors:
            raise format_error(file.path, f"{expected}, but {name} is missing", "llama.block_count")
    return layers


def _matrix(file: GgufFile, name: str) -> tuple[int, int]:
    """The shape of a matrix whose data is known to lie in the file, so that the shape is no larger than the file."""
    info = file.info(name)
    if info.nbytes is None:
        raise format_error(file.path, f"expected a type of ggml, found {info.type_name}", name)
    shape = info.shape
    if len(shape) != 2:
        raise format_error(file.path, f"expected a matrix, found shape {shape}", name)
    return shape[0], shape[1]


def _expect(file: GgufFile, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise format_error(file.path, f"expected {expected}, found {found}", what)


def _load_model(file: GgufFile, config: LlamaConfig, on_tensor: Callable[[str], None] | None) -> LlamaForCausalLM:
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)  # its buffers are not in the file and have no value on meta
    missing = dict(model.named_parameters())
    for name, array in llama_tensors(file, on_tensor):
        if name not in missing:
            raise format_error(file.path, "expected only tensors of this model's layers", name)
        parameter = missing.pop(name)
        _expect(file, name, array.shape, tuple(parameter.shape))
        _assign(model, name, torch.from_numpy(array))
    if missing:
        raise format_error(file.path, f"expected {len(missing)} more tensors, the first for {min(missing)}")
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(config)
    nn.Module.eval(model)
    return model


def _assign(model: nn.Module, name: str, value: torch.Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    module: Any = model.get_submodule(owner)
    setattr(module, attribute, nn.Parameter(value, requires_grad=False))
