"""ggml's tensor types: the numbers, names and block sizes that a header needs (ggml.h, ggml-common.h).

The table is ours, because files outlive the list of any version of the gguf package: Q2_0 is newer than 0.19, and I2_S
belongs to microsoft/BitNet, whose files that package refuses as a whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class GgmlType:
    """How a type lies in a file.

    Args:
        id: ggml's number.
        name: ggml's name.
        block: elements of a block.
        block_bytes: bytes of a block.
        tail: bytes after the last block of a tensor (I2_S keeps its one scale there).
        flat: blocks do not end with the rows: a tensor, not a row, is a whole number of them.
    """

    id: int
    name: str
    block: int
    block_bytes: int
    tail: int = 0
    flat: bool = False

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor."""
        return math.prod(shape) // self.block * self.block_bytes + self.tail

    @property
    def bits(self) -> float:
        """Bits of an element, scales included."""
        return self.block_bytes * 8 / self.block


_TYPES = (
    GgmlType(0, "F32", 1, 4),
    GgmlType(1, "F16", 1, 2),
    GgmlType(2, "Q4_0", 32, 18),
    GgmlType(3, "Q4_1", 32, 20),
    GgmlType(6, "Q5_0", 32, 22),
    GgmlType(7, "Q5_1", 32, 24),
    GgmlType(8, "Q8_0", 32, 34),
    GgmlType(9, "Q8_1", 32, 36),
    GgmlType(10, "Q2_K", 256, 84),
    GgmlType(11, "Q3_K", 256, 110),
    GgmlType(12, "Q4_K", 256, 144),
    GgmlType(13, "Q5_K", 256, 176),
    GgmlType(14, "Q6_K", 256, 210),
    GgmlType(15, "Q8_K", 256, 292),
    GgmlType(16, "IQ2_XXS", 256, 66),
    GgmlType(17, "IQ2_XS", 256, 74),
    GgmlType(18, "IQ3_XXS", 256, 98),
    GgmlType(19, "IQ1_S", 256, 50),
    GgmlType(20, "IQ4_NL", 32, 18),
    GgmlType(21, "IQ3_S", 256, 110),
    GgmlType(22, "IQ2_S", 256, 82),
    GgmlType(23, "IQ4_XS", 256, 136),
    GgmlType(24, "I8", 1, 1),
    GgmlType(25, "I16", 1, 2),
    GgmlType(26, "I32", 1, 4),
    GgmlType(27, "I64", 1, 8),
    GgmlType(28, "F64", 1, 8),
    GgmlType(29, "IQ1_M", 256, 56),
    GgmlType(30, "BF16", 1, 2),
    GgmlType(34, "TQ1_0", 256, 54),
    GgmlType(35, "TQ2_0", 256, 66),
    GgmlType(36, "I2_S", 128, 32, tail=32, flat=True),
    GgmlType(39, "MXFP4", 32, 17),
    GgmlType(40, "NVFP4", 64, 36),
    GgmlType(41, "Q1_0", 128, 18),
    GgmlType(42, "Q2_0", 64, 18),
)
TYPES = {kind.id: kind for kind in _TYPES}
TYPE_NAMES = {kind.name: kind for kind in _TYPES}

# Types that are plain arrays: the name that safetensors uses, and how numpy reads them (bf16 as its bits).
PLAIN = {
    "F32": ("F32", "<f4"),
    "F16": ("F16", "<f2"),
    "BF16": ("BF16", "<u2"),
    "F64": ("F64", "<f8"),
    "I8": ("I8", "<i1"),
    "I16": ("I16", "<i2"),
    "I32": ("I32", "<i4"),
    "I64": ("I64", "<i8"),
}
