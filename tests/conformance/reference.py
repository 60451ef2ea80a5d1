"""docs/numerics.md in NumPy, written from the document alone, and the float64 products and bounds to compare with.

Every float32 operation below is one NumPy float32 operation, which rounds to nearest even like the kernels; the only
fused one goes through `fma`. Integers are summed in int64 and checked to fit the kernels' int32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Method = Literal["lut", "lut_fast", "mad", "float", "trit"]

ONE, HALF, LIMIT = np.float32(1), np.float32(0.5), np.float32(127)
HUGE_ACT_SCALE = np.float32(2.0**56)
SUPER_COLUMNS = 256
ACT_GROUP_SIZE = {"group": 128, "token": 65536, "float": 65536}
UNIT = 2.0**-24  # half an ulp of float32, relative
TINY = 2.0**-149  # the smallest float32: what an underflowing operation can lose


class Spec(Protocol):
    """The attributes of tmac.QuantSpec that a product depends on."""

    bits: int
    codebook: str
    group_size: int
    zero_point: str
    fixed_zero: float
    activation: str
    scale_format: str
    fast_aggregation: bool


@dataclass(frozen=True)
class Weight:
    """A quantized weight as the file format has it: codes [n, k], scales [n, groups], zeros or offsets or None.

    With two levels of scales `super_scales` is [n, ceil(k / 256)], and so is `super_offsets` where there are offsets.
    """

    spec: Any
    codes: NDArray[np.uint8]
    scales: NDArray[Any]
    zeros: NDArray[Any] | None
    method: Method | None = (
        None  # of the kernel that multiplies; by default the class that docs/numerics.md names first
    )
    super_scales: NDArray[Any] | None = None
    super_offsets: NDArray[Any] | None = None

    def group_scales(self) -> F64:
        """[n, groups], exact."""
        scales = self.scales.astype(np.float64)
        return scales if self.super_scales is None else self.super_scales.astype(np.float64)[:, self._super()] * scales

    def group_zeros(self) -> F64 | None:
        """Zeros or offsets [n, groups], exact."""
        if self.zeros is None:
            return None
        zeros = self.zeros.astype(np.float64)
        if self.super_offsets is None:
            return zeros
        return -(self.super_offsets.astype(np.float64)[:, self._super()] * zeros)

    def _super(self) -> NDArray[np.int64]:
        return np.arange(self.scales.shape[1]) * self.spec.group_size // SUPER_COLUMNS

    def dequantize(self) -> F64:
        """The weight in float64, [n, k]: the numbers that the checkpoint means."""
        per_column = np.arange(self.codes.shape[1]) // columns_per_group(self.spec, self.codes.shape[1])
        scale = self.group_scales()[:, per_column]
        zeros = self.group_zeros()
        if zeros is None:
            return (self.codes - self.spec.fixed_zero) * scale
        zero = zeros[:, per_column]
        return self.codes * scale + zero if self.spec.zero_point == "offset" else (self.codes - zero) * scale

    def dequantize_f32(self) -> F32:
        """The same in float32, each operation rounded: what the class `float` multiplies and `dequantize` returns."""
        per_column = np.arange(self.codes.shape[1]) // columns_per_group(self.spec, self.codes.shape[1])
        codes = self.codes.astype(np.float32)
        scale = self.group_scales().astype(np.float32)[:, per_column]
        zeros = self.group_zeros()
        if zeros is None:
            return (codes - np.float32(self.spec.fixed_zero)) * scale
        zero = zeros.astype(np.float32)[:, per_column]
        return codes * scale + zero if self.spec.zero_point == "offset" else (codes - zero) * scale


@dataclass(frozen=True)
class ActGroup:
    """Columns [begin, end) of one weight group whose activations share a scale."""

    begin: int
    end: int
    weight_group: int


def columns_per_group(spec: Spec, k: int) -> int:
    return k if spec.group_size == -1 else min(spec.group_size, k)


def act_groups(spec: Spec, k: int) -> Iterator[ActGroup]:
    size = columns_per_group(spec, k)
    for index, begin in enumerate(range(0, k, size)):
        end = min(k, begin + size)
        for at in range(begin, end, ACT_GROUP_SIZE[spec.activation]):
            yield ActGroup(at, min(end, at + ACT_GROUP_SIZE[spec.activation]), index)


def method_of(weight: Weight) -> Method:
    if weight.spec.activation == "float":
        return "float"
    if weight.spec.fast_aggregation:
        return "lut_fast"
    if weight.method == "trit":  # another way to hold the codes, the same numbers
        return "mad"
    return weight.method or ("lut" if weight.spec.activation == "group" and weight.spec.bits <= 4 else "mad")


def looks_up(weight: Weight) -> bool:
    return method_of(weight) in ("lut", "lut_fast")


def fma(a: Any, b: Any, c: Any) -> F32:
    """a * b + c, rounded once to float32.

    The product of two float32 has at most 48 significant bits and is exact in float64. The float64 sum may round, and
    rounding again to float32 could then fall on the wrong side of a tie. So the sum is rounded to odd first: TwoSum
    gives its exact error, and where that is not 0 and the sum's last bit is even, the other neighbour of the exact
    value, one step towards the error, is the odd one. A value rounded to odd with p + 2 bits or more rounds to p bits
    as the exact value does (Boldo, Melquiond 2008); here 53 >= 24 + 2, and float32 denormals have fewer bits still.
    """
    with np.errstate(all="ignore"):
        product = np.multiply(a, b, dtype=np.float64)
        addend = np.broadcast_to(np.asarray(c, np.float64), np.broadcast(product, c).shape)
        total = np.array(product + addend)
        virtual = total - product
        error = (product - (total - virtual)) + (addend - virtual)
        to_odd = np.isfinite(total) & (error != 0) & ((total.view(np.int64) & 1) == 0)
        total = np.where(to_odd, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
        return total.astype(np.float32)


def lane_sum(values: F32) -> F32:
    """[..., count] -> [...]: sixteen lanes in order of the columns, folded by 8, 4, 2 and 1."""
    count = values.shape[-1]
    padded = np.zeros((*values.shape[:-1], -(-count // 16) * 16), np.float32)
    padded[..., :count] = values
    lanes = np.zeros((*values.shape[:-1], 16), np.float32)
    for at in range(0, padded.shape[-1], 16):
        lanes = lanes + padded[..., at : at + 16]
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def inverse_of(largest: F32) -> F32:
    inverse = LIMIT / largest
    return np.where((largest == 0) | ~np.isfinite(inverse), np.float32(0), inverse)


def quads_of(a: NDArray[Any]) -> NDArray[Any]:
    """[m, count] -> [m, ceil(count / 4), 4], filled up with zeros."""
    padded = np.zeros((a.shape[0], -(-a.shape[1] // 4) * 4), a.dtype)
    padded[:, : a.shape[1]] = a
    return padded.reshape(a.shape[0], padded.shape[1] // 4, 4)


def lut_tables(a: F32) -> tuple[NDArray[np.int64], F32, F32]:
    """One act group [m, count] -> (tables [m, quads, 16], act_scale [m], act_sum [m])."""
    quads = quads_of(a)
    size = np.abs(quads)
    largest = ((size[..., 0] + size[..., 1]) + (size[..., 2] + size[..., 3])).max(axis=1)
    inverse = inverse_of(largest)
    signs = np.where(np.arange(16)[:, None] >> np.arange(4) & 1, ONE, -ONE)
    signed = quads[:, :, None, :] * signs
    sums = (signed[..., 0] + signed[..., 1]) + (signed[..., 2] + signed[..., 3])
    entries = np.rint(sums * inverse[:, None, None])
    act_scale = np.where(inverse == 0, np.float32(0), (largest / LIMIT) * HALF)
    bad = ~np.isfinite(a).all(axis=1)
    entries = np.where(bad[:, None, None] | ~np.isfinite(entries), np.float32(0), entries)
    nan = np.float32(np.nan)
    return entries.astype(np.int64), np.where(bad, nan, act_scale), np.where(bad, nan, lane_sum(a))


def looked_up(tables: NDArray[np.int64], codes: NDArray[np.uint8], plane: int) -> NDArray[np.int64]:
    """[m, quads, 16] and codes [n, count] -> the entries [m, n, quads] of a plane, 0 the least significant."""
    padded = np.zeros((codes.shape[0], tables.shape[1] * 4), np.int64)
    padded[:, : codes.shape[1]] = codes
    index = ((padded.reshape(codes.shape[0], -1, 4) >> plane & 1) << np.arange(4)).sum(axis=-1)
    return tables[:, np.arange(tables.shape[1]), index]


def lut_isum(tables: NDArray[np.int64], codes: NDArray[np.uint8], bits: int) -> NDArray[np.int64]:
    """[m, quads, 16] and codes [n, count] -> exact sums over planes and columns [m, n]."""
    total = np.zeros((tables.shape[0], codes.shape[0]), np.int64)
    for plane in range(bits):
        total += looked_up(tables, codes, plane).sum(axis=-1) << plane
    return total


def fast_leaves(quads: int) -> int:
    """Leaves of a lane's tree over the tables of an act group: two, four or eight."""
    return 2 if quads <= 8 else 4 if quads <= 16 else 8


