"""What a matrix of a model can be made of: bit widths and group formats, and what each takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tmac.codes import Codes, tensor_shapes
from tmac.quant.allocation import Point, pareto_front
from tmac.quant.sensitivity import Sensitivity
from tmac.spec import QuantSpec

WIDTHS = (1, 2, 3, 4, 5, 6, 8)
SAMPLE_ROWS = 192
# Where the fixed zero may lie, below 2^(bits-1): one number for a weight, which costs no bits.
ZERO_SHIFTS = (0.0, 0.25, 0.5)

Round = Callable[[Tensor, QuantSpec, Sensitivity], Codes]


@dataclass(frozen=True)
class Option:
    """One way to quantize a matrix.

    Args:
        spec: the way.
        size: bits that its tensors take.
        loss: nats per token that it is predicted to cost.
    """

    spec: QuantSpec
    size: int
    loss: float

    @property
    def point(self) -> Point:
        return Point(self.size, self.loss)


def size_of(spec: QuantSpec, out_features: int, in_features: int) -> int:
    """Bits that the tensors of a matrix take in a file, without a bias."""
    nbytes = {"planes": 1, "trits": 1, "super_scales": 2, "super_offsets": 2}
    values = {"f16": 2, "f32": 4, "two_level": 1}[spec.scale_format]
    nbytes |= {"scales": values, "offsets": values, "zeros": 1 if spec.zero_point == "integer" else values}
    shapes = tensor_shapes(spec, out_features, in_features)
    return sum(8 * nbytes[name] * math.prod(shape) for name, shape in shapes.items())


def formats(width: int) -> Iterator[QuantSpec]:
    """The group formats that are tried at a bit width, with a fixed zero in the middle where there is one.

    At 6 and 8 bits what stands beside the codes hardly matters: only the cheap ones.
    """
    groups = (128, 64, 32) if width < 6 else (128, 64)
    yield from (QuantSpec(width, group) for group in groups)
    if width < 8:
        yield QuantSpec(width, 32, scale_format="two_level")
        yield QuantSpec(width, 64, zero_point="offset")
        yield QuantSpec(width, 32, zero_point="offset", scale_format="two_level")
    if width < 6:
        yield QuantSpec(width, 16, scale_format="two_level")
        yield QuantSpec(width, 32, zero_point="offset")


def screen(
    weight: Tensor, sensitivity: Sensitivity, round_codes: Round, widths: Sequence[int] = WIDTHS
) -> list[Option]:
    """The options that no other one beats in size and loss, from the smallest, judged by rounding a sample of rows.

    Args:
        weight: f32 `[out_features, in_features]`.
        sensitivity: of its rows.
        round_codes: rounds to nearest: `(weight, spec, sensitivity) -> Codes`.
        widths: bit widths to try.
    """
    rows = sample_rows(weight.shape[0])
    part, about = weight[rows], sensitivity.of_rows(rows)
    whole, sampled = sensitivity.loss(weight), about.loss(part)
    factor = whole / sampled if sampled > 0 else weight.shape[0] / len(rows)

    def loss(spec: QuantSpec) -> float:
        codes = round_codes(part, spec, about)
        return factor * about.loss(torch.from_numpy(codes.dequantize()) - part)

    found = []
    for width in widths:
        zero = _best_zero(width, loss)
        for spec in formats(width):
            spec = spec.replace(fixed_zero=zero) if spec.zero_point == "fixed" else spec
            found.append(Option(spec, size_of(spec, *weight.shape), loss(spec)))
    return [found[index] for index in pareto_front([option.point for option in found])]


def sample_rows(rows: int, most: int = SAMPLE_ROWS) -> Tensor:
    """Indices of at most `most` rows, evenly spaced, int64."""
    return torch.linspace(0, rows - 1, min(rows, most), dtype=torch.float64).round().long()


def _best_zero(width: int, loss: Callable[[QuantSpec], float]) -> float:
    """The fixed zero that serves groups of 64 best; the middle where they are equal."""
    middle = QuantSpec(width, 64).fixed_zero
    assert middle is not None
    if width == 1 or width >= 6:
        return middle
    zeros = [middle - shift for shift in ZERO_SHIFTS]
    return min(zeros, key=lambda zero: loss(QuantSpec(width, 64, fixed_zero=zero)))


def spec_text(spec: QuantSpec) -> str:
    """The spec in a few characters: "W3 g32 two-level offset", "W4 g64", "W2 g64 zero 1.5"."""
    if spec.codebook == "ternary":
        return f"ternary g{spec.group_size}"
    parts = [f"W{spec.bits} g{spec.group_size}"]
    if spec.scale_format != "f16":
        parts.append(spec.scale_format.replace("_", "-"))
    if spec.zero_point != "fixed":
        parts.append(spec.zero_point)
    elif spec != spec.replace(fixed_zero=None):
        parts.append(f"zero {spec.fixed_zero:g}")
    return " ".join(parts)
