"""One matrix of a GGUF file as `Codes`: exactly, or rounded again where the user asked for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmac.codes import Codes, round_to_nearest
from tmac.formats.checkpoint import Array, narrowest, scale_format_of
from tmac.formats.errors import format_error
from tmac.formats.gguf import GgufFile
from tmac.formats.gguf_blocks import EXACT_TYPES, Parts
from tmac.formats.gguf_header import TensorInfo
from tmac.formats.gguf_types import GgmlType
from tmac.formats.scratch import scratch_array
from tmac.spec import QuantSpec


@dataclass(frozen=True)
class Matrix:
    """A matrix inside of a tensor: all of it, or one expert of a stack.

    Args:
        file, info: the tensor.
        out_features, in_features: its shape.
        index: which matrix of the stack.
        rows: i64 `[out_features]`, row i of the result is row `rows[i]` of the file; None: as they are.
    """

    file: GgufFile
    info: TensorInfo
    out_features: int
    in_features: int
    index: int = 0
    rows: NDArray[np.int64] | None = None

    @property
    def kind(self) -> GgmlType:
        """The tensor's type."""
        return self.file.known_type(self.info)

    @property
    def blocks(self) -> tuple[int, int]:
        """The first block and their number."""
        count = self.out_features * self.in_features // self.kind.block
        return self.index * count, count

    @property
    def nbytes(self) -> int:
        """Bytes in the file, without a tail that all matrices of the tensor share."""
        return self.blocks[1] * self.kind.block_bytes


def read_exact(matrix: Matrix, bias: NDArray[np.float32] | None = None) -> Codes:
    """The matrix in the spec of its type (`EXACT_TYPES`), without rounding.

    Raises:
        FormatError: a scale is NaN or Inf, a code is none of the type's, or the file became shorter.
    """
    parts = _split(matrix, *matrix.blocks)
    rows = [None if array is None else _by_row(matrix, array) for array in parts]
    return _codes(matrix, Parts(*rows), bias)  # type: ignore[arg-type]


def read_exact_rows(matrix: Matrix, begin: int, end: int) -> Codes:
    """Rows [begin, end) of a matrix whose rows are whole blocks. Raises as `read_exact`."""
    blocks = read_block_rows(matrix, begin, end).reshape(-1, matrix.kind.block_bytes)
    with np.errstate(all="ignore"):  # what is no number is refused below
        parts = EXACT_TYPES[matrix.info.type_name].split(blocks)
    rows = [None if part is None else part.reshape(end - begin, -1) for part in parts]
    return _codes(matrix, Parts(*rows), None)  # type: ignore[arg-type]


def read_block_rows(matrix: Matrix, begin: int, end: int) -> NDArray[np.uint8]:
    """Rows [begin, end) of a matrix whose rows are whole blocks, u8 `[rows, bytes]`, in a `scratch_array`.

    Raises:
        FormatError: the file became shorter.
    """
    per_row = matrix.in_features // matrix.kind.block
    first, nbytes = matrix.blocks[0], per_row * matrix.kind.block_bytes
    rows: NDArray[np.uint8] = scratch_array((end - begin, nbytes), np.dtype(np.uint8))
    if matrix.rows is None:
        matrix.file.read_blocks(matrix.info, first + begin * per_row, rows)
        return rows
    wanted = matrix.rows[begin:end]
    order = np.argsort(wanted)
    in_file = wanted[order]
    runs = np.split(in_file, np.flatnonzero(np.diff(in_file) != 1) + 1)  # of rows that follow each other
    at = 0
    for run in runs:
        matrix.file.read_blocks(matrix.info, first + int(run[0]) * per_row, rows[at : at + len(run)])
        at += len(run)
    return rows[np.argsort(order)]


def _split(matrix: Matrix, first: int, count: int) -> Parts:
    """Blocks taken apart, in pieces that fit into the cache."""
    exact = EXACT_TYPES[matrix.info.type_name]
    arrays: list[Array | None] = []
    start = 0
    for piece in matrix.file.blocks(matrix.info, first, count):
        with np.errstate(all="ignore"):  # what is no number is refused later, with its place
            parts = exact.split(piece)
        if not arrays:
            arrays = [None if part is None else np.empty((count, part.shape[1]), part.dtype) for part in parts]
        for array, part in zip(arrays, parts, strict=True):
            if array is not None and part is not None:
                array[start : start + len(part)] = part
        start += len(piece)
    return Parts(*arrays)  # type: ignore[arg-type]


