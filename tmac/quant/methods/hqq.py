"""Half-quadratic quantization (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023):
sparse errors."""

from __future__ import annotations

import torch
from torch import Tensor

from tmac.codes import Codes
from tmac.quant.methods.grids import GroupGrids, checked, importance_of, of_columns, sum_groups
from tmac.quant.methods.rtn import round_to_nearest
from tmac.quant.statistics import LayerStatistics
from tmac.spec import QuantSpec

_ROUNDS = 20


def hqq(
    weight: Tensor,
    spec: QuantSpec,
    statistics: LayerStatistics | None = None,
    *,
    norm: float = 0.7,
    rounds: int = _ROUNDS,
) -> Codes:
    """Chooses the zeros of groups, or their scales where the zero is fixed, so that the errors are sparse: the sum of
    `|error| ** norm`, each column times the mean square of its inputs where statistics are given, becomes small.

    The errors get a stand-in `e` of their own. In turn, `e` shrinks the errors by the generalized soft threshold of the
    norm, and the zero (the scale) follows by least squares from `weight - e`, the pull between both growing each round.
    The start is the grid of `round_to_nearest`; every group keeps the best grid that it has had.

    Args:
        weight: float `[out_features, in_features]`.
        spec: what to make of it.
        statistics: of the layer's inputs.
        norm: p of the errors, above 0 and at most 1.
        rounds: how often both are fitted.

    Raises:
        ValueError: as `round_to_nearest`; `norm` is out of range.
    """
    if not 0 < norm <= 1:
        raise ValueError(f"[hqq] norm must be above 0 and at most 1, got {norm}")
    weight = checked(weight, spec, statistics, "hqq")
    counts = importance_of(statistics)
    importance = torch.ones(weight.shape[1]) if counts is None else counts / counts.max()
    start = GroupGrids.of(round_to_nearest(weight, spec, statistics))

    def cost(grids: GroupGrids) -> tuple[Tensor, Tensor, Tensor]:
        codes = grids.round(weight)
        errors = weight - grids.decode(codes)
        return sum_groups(errors.abs() ** norm * importance, spec), codes, errors

    grids = best = start
    least, codes, errors = cost(start)
    # Errors are at most about half a step: measured in steps, one pull fits all groups.
    steps = of_columns(torch.where(start.scales == 0, 1.0, start.scales.abs()), spec, weight.shape[1])
    pull = 10.0
    for _ in range(rounds):
        stand_in = _shrink(errors / steps, pull, norm) * steps
        grids = _fit(grids, codes, weight - stand_in, importance)
        now, codes, errors = cost(grids)
        better = now < least
        best, least = grids.where(better, best), torch.where(better, now, least)
        pull *= 1.05
    return best.codes(weight)


def _shrink(values: Tensor, pull: float, norm: float) -> Tensor:
    """The generalized soft threshold: `sign(x) * max(|x| - |x|**(norm - 1) / pull, 0)`."""
    magnitude = values.abs()
    threshold = magnitude.clamp_min(1e-12) ** (norm - 1) / pull
    return values.sign() * (magnitude - threshold).clamp_min(0)


def _fit(grids: GroupGrids, codes: Tensor, wanted: Tensor, importance: Tensor) -> GroupGrids:
    """The grids whose zeros, or scales where the zero is fixed, fit `wanted` with the least squares for given codes."""
    spec = grids.spec
    scale = of_columns(grids.scales, spec, codes.shape[1])
    if spec.zero_point == "fixed":
        from_zero = codes - of_columns(grids.zeros, spec, codes.shape[1])
        square = sum_groups(from_zero**2 * importance, spec)
        fitted = sum_groups(from_zero * wanted * importance, spec) / square
        return grids.replace(torch.where(square > 0, fitted, grids.scales), grids.zeros)
    total = sum_groups(importance[None], spec)
    if spec.zero_point == "offset":
        fitted = sum_groups((wanted - codes * scale) * importance, spec) / total
    else:
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        fitted = sum_groups((codes - wanted * inverse) * importance, spec) / total
    usable = (total > 0) & (grids.scales != 0) & fitted.isfinite()
    return grids.replace(grids.scales, torch.where(usable, fitted, grids.zeros))
