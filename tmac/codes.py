"""A quantized weight as numbers: what every checkpoint is read into, and every kernel's layout is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tmac import _core
from tmac.spec import QuantSpec
from tmac.threads import get_num_threads
from tmac.tuner import tuned_kernels

Array = NDArray[Any]
Dtypes = tuple[np.dtype[Any], np.dtype[Any] | None]  # of scales, and of zeros where there are any
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32))
_HALF = (np.dtype(np.float16),)
_INT8 = (np.dtype(np.int8),)
_UINT8 = (np.dtype(np.uint8),)
_MAX_TRITS = 3**5 - 1


class FormatError(ValueError):
    """A file is damaged, or is not what it says; the message names the file, the tensor and what was expected."""


@dataclass(frozen=True, eq=False)
class Codes:
    """The codes of one weight and what turns them into numbers.

    Args:
        spec: the meaning of the codes.
        codes: u8 `[out_features, in_features]`, each below `2**spec.bits` (at most 2 where the codebook is ternary).
        scales: f16 or f32 `[out_features, groups]`, finite; i8 where `spec.scale_format` is "two_level".
        zeros: None where `spec.zero_point` is "fixed"; `[out_features, groups]` else: u8 up to `2**spec.bits`
            ("integer"), or finite f16 or f32 ("real" zeros, or the offsets of "offset"; i8 with two levels).
        perm: int32 `[in_features]`; column j of `codes` is column `perm[j]` of the weight. None: in order.
        bias: f32 `[out_features]`, or None.
        super_scales: f16 `[out_features, ceil(in_features / 256)]`, finite, where `spec.scale_format` is "two_level":
            a scale is `super_scale * scale`. None else.
        super_offsets: the same for the offsets, where there are any: an offset is `-(super_offset * offset)`.

    Raises:
        ValueError: an array has another shape, dtype or range.
    """

    spec: QuantSpec
    codes: NDArray[np.uint8]
    scales: Array
    zeros: Array | None = None
    perm: NDArray[np.int32] | None = None
    bias: NDArray[np.float32] | None = None
    super_scales: NDArray[np.float16] | None = None
    super_offsets: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        _check_array("codes", self.codes, (np.dtype(np.uint8),), (None, None))
        n, k = self.codes.shape
        if n == 0 or k == 0:
            raise ValueError(f"[Codes] codes must have at least one row and one column, got [{n}, {k}]")
        largest = 2 if self.spec.codebook == "ternary" else 2**self.spec.bits - 1
        if self.codes.max() > largest:
            raise ValueError(f"[Codes] a code is {self.codes.max()}, but {_named(self.spec)} ends at {largest}")
        _check_parts(self.spec, n, k, self._parts, self.bias)

    @property
    def _parts(self) -> _Parts:
        return _Parts(self.scales, self.zeros, self.perm, self.super_scales, self.super_offsets)

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
        weight = self.codes.astype(np.float32)
        scales, zeros = self.group_values()
        size = self.spec.group_size if self.spec.group_size > 0 else self.in_features
        whole = self.in_features // size * size
        for begin, end in ((0, whole), (whole, self.in_features)):  # the last group may be shorter
            if begin < end:
                part, groups = weight[:, begin:end], slice(begin // size, -(-end // size))
                self._scale(part, scales[:, groups], None if zeros is None else zeros[:, groups])
        if self.perm is None:
            return weight
        ordered = np.empty_like(weight)
        ordered[:, self.perm] = weight
        return ordered

    def _scale(self, part: NDArray[np.float32], scales: NDArray[np.float32], zeros: NDArray[np.float32] | None) -> None:
        """Turns codes into weights in place, in groups of equal size."""
        rows, groups = scales.shape
        grouped = part.reshape(rows, groups, -1)  # a view: only the last axis is split
        if self.spec.zero_point != "offset":
            grouped -= np.float32(self.spec.fixed_zero) if zeros is None else zeros[:, :, None]
        grouped *= scales[:, :, None]
        if self.spec.zero_point == "offset" and zeros is not None:
            grouped += zeros[:, :, None]

    def group_values(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Scales, and zeros or offsets or None, f32 `[out_features, groups]`: what two levels stand for, multiplied."""
        scales = self.scales.astype(np.float32)
        zeros = None if self.zeros is None else self.zeros.astype(np.float32)
        if self.super_scales is not None:
            at = self.spec.super_groups(self.in_features)
            scales = self.super_scales.astype(np.float32)[:, at] * scales
            if zeros is not None and self.super_offsets is not None:
                zeros = -(self.super_offsets.astype(np.float32)[:, at] * zeros)
        return scales, zeros

    def pack(self, kernel: str = "", plane_layout: bool = False) -> _core.PackedWeight:
        """The weight in the memory order of `kernel`, "decode" or "decode,prompt"; by default the tuned choice for its
        shape, else the shipped one for its spec. `plane_layout`: in one of theirs, if there is any, whose leading
        planes can be read alone; results keep their bits.

        Raises:
            UnsupportedSpecError: no kernel, or not this one, serves the spec.
            ValueError: there is no kernel of this name.
        """
        packer = RowPacker.like(Rows.from_codes(self), self.out_features, kernel=kernel, plane_layout=plane_layout)
        packer.add(0, Rows.from_codes(self), get_num_threads())
        return packer.finish()

    @classmethod
    def from_buffer(cls, buffer: NDArray[np.uint8], bias: NDArray[np.float32] | None = None) -> Codes:
        """The inverse of `pack`: u8 bytes of a `PackedWeight` -> Codes. Bytes of another CPU raise ValueError."""
        spec, planes, in_features, parts = _unpack(buffer)
        return _make_codes(cls, spec, _core.planes_to_codes(planes, in_features, get_num_threads()), parts, bias)

    def to_tensors(self, prefix: str = "") -> dict[str, Array]:
        """The tensors that a file holds, by name: `<prefix>planes` (`trits` where ternary), `scales`, ...

        See `tensor_shapes`. The inverse is `from_tensors`.
        """
        if self.spec.codebook == "ternary":
            codes = _core.codes_to_trits(np.ascontiguousarray(self.codes), get_num_threads())
        else:
            codes = _core.codes_to_planes(np.ascontiguousarray(self.codes), self.spec.bits, get_num_threads())
        return _named_tensors(self.spec, codes, self._parts, self.bias, prefix)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array], spec: QuantSpec, in_features: int, prefix: str = "") -> Codes:
        """Reads the tensors of `tensor_shapes`, and `<prefix>perm` and `<prefix>bias` where there are any.

        Raises:
            ValueError: a tensor is missing, or has another shape or dtype than the spec says.
        """
        planes, parts, bias = _read_tensors(tensors, spec, in_features, prefix)
        return _make_codes(cls, spec, _core.planes_to_codes(planes, in_features, get_num_threads()), parts, bias)


