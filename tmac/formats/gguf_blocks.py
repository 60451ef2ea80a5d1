"""Blocks of ggml's types taken apart into codes, scales and zeros, without rounding.

The layouts are those of ggml-common.h and ggml-quants.c (`dequantize_row_*`), I2_S that of microsoft/BitNet on x86.
What `Codes.dequantize` makes of the arrays has the bits that ggml's own arithmetic gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tmac.formats.checkpoint import Array
from tmac.spec import QuantSpec

Bytes = NDArray[np.uint8]
LOW_NIBBLE = np.uint8(15)


class Parts(NamedTuple):
    """What some blocks hold: codes u8 `[blocks, elements]`, one row for each block in the other arrays."""

    codes: NDArray[np.uint8]
    scales: Array | None
    zeros: Array | None = None
    super_scales: Array | None = None
    super_offsets: Array | None = None


@dataclass(frozen=True)
class ExactType:
    """A type whose numbers are exactly those of a spec.

    Args:
        spec: what the codes mean.
        split: u8 `[blocks, block_bytes]`, contiguous -> Parts. I2_S has its scale behind the blocks: no scales.
    """

    spec: QuantSpec
    split: Callable[[Bytes], Parts]


def _f16(blocks: Bytes, column: int) -> Array:
    """The f16 at a byte of each block, `[blocks, 1]`."""
    return np.ascontiguousarray(blocks[:, column : column + 2]).view("<f2")


def _nibbles(packed: Bytes, run: int) -> NDArray[np.uint8]:
    """u8 `[blocks, bytes]` -> `[blocks, 2 * bytes]`: of each `run` bytes first all low halves, then all high ones."""
    num_blocks, nbytes = packed.shape
    codes = np.empty((num_blocks, nbytes // run, 2, run), np.uint8)
    runs = packed.reshape(num_blocks, nbytes // run, run)
    np.bitwise_and(runs, LOW_NIBBLE, out=codes[:, :, 0])
    np.right_shift(runs, 4, out=codes[:, :, 1])
    return codes.reshape(num_blocks, -1)


def _fields(packed: Bytes, run: int, bits: int) -> NDArray[np.uint8]:
    """As `_nibbles`, for fields of 1 or 2 bits: of each `run` bytes first all lowest fields, then the next."""
    num_blocks, nbytes = packed.shape
    count = 8 // bits
    codes = np.empty((num_blocks, nbytes // run, count, run), np.uint8)
    runs = packed.reshape(num_blocks, nbytes // run, run)
    for index in range(count):
        np.right_shift(runs, index * bits, out=codes[:, :, index])
    codes &= np.uint8(2**bits - 1)
    return codes.reshape(num_blocks, -1)


def _add_bits(codes: NDArray[np.uint8], high: NDArray[np.uint8], position: int) -> NDArray[np.uint8]:
    """`codes | high << position`, in place."""
    high <<= np.uint8(position)
    codes |= high
    return codes


def _q4_0(blocks: Bytes) -> Parts:
    return Parts(_nibbles(blocks[:, 2:], 16), _f16(blocks, 0))


def _q4_1(blocks: Bytes) -> Parts:
    return Parts(_nibbles(blocks[:, 4:], 16), _f16(blocks, 0), _f16(blocks, 2))


def _q5(blocks: Bytes, start: int) -> NDArray[np.uint8]:
    """Four bytes with the fifth bit of each code, then 16 bytes of nibbles."""
    fifth = np.unpackbits(np.ascontiguousarray(blocks[:, start : start + 4]), axis=1, bitorder="little")
    return _add_bits(_nibbles(blocks[:, start + 4 :], 16), fifth, 4)


def _q5_0(blocks: Bytes) -> Parts:
    return Parts(_q5(blocks, 2), _f16(blocks, 0))


def _q5_1(blocks: Bytes) -> Parts:
    return Parts(_q5(blocks, 4), _f16(blocks, 0), _f16(blocks, 2))


def _q8_0(blocks: Bytes) -> Parts:
    return Parts(blocks[:, 2:] ^ np.uint8(128), _f16(blocks, 0))  # a signed byte plus 128


def _q1_0(blocks: Bytes) -> Parts:
    """+d or -d: (code - 1/2) * 2 d. The double of an f16 may be too large for one."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, 2:]), axis=1, bitorder="little")
    return Parts(bits, _f16(blocks, 0).astype(np.float32) * 2)


def _q2_0(blocks: Bytes) -> Parts:
    return Parts(_fields(blocks[:, 2:], 1, 2), _f16(blocks, 0))


def _tq1_0(blocks: Bytes) -> Parts:
    """A byte is the fraction 0.t0 t1 t2 t3 t4 in base 3, rounded up, of 256: times 3^n brings digit n to the front."""
    codes = np.empty((len(blocks), 256), np.uint8)
    start = 0
    for first, run, digits in ((0, 32, 5), (32, 16, 5), (48, 4, 4)):
        for power in range(digits):
            shifted = blocks[:, first : first + run] * np.uint8(3**power)  # modulo 256
            digit = codes[:, start : start + run]
            np.add((shifted > 85).view(np.uint8), (shifted > 170).view(np.uint8), out=digit)  # shifted * 3 // 256
            start += run
    return Parts(codes, _f16(blocks, 52))


