"""What the automatic flow needs of a model: its matrices, its float weights, and a checkpoint with new codes in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tmac.codes import Codes
from tmac.formats import open_checkpoint
from tmac.formats.checkpoint import Array, Checkpoint, QuantizedLayer, StoredTensor, to_float32
from tmac.formats.errors import format_error
from tmac.formats.float_rounding import EMBEDDINGS, FLOATS, KEPT
from tmac.hf.blocks import open_blocks
from tmac.hf.model_class import model_config
from tmac.quant.blocks import BlockSource
from tmac.quant.matrix import Matrix
from tmac.runtime.hub import local_path

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class FloatModel:
    """A float model.

    Args:
        name: for the report.
        checkpoint: of its weights.
        source: of its blocks.
        matrices: what is to be quantized: the embedding first, then the layers of all blocks.
        left_float: names of matrices that stay as they are.
    """

    name: str
    checkpoint: Checkpoint
    source: BlockSource
    matrices: tuple[Matrix, ...]
    left_float: tuple[str, ...]

    def embedding(self) -> Tensor:
        """The input embedding, f32 `[vocabulary, hidden]`."""
        matrix = self.matrices[0]
        return torch.from_numpy(read_matrix(self.checkpoint, matrix.name))

    def embedding_scale(self) -> float:
        """What the model multiplies the rows of the embedding with; what it adds to all of them does not count."""
        whole = self.embedding()
        ids = torch.linspace(0, len(whole) - 1, min(len(whole), 16), dtype=torch.float64).long()
        rows, found = whole[ids], self.source.begin(ids[:, None])[:, 0]
        rows, found = rows - rows.mean(0), found - found.mean(0)
        return float(found.norm() / rows.norm()) if bool(rows.any()) else 1.0

    def begin(self, codes: Codes, ids: Tensor) -> Tensor:
        """The input of the first block, f32 `[windows, tokens, hidden]`, where the embedding has these codes."""
        matrix = self.matrices[0]
        changed = with_codes(self.checkpoint, (matrix,), lambda _: codes)
        return open_blocks(changed).begin(ids)


def open_float(model_or_path: Any) -> FloatModel:
    """The model in a folder, a file or a repository of the hub, or a model in memory.

    Raises:
        FormatError: the files are damaged, or there are no linear layers to quantize.
        ValueError: this is no causal language model of transformers.
        OSError: a file cannot be opened, or the repository cannot be reached.
    """
    if isinstance(model_or_path, nn.Module):
        checkpoint, source = checkpoint_of(model_or_path), open_blocks(model_or_path)
        name = str(getattr(model_or_path, "name_or_path", "") or type(model_or_path).__name__)
    else:
        path = local_path(model_or_path)
        checkpoint = open_checkpoint(path)
        source, name = open_blocks(checkpoint), Path(path).name
    matrices, left = find_matrices(checkpoint, source)
    if not any(matrix.kind == "linear" for matrix in matrices):
        raise format_error(checkpoint.path, "expected the matrices of linear layers, found none")
    return FloatModel(name, checkpoint, source, matrices, left)


def find_matrices(checkpoint: Checkpoint, source: BlockSource) -> tuple[tuple[Matrix, ...], tuple[str, ...]]:
    """What is to be quantized, and the names of what is left: routers, and matrices that are no linear layers."""
    shapes = matrix_shapes(checkpoint)
    embedding = next((name for name in shapes if name.rpartition(".")[2] in EMBEDDINGS), None)
    last = len(source) - 1
    found, left = [], list(getattr(source, "left_out", ()))
    heads = source.layers(last)
    tied = tuple(name for name in heads if _is_tied(checkpoint, name, embedding, shapes)) if embedding else ()
    if embedding is not None:
        rows, columns = shapes[embedding]
        found.append(Matrix(embedding, rows, columns, "embedding", None, tied))
    for index in range(len(source)):
        for name in source.layers(index):
            if name in shapes and name not in tied and name.rpartition(".")[2] not in KEPT:
                rows, columns = shapes[name]
                found.append(Matrix(name, rows, columns, "head" if index == last else "linear", index))
            elif name not in tied:
                left.append(name)
    return tuple(found), tuple(left)


def _is_tied(checkpoint: Checkpoint, head: str, embedding: str, shapes: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a head is the embedding: the file has it once, or the config ties them and the file has it twice."""
    if head not in shapes:
        return True
    if {head, embedding} & checkpoint.layers.keys() or shapes[head] != shapes[embedding]:
        return False
    if not model_config(checkpoint).get_text_config().tie_word_embeddings:
        return False
    one, two = (checkpoint.tensors[f"{name}.weight"] for name in (head, embedding))
    return one.dtype == two.dtype and np.array_equal(one.read(), two.read())


