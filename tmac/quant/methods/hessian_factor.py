"""The Hessian of a layer as GPTQ needs it: damped, ordered and factored. One factor serves many layers and specs."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tmac import _core
from tmac.threads import get_num_threads

_KEPT = 8  # factors: those of a block's layers at two group sizes
_FALLBACKS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the mean diagonal, added where the factorization fails
_LEAST_PIVOT = 1e-12  # of the mean diagonal
_factors: OrderedDict[tuple[object, ...], tuple[weakref.ref[Tensor], Factor]] = OrderedDict()


@dataclass(frozen=True, eq=False)
class Factor:
    """`H = U diag(pivots) U^T` of a damped Hessian whose columns are in the order in which they are visited.

    An error d of a row (what it is, less what it should be) costs `d H d^T = sum_j pivots[j] (d U)[j]^2`: a column j
    whose target is moved by what the errors of the columns before it say, `- sum_{i<j} d[i] U[i, j]`, has only its own
    rounding left to pay for. This is GPTQ (arXiv 2210.17323) without the inverse: U is the inverse of the upper
    Cholesky factor of `H^-1`, its rows divided by their diagonal (QuIP, arXiv 2307.13304, shows that both are one).

    Args:
        order: the column that is visited j-th, int64 `[k]`.
        strips: U, f32 `[ceil(k / 8), k, 8]`: eight columns after the other; upper triangular with ones on its diagonal.
        pivots: f32 `[k]`, positive: what a squared error of the column costs when the columns after it make up for it.
    """

    order: Tensor
    strips: Tensor
    pivots: Tensor

    @cached_property
    def feedback(self) -> Tensor:
        """U as a matrix, f32 `[k, k]`."""
        k = len(self.pivots)
        return self.strips.transpose(0, 1).reshape(k, -1)[:, :k].contiguous()


def factor(hessian: Tensor, group_size: int, *, mean: float = 0.01, own: float = 0.0, act_order: bool = True) -> Factor:
    """Damps and factors a Hessian; the last few factors are kept for the tensor that they were made of.

    The damped Hessian is `H + mean * average(diag H) * I + own * diag(H)`. More is added where that is singular.

    Args:
        hessian: f32 `[k, k]`, symmetric, positive semi-definite.
        group_size: columns of a group; groups are visited one after the other.
        mean: part of the mean diagonal that every diagonal gets.
        own: part of its own value that every diagonal gets.
        act_order: the columns of a group are visited by falling diagonal, not as they stand.

    Raises:
        ValueError: the Hessian holds NaN or Inf, has a negative diagonal, or is indefinite beyond rounding.
    """
    key = (id(hessian), hessian.data_ptr(), hessian._version, group_size if act_order else 0, mean, own, act_order)
    found = _factors.get(key)
    if found is not None and found[0]() is hessian:
        _factors.move_to_end(key)
        return found[1]
    made = _make(hessian, group_size, mean, own, act_order)
    _factors[key] = (weakref.ref(hessian), made)
    for stale in [name for name, (owner, _) in _factors.items() if owner() is None]:
        del _factors[stale]
    while len(_factors) > _KEPT:
        _factors.popitem(last=False)
    return made


def _make(hessian: Tensor, group_size: int, mean: float, own: float, act_order: bool) -> Factor:
    hessian = hessian.detach().to("cpu", torch.float32).contiguous()
    if not _core.all_finite(hessian.numpy()):
        raise ValueError("[gptq] the Hessian holds NaN or Inf")
    diagonal = torch.diagonal(hessian).double()
    if bool((diagonal < 0).any()):
        raise ValueError(f"[gptq] the Hessian has a negative diagonal: {float(diagonal.min()):g}")
    average = float(diagonal.mean())
    if average == 0.0:  # no input was ever other than zero: all columns count the same
        hessian, diagonal, average = torch.eye(len(diagonal)), torch.ones_like(diagonal), 1.0
    order = _order(diagonal, group_size) if act_order else torch.arange(len(diagonal))
    for more in _FALLBACKS:
        extra = (mean + more) * average + own * diagonal
        made = _core.factor_hessian(
            hessian.numpy(), order.numpy(), extra.numpy(), _LEAST_PIVOT * average, get_num_threads()
        )
        if made is not None:
            return Factor(order, torch.from_numpy(made[0]), torch.from_numpy(made[1]))
    raise ValueError("[gptq] the Hessian is not positive semi-definite")


def _order(diagonal: Tensor, group_size: int) -> Tensor:
    """Columns, group by group, each by falling diagonal; equal ones as they stand."""
    groups = torch.split(torch.arange(len(diagonal)), len(diagonal) if group_size == -1 else group_size)
    return torch.cat([group[torch.argsort(diagonal[group], descending=True, stable=True)] for group in groups])
