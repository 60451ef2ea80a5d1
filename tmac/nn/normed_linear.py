"""A `QuantLinear` that normalizes its input, as BitNet's layers with `use_rms_norm` do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tmac.nn.linear import QuantLinear
from tmac.spec import QuantSpec


class InputNorm(nn.Module):
    """`weight * x / sqrt(mean(x^2) + eps)`; the mean and the quotient in f32, the product in the dtype of x.

    Args:
        features: the last dimension of x.
        eps: positive.
    """

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class NormedLinear(nn.Linear):
    """`nn.Linear(rms_norm(x))`: a dequantized `NormedQuantLinear`, with the weights of a float layer."""

    def __init__(self, linear: nn.Linear, norm: InputNorm) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.rms_norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.rms_norm(x))


class NormedQuantLinear(QuantLinear):
    """`QuantLinear(rms_norm(x))`.

    Args:
        in_features, out_features, bias, spec: as of `QuantLinear`.
        eps: of the norm.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, spec: QuantSpec | None = None, eps: float = 1e-6
    ) -> None:
        super().__init__(in_features, out_features, bias, spec)
        self.rms_norm = InputNorm(in_features, eps)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.rms_norm(x))
