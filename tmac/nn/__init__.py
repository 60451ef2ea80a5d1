"""torch layers over the compiled core."""

from tmac.nn.linear import QuantLinear
from tmac.nn.swap import LinearSite, find_linears

__all__ = ["LinearSite", "QuantLinear", "find_linears"]
