"""BitNet in transformers' form (`integrations/bitnet.py`): ternary weights, int8 activations per token.

    bitlinear:      y = (x_q @ ternary.T) / (x_scale * weight_scale) + bias
    autobitlinear:  y = (x_q / x_scale @ ternary.T + bias) * weight_scale

`weight` u8 `[ceil(out_features / 4), in_features]` holds the rows in four slices: row r of slice s in bits 2 s and
2 s + 1 of row r, as value + 1. With `quantization_mode="online"` (`autobitlinear`) `weight` is a float matrix, which
the layer makes ternary: values round(w * s), clamped to -1 and 1, over s, the inverse of the mean of |w|.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmac.codes import Codes
from tmac.formats.checkpoint import Checkpoint, QuantizedLayer, StoredTensor, narrowest, scale_format_of
from tmac.formats.errors import format_error
from tmac.formats.module_names import is_embedding, is_head, is_listed
from tmac.formats.safetensors_file import TensorStore
from tmac.formats.scales import FLOATS, read_bias, read_finite
from tmac.formats.slices import unpack_slices
from tmac.formats.source import Source
from tmac.spec import QuantSpec

PER_BYTE = 4
SMALLEST_MEAN = 1e-5
BLOCK_ROWS = 32


def open_checkpoint(source: Source) -> Checkpoint:
    """A BitNet model of transformers.

    Raises:
        FormatError: the configuration or a tensor is not what the format says.
    """
    settings = _Settings.of(source)
    names = _online_names(source, settings) if settings.online else _offline_names(source.store)
    if not names:
        raise format_error(source.path, "expected at least one BitNet layer, found none")
    layers, owned = {}, set()
    for name in names:
        layer = _Layer.of(source, settings, name)
        layers[name] = layer.quantized()
        owned.update(layer.tensors)
    tensors: Mapping[str, StoredTensor] = {
        name: source.store.tensor(name) for name in source.store.entries if name not in owned
    }
    return source.checkpoint("bitnet", layers, tensors)


@dataclass(frozen=True)
class _Settings:
    """What `quantization_config` says.

    Args:
        divide: `linear_class="bitlinear"`, whose `weight_scale` divides.
        online: weights are stored as floats and made ternary when they are read.
        norm_eps: of the RMSNorm in front of every layer; None where there is none.
        skipped: `modules_to_not_convert`; None where the file says nothing.
    """

    divide: bool
    online: bool
    norm_eps: float | None
    skipped: list[str] | None

    @classmethod
    def of(cls, source: Source) -> _Settings:
        linear_class = source.setting("linear_class", str, "bitlinear")
        if linear_class not in ("bitlinear", "autobitlinear"):
            message = f"expected bitlinear or autobitlinear, found {linear_class!r}"
            raise format_error(source.config_path, message, "linear_class")
        mode = source.setting("quantization_mode", str, "offline")
        if mode not in ("online", "offline"):
            raise format_error(source.config_path, f"expected online or offline, found {mode!r}", "quantization_mode")
        skipped = source.quantization.get("modules_to_not_convert")
        if skipped is not None and not (isinstance(skipped, list) and all(isinstance(item, str) for item in skipped)):
            raise format_error(source.config_path, f"expected names, found {skipped!r}", "modules_to_not_convert")
        norm_eps = None
        if source.setting("use_rms_norm", bool, False):
            norm_eps = float(source.setting("rms_norm_eps", (float, int), 1e-6))
        return cls(linear_class == "bitlinear", linear_class != "bitlinear" and mode == "online", norm_eps, skipped)


def _offline_names(store: TensorStore) -> list[str]:
    """Modules with a packed weight or a weight_scale, in the order of the file."""
    packed = (name for name, entry in store.entries.items() if name.endswith(".weight") and entry.dtype == "U8")
    scaled = (name for name in store.entries if name.endswith(".weight_scale"))
    return list(dict.fromkeys(name.rpartition(".")[0] for name in (*packed, *scaled)))


def _online_names(source: Source, settings: _Settings) -> list[str]:
    """Modules with a float matrix that are linear layers, and that transformers would convert."""
    vocabulary = (source.config or {}).get("vocab_size")
    names = []
    for tensor, entry in source.store.entries.items():
        name, _, part = tensor.rpartition(".")
        if part != "weight" or entry.dtype not in FLOATS or len(entry.shape) != 2 or is_embedding(name):
            continue
        if settings.skipped is None:
            skip = is_head(name) or entry.shape[0] == vocabulary
        else:
            try:
                skip = is_listed(name, settings.skipped)
            except ValueError as error:
                raise format_error(source.config_path, str(error), "modules_to_not_convert") from error
        if not skip:
            names.append(name)
    return names


@dataclass(frozen=True)
class _Layer:
    """One layer, its tensors' shapes checked."""

    store: TensorStore
    settings: _Settings
    name: str
    out_features: int
    in_features: int

    @classmethod
    def of(cls, source: Source, settings: _Settings, name: str) -> _Layer:
        store = source.store
        floats = FLOATS if settings.online or not settings.divide else ()
        weight = store.expect(f"{name}.weight", floats if settings.online else ("U8", *floats), (None, None))
        n, k = weight.shape
        if weight.dtype == "U8":
            n = _rows(source, name, n)
        if not n or not k:
            raise format_error(weight.file, f"expected rows and columns, found {list(weight.shape)}", f"{name}.weight")
        if not settings.online:
            scale = store.entry(f"{name}.weight_scale")
            store.expect(f"{name}.weight_scale", FLOATS, scale.shape if scale.shape == () else (1,))
        if f"{name}.bias" in store:
            store.expect(f"{name}.bias", FLOATS, (n,))
        if settings.norm_eps is not None:
            store.expect(f"{name}.rms_norm.weight", FLOATS, (k,))
        return cls(store, settings, name, n, k)

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors that belong to the layer; its RMSNorm is a module of its own."""
        names = [f"{self.name}.{part}" for part in ("weight", "weight_scale", "bias")]
        return [name for name in names if name in self.store]

    def quantized(self) -> QuantizedLayer:
        return QuantizedLayer(
            self.name,
            self._spec("f32"),
            self.out_features,
            self.in_features,
            f"{self.name}.bias" in self.store,
            sum(self.store.tensor(name).nbytes for name in self.tensors),
            self._read,
            input_norm_eps=self.settings.norm_eps,
        )

    def _spec(self, scale_format: str) -> QuantSpec:
        ternary = QuantSpec(bits=2, group_size=-1, codebook="ternary", activation="token")
        return ternary.replace(scale_format=scale_format)

    def _read(self) -> Codes:
        with np.errstate(over="ignore"):  # what becomes infinite is refused, or is a bias
            return self._codes()

    def _codes(self) -> Codes:
        bias = read_bias(self.store, self.name)
        if self.settings.online:
            codes, scale = self._ternarize()
        else:
            codes, scale = self._ternary(), self._scale()
            if bias is not None and not self.settings.divide:
                bias = bias * np.float32(scale)
        scales = narrowest(np.full((self.out_features, 1), scale, np.float32))
        spec = self._spec(scale_format_of(scales))
        try:
            return Codes(spec, codes, scales, bias=bias)
        except ValueError as error:
            raise format_error(self.store.path, f"expected a weight of {spec} ({error})", self.name) from error

    def _scale(self) -> float:
        """What a code's value is multiplied with, an f32."""
        name = f"{self.name}.weight_scale"
        scale = read_finite(self.store, name).reshape(-1)
        if not self.settings.divide:
            return float(scale[0])
        with np.errstate(divide="ignore"):
            inverse = float((np.float32(1) / scale)[0])
        if not math.isfinite(inverse):
            message = f"expected a number to divide by, found {scale[0]}"
            raise format_error(self.store.entry(name).file, message, name)
        return inverse

    def _ternary(self) -> NDArray[np.uint8]:
        name = f"{self.name}.weight"
        entry = self.store.entry(name)
        if entry.dtype == "U8":
            return _unpack(self.store, name, self.out_features)
        values = self.store.read_float32(name)
        if not np.isin(values, (-1, 0, 1)).all():
            raise format_error(entry.file, "expected a packed weight, or floats of -1, 0 and 1 alone", name)
        return (values + 1).astype(np.uint8)

    def _ternarize(self) -> tuple[NDArray[np.uint8], float]:
        """What `WeightQuant` of transformers makes of a float weight.

        It sums |w| in f32 in an order that depends on the machine; here the sum is rounded once. There the product is
        rounded to the type that the model is loaded in, which is not known here: the scale stays f32.
        """
        name = f"{self.name}.weight"
        weight = read_finite(self.store, name)
        blocks = [slice(begin, begin + BLOCK_ROWS) for begin in range(0, len(weight), BLOCK_ROWS)]
        total = math.fsum(np.abs(weight[block]).sum(dtype=np.float64) for block in blocks)
        mean = np.float32(max(total / weight.size, SMALLEST_MEAN))
        inverse = np.float32(1) / mean
        codes = np.empty(weight.shape, np.uint8)
        for block in blocks:  # each stays in the cache between the steps
            values = np.rint(weight[block] * inverse)
            np.add(values.clip(-1, 1, out=values), 1, out=codes[block], casting="unsafe")
        return codes, float(np.float32(1) / inverse)


