"""HQQ (https://github.com/mobiusml/hqq): state dicts of `HQQLinear` in safetensors files.

    weight = ((q - zero) * scale).reshape(shape),  q [groups, group_size], scale and zero [groups, 1]

Groups follow each other in the order of the weight's elements, row after row (`axis=1`). `W_q` holds the rows of `q`
cut into equal slices, the first slice in the highest bits: two slices of 4 bits in a byte, ten of 3 bits in the low 30
bits of an i32. Everything else about a layer is in small tensors beside it: numbers, and text as u8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmac.codes import Codes
from tmac.formats.checkpoint import Array, Checkpoint, QuantizedLayer, narrowest, scale_format_of
from tmac.formats.errors import format_error
from tmac.formats.safetensors_file import DTYPES, TensorStore
from tmac.formats.scales import FLOATS, read_bias, read_finite
from tmac.formats.slices import unpack_slices
from tmac.formats.source import Source
from tmac.spec import QuantSpec

# what a layer's state dict holds besides W_q, scale, zero and bias
META = (
    "axis",
    "channel_wise",
    "compute_dtype",
    "encoded_state_dict",
    "group_size",
    "nbits",
    "offload_meta",
    "optimize",
    "packing",
    "quant_scale",
    "quant_zero",
    "round_zero",
    "shape",
    "stores_quant_config",
    "unpack_view_dtype",
    "view_as_float",
)
MARKS = (".W_q", ".packing")  # one without the other is a damaged layer
PARTS = ("W_q", "scale", "zero", "zero_scale", "bias", *META)
TERNARY = 1.58
MAX_TEXT = 64


@dataclass(frozen=True)
class Packing:
    """How codes lie in the items of `W_q`: `slices` of `bits` bits, the first of them highest."""

    bits: int
    slices: int
    dtype: str


PACKINGS = {
    "8bit_u8": Packing(8, 1, "U8"),
    "4bit_u8": Packing(4, 2, "U8"),
    "3bit_32": Packing(3, 10, "I32"),
    "2bit_u8": Packing(2, 4, "U8"),
    "1bit_u8": Packing(1, 8, "U8"),
}
NBITS = {
    8: "8bit_u8",
    6: "8bit_u8",
    5: "8bit_u8",
    4: "4bit_u8",
    3: "3bit_32",
    2: "2bit_u8",
    TERNARY: "2bit_u8",
    1: "1bit_u8",
}


def open_checkpoint(source: Source) -> Checkpoint:
    """Layers that hqq or transformers wrote, with or without a `config.json`. The small tensors are read at once.

    Raises:
        FormatError: a tensor is damaged, or quantized in a way that `Codes` has no form for: groups down the columns
            (`axis=0`), or quantized scales and zeros.
    """
    entries = source.store.entries
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in entries if name.endswith(MARKS)))
    if not names:
        raise format_error(source.path, "expected layers with a tensor W_q, found none")
    layers = {name: _Layer.of(source.store, name).quantized() for name in names}
    owned = {f"{name}.{part}" for name in names for part in PARTS}
    tensors = {name: source.store.tensor(name) for name in source.store.entries if name not in owned}
    return source.checkpoint("hqq", layers, tensors)


@dataclass(frozen=True)
class _Layer:
    """One layer, its tensors' shapes checked.

    Args:
        bits: of a code, 1 to 8.
        columns: of `q`.
        group_size: elements that share a scale, row after row.
    """

    store: TensorStore
    name: str
    bits: int
    packing: Packing
    out_features: int
    in_features: int
    columns: int
    group_size: int

    @classmethod
    def of(cls, store: TensorStore, name: str) -> _Layer:
        n, k = _shape(store, f"{name}.shape")
        bits, packing = _bits(store, name)
        for part in ("quant_scale", "quant_zero"):
            if _number(store, f"{name}.{part}", 0):
                message = "expected scales and zeros in floats, found quantized ones: hqq 0.2 and later keep floats"
                raise format_error(store.path, message, f"{name}.{part}")
        columns, group_size = k, n * k
        if _number(store, f"{name}.channel_wise", 1):
            columns = group_size = _integer(store, f"{name}.group_size")
            if group_size < 1 or n * k % group_size:
                message = f"expected a divisor of the {n} x {k} elements, found {group_size}"
                raise format_error(store.path, message, f"{name}.group_size")
            if _number(store, f"{name}.axis") != 1:
                message = (
                    "expected groups along the rows (axis=1), found axis=0, where every column has scales of its own: "
                    "quantize the float model again with axis=1"
                )
                raise format_error(store.path, message, f"{name}.axis")
        layer = cls(store, name, bits, packing, n, k, columns, group_size)
        layer._check()
        return layer

    @property
    def piece(self) -> int:
        """Columns of a row that surely share a scale: a group may end within a row, or span several."""
        return math.gcd(self.group_size, self.in_features)

    @property
    def spec(self) -> QuantSpec:
        """What the codes mean; the scales' own type is known when they have been read."""
        scale = "zero_scale" if self.stacked else "scale"
        return QuantSpec(
            bits=self.bits,
            group_size=self.piece if self.piece < self.in_features else -1,
            zero_point="real",
            scale_format="f16" if self.store.entry(f"{self.name}.{scale}").dtype == "F16" else "f32",
        )

    @property
    def stacked(self) -> bool:
        """Whether zeros and scales are one tensor (`offload_meta`)."""
        return f"{self.name}.zero_scale" in self.store

    def quantized(self) -> QuantizedLayer:
        names = [f"{self.name}.{part}" for part in PARTS if f"{self.name}.{part}" in self.store]
        nbytes = sum(self.store.tensor(name).nbytes for name in names)
        bias = f"{self.name}.bias" in self.store
        return QuantizedLayer(self.name, self.spec, self.out_features, self.in_features, bias, nbytes, self._read)

    def _check(self) -> None:
        """Raises FormatError where a tensor has another type or shape than the small ones say."""
        store, name = self.store, self.name
        elements = self.out_features * self.in_features
        rows = -(-elements // self.columns // self.packing.slices)
        width = self.columns * np.dtype(DTYPES[self.packing.dtype]).itemsize
        dtypes: tuple[str, ...] = (self.packing.dtype,)
        if _number(store, f"{name}.view_as_float", 0):  # the same bytes under the name of a float type
            dtypes = FLOATS
            width = width // np.dtype(DTYPES.get(store.entry(f"{name}.W_q").dtype, "<u1")).itemsize
            store.expect(f"{name}.W_q", dtypes, (rows, width))
        else:
            store.expect(f"{name}.W_q", dtypes, (rows, self.columns))
        groups = elements // self.group_size
        shape: tuple[int, ...] = (groups, 1)
        if self.stacked:
            store.expect(f"{name}.zero_scale", FLOATS, (2, *shape))
        for part in () if self.stacked else ("scale", "zero"):
            if groups == 1 and store.entry(f"{name}.{part}").shape in ((), (1,)):
                shape = store.entry(f"{name}.{part}").shape
            store.expect(f"{name}.{part}", FLOATS, shape)
        if f"{name}.bias" in store:
            store.expect(f"{name}.bias", FLOATS, (self.out_features,))

    def _read(self) -> Codes:
        if self.stacked:
            zeros, scales = read_finite(self.store, f"{self.name}.zero_scale")
        else:
            scales = read_finite(self.store, f"{self.name}.scale")
            zeros = read_finite(self.store, f"{self.name}.zero")
        scales, zeros = self._per_piece(narrowest(scales)), self._per_piece(narrowest(zeros))
        spec = self.spec.replace(scale_format=scale_format_of(scales))
        try:
            return Codes(spec, self._codes(), scales, zeros, bias=read_bias(self.store, self.name))
        except ValueError as error:
            raise format_error(self.store.path, f"expected a weight of {spec} ({error})", self.name) from error

    def _per_piece(self, values: Array) -> Array:
        """One number per group of the format -> one per piece of a row, `[out_features, pieces]`."""
        return np.repeat(values.reshape(-1), self.group_size // self.piece).reshape(self.out_features, -1)

    def _codes(self) -> NDArray[np.uint8]:
        packing = self.packing
        items = self.store.read(f"{self.name}.W_q").view(np.uint8 if packing.dtype == "U8" else np.uint32)
        if packing.slices == 1:
            return items.reshape(self.out_features, self.in_features)
        shifts = [packing.bits * index for index in reversed(range(packing.slices))]
        codes = unpack_slices(items, packing.bits, shifts)
        elements = self.out_features * self.in_features
        return codes.reshape(-1)[:elements].reshape(self.out_features, self.in_features)


def _shape(store: TensorStore, name: str) -> tuple[int, int]:
    entry = store.expect(name, ("I64", "I32"), (2,))
    n, k = (int(size) for size in store.read(name))
    if n < 1 or k < 1:
        raise format_error(entry.file, f"expected rows and columns, found [{n}, {k}]", name)
    return n, k


def _bits(store: TensorStore, layer: str) -> tuple[int, Packing]:
    """Bits of a code, and how codes are packed."""
    nbits = round(_number(store, f"{layer}.nbits"), 2)
    name = f"{layer}.packing"
    entry = store.expect(name, ("U8",), (None,))
    text = store.read(name).tobytes().decode("latin-1") if entry.shape[0] <= MAX_TEXT else ""
    if nbits not in NBITS:
        wanted = ", ".join(str(known) for known in NBITS)
        raise format_error(store.path, f"expected one of {wanted}, found {nbits}", f"{layer}.nbits")
    if text != NBITS[nbits]:
        raise format_error(store.path, f"expected {NBITS[nbits]!r} for {nbits} bits, found {text!r}", name)
    return 2 if nbits == TERNARY else int(nbits), PACKINGS[text]


def _number(store: TensorStore, name: str, default: float | None = None) -> float:
    """A tensor of one number. Raises FormatError where it is none, or is missing without a default."""
    if name not in store and default is not None:
        return default
    entry = store.entry(name)
    if entry.shape not in ((), (1,)) or entry.dtype == "BF16":
        raise format_error(entry.file, f"expected one number, found {entry.dtype} {list(entry.shape)}", name)
    return float(store.read(name).reshape(-1)[0])


def _integer(store: TensorStore, name: str) -> int:
    value = _number(store, name)
    if not value.is_integer():
        raise format_error(store.entry(name).file, f"expected a whole number, found {value}", name)
    return int(value)
