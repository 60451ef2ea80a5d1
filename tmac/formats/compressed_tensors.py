"""compressed-tensors (https://github.com/vllm-project/compressed-tensors, versions 0.5 to 0.20): integer weights.

    weight[n, k] = (q[n, k] - weight_zero_point[n, group of k]) * weight_scale[n, group of k]

`pack-quantized` has `weight_packed` i32 `[out_features, words]`, codes `q + 2**(bits - 1)` of `bits` bits from the
least significant bit of a row's first word on, and `weight_shape`. From 0.18 on codes straddle words; before, a word
holds `32 // bits` codes and its other bits are unused. `weight_zero_point` is packed in the same way down the rows, i32
`[words, groups]`, from 0.9 on; before, and for one zero per tensor, it is i8. `int-quantized` and `naive-quantized`
have `q` as i8 `weight`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmac.codes import Codes
from tmac.formats.act_order import column_order
from tmac.formats.checkpoint import Array, Checkpoint, Kind, QuantizedLayer, narrowest, scale_format_of
from tmac.formats.compressed_tensors_config import Config, Scheme
from tmac.formats.errors import format_error
from tmac.formats.module_names import is_embedding
from tmac.formats.packing import unpack_stream
from tmac.formats.safetensors_file import TensorStore
from tmac.formats.scales import FLOATS, read_bias, read_finite
from tmac.formats.source import Source
from tmac.spec import QuantSpec

MARKS = ("weight_packed", "weight_scale")
BLOCK_ROWS = 32
PARTS = ("weight_scale", "weight_zero_point", "weight_g_idx", "bias")


def open_checkpoint(source: Source) -> Checkpoint:
    """A folder that llm-compressor or compressed-tensors wrote. `weight_shape`, 16 bytes a layer, is read at once.

    Raises:
        FormatError: the configuration or a tensor is damaged, or quantized in a way that is not supported: floats of 8
            or 4 bits, blocks, 2:4 sparse weights, quantized activations.
    """
    config = Config(source)
    names = dict.fromkeys(name.rpartition(".")[0] for name in source.store.entries if name.endswith(_suffixes()))
    layers, owned = {}, set()
    for name in names:
        layer = _Layer.of(source.store, config, name)
        layers[name] = layer.quantized()
        owned.update(layer.tensors)
    tensors = {name: source.store.tensor(name) for name in source.store.entries if name not in owned}
    return source.checkpoint("compressed-tensors", layers, tensors)


def _suffixes() -> tuple[str, ...]:
    return tuple(f".{mark}" for mark in MARKS)


@dataclass(frozen=True)
class _Layer:
    """One layer, its tensors' shapes checked."""

    store: TensorStore
    name: str
    scheme: Scheme
    out_features: int
    in_features: int
    straddle: bool

    @classmethod
    def of(cls, store: TensorStore, config: Config, name: str) -> _Layer:
        scheme = config.scheme(name)
        straddle = True
        if scheme.layout == "pack-quantized":
            packed = store.expect(f"{name}.weight_packed", ("I32",), (None, None))
            n, k = _weight_shape(store, name)
            layouts = _layouts(packed.shape[1], k, scheme.bits)
            if packed.shape[0] != n or not layouts:
                message = f"expected weight_shape [{n}, {k}] in codes of {scheme.bits} bits, found {list(packed.shape)}"
                raise format_error(packed.file, message, f"{name}.weight_packed")
            layouts = (_zero_layouts(store, name, scheme, n) & layouts) or layouts
            straddle = config.straddle if len(layouts) > 1 else True in layouts
        else:
            n, k = store.expect(f"{name}.weight", ("I8",), (None, None)).shape
        if not n or not k:
            raise format_error(store.path, f"expected at least one row and one column, found [{n}, {k}]", name)
        layer = cls(store, name, scheme, n, k, straddle)
        layer._check()
        return layer

    @property
    def spec(self) -> QuantSpec:
        """What the codes mean; the scales' own type is known when they have been read."""
        return QuantSpec(
            bits=self.scheme.bits,
            group_size=self.scheme.group_size,
            zero_point="integer" if f"{self.name}.weight_zero_point" in self.store else "fixed",
            fixed_zero=float(1 << (self.scheme.bits - 1)),
            scale_format="f16" if self.store.entry(f"{self.name}.weight_scale").dtype == "F16" else "f32",
        )

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors that belong to the layer."""
        weight = ("weight_packed", "weight_shape") if self.scheme.layout == "pack-quantized" else ("weight",)
        names = [f"{self.name}.{part}" for part in (*weight, *PARTS)]
        return [name for name in names if name in self.store]

    @property
    def groups(self) -> int:
        return self.spec.num_groups(self.in_features)

    def quantized(self) -> QuantizedLayer:
        nbytes = sum(self.store.tensor(name).nbytes for name in self.tensors)
        kind: Kind = "embedding" if is_embedding(self.name) else "linear"
        bias = f"{self.name}.bias" in self.store
        return QuantizedLayer(
            self.name,
            self.spec,
            self.out_features,
            self.in_features,
            bias,
            nbytes,
            self._read,
            kind,
            self.scheme.layout,
        )

    def _check(self) -> None:
        """Raises FormatError where a scale, zero, group or bias has another type or shape than the scheme says."""
        name, n, groups = self.name, self.out_features, self.groups
        self.store.expect(f"{name}.weight_scale", FLOATS, self._per_group("weight_scale"))
        zero = f"{name}.weight_zero_point"
        if zero in self.store or not self.scheme.symmetric:
            if self.store.entry(zero).dtype == "I32" and self._zeros_packed:
                self.store.expect(zero, ("I32",), (_words(n, self.scheme.bits, self.straddle), groups))
            else:
                self.store.expect(zero, ("I8",), self._per_group("weight_zero_point"))
        if f"{name}.weight_g_idx" in self.store:
            self.store.expect(f"{name}.weight_g_idx", ("I32", "I64"), (self.in_features,))
        if f"{name}.bias" in self.store:
            self.store.expect(f"{name}.bias", FLOATS, (n,))

    @property
    def _zeros_packed(self) -> bool:
        return self.scheme.layout == "pack-quantized" and self.scheme.strategy != "tensor"

    def _per_group(self, part: str) -> tuple[int, ...]:
        """The shape of one number per group; one per tensor may be a scalar, one group's may lack its dimension."""
        shape = self.store.entry(f"{self.name}.{part}").shape
        if self.scheme.strategy == "tensor":
            return shape if shape in ((), (1,), (1, 1)) else (1,)
        if self.groups == 1 and self.scheme.strategy == "group" and len(shape) == 1:
            return (self.out_features,)
        return (self.out_features, self.groups)

    def _expand(self, values: Array) -> Array:
        """One number per group, `[out_features, groups]`."""
        if self.scheme.strategy == "tensor":
            return np.full((self.out_features, 1), values.reshape(-1)[0])
        return values.reshape(self.out_features, self.groups)

    def _read(self) -> Codes:
        scales = self._expand(narrowest(read_finite(self.store, f"{self.name}.weight_scale")))
        codes, zeros, perm = self._codes(), self._zeros(), self._perm()
        if perm is not None:
            codes = codes.take(perm.astype(np.intp), axis=1, mode="clip")  # many times as fast as codes[:, perm]
        spec = self.spec.replace(scale_format=scale_format_of(scales))
        try:
            return Codes(spec, codes, scales, zeros, perm, read_bias(self.store, self.name))
        except ValueError as error:
            raise format_error(self.store.path, f"expected a weight of {spec} ({error})", self.name) from error

    def _codes(self) -> NDArray[np.uint8]:
        if self.scheme.layout != "pack-quantized":
            return self._shifted("weight")
        words = self.store.read(f"{self.name}.weight_packed")
        return _unpack(words, self.scheme.bits, self.in_features, self.straddle)

    def _zeros(self) -> NDArray[np.uint8] | None:
        name = f"{self.name}.weight_zero_point"
        if name not in self.store:
            return None
        if self.store.entry(name).dtype == "I8":
            return self._expand(self._shifted("weight_zero_point"))
        words = np.ascontiguousarray(self.store.read(name).T)
        return np.ascontiguousarray(_unpack(words, self.scheme.bits, self.out_features, self.straddle).T)

    def _shifted(self, part: str) -> NDArray[np.uint8]:
        """Signed integers as codes from 0 on. Raises FormatError where one has more bits than the scheme says."""
        values = self.store.read(f"{self.name}.{part}")
        half = 1 << (self.scheme.bits - 1)
        codes: NDArray[np.uint8] = values.view(np.uint8) + np.uint8(
            half
        )  # modulo 256: what lies outside comes out above the largest code
        if codes.size and codes.max() > 2 * half - 1:
            message = f"expected integers of {self.scheme.bits} bits, found {values.min()} to {values.max()}"
            raise format_error(self.store.entry(f"{self.name}.{part}").file, message, f"{self.name}.{part}")
        return codes

    def _perm(self) -> NDArray[np.int32] | None:
        name = f"{self.name}.weight_g_idx"
        if name not in self.store:
            return None
        g_idx = self.store.read(name)
        if (g_idx == -1).any():  # how the format says that there is no order
            return None
        try:
            return column_order(g_idx, self.scheme.group_size, self.in_features)
        except ValueError as error:
            raise format_error(self.store.entry(name).file, str(error), name) from error


