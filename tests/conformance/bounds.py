"""How far a kernel's float32 result may be from the float64 product: derived here, term by term.

Let u = 2^-24 and gamma(c) = c u / (1 - c u), the error of c roundings in a row. One act group holds activations a_k,
Q quads of four columns, S = sum |a_k|; s = |scale|; G = number of act groups of the row.

Class `lut`, L = the largest sum of four |a|. A table entry stands for a signed sum t of a quad:
    entry = rint(fl(t) * inverse),  |entry - 127 t / L| <= 1/2 + 127 * 6 u
half a step from `rint`; 2 u from the two levels of additions in t, 2 u from those in L, u from the division and u from
the product. One step is worth L / 127. The row looks up Q entries per plane, plane b weighs 2^b, the planes together
2^bits - 1, and a product is half the table sum (code = centre + sum_b 2^b (+-1) / 2), so the tables cost at most
    s * (2^bits - 1) / 2 * Q * (1/2 + 762 u) * L / 127.
Float terms: |isum| * act_scale <= (2^bits - 1) / 2 * (S + Q L / 127) is rounded in act_scale, scale * act_scale and
twice per act group in the running sum; |coefficient| * S in the coefficient (2), in act_sum (ceil(count / 16) + 4
additions deep) and in the running sum. An isum of this class is below 2^24 and exact in float32.

Class `lut_fast`: the same, and what the averages lose. A rounding average adds 0 or 1/2 to the mean of its two nodes,
so a tree of d levels is between 0 and d / 2 above the mean of its leaves in the lanes that round up, and as much below
it in the other two: of four lanes of 2^d leaves each the errors add up to at most d steps either way, times 2^d, per
plane:
    s * (2^bits - 1) / 2 * 2^d * d * L / 127.

Class `mad`, L = the largest |a| (of the token where activation = "token"). |q - 127 a / L| <= 1/2 + 127 * 2 u, and
act_scale is rounded once. The zero point multiplies the sum of the same q, so that the error of q counts once, with
the weight itself:
    (1/2 + 381 u) * L / 127 * sum_k |w_k|.
Float terms: s * sum |code - centre| (|a| + L / 127) and |coefficient| * (S + count L / 127), each rounded at most four
times (isum or sum q to float32, act_scale, the products) and twice per act group in the running sum.

Class `float`: |w_k a_k| is rounded three times (w twice, the product) and added in lanes ceil(k / 16) + 4 deep.

Where inverse is 0 (L is denormal, or nearly), the products of the group are lost whole. An operation that underflows
loses at most 2^-149, times what it is multiplied by afterwards.

A huge token is computed from x * 2^-64: the bound of that, and 2^-149 per activation, times 2^64.

The bounds are worst cases: errors of Q entries add up in the bound and average out in random data, where the observed
error is about 1 / sqrt(Q G) of the bound. Activations made for it come within 10 % (`test_bound_is_reached`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .reference import F32, F64, TINY, UNIT, Weight, act_groups, centre_of, fast_leaves, method_of, quads_of

SLACK = 1 + 1e-6  # the bound itself, and the float64 product, are computed in float64
SMALLEST_SCALED = 127 / float(np.finfo(np.float32).max)  # below it, 127 / L is not finite


def gamma(count: float) -> float:
    return count * UNIT / (1 - count * UNIT)


def coefficients(weight: Weight, group: int, centre: float) -> F64:
    """|scale * (centre - zero)|, [n]."""
    scale = weight.group_scales()[:, group]
    every = weight.group_zeros()
    if every is None:
        return np.abs(scale * (centre - weight.spec.fixed_zero))
    zeros = every[:, group]
    return np.abs(scale * centre + zeros if weight.spec.zero_point == "offset" else scale * (centre - zeros))


def bound(x: F32, weight: Weight, bias: F32 | None = None) -> F64:
    """|kernel - float64 product| <= this, [m, n]. Activations are finite."""
    size = np.abs(x.astype(np.float64))
    dense = np.abs(weight.dequantize())
    per_method = {"lut": _lut, "lut_fast": _lut, "mad": _mad, "float": _float}[method_of(weight)]
    total = per_method(size, weight, dense)
    # A token that may have been scaled down: what is lost there comes back 2^64 times larger.
    down = (size.max(axis=1, initial=0) >= 2.0**56)[:, None] * (method_of(weight) != "float")
    scaled = (per_method(size * 2.0**-64, weight, dense) + TINY * dense.sum(axis=1)) * 2.0**64
    total = np.where(down, scaled, total)
    if bias is not None:
        total = total + UNIT * (size @ dense.T + total + np.abs(bias))
    return total * SLACK


def _lut(size: F64, weight: Weight, dense: F64) -> F64:
    spec, groups = weight.spec, list(act_groups(weight.spec, size.shape[1]))
    planes = (2**spec.bits - 1) / 2
    total = np.zeros((size.shape[0], dense.shape[0]))
    for group in groups:
        a = size[:, group.begin : group.end]
        quads = quads_of(a).sum(axis=-1)
        largest, act_sum, count = quads.max(axis=1)[:, None], a.sum(axis=1)[:, None], quads.shape[1]
        scale = np.abs(weight.group_scales()[:, group.weight_group])[None]
        coefficient = coefficients(weight, group.weight_group, centre_of(weight))[None]
        averages = 0.0
        if method_of(weight) == "lut_fast":
            leaves = fast_leaves(count)
            averages, count = leaves * np.log2(leaves), 4 * leaves
        tables = scale * planes * (count * (0.5 + 762 * UNIT) + averages) * largest / 127
        lost = scale * planes * act_sum
        rounded = scale * planes * (act_sum + (count + averages) * largest / 127)
        roundings = gamma(2 * len(groups) + 2) * rounded
        roundings = roundings + gamma(2 * len(groups) + 6 + -(-a.shape[1] // 16)) * coefficient * act_sum
        underflow = TINY * (2 * (scale + 1) * planes * 2 * 127 * count + act_sum + 4)
        total += np.where(largest < 1.01 * SMALLEST_SCALED, lost, tables) + roundings + underflow
    return total


def _mad(size: F64, weight: Weight, dense: F64) -> F64:
    spec, groups = weight.spec, list(act_groups(weight.spec, size.shape[1]))
    centre = centre_of(weight)
    total = np.zeros((size.shape[0], dense.shape[0]))
    for group in groups:
        columns = slice(group.begin, group.end)
        a, w = size[:, columns], dense[:, columns]
        token_largest = np.maximum(size.max(axis=1), 1e-5 * (1 + UNIT))
        largest = (token_largest if spec.activation == "token" else a.max(axis=1))[:, None]
        step, act_sum = largest / 127, a.sum(axis=1)[:, None] + a.shape[1] * largest / 127
        scale = np.abs(weight.group_scales()[:, group.weight_group])[None]
        coefficient = coefficients(weight, group.weight_group, centre)[None]
        products = (a + step) @ np.abs(weight.codes[:, columns] - centre).T * scale
        roundings = gamma(2 * len(groups) + 4) * (products + coefficient * act_sum)
        underflow = TINY * (2 * (scale + 1) * 2 * centre * 127 * a.shape[1] + act_sum + 4)
        tables = (0.5 + 381 * UNIT) * step * w.sum(axis=1)[None]
        total += np.where(largest < 1.01 * SMALLEST_SCALED, a @ w.T, tables) + roundings + underflow
    return total


def _float(size: F64, weight: Weight, dense: F64) -> F64:
    k = size.shape[1]
    scale = np.abs(weight.group_scales()).max(axis=1)[None]
    # An offset or a zero point may cancel against code * scale, so that the roundings of w are relative to its parts.
    parts = scale * 2.0**weight.spec.bits
    zeros = weight.group_zeros()
    if zeros is not None:
        zero = np.abs(zeros).max(axis=1)[None]
        parts = parts + (zero if weight.spec.zero_point == "offset" else zero * scale)
    else:
        parts = parts + scale * abs(weight.spec.fixed_zero)
    cancelled = 2 * UNIT * size.sum(axis=1)[:, None] * parts
    return cancelled + gamma(-(-k // 16) + 5) * (size @ dense.T) + TINY * (k + size.sum(axis=1)[:, None])


def ratio(got: F32, want: F64, allowed: F64) -> NDArray[Any]:
    """Observed error over bound; 0 where both are 0."""
    error = np.abs(got.astype(np.float64) - want)
    return np.divide(error, allowed, out=np.where(error > 0, np.inf, 0.0), where=allowed > 0)
