"""GPTQ: columns are rounded one after the other, and those to come make up for the error of those before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tmac import _core
from tmac.codes import Codes, round_to_nearest
from tmac.quant.methods.grids import checked
from tmac.quant.methods.hessian_factor import Factor, factor
from tmac.quant.statistics import LayerStatistics
from tmac.spec import QuantSpec
from tmac.threads import get_num_threads

_SUPER_COLUMNS = 256  # whose sub-scales a two-level spec stores under one super-scale
_BLOCK = 64


@dataclass(frozen=True)
class GPTQOptions:
    """How `gptq` treats the Hessian.

    Args:
        damping_mean: part of the mean diagonal that is added to every diagonal.
        damping_own: part of its own value that is added to every diagonal.
        act_order: the columns of a group are visited by falling diagonal; the stored order stays as it is.
        cross: part of the correction by `LayerStatistics.cross` (GPTAQ) that is applied; 0 ignores it.
    """

    damping_mean: float = 0.05
    damping_own: float = 0.3
    act_order: bool = True
    cross: float = 1.0


_DEFAULT = GPTQOptions()


def gptq(
    weight: Tensor, spec: QuantSpec, statistics: LayerStatistics | None = None, options: GPTQOptions = _DEFAULT
) -> Codes:
    """Codes of a weight with a small error of the layer's outputs on calibration text (GPTQ, arXiv 2210.17323).

    The grid of a group (with two levels: of 256 columns) is searched when the group is reached, for the weights that
    the errors before it have left there, each counted by what its error costs.

    With `statistics.cross` the outputs are brought near to those that the float model has for its own inputs, as in
    GPTAQ (arXiv 2504.02692): the error `|W X_float - Q X|^2` is that of plain GPTQ for the weight `W + W C H^-1`, with
    C the cross moment, up to a constant.

    Args:
        weight: f32 `[out_features, in_features]`.
        spec: any.
        statistics: of the inputs of the layer.
        options: see there.

    Raises:
        ValueError: there are no statistics, they are of another number of channels, the weight is out of what f16
            scales stand for, or weight, Hessian or cross moment hold NaN or Inf.
    """
    weight = checked(weight, spec, statistics, "gptq")
    if statistics is None:
        raise ValueError("[gptq] needs the statistics of the layer's inputs")
    made = factor(
        statistics.hessian,
        spec.group_size,
        mean=options.damping_mean,
        own=options.damping_own,
        act_order=options.act_order,
    )
    if statistics.cross is not None and options.cross != 0.0:
        weight = shifted(weight, statistics.cross, made, options.cross)
    return round_with_factor(weight, spec, made)


def shifted(weight: Tensor, cross: Tensor, made: Factor, part: float = 1.0) -> Tensor:
    """The weight whose plain GPTQ brings the outputs near to those of the float model: `W + part * W C H^-1`.

    Raises:
        ValueError: the cross moment holds NaN or Inf.
    """
    if not bool(torch.isfinite(cross).all()):
        raise ValueError("[gptq] the cross moment holds NaN or Inf")
    moved = (weight @ cross)[:, made.order]
    # x (U D U^T) = y in the order of the visits
    half = torch.linalg.solve_triangular(made.feedback.T, moved, upper=False, left=False, unitriangular=True)
    whole = torch.linalg.solve_triangular(made.feedback, half / made.pivots, upper=True, left=False, unitriangular=True)
    result = weight.clone()
    result[:, made.order] += part * whole
    return result


def round_with_factor(weight: Tensor, spec: QuantSpec, made: Factor) -> Codes:
    """GPTQ of a finite weight with a factor whose groups are those of the spec."""
    if spec.scale_format != "two_level":
        order, strips, pivots = made.order.numpy(), made.strips.numpy(), made.pivots.numpy()
        array = weight.contiguous().numpy()
        return Codes(spec, *_core.round_with_feedback(array, order, strips, pivots, spec, get_num_threads()))
    return _round_panels(weight, spec, made)


def _round_panels(weight: Tensor, spec: QuantSpec, made: Factor) -> Codes:
    """The same in torch, with grids of whole panels from `round_to_nearest`."""
    n, k = weight.shape
    visited = weight[:, made.order].T.contiguous()  # [k, n]; a column becomes its error once it is rounded
    codes = torch.empty((n, k), dtype=torch.uint8)
    unit = _SUPER_COLUMNS if spec.scale_format == "two_level" else spec.group_size if spec.group_size > 0 else k
    grids: list[Codes] = []
    for begin in range(0, k, unit):
        end = min(begin + unit, k)
        target = visited[begin:end].clone()
        if begin > 0:
            target.addmm_(made.feedback[:begin, begin:end].T, visited[:begin])
        grid = round_to_nearest(np.ascontiguousarray(target.T.numpy()), spec, made.pivots[begin:end].numpy())
        grids.append(grid)
        _walk(target, visited[begin:end], made.feedback[begin:end, begin:end], grid, codes[:, begin:end])
    ordered = torch.empty_like(codes)
    ordered[:, made.order] = codes
    return _joined(spec, ordered.numpy(), grids)


def _walk(target: Tensor, visited: Tensor, feedback: Tensor, grid: Codes, codes: Tensor) -> None:
    """Rounds the columns of a panel, `[columns, n]`, in order; `visited` becomes their errors."""
    spec = grid.spec
    scales, zeros = (None if part is None else torch.from_numpy(part).T for part in grid.group_values())
    assert scales is not None
    top = 2.0 if spec.codebook == "ternary" else float(2**spec.bits - 1)
    size = spec.group_size if spec.group_size > 0 else len(target)
    for begin in range(0, len(target), _BLOCK):
        end = min(begin + _BLOCK, len(target))
        for j in range(begin, end):
            scale = scales[j // size]
            zero = torch.tensor(spec.fixed_zero) if zeros is None else zeros[j // size]
            inverse = torch.where(scale == 0, scale, 1 / scale)
            if spec.zero_point == "offset":
                code = ((target[j] - zero) * inverse).round_().clamp_(0.0, top)
                value = code * scale + zero
            else:
                code = (target[j] * inverse + zero).round_().clamp_(0.0, top)
                value = (code - zero) * scale
            codes[:, j] = code.to(torch.uint8)
            visited[j] -= value
            target[j + 1 : end].addr_(feedback[j, j + 1 : end], visited[j])
        target[end:].addmm_(feedback[begin:end, end:].T, visited[begin:end])


def _joined(spec: QuantSpec, codes: np.ndarray, grids: list[Codes]) -> Codes:
    def join(name: str) -> np.ndarray | None:
        parts = [getattr(grid, name) for grid in grids]
        return None if parts[0] is None else np.concatenate(parts, axis=1)

    scales = join("scales")
    assert scales is not None
    return Codes(
        spec,
        codes,
        scales,
        join("zeros"),
        super_scales=join("super_scales"),
        super_offsets=join("super_offsets"),
    )
