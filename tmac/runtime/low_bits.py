"""Weights in this CPU's memory order, from quantized layers or rounded from floats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tmac import _core
from tmac.codes import Codes, pack_rows, pack_tensors, round_to_nearest
from tmac.formats.checkpoint import QuantizedLayer, StoredTensor, to_float32
from tmac.spec import Activation, QuantSpec

GROUP = 32  # columns that share a scale and an offset
BLOCK = 1 << 22  # elements that are codes, or rounded, at a time
LARGE = 1 << 26  # elements of layers that are read in such blocks


def low_bit_spec(width: int | None, activation: Activation | None) -> QuantSpec | None:
    """What a head or an embedding of `width` bits is rounded to; None for None. Raises ValueError."""
    if width is None:
        return None
    return QuantSpec(width, GROUP, zero_point="offset", activation=activation or "group")


def pack_layer(
    layer: QuantizedLayer, activation: Activation | None
) -> tuple[_core.PackedWeight, NDArray[np.float32] | None]:
    """A layer and its bias, with another activation than it says where one is given.

    Raises:
        FormatError, ValueError: the tensors are damaged.
        UnsupportedSpecError: no kernel serves the spec.
    """
    if layer.read_tensors is not None:
        tensors = layer.read_tensors()
        spec = layer.spec if activation is None else layer.spec.replace(activation=activation)
        return pack_tensors(tensors, spec, layer.in_features), tensors.get("bias")
    read_rows = layer.read_rows
    if read_rows is not None and not layer.bias and layer.out_features * layer.in_features > LARGE:
        blocks = (read_rows(*rows) for rows in _row_blocks(layer.out_features, layer.in_features))
        return pack_rows((_with(codes, activation) for codes in blocks), layer.out_features), None
    codes = _with(layer.read(), activation)
    return codes.pack(), codes.bias


def pack_floats(tensor: StoredTensor, spec: QuantSpec) -> _core.PackedWeight:
    """A float matrix rounded to nearest, some rows at a time, as `round_to_nearest` rounds all of them.

    Raises:
        FormatError: the file became shorter.
        ValueError: NaN or Inf, or values that the scales cannot stand for.
        UnsupportedSpecError: no kernel serves the spec.
    """
    weight = tensor.read()
    n, k = tensor.shape
    blocks = (np.ascontiguousarray(to_float32(weight[begin:end], tensor.dtype)) for begin, end in _row_blocks(n, k))
    return pack_rows((round_to_nearest(block, spec) for block in blocks), n)


def _with(codes: Codes, activation: Activation | None) -> Codes:
    if activation is None or codes.spec.activation == activation:
        return codes
    return replace(codes, spec=codes.spec.replace(activation=activation))


def _row_blocks(n: int, k: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK // k)
    for begin in range(0, n, step):
        yield begin, min(begin + step, n)
