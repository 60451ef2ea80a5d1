"""Weights, inputs with dependent channels, and their statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from tmac import Codes
from tmac.quant.statistics import LayerStatistics


def correlated(tokens: int, k: int, seed: int = 0) -> Tensor:
    """Inputs whose channels depend on each other and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = 0.5 * torch.randn(k, k, generator=generator) + torch.eye(k)
    return torch.randn(tokens, k, generator=generator) @ mixing * torch.exp(0.5 * torch.randn(k, generator=generator))


def random_weight(n: int, k: int, seed: int = 1) -> Tensor:
    return 0.1 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def statistics_of(inputs: Tensor, hessian: Tensor | None = None, cross: Tensor | None = None) -> LayerStatistics:
    hessian = inputs.T @ inputs / len(inputs) if hessian is None else hessian
    return LayerStatistics(len(inputs), hessian, inputs.abs().amax(0), cross)


def with_hessian(hessian: Tensor) -> LayerStatistics:
    return LayerStatistics(1, hessian, torch.ones(len(hessian)))


def dequantized(codes: Codes) -> Tensor:
    return torch.from_numpy(codes.dequantize())


def error(codes: Codes, weight: Tensor, hessian: Tensor) -> float:
    difference = (dequantized(codes) - weight).double()
    return float(((difference @ hessian.double()) * difference).sum())
