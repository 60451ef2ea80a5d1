"""What the codes of a weight mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tmac import _core

Codebook = Literal["uniform", "ternary"]
ZeroPoint = Literal["fixed", "integer", "real", "offset"]
Activation = Literal["group", "token", "float"]
ScaleFormat = Literal["f16", "f32", "two_level"]
_SUPER_COLUMNS = 256


def centre(bits: int, codebook: Codebook = "uniform") -> float:
    """The usual fixed zero: 2^(bits-1), half at one bit, 1 for ternary codes."""
    if codebook == "ternary":
        return 1.0
    return 0.5 if bits == 1 else float(2 ** (bits - 1))


def _to_float32(value: float) -> float:
    try:
        with np.errstate(over="ignore"):
            return float(np.float32(float(value)))
    except OverflowError:
        raise ValueError("[QuantSpec] fixed_zero must be finite in float32, got an integer beyond any float") from None


@dataclass(frozen=True)
class QuantSpec:
    """The meaning of a quantized weight, made once by a reader or a quantizer.

        w[n, k] = (code[n, k] - zero[n, k // group_size]) * scale[n, k // group_size]
        w[n, k] =  code[n, k] * scale[n, k // group_size] + offset[n, k // group_size]     (zero_point="offset")

    Args:
        bits: 1 to 8; 2 for a ternary codebook, whose codes 0, 1, 2 stand for -1, 0, 1.
        group_size: columns that share a scale; -1 is the whole row. The last group of a row may be partial.
        codebook: "uniform" or "ternary".
        zero_point: "fixed" (one number for the whole weight), "integer", "real", or "offset".
        fixed_zero: the zero of `zero_point="fixed"`, rounded to f32; None is `centre(bits, codebook)`.
        activation: "group" (int8 or table per 128 columns), "token" (int8 per token), "float" (exact and slow).
        scale_format: "f16", "f32" or "two_level": int8 sub-scales (and sub-offsets) under f16 super values of 256
            columns (docs/format.md), which needs `group_size` 16 or 32 and `zero_point` "fixed" or "offset".
        fast_aggregation: averages table look-ups instead of adding them (docs/numerics.md, class `lut_fast`): less work
            where additions are what takes the time, ten times the rounding error. Needs `activation="group"` and at
            most 4 bits.

    Raises:
        ValueError: the numbers have no meaning together. A valid spec that no kernel serves raises
            `tmac.UnsupportedSpecError` later, when it is packed.
    """

    bits: int = 4
    group_size: int = 128
    codebook: Codebook = "uniform"
    zero_point: ZeroPoint = "fixed"
    fixed_zero: float | None = None
    activation: Activation = "group"
    scale_format: ScaleFormat = "f16"
    fast_aggregation: bool = False

    def __post_init__(self) -> None:
        if self.fixed_zero is None:
            bits = self.bits if isinstance(self.bits, int) and 1 <= self.bits <= 8 else 4
            object.__setattr__(self, "fixed_zero", centre(bits, self.codebook))
        elif isinstance(self.fixed_zero, Real):
            object.__setattr__(self, "fixed_zero", _to_float32(self.fixed_zero))
        _core.check_spec(self)

    def num_groups(self, in_features: int) -> int:
        """Groups in a row of `in_features` columns."""
        if self.group_size == -1:
            return 1
        return -(-in_features // self.group_size)

    def num_super_groups(self, in_features: int) -> int:
        """Super values in a row of `in_features` columns, where `scale_format` is "two_level"."""
        return -(-in_features // _SUPER_COLUMNS)

    def super_groups(self, in_features: int) -> NDArray[np.int64]:
        """The super-group of each group, `[groups]`: the one that its first column lies in."""
        return np.arange(self.num_groups(in_features)) * self.group_size // _SUPER_COLUMNS

    def replace(self, **changes: Any) -> QuantSpec:
        """A copy with some fields changed.

        Unless they are given, `fixed_zero` follows `bits`, and `fast_aggregation` ends where another `activation` than
        "group" leaves nothing to aggregate.
        """
        if changes.keys() & {"bits", "codebook"}:
            changes.setdefault("fixed_zero", None)
        if changes.get("activation", "group") != "group":
            changes.setdefault("fast_aggregation", False)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; `fast_aggregation` only where it is on."""
        values = asdict(self)
        if not self.fast_aggregation:
            del values["fast_aggregation"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantSpec:
        """The inverse of `to_dict`; an unknown key is an error."""
        unknown = values.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise ValueError(f"[QuantSpec] unknown keys {sorted(unknown)}")
        return cls(**values)
