"""A quantized weight as numbers: what every checkpoint is read into, and every kernel's layout is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac import _core
from tmac._core import UnsupportedSpecError
from tmac.spec import QuantSpec
from tmac.threads import get_num_threads
from tmac.tuner import tuned_kernels

Array = NDArray[Any]
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32))
_MAX_TRITS = 3**5 - 1


class FormatError(ValueError):
    """A file is damaged, or is not what it says; the message names the file, the tensor and what was expected."""


@dataclass(frozen=True, eq=False)
class Codes:
    """The codes of one weight and what turns them into numbers.

    Args:
        spec: the meaning of the codes.
        codes: u8 `[out_features, in_features]`, each below `2**spec.bits` (at most 2 where the codebook is ternary).
        scales: f16 or f32 `[out_features, groups]`, finite.
        zeros: None where `spec.zero_point` is "fixed"; `[out_features, groups]` else: u8 up to `2**spec.bits`
            ("integer"), or finite f16 or f32 ("real" zeros, or the offsets of "offset").
        perm: int32 `[in_features]`; column j of `codes` is column `perm[j]` of the weight. None: in order.
        bias: f32 `[out_features]`, or None.

    Raises:
        ValueError: an array has another shape, dtype or range.
        UnsupportedSpecError: `spec.scale_format` is "two_level".
    """

    spec: QuantSpec
    codes: NDArray[np.uint8]
    scales: Array
    zeros: Array | None = None
    perm: NDArray[np.int32] | None = None
    bias: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        _check_array("codes", self.codes, (np.dtype(np.uint8),), (None, None))
        n, k = self.codes.shape
        if n == 0 or k == 0:
            raise ValueError(f"[Codes] codes must have at least one row and one column, got [{n}, {k}]")
        largest = 2 if self.spec.codebook == "ternary" else 2**self.spec.bits - 1
        if self.codes.max() > largest:
            raise ValueError(f"[Codes] a code is {self.codes.max()}, but {_named(self.spec)} ends at {largest}")
        check_groups(self.spec, n, k, self.scales, self.zeros, self.perm, self.bias)

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return int(self.codes.shape[0])

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return int(self.codes.shape[1])

    def dequantize(self) -> NDArray[np.float32]:
        """The weight, f32 `[out_features, in_features]`, in the checkpoint's column order.

        `(code - zero) * scale`, or `code * scale + offset`; every operation is rounded to f32 once.
        """
        group = np.arange(self.in_features) // (self.spec.group_size if self.spec.group_size > 0 else self.in_features)
        weight = self.codes.astype(np.float32)
        scales = self.scales.astype(np.float32)[:, group]
        if self.zeros is None:
            weight = (weight - np.float32(self.spec.fixed_zero)) * scales
        elif self.spec.zero_point == "offset":
            weight = weight * scales + self.zeros.astype(np.float32)[:, group]
        else:
            weight = (weight - self.zeros.astype(np.float32)[:, group]) * scales
        if self.perm is None:
            return weight
        ordered = np.empty_like(weight)
        ordered[:, self.perm] = weight
        return ordered

    def pack(self, kernel: str = "") -> _core.PackedWeight:
        """The weight in the memory order of `kernel`, "decode" or "decode,prompt"; by default the tuned choice for its
        shape, else the shipped one for its spec.

        Raises:
            UnsupportedSpecError: no kernel, or not this one, serves the spec.
            ValueError: there is no kernel of this name.
        """
        planes = _core.codes_to_planes(np.ascontiguousarray(self.codes), self.spec.bits, get_num_threads())
        return _pack(self.spec, planes, self.in_features, self.scales, self.zeros, self.perm, kernel)

    @classmethod
    def from_buffer(cls, buffer: NDArray[np.uint8], bias: NDArray[np.float32] | None = None) -> Codes:
        """The inverse of `pack`: u8 bytes of a `PackedWeight` -> Codes. Bytes of another CPU raise ValueError."""
        parts = _core.unpack(buffer, get_num_threads())
        codes = _core.planes_to_codes(parts["planes"], parts["in_features"], get_num_threads())
        return cls(QuantSpec(**parts["spec"]), codes, parts["scales"], parts["zeros"], parts["perm"], bias)

    def to_tensors(self, prefix: str = "") -> dict[str, Array]:
        """The tensors that a file holds, by name: `<prefix>planes` (`trits` where ternary), `scales`, ...

        See `tensor_shapes`. The inverse is `from_tensors`.
        """
        if self.spec.codebook == "ternary":
            codes = _core.codes_to_trits(np.ascontiguousarray(self.codes), get_num_threads())
        else:
            codes = _core.codes_to_planes(np.ascontiguousarray(self.codes), self.spec.bits, get_num_threads())
        return _named_tensors(self.spec, codes, self.scales, self.zeros, self.perm, self.bias, prefix)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array], spec: QuantSpec, in_features: int, prefix: str = "") -> Codes:
        """Reads `<prefix>planes` (`trits` where ternary), `scales`, `zeros` or `offsets`, `perm` and `bias`.

        Raises:
            ValueError: a tensor is missing, or has another shape or dtype than the spec says.
        """
        planes, scales, zeros, perm, bias = _read_tensors(tensors, spec, in_features, prefix)
        return cls(spec, _core.planes_to_codes(planes, in_features, get_num_threads()), scales, zeros, perm, bias)


def round_to_nearest(weight: NDArray[np.float32], spec: QuantSpec) -> Codes:
    """Quantizes a weight by rounding; the scale and zero of each group are those with the least squared error.

    Args:
        weight: f32 `[out_features, in_features]`.
        spec: what to make of it.

    Raises:
        ValueError: the weight holds NaN or Inf, is not f32, or is not a matrix.
    """
    _check_array("weight", weight, (np.dtype(np.float32),), (None, None), where="round_to_nearest")
    codes, scales, zeros = _core.round_to_nearest(np.ascontiguousarray(weight), spec, get_num_threads())
    return Codes(spec, codes, scales, zeros)


def tensor_shapes(
    spec: QuantSpec, out_features: int, in_features: int, bias: bool = False
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a file holds for one weight; `perm` `[in_features]` is optional besides.

    `planes` u8, most significant plane first, bit i of byte j is column 8 j + i; `trits` u8, a byte is the sum of
    `code[5 j + i] * 3**i`; `scales` f16 or f32; `zeros` u8, f16 or f32; `offsets` f16 or f32; `bias` f32.
    """
    groups = (out_features, spec.num_groups(in_features))
    if spec.codebook == "ternary":
        shapes: dict[str, tuple[int, ...]] = {"trits": (out_features, -(-in_features // 5))}
    else:
        shapes = {"planes": (spec.bits, out_features, -(-in_features // 8))}
    shapes["scales"] = groups
    if spec.zero_point != "fixed":
        shapes[_zeros_name(spec)] = groups
    if bias:
        shapes["bias"] = (out_features,)
    return shapes


def buffer_to_tensors(buffer: NDArray[np.uint8], prefix: str = "") -> dict[str, Array]:
    """The tensors that a file holds for a packed weight, without its bias."""
    parts = _core.unpack(buffer, get_num_threads())
    spec = QuantSpec(**parts["spec"])
    codes = parts["planes"]
    if spec.codebook == "ternary":
        codes = _core.codes_to_trits(
            _core.planes_to_codes(codes, parts["in_features"], get_num_threads()), get_num_threads()
        )
    return _named_tensors(spec, codes, parts["scales"], parts["zeros"], parts["perm"], None, prefix)


def pack_tensors(
    tensors: Mapping[str, Array], spec: QuantSpec, in_features: int, prefix: str = "", kernel: str = ""
) -> _core.PackedWeight:
    """The tensors of a file, packed for this CPU; planes never pass through u8 codes. Raises like `Codes`."""
    planes, scales, zeros, perm, bias = _read_tensors(tensors, spec, in_features, prefix)
    check_groups(spec, planes.shape[1], in_features, scales, zeros, perm, bias)
    return _pack(spec, planes, in_features, scales, zeros, perm, kernel)


def repack(buffer: NDArray[np.uint8], kernel: str) -> _core.PackedWeight:
    """The bytes of a `PackedWeight` in the memory order of `kernel`; raises like `pack` and `from_buffer`."""
    parts = _core.unpack(buffer, get_num_threads())
    groups = (parts["scales"], parts["zeros"], parts["perm"])
    return _pack(QuantSpec(**parts["spec"]), parts["planes"], parts["in_features"], *groups, kernel)


def check_groups(
    spec: QuantSpec, n: int, k: int, scales: Array, zeros: Array | None, perm: Array | None, bias: Array | None
) -> None:
    """Raises ValueError when what accompanies `[n, k]` codes does not fit the spec."""
    if spec.scale_format == "two_level":
        raise UnsupportedSpecError("[Codes] no kernel of this version serves scale_format='two_level'")
    shape = (n, spec.num_groups(k))
    _check_array("scales", scales, _FLOATS, shape)
    if (zeros is None) != (spec.zero_point == "fixed"):
        expected = "takes no zeros" if zeros is not None else "needs zeros"
        raise ValueError(f"[Codes] zero_point={spec.zero_point!r} {expected}")
    if zeros is not None:
        integer = spec.zero_point == "integer"
        _check_array(_zeros_name(spec), zeros, (np.dtype(np.uint8),) if integer else _FLOATS, shape)
        if integer and zeros.max() > 2**spec.bits:
            raise ValueError(f"[Codes] an integer zero is {zeros.max()}, but {spec.bits} bits end at {2**spec.bits}")
    if perm is not None:
        _check_array("perm", perm, (np.dtype(np.int32),), (k,))
        if not np.array_equal(np.sort(perm), np.arange(k)):
            raise ValueError(f"[Codes] perm must hold each of 0 to {k - 1} once")
    if bias is not None:
        _check_array("bias", bias, (np.dtype(np.float32),), (n,), finite=False)


def _check_array(
    name: str,
    array: object,
    dtypes: tuple[np.dtype[Any], ...],
    shape: tuple[int | None, ...],
    where: str = "Codes",
    finite: bool = True,
) -> None:
    names = " or ".join(str(dtype) for dtype in dtypes)
    if not isinstance(array, np.ndarray) or array.dtype not in dtypes:
        found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"[{where}] {name} must be a {names} array, got {found}")
    fits = len(shape) == array.ndim and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("?" if size is None else str(size) for size in shape)
        raise ValueError(f"[{where}] {name} must have shape [{wanted}], got {list(array.shape)}")
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"[{where}] NaN or Inf in {name}")


def _named(spec: QuantSpec) -> str:
    return "a ternary codebook" if spec.codebook == "ternary" else f"{spec.bits} bits"


def _zeros_name(spec: QuantSpec) -> str:
    return "offsets" if spec.zero_point == "offset" else "zeros"


def _pack(
    spec: QuantSpec,
    planes: Array,
    in_features: int,
    scales: Array,
    zeros: Array | None,
    perm: Array | None,
    kernel: str,
) -> _core.PackedWeight:
    return _core.pack(
        spec,
        np.ascontiguousarray(planes),
        in_features,
        np.ascontiguousarray(scales),
        None if zeros is None else np.ascontiguousarray(zeros),
        None if perm is None else np.ascontiguousarray(perm),
        kernel or tuned_kernels(spec, planes.shape[1], in_features),
        get_num_threads(),
    )


def _named_tensors(
    spec: QuantSpec,
    codes: Array,
    scales: Array,
    zeros: Array | None,
    perm: Array | None,
    bias: Array | None,
    prefix: str,
) -> dict[str, Array]:
    tensors: dict[str, Array | None] = {
        "trits" if spec.codebook == "ternary" else "planes": codes,
        "scales": scales,
        _zeros_name(spec): zeros,
        "perm": perm,
        "bias": bias,
    }
    return {prefix + name: value for name, value in tensors.items() if value is not None}


def _read_tensors(
    tensors: Mapping[str, Array], spec: QuantSpec, in_features: int, prefix: str
) -> tuple[Array, Array, Array | None, Array | None, Array | None]:
    """planes, scales, zeros or offsets, perm, bias; only the first is checked."""
    for name in tensor_shapes(spec, 1, in_features):
        if prefix + name not in tensors:
            raise ValueError(f"[Codes] tensor {prefix + name!r} is missing")
    uint8 = (np.dtype(np.uint8),)
    if spec.codebook == "ternary":
        trits = tensors[prefix + "trits"]
        _check_array("trits", trits, uint8, (None, -(-in_features // 5)))
        if trits.size and trits.max() > _MAX_TRITS:
            raise ValueError(f"[Codes] a byte of trits is {trits.max()}, but five trits end at {_MAX_TRITS}")
        codes = _core.trits_to_codes(np.ascontiguousarray(trits), in_features, get_num_threads())
        planes = _core.codes_to_planes(codes, spec.bits, get_num_threads())
    else:
        planes = tensors[prefix + "planes"]
        _check_array("planes", planes, uint8, (spec.bits, None, -(-in_features // 8)))
    zeros = tensors[prefix + _zeros_name(spec)] if spec.zero_point != "fixed" else None
    return planes, tensors[prefix + "scales"], zeros, tensors.get(prefix + "perm"), tensors.get(prefix + "bias")
