"""Round to nearest: needs no data, only the weight."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from tmac import codes
from tmac.codes import Codes
from tmac.nn.linear import QuantLinear
from tmac.quant.methods.grids import checked, importance_of
from tmac.quant.statistics import LayerStatistics
from tmac.spec import QuantSpec

_ROWS = 256  # of a weight that stand for all of them where one number is chosen


def rtn(linear: nn.Linear, spec: QuantSpec, weight: Tensor | None = None) -> QuantLinear:
    """Rounds the weight of `linear`, or one that stands in for it, to the grid of `spec` that fits each group with the
    least squared error.
    """
    bias = None if linear.bias is None or linear.bias.is_meta else linear.bias
    return QuantLinear.from_weight(linear.weight if weight is None else weight, spec, bias)


def round_to_nearest(weight: Tensor, spec: QuantSpec, statistics: LayerStatistics | None = None) -> Codes:
    """Rounds a weight; the scale and zero of each group are those with the least squared error of the outputs, as far
    as single columns tell it: that of each column times the mean square of its inputs.

    Args:
        weight: float `[out_features, in_features]`.
        spec: what to make of it.
        statistics: of the layer's inputs; None: `tmac.round_to_nearest` says how columns count.

    Raises:
        ValueError: the weight holds NaN or Inf, or magnitudes that the scales cannot stand for; the statistics are of
            another number of columns.
    """
    weight = checked(weight, spec, statistics, "round_to_nearest")
    importance = importance_of(statistics)
    return codes.round_to_nearest(weight.numpy(), spec, None if importance is None else importance.numpy())


def best_fixed_zero(
    weight: Tensor, spec: QuantSpec, statistics: LayerStatistics | None = None, candidates: int = 9
) -> QuantSpec:
    """The spec with the zero that gives a weight on symmetric grids the least squared error: one number for the whole
    weight, between the middle `2**(bits - 1)` and one below it, where as many codes lie on either side.

    256 rows stand for a larger weight. A spec without a fixed zero, and a ternary one, comes back as it is.

    Raises:
        ValueError: as `round_to_nearest`; there are fewer than 2 candidates.
    """
    if candidates < 2:
        raise ValueError(f"[best_fixed_zero] at least 2 candidates are needed, got {candidates}")
    weight = checked(weight, spec, statistics, "best_fixed_zero")
    if spec.zero_point != "fixed" or spec.codebook == "ternary":
        return spec
    rows = weight[np.linspace(0, len(weight) - 1, min(len(weight), _ROWS)).astype(int)].numpy()
    importance = importance_of(statistics)
    counts = np.ones(rows.shape[1], np.float32) if importance is None else importance.numpy()
    middle = 2 ** (spec.bits - 1)
    found = {}
    for zero in {spec.fixed_zero, *np.linspace(middle - 1, middle, candidates).tolist()}:
        tried = spec.replace(fixed_zero=float(zero))
        rounded = codes.round_to_nearest(rows, tried, counts).dequantize()
        found[tried] = float((np.square(rounded - rows, dtype=np.float64) * counts).sum())
    return min(found, key=found.__getitem__)
