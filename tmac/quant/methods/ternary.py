"""Weights of -1, 0 and 1 times a scale."""

from __future__ import annotations

import torch
from torch import Tensor

from tmac.codes import Codes
from tmac.quant.methods.grids import GroupGrids, checked, importance_of, split_groups
from tmac.quant.methods.rtn import round_to_nearest
from tmac.quant.statistics import LayerStatistics
from tmac.spec import QuantSpec


def ternary(weight: Tensor, spec: QuantSpec, statistics: LayerStatistics | None = None) -> Codes:
    """Chooses the scale and the threshold of every group for the least squared error, each column times the mean square
    of its inputs where statistics are given.

    Whatever the scale, the weights that become -1 or 1 are those of the largest magnitudes, so one sum over the sorted
    magnitudes tries every threshold: with the m largest kept, the best scale is their weighted mean magnitude, and it
    removes `(sum h |w|)**2 / sum h` of the error. Only then is the scale rounded to what is stored, and the codes once
    more to that.

    Args:
        weight: float `[out_features, in_features]`.
        spec: with the ternary codebook.
        statistics: of the layer's inputs.

    Raises:
        ValueError: as `round_to_nearest`; the codebook is not ternary.
    """
    if spec.codebook != "ternary":
        raise ValueError(f"[ternary] expected a spec with codebook='ternary', got {spec}")
    weight = checked(weight, spec, statistics, "ternary")
    searched = GroupGrids.of(round_to_nearest(weight, spec, statistics))
    if spec.fixed_zero != 1:
        return searched.codes(weight)
    counts = importance_of(statistics)
    best = searched.replace(_best_scales(weight, spec, counts), searched.zeros)
    # Rounded to what is stored, a best scale may lie a little farther off than one that was searched among those.
    importance = torch.ones(weight.shape[1]) if counts is None else counts
    better = best.errors(weight, importance) < searched.errors(weight, importance)
    return best.where(better, searched).codes(weight)


def _best_scales(weight: Tensor, spec: QuantSpec, importance: Tensor | None) -> Tensor:
    """f32 `[rows, groups]`"""
    counts = torch.ones(weight.shape[1]) if importance is None else importance / importance.max()
    magnitude = split_groups(weight.abs(), spec)
    counts = split_groups(counts[None], spec)
    dead = counts.sum(2, keepdim=True) == 0
    counts = torch.where(dead, 1.0, counts).double()
    magnitude, order = magnitude.sort(dim=2, descending=True)
    counts = counts.expand_as(order).gather(2, order)
    total = counts.cumsum(2)
    kept = (counts * magnitude).cumsum(2)
    mean = torch.where(total > 0, kept / total, 0.0)
    return mean.gather(2, (kept * mean).argmax(2, keepdim=True)).squeeze(2).float()