def _by_row(matrix: Matrix, array: Array) -> Array:
    by_row = array.reshape(matrix.out_features, -1)
    return by_row if matrix.rows is None else by_row[matrix.rows]


def _codes(matrix: Matrix, parts: Parts, bias: NDArray[np.float32] | None) -> Codes:
    """Raises FormatError for what `Codes` raises ValueError for."""
    spec = EXACT_TYPES[matrix.info.type_name].spec
    if parts.scales is None:
        scale = np.frombuffer(matrix.file.tail(matrix.info)[:4], "<f4")
        parts = parts._replace(scales=np.tile(scale, (len(parts.codes), 1)))
    scales, supers = np.asarray(parts.scales), {}
    if parts.super_scales is not None:
        supers["super_scales"] = parts.super_scales
        if parts.super_offsets is not None:
            supers["super_offsets"] = parts.super_offsets
    else:
        if scales.dtype == np.float32:
            with np.errstate(all="ignore"):
                scales = narrowest(scales)
        spec = spec.replace(scale_format=scale_format_of(scales))
    try:
        return Codes(spec, parts.codes, scales, parts.zeros, None, bias, **supers)
    except ValueError as error:
        message = f"expected finite scales and codes of {matrix.info.type_name} ({error})"
        raise format_error(matrix.file.path, message, matrix.info.name) from error


def nearest_spec(kind: GgmlType) -> QuantSpec:
    """The spec that a type without an exact form is rounded to: as many bits as it has, rounded down, but two at least,
    in groups of 32 with offsets, which makes it no smaller than the type."""
    return QuantSpec(bits=max(2, int(kind.bits)), group_size=32, zero_point="offset")


def requantize(
    matrix: Matrix, spec: QuantSpec, bias: NDArray[np.float32] | None, report: Callable[[float], None]
) -> Codes:
    """The matrix dequantized by the gguf package and rounded to nearest, some rows at a time.

    Args:
        matrix: a matrix of a type without an exact form.
        spec: what to make of it, `nearest_spec` of the type.
        bias: f32 `[out_features]`, or None.
        report: is given the relative L2 error, |new - old| / |old|.

    Raises:
        FormatError: a value is NaN or Inf, or the file became shorter.
    """
    n, k = matrix.out_features, matrix.in_features
    codes = np.empty((n, k), np.uint8)
    scales, zeros = (np.empty((n, spec.num_groups(k)), np.float32) for _ in range(2))
    error = norm = 0.0
    step = max(1, (1 << 20) // k)
    for start in range(0, n, step):
        stop = min(start + step, n)
        weight = _rows(matrix, start, stop)
        if not np.isfinite(weight).all():
            raise format_error(matrix.file.path, "expected finite values, found NaN or Inf", matrix.info.name)
        part = round_to_nearest(weight, spec)
        codes[start:stop], scales[start:stop] = part.codes, part.scales
        zeros[start:stop] = part.zeros
        error += float(np.square(part.dequantize() - weight, dtype=np.float64).sum())
        norm += float(np.square(weight, dtype=np.float64).sum())
    report((error / norm) ** 0.5 if norm else 0.0)
    rows = slice(None) if matrix.rows is None else matrix.rows
    narrow = narrowest(scales[rows])
    spec = spec.replace(scale_format=scale_format_of(narrow))
    return Codes(spec, codes[rows], narrow, narrowest(zeros[rows]), None, bias)


def _rows(matrix: Matrix, start: int, stop: int) -> NDArray[np.float32]:
    """Rows of the file in float32."""
    per_row = matrix.in_features // matrix.kind.block
    first = matrix.blocks[0] + start * per_row
    pieces = list(matrix.file.floats(matrix.info, first, (stop - start) * per_row))
    return np.concatenate(pieces).reshape(stop - start, matrix.in_features)
