"""The ways to choose codes for a weight.

A recipe is a function of the weight, f32 `[out_features, in_features]`, the spec and what is known of the layer's
inputs to `Codes`. All of them take any spec that has a meaning for them and refuse NaN and Inf.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tmac.codes import Codes
from tmac.quant.methods.awq import awq
from tmac.quant.methods.gptq import gptq
from tmac.quant.methods.hqq import hqq
from tmac.quant.methods.rtn import round_to_nearest, rtn
from tmac.quant.methods.signround import signround
from tmac.quant.methods.ternary import ternary
from tmac.quant.statistics import LayerStatistics
from tmac.spec import QuantSpec

Recipe = Callable[[Tensor, QuantSpec, LayerStatistics | None], Codes]

RECIPES: dict[str, Recipe] = {
    "rtn": round_to_nearest,
    "hqq": hqq,
    "awq": awq,
    "ternary": ternary,
    "gptq": gptq,
    "signround": signround,
}

__all__ = ["RECIPES", "Recipe", "rtn"]
