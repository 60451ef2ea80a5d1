"""Integer codes in the bit streams of checkpoints."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tmac.formats.checkpoint import Array

CODES = 8  # that `bits` bytes hold, whatever the width


def unpack_stream(words: Array, bits: int, count: int) -> NDArray[np.uint8]:
    """Codes of `bits` bits that follow each other from the least significant bit of each row's first byte on.

    Args:
        words: integers of any width `[rows, words]`, little-endian.
        bits: 1 to 8.
        count: codes in a row.

    Returns:
        u8 `[rows, count]`.

    Raises:
        ValueError: the rows are too short.
    """
    stream = np.ascontiguousarray(words).view(np.uint8)
    rows, nbytes = stream.shape
    if nbytes * 8 < count * bits:
        raise ValueError(f"expected {count} codes of {bits} bits in a row, found {nbytes} bytes")
    if bits == CODES:
        return stream[:, :count]
    blocks = -(-count // CODES)
    if nbytes < blocks * bits:
        stream = np.pad(stream, ((0, 0), (0, blocks * bits - nbytes)))
    parts = stream[:, : blocks * bits].reshape(rows, blocks, bits)
    codes = np.empty((rows, blocks, CODES), np.uint8)
    mask = np.uint8(2**bits - 1)
    for index in range(CODES):
        byte, shift = divmod(index * bits, 8)
        code = parts[..., byte] >> np.uint8(shift)
        if shift + bits > 8:
            code |= parts[..., byte + 1] << np.uint8(8 - shift)
        np.bitwise_and(code, mask, out=codes[..., index])
    return codes.reshape(rows, blocks * CODES)[:, :count]