def _weight_shape(store: TensorStore, name: str) -> tuple[int, int]:
    entry = store.expect(f"{name}.weight_shape", ("I64", "I32"), (2,))
    n, k = (int(size) for size in store.read(f"{name}.weight_shape"))
    if n < 1 or k < 1:
        raise format_error(entry.file, f"expected rows and columns, found [{n}, {k}]", f"{name}.weight_shape")
    return n, k


def _words(count: int, bits: int, straddle: bool) -> int:
    """32-bit words that hold `count` codes."""
    return -(-count * bits // 32) if straddle else -(-count // (32 // bits))


def _layouts(words: int, count: int, bits: int) -> set[bool]:
    """The layouts (do codes straddle words?) in which `count` codes take so many words."""
    return {straddle for straddle in (False, True) if _words(count, bits, straddle) == words}


def _zero_layouts(store: TensorStore, name: str, scheme: Scheme, rows: int) -> set[bool]:
    """The layouts that packed zeros allow; both where there are none."""
    zero = f"{name}.weight_zero_point"
    if zero not in store or store.entry(zero).dtype != "I32" or not store.entry(zero).shape:
        return {False, True}
    return _layouts(store.entry(zero).shape[0], rows, scheme.bits)


def _unpack(words: Array, bits: int, count: int, straddle: bool) -> NDArray[np.uint8]:
    """Packed codes, u8 `[rows, count]`, from i32 `[rows, words]`."""
    if straddle or 32 % bits == 0:
        return unpack_stream(words, bits, count)
    rows, columns = words.shape
    codes = np.empty((rows, columns, 32 // bits), np.uint8)
    shifts = [(index, np.uint32(index * bits)) for index in range(32 // bits)]
    for begin in range(0, rows, BLOCK_ROWS):  # each block stays in the cache while it is read once for every shift
        block = slice(begin, begin + BLOCK_ROWS)
        unsigned = words[block].view(np.uint32)
        for index, shift in shifts:
            np.bitwise_and(unsigned >> shift, 2**bits - 1, out=codes[block, :, index], casting="unsafe")
    return codes.reshape(rows, -1)[:, :count]
