"""Weights in this CPU's memory order, from quantized layers or rounded from floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tmac import _core
from tmac.codes import Codes, Dtypes, RowPacker, Rows, WiderRowsError, round_to_nearest
from tmac.formats.checkpoint import QuantizedLayer, StoredTensor, to_float32
from tmac.formats.in_order import in_order
from tmac.spec import Activation, QuantSpec

GROUP = 32  # columns that share a scale and an offset
BLOCK = 1 << 21  # elements that are read, or rounded, at a time by each thread
MOST = 1 << 23  # elements of blocks that are made longer for more than one thread to pack them
SHARED = 64  # rows that no two threads may pack at once

Read = Callable[[int, int], Rows]


def low_bit_spec(width: int | None, activation: Activation | None) -> QuantSpec | None:
    """What a head or an embedding of `width` bits is rounded to; None for None. Raises ValueError."""
    if width is None:
        return None
    return QuantSpec(width, GROUP, zero_point="offset", activation=activation or "group")


def pack_layer(
    layer: QuantizedLayer, activation: Activation | None, num_threads: int = 1, plane_layout: bool = False
) -> tuple[_core.PackedWeight, NDArray[np.float32] | None]:
    """A layer and its bias, with another activation than it says where one is given. Where the format can, some rows
    are read at a time, so that there is no second copy of a large layer. `plane_layout`: as in `Codes.pack`.

    Raises:
        FormatError, ValueError: the tensors are damaged.
        UnsupportedSpecError: no kernel serves the spec.
    """
    n, k = layer.out_features, layer.in_features
    read = _reader(layer, activation)
    if layer.read_blocks is not None:
        packed = _pack_blocks(layer, activation, num_threads, plane_layout)
    elif read is not None:
        packed = _pack_rows(read, n, k, num_threads, plane_layout)
    else:
        codes = _with(layer.read(), activation)
        return codes.pack(plane_layout=plane_layout), codes.bias
    return packed, None if layer.read_bias is None else layer.read_bias()


def reads_rows(layer: QuantizedLayer) -> bool:
    """Whether a layer is read some rows at a time."""
    return layer.read_tensors is not None or layer.read_rows is not None


def pack_floats(tensor: StoredTensor, spec: QuantSpec, plane_layout: bool = False) -> _core.PackedWeight:
    """A float matrix rounded to nearest, some rows at a time, as `round_to_nearest` rounds all of them.
    `plane_layout`: as in `Codes.pack`.

    Raises:
        FormatError: the file became shorter.
        ValueError: NaN or Inf, or values that the scales cannot stand for.
        UnsupportedSpecError: no kernel serves the spec.
    """
    weight = tensor.read()

    def read(begin: int, end: int) -> Rows:
        block = np.ascontiguousarray(to_float32(weight[begin:end], tensor.dtype))
        return Rows.from_codes(round_to_nearest(block, spec))

    n, k = tensor.shape
    return _pack_rows(read, n, k, 1, plane_layout)


def _reader(layer: QuantizedLayer, activation: Activation | None) -> Read | None:
    """Reads some rows of a layer; None where it is read at once."""
    read_tensors, read_rows = layer.read_tensors, layer.read_rows
    if read_tensors is not None:
        spec = layer.spec if activation is None else layer.spec.replace(activation=activation)
        return lambda begin, end: Rows.from_tensors(read_tensors(begin, end), spec, layer.in_features)
    if read_rows is not None:
        return lambda begin, end: Rows.from_codes(_with(read_rows(begin, end), activation))
    return None


def _pack_blocks(
    layer: QuantizedLayer, activation: Activation | None, num_threads: int, plane_layout: bool
) -> _core.PackedWeight:
    """A layer of a GGUF file."""
    read_blocks, n, k = layer.read_blocks, layer.out_features, layer.in_features
    assert read_blocks is not None
    spec = layer.spec if activation is None else layer.spec.replace(activation=activation)
    values = np.dtype(np.int8 if spec.scale_format == "two_level" else np.float16)
    dtypes = (values, values if spec.zero_point == "offset" else None)
    packer = RowPacker(spec, n, k, dtypes, plane_layout=plane_layout)
    _for_rows(
        _row_blocks(n, k),
        lambda begin, end: packer.add_blocks(begin, layer.source_type, read_blocks(begin, end)),
        num_threads,
    )
    return packer.finish()


def _pack_rows(read: Read, n: int, k: int, num_threads: int, plane_layout: bool) -> _core.PackedWeight:
    dtypes: Dtypes | None = None
    while True:
        try:
            return _try_rows(read, _row_blocks(n, k), n, dtypes, num_threads, plane_layout)
        except WiderRowsError as error:
            dtypes = error.dtypes


def _try_rows(
    read: Read, blocks: Sequence[tuple[int, int]], n: int, dtypes: Dtypes | None, num_threads: int, plane_layout: bool
) -> _core.PackedWeight:
    first = read(*blocks[0])
    packer = RowPacker.like(first, n, dtypes, plane_layout=plane_layout)
    packer.add(0, first)
    _for_rows(blocks[1:], lambda begin, end: packer.add(begin, read(begin, end)), num_threads)
    return packer.finish()


def _for_rows(blocks: Sequence[tuple[int, int]], add: Callable[[int, int], None], num_threads: int) -> None:
    """`add` for all ranges, by several threads where these share no rows that must be packed by one."""
    if num_threads == 1 or len(blocks) < 2 or any(begin % SHARED for begin, _ in blocks):
        for begin, end in blocks:
            add(begin, end)
        return
    with closing(in_order(blocks, lambda rows: add(*rows), lambda _: None, num_threads)) as done:
        for _ in done:
            pass


def _with(codes: Codes, activation: Activation | None) -> Codes:
    if activation is None or codes.spec.activation == activation:
        return codes
    return replace(codes, spec=codes.spec.replace(activation=activation))


def _row_blocks(n: int, k: int) -> list[tuple[int, int]]:
    """Ranges of rows of about BLOCK elements; of a multiple of SHARED rows where these are not too long."""
    step = max(1, BLOCK // k)
    if SHARED * k <= MOST:
        step = max(SHARED, step // SHARED * SHARED)
    return [(begin, min(begin + step, n)) for begin in range(0, n, step)]