def _rows(source: Source, name: str, packed: int) -> int:
    """Rows of a packed weight: the last up to three may be padding, which a bias or the model's sizes tell."""
    most = PER_BYTE * packed
    possible = range(max(most - PER_BYTE + 1, 1), most + 1)
    bias = f"{name}.bias"
    if bias in source.store:
        entry = source.store.expect(bias, FLOATS, (None,))
        if entry.shape[0] not in possible:
            message = f"expected {possible[0]} to {most} numbers beside {packed} packed rows, found {entry.shape[0]}"
            raise format_error(entry.file, message, bias)
        return entry.shape[0]
    sizes = _sizes(source.config or {})
    fitting = [rows for rows in possible if rows in sizes]
    return fitting[0] if len(fitting) == 1 else most


def _sizes(config: Mapping[str, object]) -> set[int]:
    """The numbers of rows that linear layers of the model have."""
    numbers = {key: value for key, value in config.items() if type(value) is int}
    hidden, heads = numbers.get("hidden_size", 0), numbers.get("num_attention_heads", 0)
    head = numbers.get("head_dim", hidden // heads if heads > 0 else 0)
    named = {numbers.get(key, 0) for key in ("hidden_size", "intermediate_size", "vocab_size")}
    return named | {head * numbers.get(key, heads) for key in ("num_attention_heads", "num_key_value_heads")}


def _unpack(store: TensorStore, name: str, rows: int) -> NDArray[np.uint8]:
    """Four codes of a byte -> u8 `[rows, in_features]`. Raises FormatError where one is no ternary code."""
    packed = store.read(name)
    codes = unpack_slices(packed, 2, (0, 2, 4, 6)).reshape(-1, packed.shape[1])
    if codes.max() > 2:
        raise format_error(store.entry(name).file, "expected codes of 0 to 2, found a 3", name)
    if codes[rows:].any():
        raise format_error(store.entry(name).file, f"expected {rows} rows and zero bits behind them", name)
    return codes[:rows]
