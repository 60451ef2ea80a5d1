"""Integer codes in the bit streams of checkpoints.

Codes follow each other from the least significant bit of the first byte on, across the borders of little-endian words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tmac import _core
from tmac.formats.checkpoint import Array
from tmac.threads import get_num_threads

AWQ_LANES = (0, 2, 4, 6, 1, 3, 5, 7)  # the i-th of eight codes in AWQ's words belongs to column AWQ_LANES[i]
# gptqmodel's `gptq_p`: 32 codes are `bits` words, first the low bits of all, then the higher ones: (bits, shift).
PLANES = {3: ((2, 0), (1, 2)), 5: ((4, 0), (1, 4)), 6: ((4, 0), (2, 4)), 7: ((4, 0), (2, 4), (1, 6))}


def num_words(count: int, bits: int) -> int:
    """32-bit words of `count` codes."""
    return -(-count * bits // 32)


def unpack_stream(words: Array, bits: int, count: int) -> NDArray[np.uint8]:
    """Codes of `bits` bits, a stream in each row.

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
    return _core.unpack_stream(stream, bits, count, get_num_threads())


def unpack_down(words: Array, bits: int, count: int) -> NDArray[np.uint8]:
    """GPTQ's `qweight`: every column is a stream that goes down the rows.

    Args:
        words: i32 `[at least num_words(count, bits), columns]`.
        bits: 1 to 8.
        count: codes in a column.

    Returns:
        u8 `[columns, count]`.

    Raises:
        ValueError: the columns are too short.
    """
    return _core.unpack_down(np.ascontiguousarray(words), bits, count, get_num_threads())


def unpack_across(words: Array, bits: int, count: int) -> NDArray[np.uint8]:
    """AWQ's `qweight`: every row is a stream in which eight codes at a time stand in the order `AWQ_LANES`.

    Args:
        words: i32 `[rows, at least num_words(count, bits)]`.
        bits: 1 to 8.
        count: codes in a row, a multiple of eight.

    Returns:
        u8 `[count, rows]`: transposed.

    Raises:
        ValueError: the rows are too short, or `count` is no multiple of eight.
    """
    return _core.unpack_across(np.ascontiguousarray(words), bits, count, AWQ_LANES, get_num_threads())


def unpack_planes_down(words: Array, bits: int, count: int) -> NDArray[np.uint8]:
    """`unpack_down` for gptqmodel's planar form of 3, 5, 6 and 7 bits; whole blocks of 32 codes."""
    blocks = words.reshape(-1, bits, words.shape[1])
    codes = np.zeros((words.shape[1], count), np.uint8)
    row = 0
    for width, shift in PLANES[bits]:
        plane = blocks[:, row : row + width].reshape(-1, words.shape[1])
        codes |= unpack_down(plane, width, count) << np.uint8(shift)
        row += width
    return codes
