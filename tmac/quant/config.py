"""`QuantConfig`, what a user asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from tmac.spec import Activation, Codebook, QuantSpec, ZeroPoint


@dataclass(frozen=True)
class QuantConfig:
    """How to quantize the linear layers of a model.

    Args:
        bits: 1 to 8; 2 for the ternary codebook.
        group_size: columns that share a scale; -1 is the whole row.
        sym: True centres every group on zero; False gives each group an offset as well.
        zero_point: "integer" or "real" zeros instead of what `sym` says ("fixed" or "offset").
        codebook: "uniform" or "ternary" (weights -1, 0, 1 times the scale; always symmetric).
        head_bits: bits of the output head; None leaves the head as it is: float, or tied to the embedding.
        embedding_bits: bits of the input embedding; None leaves it float.
        modules_to_not_convert: names to leave alone: a module's full name, any run of its parts ("mlp", "0.mlp"), or a
            pattern ("*.layers.[01].*").
        activation: "group", "token" or "float", see `tmac.QuantSpec`.
        fast_aggregation: averages table look-ups, see `tmac.QuantSpec`; a head of more than 4 bits has none to average.

    Raises:
        ValueError: the values have no meaning together.
    """

    bits: int = 4
    group_size: int = 32
    sym: bool = False
    zero_point: ZeroPoint | None = None
    codebook: Codebook = "uniform"
    head_bits: int | None = None
    modules_to_not_convert: tuple[str, ...] | None = None
    activation: Activation = "group"
    fast_aggregation: bool = False
    embedding_bits: int | None = None

    def __post_init__(self) -> None:
        names: Iterable[str] | None = self.modules_to_not_convert
        if isinstance(names, str):
            raise ValueError("[QuantConfig] modules_to_not_convert must be a list of names, got one string")
        object.__setattr__(self, "modules_to_not_convert", None if names is None else tuple(names))
        if self.sym and self.zero_point not in (None, "fixed"):
            raise ValueError(f"[QuantConfig] sym=True has a fixed zero, but zero_point={self.zero_point!r}")
        self.spec()
        self.head_spec()
        self.embedding_spec()

    def spec(self) -> QuantSpec:
        """The meaning of the codes of every layer but the head."""
        zero_point = "fixed" if self.codebook == "ternary" and self.zero_point is None else self._zero_point()
        return QuantSpec(
            self.bits,
            self.group_size,
            self.codebook,
            zero_point,
            activation=self.activation,
            fast_aggregation=self.fast_aggregation,
        )

    def head_spec(self) -> QuantSpec | None:
        """The same for the output head, whose codebook is uniform; None where it stays as it is."""
        return self._own_spec(self.head_bits)

    def embedding_spec(self) -> QuantSpec | None:
        """The same for the input embedding."""
        return self._own_spec(self.embedding_bits)

    def _own_spec(self, width: int | None) -> QuantSpec | None:
        if width is None:
            return None
        fast = self.fast_aggregation and width <= 4
        zero_point = self._zero_point()
        return QuantSpec(
            width, self.group_size, "uniform", zero_point, activation=self.activation, fast_aggregation=fast
        )

    def converts(self, name: str) -> bool:
        """Whether `modules_to_not_convert` lets the module of this name be quantized."""
        return not any(
            f".{pattern}." in f".{name}." or fnmatchcase(name, pattern) for pattern in self.modules_to_not_convert or ()
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        values = asdict(self)
        if self.modules_to_not_convert is not None:
            values["modules_to_not_convert"] = list(self.modules_to_not_convert)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantConfig:
        """The inverse of `to_dict`; an unknown key is an error."""
        unknown = values.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise ValueError(f"[QuantConfig] unknown keys {sorted(unknown)}")
        return cls(**values)

    def _zero_point(self) -> ZeroPoint:
        return self.zero_point or ("fixed" if self.sym else "offset")
