"""Round to nearest: needs no data, only the weight."""

from __future__ import annotations

from torch import Tensor, nn

from tmac import codes
from tmac.codes import Codes
from tmac.nn.linear import QuantLinear
from tmac.quant.methods.grids import checked, importance_of
from tmac.quant.statistics import LayerStatistics
from tmac.spec import QuantSpec


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