def lut_fast_isum(tables: NDArray[np.int64], codes: NDArray[np.uint8], bits: int) -> NDArray[np.int64]:
    """The same, aggregated by rounding averages of unsigned bytes."""
    leaves = fast_leaves(tables.shape[1])
    padded = np.zeros((tables.shape[0], 4 * leaves, 16), np.int64)
    padded[:, : tables.shape[1]] = tables
    total = np.zeros((tables.shape[0], codes.shape[0]), np.int64)
    for plane in range(bits):
        entries = looked_up(padded, codes, plane)
        for lane in range(4):
            up = lane < 2  # rounds up; the other two lanes round down
            nodes = entries[..., lane::4] + 128 if up else 127 - entries[..., lane::4]
            while nodes.shape[-1] > 1:
                nodes = (nodes[..., 0::2] + nodes[..., 1::2] + 1) // 2
            average = nodes[..., 0] - 128 if up else 127 - nodes[..., 0]
            total += average * leaves << plane
    return total


def mad_codes(a: F32, largest: F32) -> tuple[NDArray[np.int64], F32, F32]:
    """One act group [m, count] -> (int8 values [m, count], act_scale [m], act_sum [m])."""
    inverse = inverse_of(largest)
    act_scale = np.where(inverse == 0, np.float32(0), largest / LIMIT)
    q = np.rint(a * inverse[:, None])
    bad = ~np.isfinite(largest)
    q = np.where(bad[:, None], np.float32(0), q).astype(np.int64)
    act_scale = np.where(bad, np.float32(np.nan), act_scale)
    return q, act_scale, act_scale * q.sum(axis=1).astype(np.float32)


