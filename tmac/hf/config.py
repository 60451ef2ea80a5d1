"""`TMACConfig`, the `quantization_config` of Hugging Face models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from tmac.formats.tmac_config import FORMAT_VERSION
from tmac.quant.config import QuantConfig
from tmac.spec import Activation, Codebook, QuantSpec, ScaleFormat, ZeroPoint


class TMACConfig(QuantizationConfigMixin):
    """How to quantize a model while it is loaded, or what a saved one is.

    Args:
        bits, group_size, sym, zero_point, codebook, head_bits, embedding_bits, modules_to_not_convert, activation,
            fast_aggregation: as those of `tmac.QuantConfig`.
        fixed_zero, scale_format: of a saved model, as in docs/format.md.
        format_version: of a saved model.
        layers: of a saved model: what differs in the layer of this name.
        tied: of a saved model: modules that share another's weight.

    Raises:
        ValueError: the values have no meaning together, or a key is unknown.

    Example:
        >>> AutoModelForCausalLM.from_pretrained(folder, quantization_config=TMACConfig(bits=4, group_size=64))
    """

    def __init__(
        self,
        bits: int = 4,
        group_size: int = 32,
        sym: bool = False,
        zero_point: ZeroPoint | None = None,
        codebook: Codebook = "uniform",
        head_bits: int | None = None,
        embedding_bits: int | None = None,
        modules_to_not_convert: list[str] | None = None,
        activation: Activation = "group",
        fast_aggregation: bool = False,
        fixed_zero: float | None = None,
        scale_format: ScaleFormat = "f16",
        format_version: int = FORMAT_VERSION,
        layers: Mapping[str, Mapping[str, Any]] | None = None,
        tied: Mapping[str, str] | None = None,
        **unknown: Any,
    ) -> None:
        unknown.pop("quant_method", None)
        if unknown:
            raise ValueError(f"[TMACConfig] unknown keys {sorted(unknown)}")
        self.quant_method: Any = "tmac"
        self.bits = bits
        self.group_size = group_size
        self.sym = sym
        self.zero_point = zero_point
        self.codebook = codebook
        self.head_bits = head_bits
        self.embedding_bits = embedding_bits
        self.modules_to_not_convert = None if modules_to_not_convert is None else list(modules_to_not_convert)
        self.activation = activation
        self.fast_aggregation = fast_aggregation
        self.fixed_zero = fixed_zero
        self.scale_format = scale_format
        self.format_version = format_version
        self.layers = dict(layers or {})
        self.tied = dict(tied or {})
        self.spec()

    @classmethod
    def of(cls, config: QuantConfig) -> TMACConfig:
        """The same request as a `tmac.QuantConfig`."""
        return cls(**config.to_dict())

    def quant_config(self) -> QuantConfig:
        """What `tmac.quantize_` is asked for."""
        return QuantConfig(
            **{key: getattr(self, key) for key in QuantConfig.__dataclass_fields__ if hasattr(self, key)}
        )

    def spec(self) -> QuantSpec:
        """The meaning of the codes of every layer that `layers` does not name."""
        spec = self.quant_config().spec()
        return spec.replace(fixed_zero=self.fixed_zero, scale_format=self.scale_format)

    def to_dict(self) -> dict[str, Any]:
        """The keys of docs/format.md, and what was asked for besides."""
        content: dict[str, Any] = {"quant_method": self.quant_method, "format_version": self.format_version}
        content.update(self.spec().to_dict())
        optional = ("modules_to_not_convert", "head_bits", "embedding_bits")
        content.update({key: getattr(self, key) for key in optional if getattr(self, key) is not None})
        if self.tied:
            content["tied"] = dict(self.tied)
        content["layers"] = {name: dict(changes) for name, changes in self.layers.items()}
        return content
