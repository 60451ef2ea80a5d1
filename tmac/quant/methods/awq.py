"""Activation-aware weight quantization (Lin et al., arXiv 2306.00978): scales of channels, and clipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tmac.codes import Codes
from tmac.quant.methods.grids import GroupGrids, checked, of_columns, split_groups
from tmac.quant.methods.rtn import round_to_nearest
from tmac.quant.statistics import LayerStatistics
from tmac.spec import QuantSpec

_SHARES = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
_STEPS = 20
_ROWS = 256  # of each weight that stand for all of them while scales are searched


def awq_scales(
    weights: Sequence[Tensor],
    spec: QuantSpec,
    statistics: LayerStatistics,
    *,
    steps: int = _STEPS,
    tie: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The factors of the channels that layers with one input share (section 3.2): the columns of the weights are to be
    multiplied by them before they are rounded, and the layer before is to divide its outputs (`tmac.hf.folding`).

    The factors are `rms(x) ** alpha`, the root mean square of each channel standing for its mean magnitude, with the
    alpha of a mesh over [0, 1) that gives the least error of the outputs, `dW hessian dW^T` summed over the weights;
    alpha 0 leaves all as it is. 256 rows stand for a larger weight.

    Args:
        weights: `[out_features, in_features]` each.
        spec: what they are rounded to.
        statistics: of the input.
        steps: how many alphas are tried.
        tie: makes magnitudes of channels `[in_features]` equal that have to share a factor.

    Returns:
        f32 `[in_features]`, all above 0, the smallest times the largest being 1.

    Raises:
        ValueError: as `round_to_nearest`; no weight is given.
    """
    if not weights or steps < 1:
        raise ValueError(f"[awq_scales] expected a weight and a step at least, got {len(weights)} and {steps}")
    parts = []
    for weight in weights:
        whole = checked(weight, spec, statistics, "awq_scales")
        parts.append(whole[torch.linspace(0, len(whole) - 1, min(len(whole), _ROWS)).long()])
    magnitude = statistics.importance.to("cpu", torch.float32).sqrt()
    if tie is not None:
        magnitude = tie(magnitude)
    if not bool((magnitude > 0).any()):
        return torch.ones_like(magnitude)
    magnitude = (magnitude / magnitude.max()).clamp_min(1e-4)
    best, least = torch.ones_like(magnitude), float("inf")
    for step in range(steps):
        scales = magnitude ** (step / steps)
        scales = scales / (scales.min() * scales.max()).sqrt()
        error = sum(_scaled_error(weight, spec, statistics, scales) for weight in parts)
        if error < least:
            best, least = scales, error
    return best


def _scaled_error(weight: Tensor, spec: QuantSpec, statistics: LayerStatistics, scales: Tensor) -> float:
    codes = round_to_nearest(weight * scales, spec, scaled_statistics(statistics, scales))
    difference = torch.from_numpy(codes.dequantize()) / scales - weight
    return float(statistics.output_error(difference).double().sum())


def scaled_statistics(statistics: LayerStatistics, scales: Tensor) -> LayerStatistics:
    """The statistics of inputs whose channels are divided by `scales`, f32 `[in_features]`."""
    pairs = scales[:, None] * scales
    cross = None if statistics.cross is None else statistics.cross / pairs
    channel_max = statistics.channel_max / scales
    return LayerStatistics(
        statistics.tokens, statistics.hessian / pairs, channel_max, cross, row_weight=statistics.row_weight
    )


def awq(weight: Tensor, spec: QuantSpec, statistics: LayerStatistics | None = None) -> Codes:
    """The clip search (section 3.2 and the authors' code) alone: rounds with the ends of every group's range cut off at
    several shares, and keeps for each group the one that gives the outputs the least error.

    What a group does to the outputs is measured with its own block of the hessian: unlike `round_to_nearest`, it knows
    which columns move together. Scales of channels are no matter of one layer: `awq_scales` finds them, and
    `tmac.hf.folding` puts them into the layer before.

    Args:
        weight: float `[out_features, in_features]`.
        spec: what to make of it.
        statistics: of the layer's inputs; None: every column counts alike.

    Raises:
        ValueError: as `round_to_nearest`.
    """
    weight = checked(weight, spec, statistics, "awq")
    groups, columns = spec.num_groups(weight.shape[1]), weight.shape[1]
    # With two levels, what lies under one super value is chosen together.
    together = 256 // spec.group_size if spec.scale_format == "two_level" else 1
    block = columns if groups <= together else together * spec.group_size
    hessian = None if statistics is None else statistics.hessian.to("cpu", torch.float32)
    best = GroupGrids.of(round_to_nearest(weight, spec, statistics))
    least = _block_errors(weight, best, hessian, block)
    for share in _SHARES:
        tried = GroupGrids.of(round_to_nearest(_clip(weight, share, spec), spec, statistics))
        errors = _block_errors(weight, tried, hessian, block)
        better = errors < least
        best, least = (
            tried.where(better.repeat_interleave(together, 1)[:, :groups], best),
            torch.where(better, errors, least),
        )
    return best.codes(weight)


def _clip(weight: Tensor, share: float, spec: QuantSpec) -> Tensor:
    """The weight with the ends of each group's range, 0 included, pulled in to a share of it."""
    groups = split_groups(weight, spec)
    low, high = (of_columns(ends, spec, weight.shape[1]) for ends in (groups.amin(2), groups.amax(2)))
    return weight.clamp(low.clamp_max(0) * share, high.clamp_min(0) * share)


def _block_errors(weight: Tensor, grids: GroupGrids, hessian: Tensor | None, block: int) -> Tensor:
    """What each `block` columns add to the squared error of the outputs by themselves, f32 `[rows, blocks]`."""
    difference = grids.decode(grids.round(weight)) - weight
    errors = []
    for start in range(0, weight.shape[1], block):
        part = difference[:, start : start + block]
        end = start + part.shape[1]
        moved = part if hessian is None else part @ hessian[start:end, start:end]
        errors.append((moved * part).sum(1))
    return torch.stack(errors, 1)
