"""`quantization_config` of our own checkpoints (docs/format.md 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tmac.formats.checkpoint import Kind
from tmac.spec import QuantSpec

FORMAT_VERSION = 1


@dataclass(frozen=True)
class LayerEntry:
    """What a file must say of a weight beside its tensors."""

    spec: QuantSpec
    in_features: int
    kind: Kind = "linear"
    input_norm_eps: float | None = None


def quantization_config(
    layers: Mapping[str, LayerEntry], not_converted: Iterable[str] = (), tied: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The content of `quantization_config`; the default is the spec that most layers have.

    Args:
        layers: every quantized weight by its module's name.
        not_converted: modules that keep a float matrix.
        tied: modules that share another's weight.

    Raises:
        ValueError: there are no layers.
    """
    if not layers:
        raise ValueError("[quantization_config] expected at least one quantized layer")
    default = Counter(entry.spec for entry in layers.values()).most_common(1)[0][0]
    differing = {name: _differences(entry, default) for name, entry in layers.items()}
    content: dict[str, Any] = {"quant_method": "tmac", "format_version": FORMAT_VERSION, **default.to_dict()}
    content["modules_to_not_convert"] = sorted(not_converted)
    if tied:
        content["tied"] = dict(tied)
    content["layers"] = {name: changes for name, changes in differing.items() if changes}
    return content


def with_changes(default: QuantSpec, changes: Mapping[str, Any]) -> QuantSpec:
    """The spec of an entry of `layers`: `fixed_zero` follows `bits` and `codebook` unless it is given.

    Raises:
        ValueError, TypeError: an unknown key, or values without a meaning.
    """
    values = default.to_dict()
    if changes.keys() & {"bits", "codebook"}:
        del values["fixed_zero"]
    return QuantSpec.from_dict({**values, **changes})


def _differences(entry: LayerEntry, default: QuantSpec) -> dict[str, Any]:
    ours = {"fast_aggregation": False, **entry.spec.to_dict()}
    theirs = {"fast_aggregation": False, **default.to_dict()}
    changes = {key: value for key, value in ours.items() if value != theirs[key] and key != "fixed_zero"}
    if with_changes(default, changes) != entry.spec:
        changes["fixed_zero"] = entry.spec.fixed_zero
    if entry.in_features % (5 if entry.spec.codebook == "ternary" else 8):
        changes["in_features"] = entry.in_features
    if entry.kind != "linear":
        changes["kind"] = entry.kind
    if entry.input_norm_eps is not None:
        changes["input_norm_eps"] = entry.input_norm_eps
    return changes
