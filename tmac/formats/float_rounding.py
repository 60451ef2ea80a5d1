"""A float checkpoint whose matrices are rounded to the nearest code while they are read.

Which matrices belong to linear layers is told by their names, as Hugging Face models have them: the files do not say,
and building the model to see would need torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tmac.codes import Codes, round_to_nearest
from tmac.formats.checkpoint import Checkpoint, Kind, QuantizedLayer, StoredTensor, to_float32
from tmac.formats.errors import format_error
from tmac.spec import QuantSpec

FLOATS = ("F64", "F32", "F16", "BF16")
HEADS = ("lm_head", "embed_out")
EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "word_embeddings")
# Routers of experts, whose choices must not change, tables that are looked up, and the heads of classifiers.
KEPT = ("gate", "router", "shared_expert_gate", "wpe", "shared", "relative_attention_bias", "score", "classifier")
TRANSPOSED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # Conv1D: columns first
GENERATIVE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class Rounding:
    """What to make of the matrices of a float model.

    Args:
        spec: of the linear layers.
        head: of the output head; None leaves it as it is.
        embedding: of the input embedding; None leaves it as it is. A head that shares the embedding's weight goes on
            sharing it, unless `head` is another spec.
    """

    spec: QuantSpec
    head: QuantSpec | None = None
    embedding: QuantSpec | None = None


def rounded(checkpoint: Checkpoint, rounding: Rounding) -> Checkpoint:
    """The checkpoint with quantized layers, which are made when they are read.

    Raises:
        FormatError: there is no linear layer, or the model keeps its weights the other way round.
    """
    config = checkpoint.config or {}
    if config.get("model_type") in TRANSPOSED:
        message = f"expected linear layers, but {config['model_type']} keeps its weights transposed"
        raise format_error(checkpoint.path, message, "model_type")
    layers = {layer.name: layer for layer in _layers(checkpoint.path, checkpoint.tensors, rounding)}
    if not any(name.rpartition(".")[2] not in (*HEADS, *EMBEDDINGS) for name in layers):
        raise format_error(checkpoint.path, "expected the matrices of linear layers, found none")
    gone = {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in gone}
    return _with_tied_head(replace(checkpoint, layers=layers, tensors=tensors), checkpoint.tensors, rounding)


def _layers(path: Path, tensors: Mapping[str, StoredTensor], rounding: Rounding) -> Iterator[QuantizedLayer]:
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if last != "weight" or not module or len(tensor.shape) != 2 or tensor.dtype not in FLOATS or 0 in tensor.shape:
            continue
        spec, kind = _choice(module.rpartition(".")[2], rounding)
        if spec is not None:
            bias = tensors.get(f"{module}.bias")
            if bias is not None and (bias.shape != tensor.shape[:1] or bias.dtype not in FLOATS):
                message = f"expected floats of shape [{tensor.shape[0]}], found {bias.dtype} {list(bias.shape)}"
                raise format_error(path, message, bias.name)
            yield _layer(path, module, tensor, bias, spec, kind)


def _choice(module: str, rounding: Rounding) -> tuple[QuantSpec | None, Kind]:
    if module in HEADS:
        return rounding.head, "linear"
    if module in EMBEDDINGS:
        return rounding.embedding, "embedding"
    return (None if module in KEPT or "embed" in module else rounding.spec), "linear"


def _layer(
    path: Path, name: str, weight: StoredTensor, bias: StoredTensor | None, spec: QuantSpec, kind: Kind
) -> QuantizedLayer:
    def read() -> Codes:
        values = to_float32(weight.read(), weight.dtype)
        try:
            codes = round_to_nearest(values, spec)
        except ValueError as error:
            raise format_error(path, f"expected weights that can be rounded ({error})", weight.name) from error
        return codes if bias is None else replace(codes, bias=to_float32(bias.read(), bias.dtype))

    nbytes = weight.nbytes + (bias.nbytes if bias is not None else 0)
    rows, columns = weight.shape
    return QuantizedLayer(name, spec, rows, columns, bias is not None, nbytes, read, kind, weight.dtype)


def _with_tied_head(result: Checkpoint, tensors: Mapping[str, StoredTensor], rounding: Rounding) -> Checkpoint:
    """Says what becomes of a head that shares the embedding's weight."""
    embedding = next((name for name in tensors if name.removesuffix(".weight").rpartition(".")[2] in EMBEDDINGS), None)
    if embedding is None or not _ties(result.config or {}, tensors):
        return result
    module = embedding.removesuffix(".weight")
    if rounding.embedding is not None and rounding.head in (None, rounding.embedding):
        return replace(result, tied={HEADS[0]: module})
    if rounding.head is None:
        return result
    head = _layer(result.path, HEADS[0], tensors[embedding], None, rounding.head, "linear")
    config: dict[str, Any] = {**(result.config or {}), "tie_word_embeddings": False}
    return replace(result, layers={**result.layers, HEADS[0]: head}, config=config)


def _ties(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bool:
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    generative = any(isinstance(name, str) and name.endswith(GENERATIVE) for name in names)
    has_head = any(f"{name}.weight" in tensors for name in HEADS)
    return generative and not has_head and config.get("tie_word_embeddings") is not False
