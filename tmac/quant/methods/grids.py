"""Scales and zeros of groups as tensors: what recipes compute with, and the `Codes` that come of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tmac.codes import Codes
from tmac.quant.statistics import LayerStatistics
from tmac.spec import QuantSpec

SMALLEST = 2.0**-20  # sixteen of the smallest f16
LARGEST = 2.0**15  # so that a scale, at most twice this, and an offset are finite in f16


def checked(weight: Tensor, spec: QuantSpec, statistics: LayerStatistics | None, where: str) -> Tensor:
    """The weight as f32 on the CPU.

    Raises:
        ValueError: it is no matrix, holds NaN or Inf, has magnitudes that f16 scales cannot stand for, or has another
            number of columns than the statistics.
    """
    if weight.dim() != 2 or weight.numel() == 0 or weight.is_meta:
        raise ValueError(f"[{where}] expected a matrix with data, got {list(weight.shape)} on {weight.device}")
    if statistics is not None and statistics.in_features != weight.shape[1]:
        raise ValueError(
            f"[{where}] statistics of {statistics.in_features} channels do not fit a weight of "
            f"{weight.shape[1]} columns"
        )
    weight = weight.detach().to("cpu", torch.float32).contiguous()
    largest = float(weight.abs().max())
    if not largest < float("inf"):
        raise ValueError(f"[{where}] the weight holds NaN or Inf")
    if spec.scale_format != "f32" and largest > 0 and not SMALLEST <= largest <= LARGEST:
        raise ValueError(
            f"[{where}] the largest weight, {largest:g}, is out of what f16 scales stand for, "
            f"{SMALLEST:g} to {LARGEST:g}"
        )
    return weight


def importance_of(statistics: LayerStatistics | None) -> Tensor | None:
    """How much the squared error of each column counts, f32 `[in_features]`; None where nothing is known, or where no
    input was ever other than zero."""
    if statistics is None:
        return None
    importance = statistics.importance.to("cpu", torch.float32)
    return importance if bool((importance > 0).any()) else None


def split_groups(values: Tensor, spec: QuantSpec) -> Tensor:
    """`[rows, columns]` -> `[rows, groups, columns of a group]`, with zeros past the end of a partial group."""
    rows, columns = values.shape
    groups = spec.num_groups(columns)
    size = columns if groups == 1 else spec.group_size
    if groups * size > columns:
        values = torch.nn.functional.pad(values, (0, groups * size - columns))
    return values.reshape(rows, groups, size)


def sum_groups(values: Tensor, spec: QuantSpec) -> Tensor:
    """`[rows, columns]` -> the sums over each group, `[rows, groups]`."""
    return split_groups(values, spec).sum(2)


def of_columns(values: Tensor, spec: QuantSpec, columns: int) -> Tensor:
    """A value of each group, `[rows, groups]` -> that of each column, `[rows, columns]`."""
    rows, groups = values.shape
    size = columns if groups == 1 else spec.group_size
    return values[:, :, None].expand(rows, groups, size).reshape(rows, groups * size)[:, :columns]


@dataclass(frozen=True, eq=False)
class GroupGrids:
    """The grid of every group, as it is stored.

    Args:
        spec: the meaning.
        scales: f32 `[rows, groups]`.
        zeros: zeros or offsets, f32 `[rows, groups]`; `spec.fixed_zero` everywhere where that is fixed.
        super_scales, super_offsets: f16 `[rows, super groups]` with two levels, which stay as they are.
    """

    spec: QuantSpec
    scales: Tensor
    zeros: Tensor
    super_scales: Tensor | None = None
    super_offsets: Tensor | None = None

    @classmethod
    def of(cls, codes: Codes) -> GroupGrids:
        """The grids that codes lie on."""
        scales, zeros = (None if part is None else torch.from_numpy(part) for part in codes.group_values())
        assert scales is not None
        if zeros is None:
            zeros = torch.full_like(scales, float(np.float32(codes.spec.fixed_zero)))
        supers = (codes.super_scales, codes.super_offsets)
        return cls(codes.spec, scales, zeros, *(None if part is None else torch.from_numpy(part) for part in supers))

    def replace(self, scales: Tensor, zeros: Tensor) -> GroupGrids:
        """The nearest grids that can be stored, of f32 scales and zeros `[rows, groups]`."""
        spec = self.spec
        kept = (self.super_scales, self.super_offsets)
        if self.super_scales is not None:
            scales = self._super_multiples(scales, self.super_scales)
            if self.super_offsets is not None:
                zeros = -self._super_multiples(-zeros, self.super_offsets)
        elif spec.scale_format == "f16":
            scales = scales.half().float()
        if spec.zero_point == "integer":
            zeros = zeros.round().clamp(0, 2**spec.bits - 1)
        elif spec.zero_point != "fixed" and spec.scale_format == "f16":
            zeros = zeros.half().float()
        return GroupGrids(spec, scales, zeros, *kept)

    def where(self, chosen: Tensor, other: GroupGrids) -> GroupGrids:
        """These grids where `chosen`, bool `[rows, groups]`, the others elsewhere; groups under one super value go
        together unless both have the same super values."""
        scales = torch.where(chosen, self.scales, other.scales)
        zeros = torch.where(chosen, self.zeros, other.zeros)
        firsts = chosen[:, :: 256 // self.spec.group_size] if self.super_scales is not None else chosen
        pairs = ((self.super_scales, other.super_scales), (self.super_offsets, other.super_offsets))
        supers = [None if a is None or b is None else torch.where(firsts, a, b) for a, b in pairs]
        return GroupGrids(self.spec, scales, zeros, *supers)

    def round(self, values: Tensor) -> Tensor:
        """The nearest codes, f32 `[rows, columns]`."""
        scale, zero = self._of_columns(values.shape[1])
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        shift = -zero * inverse if self.spec.zero_point == "offset" else zero
        top = 2 if self.spec.codebook == "ternary" else 2**self.spec.bits - 1
        return (values * inverse + shift).round().clamp(0, top)

    def decode(self, codes: Tensor) -> Tensor:
        """What codes stand for, f32 `[rows, columns]`."""
        scale, zero = self._of_columns(codes.shape[1])
        return codes * scale + zero if self.spec.zero_point == "offset" else (codes - zero) * scale

    def errors(self, weight: Tensor, importance: Tensor) -> Tensor:
        """The squared error of every group, that of each column times `importance`, f32 `[rows, groups]`."""
        return sum_groups((weight - self.decode(self.round(weight))) ** 2 * importance, self.spec)

    def codes(self, weight: Tensor) -> Codes:
        """The weight f32 `[rows, columns]` rounded to these grids."""
        spec, scales, zeros = self.spec, self.scales, self.zeros
        codes = self.round(weight).to(torch.uint8).numpy()
        if self.super_scales is not None:
            scales = self._multiples(scales, self.super_scales)
            if self.super_offsets is not None:
                zeros = self._multiples(-zeros, self.super_offsets)
        stored = {"f16": np.float16, "f32": np.float32, "two_level": np.int8}[spec.scale_format]
        kept = None if spec.zero_point == "fixed" else zeros.numpy()
        if kept is not None:
            kept = kept.astype(np.uint8 if spec.zero_point == "integer" else stored)
        return Codes(
            spec,
            codes,
            scales.numpy().astype(stored),
            kept,
            super_scales=None if self.super_scales is None else self.super_scales.numpy(),
            super_offsets=None if self.super_offsets is None else self.super_offsets.numpy(),
        )

    def _of_columns(self, columns: int) -> tuple[Tensor, Tensor]:
        return of_columns(self.scales, self.spec, columns), of_columns(self.zeros, self.spec, columns)

    def _multiples(self, values: Tensor, supers: Tensor) -> Tensor:
        """How often the super value of each group goes into its value, rounded to 8 bits."""
        of_groups = supers.float()[:, self._super_of_groups(values.shape[1])]
        return torch.where(of_groups == 0, 0.0, values / of_groups).round().clamp(-127, 127)

    def _super_multiples(self, values: Tensor, supers: Tensor) -> Tensor:
        return supers.float()[:, self._super_of_groups(values.shape[1])] * self._multiples(values, supers)

    def _super_of_groups(self, groups: int) -> Tensor:
        return torch.arange(groups) * self.spec.group_size // 256
