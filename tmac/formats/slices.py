"""Codes packed across rows: an item of a column holds codes of that column from several slices of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tmac.formats.checkpoint import Array

BLOCK_BYTES = 1 << 16  # of items, which stay in the cache while they are read once for every slice


def unpack_slices(items: Array, bits: int, shifts: Sequence[int]) -> NDArray[np.uint8]:
    """Items `[rows, columns]` -> u8 `[slices, rows, columns]`: slice s has the `bits` bits from `shifts[s]` on."""
    rows, columns = items.shape
    codes = np.empty((len(shifts), rows, columns), np.uint8)
    step = max(1, BLOCK_BYTES // max(columns * items.itemsize, 1))
    mask = items.dtype.type(2**bits - 1)
    for begin in range(0, rows, step):
        block = items[begin : begin + step]
        shifted = np.empty_like(block)
        for part, shift in zip(codes, shifts, strict=True):
            np.right_shift(block, items.dtype.type(shift), out=shifted)
            np.bitwise_and(shifted, mask, out=part[begin : begin + step], casting="unsafe")
    return codes
