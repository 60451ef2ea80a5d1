"""Round to nearest: needs no data, only the weight."""

from __future__ import annotations

from torch import nn

from tmac.nn.linear import QuantLinear
from tmac.spec import QuantSpec


def rtn(linear: nn.Linear, spec: QuantSpec) -> QuantLinear:
    """Rounds the weight of `linear` to the grid of `spec` that fits each group with the least squared error."""
    return QuantLinear.from_linear(linear, spec)
