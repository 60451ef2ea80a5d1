"""Blocks of any type as float32: by ourselves where the type has an exact form, else by the gguf package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tmac.formats.checkpoint import Array
from tmac.formats.errors import format_error
from tmac.formats.gguf_blocks import EXACT_TYPES, Parts
from tmac.formats.gguf_header import TensorInfo
from tmac.formats.gguf_types import PLAIN
from tmac.spec import QuantSpec

Dequantize = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def dequantizer(path: Path, info: TensorInfo, tail: bytes = b"") -> Dequantize:
    """u8 `[blocks, block_bytes]` -> f32 `[blocks, elements]` for the type of a tensor with these bytes at its end.

    Raises:
        FormatError: nothing that we know dequantizes it.
        ImportError: the gguf package is missing, and the type needs it.
    """
    name = info.type_name
    if name in EXACT_TYPES:
        exact = EXACT_TYPES[name]
        scales = np.frombuffer(tail[:4], "<f4")[:, None] if tail else None
        return lambda blocks: _values(exact.split(blocks), exact.spec, scales)
    if name == "BF16":
        return lambda blocks: (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if name in PLAIN and PLAIN[name][1][1] == "f":
        return lambda blocks: blocks.view(PLAIN[name][1]).astype(np.float32)
    try:
        return _by_the_package(name)
    except (KeyError, NotImplementedError) as error:
        raise format_error(path, f"{name} cannot be dequantized", info.name) from error


def can_dequantize(name: str) -> bool:
    """Whether the gguf package knows the arithmetic of a type."""
    try:
        _by_the_package(name)
    except (KeyError, NotImplementedError):
        return False
    return True


def _by_the_package(name: str) -> Dequantize:
    try:
        import gguf
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise ImportError(f"GGUF files with {name} need the gguf package: pip install 'tmac-cpu[engine]'") from error
    kind = gguf.GGMLQuantizationType[name]
    nothing = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    gguf.quants.dequantize(nothing, kind)  # raises what a type without arithmetic raises
    return lambda blocks: gguf.quants.dequantize(blocks, kind)


def _values(parts: Parts, spec: QuantSpec, tensor_scale: Array | None) -> NDArray[np.float32]:
    """The arithmetic of docs/format.md, section 3, one row for each block."""
    scales = _group_values(parts.scales if tensor_scale is None else tensor_scale, parts.super_scales)
    num_blocks = len(parts.codes)
    values = parts.codes.astype(np.float32).reshape(num_blocks, scales.shape[1], -1)
    if parts.zeros is None:
        values -= np.float32(spec.fixed_zero or 0)
        values *= scales[..., None]
        return values
    offsets = _group_values(parts.zeros, parts.super_offsets)
    values *= scales[..., None]
    values += -offsets[..., None] if parts.super_offsets is not None else offsets[..., None]
    return values


def _group_values(groups: Array | None, supers: Array | None) -> NDArray[np.float32]:
    values = np.asarray(groups, np.float32)
    return values if supers is None else supers.astype(np.float32) * values