def matrix_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every matrix of a checkpoint, quantized or float, by the name of its module."""
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in checkpoint.layers.items()}
    for name, tensor in checkpoint.tensors.items():
        if name.endswith(".weight") and len(tensor.shape) == 2 and tensor.dtype in FLOATS and 0 not in tensor.shape:
            shapes[name.removesuffix(".weight")] = (tensor.shape[0], tensor.shape[1])
    return shapes


def read_matrix(checkpoint: Checkpoint, name: str) -> Array:
    """A matrix of a checkpoint, f32. Raises FormatError."""
    if name in checkpoint.layers:
        return checkpoint.layers[name].read().dequantize()
    stored = checkpoint.tensors[f"{name}.weight"]
    values: Array = to_float32(stored.read(), stored.dtype).copy()
    return values


def with_codes(
    checkpoint: Checkpoint, matrices: tuple[Matrix, ...], codes: Callable[[str], Codes], specs: Mapping[str, Any] = {}
) -> Checkpoint:
    """The checkpoint with quantized layers in place of some matrices.

    Args:
        checkpoint: of the float model.
        matrices: what to replace.
        codes: of a matrix, by its name; called when the layer is read.
        specs: of the matrices; one that is not among them is asked for its codes at once.
    """
    layers = dict(checkpoint.layers)
    tensors = dict(checkpoint.tensors)
    tied = dict(checkpoint.tied)
    for matrix in matrices:
        old, bias = layers.pop(matrix.name, None), tensors.pop(f"{matrix.name}.bias", None)
        tensors.pop(f"{matrix.name}.weight", None)
        spec = specs.get(matrix.name) or codes(matrix.name).spec
        has_bias = bias is not None or (old is not None and old.bias)
        layers[matrix.name] = QuantizedLayer(
            matrix.name,
            spec,
            matrix.out_features,
            matrix.in_features,
            has_bias,
            old.nbytes if old else 0,
            _reader(matrix.name, codes, old, bias),
            "embedding" if matrix.kind == "embedding" else "linear",
        )
        for name in matrix.tied:
            layers.pop(name, None)
            tensors.pop(f"{name}.weight", None)
            tied[name] = matrix.name
    return replace(checkpoint, layers=layers, tensors=tensors, tied=tied)


def _reader(
    name: str, codes: Callable[[str], Codes], old: QuantizedLayer | None, bias: StoredTensor | None
) -> Callable[[], Codes]:
    def read() -> Codes:
        values = None
        if bias is not None:
            values = to_float32(bias.read(), bias.dtype)
        elif old is not None and old.bias:
            values = old.read().bias
        return replace(codes(name), bias=values)

    return read


def checkpoint_of(model: Any) -> Checkpoint:
    """A model in memory as a checkpoint, whose tensors are those of the model."""
    config = dict(model.config.to_dict())
    config.pop("quantization_config", None)
    config["architectures"] = [type(model).__name__]
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        where = (tensor.data_ptr(), tuple(tensor.shape))
        if name in tied or (tensor.numel() and where in seen):
            continue
        seen.add(where)
        tensors[name] = _stored(name, tensor)
    texts = {}
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        texts["generation_config.json"] = lambda: str(generation.to_json_string())
    return Checkpoint("float", Path(type(model).__name__), config, {}, tensors, (), {}, texts)


def _stored(name: str, tensor: Tensor) -> StoredTensor:
    def read() -> Array:
        values = tensor.detach().cpu().contiguous()
        array: Array = (values.view(torch.uint16) if values.dtype is torch.bfloat16 else values).numpy()
        return array

    return StoredTensor(name, DTYPES[tensor.dtype], tuple(tensor.shape), tensor.numel() * tensor.element_size(), read)