def round_to_nearest(
    weight: NDArray[np.float32], spec: QuantSpec, importance: NDArray[np.float32] | None = None
) -> Codes:
    """Quantizes a weight by rounding; the scale and zero of each group are those with the least squared error.

    Args:
        weight: f32 `[out_features, in_features]`.
        spec: what to make of it.
        importance: f32 `[in_features]`, at least 0: how much the squared error of each column counts, such as the mean
            square of its inputs; what is below 2**-20 of the largest of its group counts as that. None: alike, but by
            magnitude in symmetric grids of 3 bits and more, where counting alike would clip the largest weights.

    Raises:
        ValueError: the weight holds NaN or Inf, is not f32, or is not a matrix; a scale does not fit its type; the
            importance has another shape or dtype, is negative or not finite.
    """
    _check_array("weight", weight, (np.dtype(np.float32),), (None, None), where="round_to_nearest")
    if importance is not None:
        floats = (np.dtype(np.float32),)
        _check_array("importance", importance, floats, (weight.shape[1],), where="round_to_nearest")
        importance = np.ascontiguousarray(importance)
    found = _core.round_to_nearest(
        np.ascontiguousarray(weight), spec, num_threads=get_num_threads(), importance=importance
    )
    codes, scales, zeros, super_scales, super_offsets = found
    return Codes(spec, codes, scales, zeros, super_scales=super_scales, super_offsets=super_offsets)


