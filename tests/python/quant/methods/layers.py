"""Weights and statistics that the tests of recipes share."""

import torch

from tmac import QuantSpec
from tmac.quant.statistics import LayerStatistics

ZERO_POINTS = ("fixed", "integer", "real", "offset")
SPECS = [
    *(QuantSpec(bits, group, zero_point=zero) for bits, group in ((2, 16), (3, 64), (4, 32)) for zero in ZERO_POINTS),
    QuantSpec(1, 32),
    QuantSpec(8, -1, zero_point="offset"),
    QuantSpec(3, 32, fixed_zero=3.4),
    QuantSpec(3, 32, zero_point="real", scale_format="f32"),
    QuantSpec(2, 64, "ternary"),
    *(QuantSpec(3, 16, zero_point=zero, scale_format="two_level") for zero in ("fixed", "offset")),
]


def make_layer(rows, columns, seed=0):
    """A weight f32 `[rows, columns]`, and statistics of correlated inputs whose channels differ in size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    sizes = 10 ** (torch.rand(columns, generator=generator) * 2 - 1)
    mixed = torch.eye(columns) + torch.randn(columns, columns, generator=generator) * (0.5 / columns**0.5)
    return weight, make_statistics(torch.randn(4 * columns, columns, generator=generator) @ mixed * sizes)


def make_statistics(inputs):
    return LayerStatistics(len(inputs), inputs.T @ inputs / len(inputs), inputs.abs().amax(0))


def weighted_error(weight, codes, statistics):
    difference = (weight - torch.from_numpy(codes.dequantize())).double()
    return float((difference**2 * statistics.importance).sum())


def output_error(weight, codes, statistics):
    return float(statistics.output_error(torch.from_numpy(codes.dequantize()) - weight).double().sum())
