"""Blocks of ggml's types taken apart into codes, scales and zeros, without rounding.

The compiled core does it (csrc/layout/ggml_blocks.cpp). What `Codes.dequantize` makes of the arrays has the bits that
ggml's own arithmetic gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tmac import _core
from tmac.formats.checkpoint import Array
from tmac.spec import QuantSpec

Bytes = NDArray[np.uint8]


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
        name: ggml's.
        spec: what the codes mean.
        factor: of the scales in the file.
    """

    name: str
    spec: QuantSpec
    factor: int = 1

    @property
    def packs(self) -> bool:
        """Whether blocks hold all that there is, as it is: the core packs them without a detour over codes."""
        return self.factor == 1 and self.spec.scale_format != "f32"

    def split(self, blocks: Bytes) -> Parts:
        """u8 `[blocks, block_bytes]`, contiguous -> Parts. I2_S has its scale behind the blocks: no scales."""
        parts = Parts(*_core.split_blocks(self.name, blocks, 1))
        if self.factor == 1 or parts.scales is None:
            return parts
        return parts._replace(scales=parts.scales.astype(np.float32) * self.factor)


def _two_level(bits: int, group_size: int, *, offset: bool) -> QuantSpec:
    return QuantSpec(
        bits=bits,
        group_size=group_size,
        zero_point="offset" if offset else "fixed",
        scale_format="two_level",
    )


_TYPES = (
    ExactType("Q4_0", QuantSpec(bits=4, group_size=32)),
    ExactType("Q4_1", QuantSpec(bits=4, group_size=32, zero_point="offset")),
    ExactType("Q5_0", QuantSpec(bits=5, group_size=32)),
    ExactType("Q5_1", QuantSpec(bits=5, group_size=32, zero_point="offset")),
    ExactType("Q8_0", QuantSpec(bits=8, group_size=32)),
    # +d or -d: (code - 1/2) * 2 d. The double of an f16 may be too large for one.
    ExactType("Q1_0", QuantSpec(bits=1, group_size=128), 2),
    ExactType("Q2_0", QuantSpec(bits=2, group_size=64, fixed_zero=1.0)),
    ExactType("TQ1_0", QuantSpec(bits=2, group_size=256, codebook="ternary")),
    ExactType("TQ2_0", QuantSpec(bits=2, group_size=256, codebook="ternary")),
    # Its own kernels round activations to int8 for a whole token.
    ExactType("I2_S", QuantSpec(bits=2, group_size=-1, codebook="ternary", activation="token", scale_format="f32")),
    ExactType("Q2_K", _two_level(2, 16, offset=True)),
    ExactType("Q3_K", _two_level(3, 16, offset=False)),
    ExactType("Q4_K", _two_level(4, 32, offset=True)),
    ExactType("Q5_K", _two_level(5, 32, offset=True)),
    ExactType("Q6_K", _two_level(6, 16, offset=False)),
)
EXACT_TYPES = {kind.name: kind for kind in _TYPES}