def tensor_shapes(
    spec: QuantSpec, out_features: int, in_features: int, bias: bool = False
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a file holds for one weight; `perm` `[in_features]` is optional besides.

    `planes` u8, most significant plane first, bit i of byte j is column 8 j + i; `trits` u8, a byte is the sum of
    `code[5 j + i] * 3**i`; `scales` f16 or f32; `zeros` u8, f16 or f32; `offsets` f16 or f32; `bias` f32. With two
    levels `scales` and `offsets` are i8, `super_scales` and `super_offsets` f16.
    """
    groups = (out_features, spec.num_groups(in_features))
    if spec.codebook == "ternary":
        shapes: dict[str, tuple[int, ...]] = {"trits": (out_features, -(-in_features // 5))}
    else:
        shapes = {"planes": (spec.bits, out_features, -(-in_features // 8))}
    shapes["scales"] = groups
    if spec.zero_point != "fixed":
        shapes[_zeros_name(spec)] = groups
    if spec.scale_format == "two_level":
        super_groups = (out_features, spec.num_super_groups(in_features))
        shapes["super_scales"] = super_groups
        if spec.zero_point == "offset":
            shapes["super_offsets"] = super_groups
    if bias:
        shapes["bias"] = (out_features,)
    return shapes


def buffer_to_tensors(buffer: NDArray[np.uint8], prefix: str = "") -> dict[str, Array]:
    """The tensors that a file holds for a packed weight, without its bias."""
    spec, codes, in_features, parts = _unpack(buffer)
    if spec.codebook == "ternary":
        codes = _core.codes_to_trits(_core.planes_to_codes(codes, in_features, get_num_threads()), get_num_threads())
    return _named_tensors(spec, codes, parts, None, prefix)


def pack_tensors(
    tensors: Mapping[str, Array], spec: QuantSpec, in_features: int, prefix: str = "", kernel: str = ""
) -> _core.PackedWeight:
    """The tensors of a file, packed for this CPU; planes never pass through u8 codes. Raises like `Codes`."""
    planes, parts, bias = _read_tensors(tensors, spec, in_features, prefix)
    _check_parts(spec, planes.shape[1], in_features, parts, bias)
    return _pack(spec, planes, in_features, parts, kernel)


class Rows(NamedTuple):
    """Some rows of a weight: planes u8 `[bits, rows, ceil(in_features / 8)]` or codes u8 `[rows, in_features]`, and
    what stands beside them."""

    spec: QuantSpec
    weight: NDArray[np.uint8]
    in_features: int
    parts: _Parts

    @classmethod
    def from_codes(cls, codes: Codes) -> Rows:
        """The rows of a matrix of codes."""
        return cls(codes.spec, np.ascontiguousarray(codes.codes), codes.in_features, codes._parts)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array], spec: QuantSpec, in_features: int) -> Rows:
        """From the tensors of a file, as far as they belong to the rows. Raises like `Codes`."""
        planes, parts, _ = _read_tensors(tensors, spec, in_features, "")
        _check_parts(spec, planes.shape[1], in_features, parts, None)
        return cls(spec, np.ascontiguousarray(planes), in_features, parts)


class WiderRowsError(ValueError):
    """Rows have f32 scales or zeros, those before had f16: the weight is to be packed once more with `dtypes`."""

    def __init__(self, dtypes: Dtypes) -> None:
        super().__init__("[pack] rows have wider scales or zeros than those before")
        self.dtypes = dtypes


class RowPacker:
    """Packs a weight whose rows come in blocks, each straight into its place.

    Scales and zeros are f32 where those of any rows are, as if all rows had been there at once.

    Args:
        spec: of the weight; rows may have another `scale_format`, but with two levels.
        out_features, in_features: of the weight.
        dtypes: of scales and zeros.
        perm: of all rows.
        kernel, plane_layout: as in `Codes.pack`.

    Raises:
        UnsupportedSpecError: no kernel serves the spec.
    """

    def __init__(
        self,
        spec: QuantSpec,
        out_features: int,
        in_features: int,
        dtypes: Dtypes,
        perm: NDArray[np.int32] | None = None,
        kernel: str = "",
        plane_layout: bool = False,
    ) -> None:
        self._spec, self._in_features = _with_format(spec, dtypes[0]), in_features
        self._dtypes, self._perm = dtypes, perm
        self._packer = _core.Packer(
            self._spec,
            out_features,
            in_features,
            dtypes[1],
            None if perm is None else np.ascontiguousarray(perm),
            kernel or tuned_kernels(self._spec, out_features, in_features),
            plane_layout,
        )

    @classmethod
    def like(cls, rows: Rows, out_features: int, dtypes: Dtypes | None = None, **packing: Any) -> RowPacker:
        """For a weight of such rows; with wider scales or zeros where `dtypes` says so; `packing` as of the class."""
        return cls(rows.spec, out_features, rows.in_features, dtypes or _dtypes(rows), rows.parts.perm, **packing)

    def add_blocks(self, first: int, type_name: str, blocks: NDArray[np.uint8]) -> None:
        """Rows of whole blocks of a type of ggml, u8 `[rows, bytes]`, from `first` on. As `add`."""
        self._packer.add_blocks(first, type_name, blocks, 1)

    def add(self, first: int, rows: Rows, num_threads: int = 1) -> None:
        """Rows from `first` on. Several threads may add rows that share no 64 rows of the weight.

        Raises:
            WiderRowsError: `RowPacker` with its `dtypes`, and all rows again.
            ValueError: the rows do not fit the weight, or come twice.
        """
        parts, dtypes = rows.parts, _dtypes(rows)
        same = _with_format(rows.spec, self._dtypes[0]) == self._spec and rows.in_features == self._in_features
        if not same or (parts.perm is None) != (self._perm is None):
            raise ValueError(f"[pack] rows of {rows.spec} do not fit a weight of {self._spec}")
        wider = tuple(
            None if have is None or new is None else max(have, new, key=lambda dtype: dtype.itemsize)
            for have, new in zip(self._dtypes, dtypes, strict=True)
        )
        if wider != self._dtypes:
            raise WiderRowsError((wider[0] or self._dtypes[0], wider[1]))
        scales, zeros = (
            None if values is None else np.ascontiguousarray(values, dtype)
            for values, dtype in zip(parts[:2], self._dtypes, strict=True)
        )
        supers = [None if part is None else np.ascontiguousarray(part) for part in parts[3:]]
        assert scales is not None
        self._packer.add(first, rows.weight, scales, zeros, supers[0], supers[1], num_threads)

    def finish(self) -> _core.PackedWeight:
        """The weight. Raises ValueError where rows are missing."""
        return self._packer.finish()


def repack(buffer: NDArray[np.uint8], kernel: str, plane_layout: bool = False) -> _core.PackedWeight:
    """The bytes of a `PackedWeight` in the memory order of `kernel`; raises like `pack` and `from_buffer`."""
    spec, planes, in_features, parts = _unpack(buffer)
    return _pack(spec, planes, in_features, parts, kernel, plane_layout)


class _Parts(NamedTuple):
    """What stands beside the codes of a weight, as `Codes` names it."""

    scales: Array
    zeros: Array | None
    perm: Array | None
    super_scales: Array | None
    super_offsets: Array | None


def _dtypes(rows: Rows) -> Dtypes:
    """Of scales and zeros."""
    return rows.parts.scales.dtype, None if rows.parts.zeros is None else rows.parts.zeros.dtype


def _with_format(spec: QuantSpec, scales: np.dtype[Any]) -> QuantSpec:
    if spec.scale_format == "two_level":
        return spec
    return spec.replace(scale_format="f32" if scales == np.float32 else "f16")


def _check_parts(spec: QuantSpec, n: int, k: int, parts: _Parts, bias: Array | None) -> None:
    """Raises ValueError when what accompanies `[n, k]` codes does not fit the spec."""
    two_level, shape = spec.scale_format == "two_level", (n, spec.num_groups(k))
    reals = _INT8 if two_level else _FLOATS
    _check_array("scales", parts.scales, reals, shape)
    _check_presence("zeros", parts.zeros, spec.zero_point != "fixed", f"zero_point={spec.zero_point!r}")
    if parts.zeros is not None:
        integer = spec.zero_point == "integer"
        _check_array(_zeros_name(spec), parts.zeros, _UINT8 if integer else reals, shape)
        if integer and parts.zeros.max() > 2**spec.bits:
            raise ValueError(
                f"[Codes] an integer zero is {parts.zeros.max()}, but {spec.bits} bits end at {2**spec.bits}"
            )
    about = f"scale_format={spec.scale_format!r}, zero_point={spec.zero_point!r}"
    with_offsets = two_level and spec.zero_point == "offset"
    for name, wanted in (("super_scales", two_level), ("super_offsets", with_offsets)):
        values = getattr(parts, name)
        _check_presence(name, values, wanted, about)
        if values is not None:
            _check_array(name, values, _HALF, (n, spec.num_super_groups(k)))
    if parts.perm is not None:
        _check_array("perm", parts.perm, (np.dtype(np.int32),), (k,))
        if not np.array_equal(np.sort(parts.perm), np.arange(k)):
            raise ValueError(f"[Codes] perm must hold each of 0 to {k - 1} once")
    if bias is not None:
        _check_array("bias", bias, (np.dtype(np.float32),), (n,), finite=False)


def _check_presence(name: str, array: Array | None, wanted: bool, about: str) -> None:
    if (array is not None) != wanted:
        raise ValueError(f"[Codes] {about} {'needs' if wanted else 'takes no'} {name}")


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
    if finite and array.dtype.kind == "f" and not _core.all_finite(np.ascontiguousarray(array)):
        raise ValueError(f"[{where}] NaN or Inf in {name}")


def _named(spec: QuantSpec) -> str:
    return "a ternary codebook" if spec.codebook == "ternary" else f"{spec.bits} bits"


def _zeros_name(spec: QuantSpec) -> str:
    return "offsets" if spec.zero_point == "offset" else "zeros"


def _make_codes(cls: type[Codes], spec: QuantSpec, codes: Array, parts: _Parts, bias: Array | None) -> Codes:
    return cls(spec, codes, parts.scales, parts.zeros, parts.perm, bias, parts.super_scales, parts.super_offsets)


def _pack(
    spec: QuantSpec, planes: Array, in_features: int, parts: _Parts, kernel: str, plane_layout: bool = False
) -> _core.PackedWeight:
    values = {name: np.ascontiguousarray(part) for name, part in parts._asdict().items() if part is not None}
    arrays: dict[str, Any] = values
    return _core.pack(
        spec,
        np.ascontiguousarray(planes),
        in_features,
        kernel=kernel or tuned_kernels(spec, planes.shape[1], in_features),
        num_threads=get_num_threads(),
        plane_layout=plane_layout,
        **arrays,
    )


def _unpack(buffer: NDArray[np.uint8]) -> tuple[QuantSpec, Array, int, _Parts]:
    """spec, planes, in_features, parts"""
    fields = _core.unpack(buffer, get_num_threads())
    parts = _Parts(*(fields[name] for name in _Parts._fields))
    return QuantSpec(**fields["spec"]), fields["planes"], fields["in_features"], parts


def _named_tensors(spec: QuantSpec, codes: Array, parts: _Parts, bias: Array | None, prefix: str) -> dict[str, Array]:
    tensors: dict[str, Array | None] = {
        "trits" if spec.codebook == "ternary" else "planes": codes,
        "scales": parts.scales,
        _zeros_name(spec): parts.zeros,
        "super_scales": parts.super_scales,
        "super_offsets": parts.super_offsets,
        "perm": parts.perm,
        "bias": bias,
    }
    return {prefix + name: value for name, value in tensors.items() if value is not None}


def _read_tensors(
    tensors: Mapping[str, Array], spec: QuantSpec, in_features: int, prefix: str
) -> tuple[Array, _Parts, Array | None]:
    """planes, parts, bias; only the first is checked."""
    names = tensor_shapes(spec, 1, in_features)
    for name in names:
        if prefix + name not in tensors:
            raise ValueError(f"[Codes] tensor {prefix + name!r} is missing")
    if spec.codebook == "ternary":
        trits = tensors[prefix + "trits"]
        _check_array("trits", trits, _UINT8, (None, -(-in_features // 5)))
        if trits.size and trits.max() > _MAX_TRITS:
            raise ValueError(f"[Codes] a byte of trits is {trits.max()}, but five trits end at {_MAX_TRITS}")
        planes = _core.trits_to_planes(np.ascontiguousarray(trits), in_features, get_num_threads())
    else:
        planes = tensors[prefix + "planes"]
        _check_array("planes", planes, _UINT8, (spec.bits, None, -(-in_features // 8)))
    found = {name: tensors[prefix + name] for name in names}
    parts = _Parts(
        found["scales"],
        found.get(_zeros_name(spec)),
        tensors.get(prefix + "perm"),
        found.get("super_scales"),
        found.get("super_offsets"),
    )
    return planes, parts, tensors.get(prefix + "bias")
