"""Our own checkpoints (docs/format.md): a folder with `config.json` and safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tmac.codes import Codes, tensor_shapes
from tmac.formats.checkpoint import Array, Checkpoint, Kind, QuantizedLayer, to_float32
from tmac.formats.errors import format_error
from tmac.formats.safetensors_file import TensorStore
from tmac.formats.source import Source
from tmac.formats.tmac_config import FORMAT_VERSION, with_changes
from tmac.spec import QuantSpec

SUFFIXES = (".planes", ".trits")
LAYER_KEYS = ("in_features", "kind", "input_norm_eps")
CONFIG_KEYS = ("quant_method", "format_version", "modules_to_not_convert", "tied", "layers")


def open_checkpoint(source: Source) -> Checkpoint:
    """A folder that `tmac convert` or `save_pretrained` wrote.

    Raises:
        FormatError: the configuration or a tensor is not what docs/format.md says.
    """
    quantization = source.quantization
    default, layers = _specs(source, quantization)
    names = [name[: -len(suffix)] for name in source.store.entries for suffix in SUFFIXES if name.endswith(suffix)]
    for name in layers.keys() - set(names):
        raise format_error(source.config_path, "expected the planes or trits of this layer, found none", name)
    found = {name: _layer(source, name, default, layers.get(name, {})) for name in names}
    owned = {f"{name}.{part}" for name in names for part in _parts(source.store, name)}
    tensors = {name: source.store.tensor(name) for name in source.store.entries if name not in owned}
    return replace(source.checkpoint("tmac", found, tensors), tied=_tied(source, found, tensors))


def _tied(source: Source, layers: Mapping[str, object], tensors: Mapping[str, object]) -> dict[str, str]:
    tied = source.quantization.get("tied", {})
    if not isinstance(tied, dict) or not all(isinstance(target, str) for target in tied.values()):
        raise format_error(source.config_path, "expected a map from modules to modules", "quantization_config.tied")
    for name, target in tied.items():
        if name in layers or (target not in layers and f"{target}.weight" not in tensors):
            message = f"expected a module without a weight that shares the one of another, found {target!r}"
            raise format_error(source.config_path, message, name)
    return tied


def _specs(source: Source, quantization: Mapping[str, Any]) -> tuple[QuantSpec, Mapping[str, Mapping[str, Any]]]:
    version = quantization.get("format_version")
    if version != FORMAT_VERSION:
        message = f"expected version {FORMAT_VERSION}, found {version!r}"
        raise format_error(source.config_path, message, "quantization_config.format_version")
    layers = quantization.get("layers", {})
    if not isinstance(layers, dict) or not all(isinstance(value, dict) for value in layers.values()):
        raise format_error(source.config_path, "expected a map from layers to specs", "quantization_config.layers")
    fields = {key: value for key, value in quantization.items() if key not in CONFIG_KEYS}
    return _spec(source, "quantization_config", QuantSpec(), {**fields, "fixed_zero": fields.get("fixed_zero")}), layers


def _spec(source: Source, name: str, default: QuantSpec, changes: Mapping[str, Any]) -> QuantSpec:
    try:
        return with_changes(default, changes)
    except (TypeError, ValueError) as error:
        raise format_error(source.config_path, f"expected a spec ({error})", name) from error


def _layer(source: Source, name: str, default: QuantSpec, fields: Mapping[str, Any]) -> QuantizedLayer:
    changes = {key: value for key, value in fields.items() if key not in LAYER_KEYS}
    spec = _spec(source, name, default, changes)
    ternary = spec.codebook == "ternary"
    codes = source.store.expect(
        f"{name}.trits" if ternary else f"{name}.planes",
        ("U8",),
        (None, None) if ternary else (spec.bits, None, None),
    )
    per_byte = 5 if ternary else 8
    in_features = fields.get("in_features", codes.shape[-1] * per_byte)
    if type(in_features) is not int or -(-in_features // per_byte) != codes.shape[-1]:
        message = f"expected in_features that {codes.shape[-1]} bytes of {per_byte} columns hold, found {in_features!r}"
        raise format_error(source.config_path, message, name)
    kind: Kind = fields.get("kind", "linear")
    if kind not in ("linear", "embedding"):
        raise format_error(source.config_path, f"expected the kind linear or embedding, found {kind!r}", name)
    out_features = codes.shape[-2]
    if not out_features or not in_features:
        raise format_error(codes.file, f"expected at least one row and one column, found {list(codes.shape)}", name)
    bias = f"{name}.bias" in source.store
    for part, shape in tensor_shapes(spec, out_features, in_features, bias).items():
        dtypes = {"planes": ("U8",), "trits": ("U8",), "bias": ("F32", "F16", "BF16")}
        source.store.expect(f"{name}.{part}", dtypes.get(part, ("U8", "I8", "F16", "F32")), shape)
    parts = _parts(source.store, name)
    nbytes = sum(source.store.tensor(f"{name}.{part}").nbytes for part in parts)

    def read_bias() -> Array:
        return to_float32(source.store.read(f"{name}.bias"), source.store.entry(f"{name}.bias").dtype)

    def read_tensors(begin: int, end: int) -> dict[str, Array]:
        whole = [part for part in parts if part == "perm"]
        arrays = {part: source.store.read(f"{name}.{part}") for part in whole}
        by_rows = [part for part in parts if part not in ("perm", "bias")]
        for part in by_rows:
            arrays[part] = source.store.read_rows(f"{name}.{part}", begin, end, part in ("planes", "trits"))
        return arrays

    def read() -> Codes:
        tensors = read_tensors(0, out_features) | ({"bias": read_bias()} if bias else {})
        try:
            return Codes.from_tensors(tensors, spec, in_features)
        except ValueError as error:
            raise format_error(codes.file, f"expected a weight of {spec} ({error})", name) from error

    eps = fields.get("input_norm_eps")
    if eps is not None:
        if type(eps) not in (int, float) or not 0 < eps < 1:
            raise format_error(source.config_path, f"expected an input_norm_eps between 0 and 1, found {eps!r}", name)
        source.store.expect(f"{name}.rms_norm.weight", ("F32", "F16", "BF16"), (in_features,))
    return QuantizedLayer(
        name,
        spec,
        out_features,
        in_features,
        bias,
        nbytes,
        read,
        kind,
        input_norm_eps=eps,
        read_tensors=read_tensors,
        read_bias=read_bias if bias else None,
    )


def _parts(store: TensorStore, name: str) -> list[str]:
    """The tensors of a layer that are in the file, by their last names."""
    known = ("planes", "trits", "scales", "zeros", "offsets", "super_scales", "super_offsets", "perm", "bias")
    return [part for part in known if f"{name}.{part}" in store]
