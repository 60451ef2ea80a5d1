"""Packed weights that do not fit the caches, activations, and how far a result is from the exact product."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import STREAMED_BYTES
from tmac import _core
from tmac.spec import QuantSpec

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

OUTLIER_CHANNELS = 0.01
OUTLIER_FACTOR = 100.0


class Weights:
    """Packed weights of one spec and shape: enough of them that one is out of the caches before it comes again."""

    def __init__(self, spec: QuantSpec, n: int, k: int, kernel: str, cached: bool) -> None:
        rng = np.random.default_rng(n + k)
        groups = spec.num_groups(k)
        self.n, self.k, self.spec = n, k, spec
        if spec.codebook == "ternary":
            planes = _core.codes_to_planes(rng.integers(0, 3, (n, k), dtype=np.uint8), spec.bits)
        else:
            planes = rng.integers(0, 256, (spec.bits, n, -(-k // 8)), dtype=np.uint8)
            if k % 8:
                planes[..., -1] &= (1 << k % 8) - 1
        scales = rng.uniform(0.005, 0.02, (n, groups)).astype(np.float16)
        zeros = make_zeros(rng, spec, n, groups)
        self.planes, self.scales, self.zeros = planes, scales, zeros
        self.bytes = planes.nbytes + scales.nbytes + (0 if zeros is None else zeros.nbytes)
        first = self.pack(kernel)
        count = 1 if cached else STREAMED_BYTES // first.nbytes + 2
        self.packed = [first, *(self.pack(kernel) for _ in range(count - 1))]
        self.kernel = first.kernel
        self.buffers = [packed.buffer() for packed in self.packed]

    def pack(self, kernel: str) -> _core.PackedWeight:
        return _core.pack(self.spec, self.planes, self.k, self.scales, self.zeros, kernel=kernel)

    @cached_property
    def exact(self) -> NDArray[np.float64]:
        """The dequantized weight, transposed: [k, n]."""
        weight: NDArray[np.float64] = _core.dequantize(self.buffers[0]).T.astype(np.float64)
        return weight


def make_zeros(rng: np.random.Generator, spec: QuantSpec, n: int, groups: int) -> NDArray[Any] | None:
    if spec.zero_point == "fixed":
        return None
    if spec.zero_point == "integer":
        return rng.integers(0, 2**spec.bits, (n, groups), dtype=np.uint8)
    return rng.normal(0, 0.05, (n, groups)).astype(np.float16)


def gaussian(m: int, k: int) -> Floats:
    x: Floats = np.random.default_rng(m).standard_normal((m, k), dtype=np.float32)
    return x


def with_outliers(x: Floats) -> Floats:
    """1 % of the channels, at least one, the same for every token, 100 times larger, as in some language models."""
    k = x.shape[1]
    channels = np.random.default_rng(k).choice(k, max(1, round(OUTLIER_CHANNELS * k)), replace=False)
    larger: Floats = x.copy()
    larger[:, channels] *= OUTLIER_FACTOR
    return larger


@dataclass(frozen=True)
class Error:
    """Distance from the float64 product: |y - exact| / |exact|, and its square, the normalized mean squared error."""

    relative_l2: float
    nmse: float

    @classmethod
    def of(cls, got: NDArray[Any], want: NDArray[np.float64]) -> Error:
        relative = float(np.linalg.norm(got - want) / np.linalg.norm(want))
        return cls(relative, relative**2)
