"""Tensors of a GGUF file that stay what they are: norms, biases, float weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from tmac.formats.checkpoint import Array, StoredTensor, to_float32
from tmac.formats.errors import format_error
from tmac.formats.gguf import GgufFile
from tmac.formats.gguf_header import TensorInfo
from tmac.formats.gguf_rows import Order
from tmac.formats.gguf_types import PLAIN
from tmac.formats.gguf_weights import Matrix


def stored_tensor(
    name: str,
    file: GgufFile,
    info: TensorInfo,
    shape: tuple[int, ...],
    index: int = 0,
    rows: Order | None = None,
    shift: float = 0.0,
) -> StoredTensor:
    """A tensor, or one of a stack, under a Hugging Face name.

    Args:
        name: that name.
        file: where it lies.
        info: where in the file. A quantized type is dequantized.
        shape: of the result.
        index: which of a stack.
        rows: row i of the result is row `rows[i]` of the file.
        shift: subtracted from every value, in f32.

    Raises:
        FormatError: the type is not known.
    """
    kind = file.known_type(info)
    plain = PLAIN.get(kind.name)
    dtype, layout = plain if plain is not None and not shift else ("F32", "")
    count = math.prod(shape) // kind.block

    def read() -> Array:
        first = index * count
        pieces: Iterable[Array] = file.blocks(info, first, count) if layout else file.floats(info, first, count)
        values: Array = np.empty(shape, layout or np.float32)
        flat = values.reshape(-1).view(np.uint8)
        at = 0
        for piece in pieces:
            raw = piece.reshape(-1).view(np.uint8)
            flat[at : at + len(raw)] = raw
            at += len(raw)
        if rows is not None:
            values = values[rows]
        return values - np.float32(shift) if shift else values

    return StoredTensor(name, dtype, shape, count * kind.block_bytes, read)


def read_bias(file: GgufFile, info: TensorInfo, matrix: Matrix) -> NDArray[np.float32]:
    """The bias of a layer in f32, in the order of the matrix's rows.

    Raises:
        FormatError: its shape is another, its type is no float, or a value is NaN or Inf.
    """
    if info.shape != (matrix.out_features,):
        raise format_error(file.path, f"expected shape [{matrix.out_features}], found {list(info.shape)}", info.name)
    stored = stored_tensor(info.name, file, info, info.shape, rows=matrix.rows)
    try:
        values = to_float32(stored.read(), stored.dtype)
    except ValueError as error:
        raise format_error(file.path, str(error), info.name) from error
    if not np.isfinite(values).all():
        raise format_error(file.path, "expected finite values, found NaN or Inf", info.name)
    return values