def _tq2_0(blocks: Bytes) -> Parts:
    return Parts(_fields(blocks[:, :64], 32, 2), _f16(blocks, 64))


def _i2_s(blocks: Bytes) -> Parts:
    """Byte j has elements j, 32 + j, 64 + j and 96 + j, the first in its highest bits."""
    return Parts(_fields(blocks, 32, 2).reshape(-1, 4, 32)[:, ::-1].reshape(-1, 128), None)


def _q2_k(blocks: Bytes) -> Parts:
    pairs = blocks[:, :16]
    codes = _fields(blocks[:, 16:80], 32, 2)
    subs = (pairs & LOW_NIBBLE).view(np.int8), (pairs >> np.uint8(4)).view(np.int8)
    return Parts(codes, *subs, _f16(blocks, 80), _f16(blocks, 82))


def _q3_k(blocks: Bytes) -> Parts:
    """Three bits, the highest from a mask of 32 bytes: code - 4. Scales have six bits: scale - 32."""
    codes = _add_bits(_fields(blocks[:, 32:96], 32, 2), _fields(blocks[:, :32], 32, 1), 2)
    low = _nibbles(blocks[:, 96:104], 8)
    scales = _add_bits(low, _fields(blocks[:, 104:108], 4, 2), 4).view(np.int8) - np.int8(32)
    return Parts(codes, scales, None, _f16(blocks, 108))


def _sub_scales(packed: Bytes) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """The twelve bytes of Q4_K and Q5_K -> eight scales and eight minima of six bits."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    subs = np.empty((2, len(packed), 8), np.uint8)
    for part, source, nibble in ((subs[0], first, third & LOW_NIBBLE), (subs[1], second, third >> np.uint8(4))):
        np.bitwise_and(source, 63, out=part[:, :4])
        np.bitwise_or(nibble, (source >> np.uint8(2)) & np.uint8(48), out=part[:, 4:])
    signed = subs.view(np.int8)
    return signed[0], signed[1]


def _q4_k(blocks: Bytes) -> Parts:
    return Parts(_nibbles(blocks[:, 16:], 32), *_sub_scales(blocks[:, 4:16]), _f16(blocks, 0), _f16(blocks, 2))


def _q5_k(blocks: Bytes) -> Parts:
    codes = _add_bits(_nibbles(blocks[:, 48:], 32), _fields(blocks[:, 16:48], 32, 1), 4)
    return Parts(codes, *_sub_scales(blocks[:, 4:16]), _f16(blocks, 0), _f16(blocks, 2))


def _q6_k(blocks: Bytes) -> Parts:
    codes = _add_bits(_nibbles(blocks[:, :128], 64), _fields(blocks[:, 128:192], 32, 2), 4)
    return Parts(codes, np.ascontiguousarray(blocks[:, 192:208]).view(np.int8), None, _f16(blocks, 208))


def _two_level(bits: int, group_size: int, *, offset: bool) -> QuantSpec:
    return QuantSpec(
        bits=bits,
        group_size=group_size,
        zero_point="offset" if offset else "fixed",
        scale_format="two_level",
    )


EXACT_TYPES = {
    "Q4_0": ExactType(QuantSpec(bits=4, group_size=32), _q4_0),
    "Q4_1": ExactType(QuantSpec(bits=4, group_size=32, zero_point="offset"), _q4_1),
    "Q5_0": ExactType(QuantSpec(bits=5, group_size=32), _q5_0),
    "Q5_1": ExactType(QuantSpec(bits=5, group_size=32, zero_point="offset"), _q5_1),
    "Q8_0": ExactType(QuantSpec(bits=8, group_size=32), _q8_0),
    "Q1_0": ExactType(QuantSpec(bits=1, group_size=128), _q1_0),
    "Q2_0": ExactType(QuantSpec(bits=2, group_size=64, fixed_zero=1.0), _q2_0),
    "TQ1_0": ExactType(QuantSpec(bits=2, group_size=256, codebook="ternary"), _tq1_0),
    "TQ2_0": ExactType(QuantSpec(bits=2, group_size=256, codebook="ternary"), _tq2_0),
    # Its own kernels round activations to int8 for a whole token.
    "I2_S": ExactType(
        QuantSpec(bits=2, group_size=-1, codebook="ternary", activation="token", scale_format="f32"), _i2_s
    ),
    "Q2_K": ExactType(_two_level(2, 16, offset=True), _q2_k),
    "Q3_K": ExactType(_two_level(3, 16, offset=False), _q3_k),
    "Q4_K": ExactType(_two_level(4, 32, offset=True), _q4_k),
    "Q5_K": ExactType(_two_level(5, 32, offset=True), _q5_k),
    "Q6_K": ExactType(_two_level(6, 16, offset=False), _q6_k),
}
