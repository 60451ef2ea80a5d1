"""Round to nearest: needs no data, only the weight."""

from __future__ import annotations

from torch import Tensor, nn

from tmac.nn.linear import QuantLinear
from tmac.spec import QuantSpec


def rtn(linear: nn.Linear, spec: QuantSpec, weight: Tensor | None = None) -> QuantLinear:
    """Rounds the weight of `linear`, or one that stands in for it, to the grid of `spec` that fits each group with the
    least squared error.
    """
    bias = None if linear.bias is None or linear.bias.is_meta else linear.bias
    return QuantLinear.from_weight(linear.weight if weight is None else weight, spec, bias)