def coefficient_of(weight: Weight, group: int, centre: float) -> F32 | None:
    """[n], or None where the epilogue skips it."""
    scale = weight.group_scales()[:, group].astype(np.float32)
    middle = np.float32(centre)
    if weight.spec.zero_point == "fixed":
        zero = np.float32(weight.spec.fixed_zero)
        return None if zero == middle else scale * (middle - zero)
    every = weight.group_zeros()
    assert every is not None
    zeros = every[:, group].astype(np.float32)
    return fma(scale, middle, zeros) if weight.spec.zero_point == "offset" else scale * (middle - zeros)


def centre_of(weight: Weight) -> float:
    bits = weight.spec.bits
    return (2**bits - 1) / 2 if looks_up(weight) else float(2 ** (bits - 1))


def quantized_product(x: F32, weight: Weight) -> tuple[F32, NDArray[np.bool_]]:
    """The classes `lut` and `mad` up to the epilogue: (y [m, n], tokens too large for it [m])."""
    spec = weight.spec
    y = np.zeros((x.shape[0], weight.codes.shape[0]), np.float32)
    huge = np.zeros(x.shape[0], bool)
    row_largest = np.maximum(np.abs(x).max(axis=1), np.float32(1e-5))  # NaN where the token has one
    for group in act_groups(spec, x.shape[1]):
        a, codes = x[:, group.begin : group.end], weight.codes[:, group.begin : group.end]
        if looks_up(weight):
            tables, act_scale, act_sum = lut_tables(a)
            aggregate = lut_fast_isum if method_of(weight) == "lut_fast" else lut_isum
            isum = aggregate(tables, codes, spec.bits)
            size = np.abs(quads_of(a))
            huge |= ~np.isfinite((size[..., 0] + size[..., 1]) + (size[..., 2] + size[..., 3])).all(axis=1)
        else:
            q, act_scale, act_sum = mad_codes(a, row_largest if spec.activation == "token" else np.abs(a).max(axis=1))
            isum = q @ (codes.astype(np.int64) - 2 ** (spec.bits - 1)).T
        assert np.abs(isum).max(initial=0) < 2**31
        scale = weight.group_scales()[:, group.weight_group].astype(np.float32)
        y = fma(isum.astype(np.float32), scale[None, :] * act_scale[:, None], y)
        coefficient = coefficient_of(weight, group.weight_group, centre_of(weight))
        if coefficient is not None:
            y = fma(coefficient[None, :], act_sum[:, None], y)
        huge |= ~(act_scale < HUGE_ACT_SCALE)
        if looks_up(weight):
            huge |= ~np.isfinite(act_sum)
    return y, huge


def float_product(x: F32, weight: Weight) -> F32:
    return lane_sum(weight.dequantize_f32()[None] * x[:, None, :])


def linear(x: F32, weight: Weight, bias: F32 | None = None) -> F32:
    """What every kernel returns, bit for bit: [m, k] -> [m, n]."""
    if x.shape[0] == 0:
        return np.zeros((0, weight.codes.shape[0]), np.float32)
    with np.errstate(all="ignore"):
        if method_of(weight) == "float":
            y = float_product(x, weight)
        else:
            y, huge = quantized_product(x, weight)
            again = huge & np.isfinite(x).all(axis=1)
            if again.any():
                y[again] = quantized_product(x[again] * np.float32(2.0**-64), weight)[0] * np.float32(2.0**64)
        return y if bias is None else y + bias


def exact(x: NDArray[Any], weight: Weight, bias: F32 | None = None) -> F64:
    """The float64 product of the dequantized weight."""
    with np.errstate(all="ignore"):
        y = x.astype(np.float64) @ weight.dequantize().T
    return y if bias is None else y + bias
