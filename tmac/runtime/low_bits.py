"""Weights in this CPU's memory order, from quantized layers or rounded from floats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tmac import _core
from tmac.codes import pack_tensors, round_to_nearest, tensor_shapes
from tmac.formats.checkpoint import Array, QuantizedLayer, StoredTensor, to_float32
from tmac.spec import Activation, QuantSpec
from tmac.threads import get_num_threads

GROUP = 32  # columns that share a scale and an offset
BLOCK = 1 << 22  # elements that are rounded at a time


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
    codes = layer.read()
    if activation is not None and codes.spec.activation != activation:
        codes = replace(codes, spec=codes.spec.replace(activation=activation))
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
    arrays: dict[str, Array] = {}
    step = max(1, BLOCK // k)
    for start in range(0, n, step):
        rows = np.ascontiguousarray(to_float32(weight[start : start + step], tensor.dtype))
        codes = round_to_nearest(rows, spec)
        planes = _core.codes_to_planes(codes.codes, spec.bits, get_num_threads())
        for name, part in (("planes", planes), ("scales", codes.scales), ("offsets", codes.zeros)):
            assert part is not None
            if name not in arrays:
                arrays[name] = np.empty(tensor_shapes(spec, n, k)[name], part.dtype)
            target = arrays[name][:, start : start + step] if name == "planes" else arrays[name][start : start + step]
            target[...] = part
    del weight
    return pack_tensors(arrays, spec, k)
