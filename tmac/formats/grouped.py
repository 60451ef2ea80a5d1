"""What GPTQ's, AWQ's and AutoRound's files share: codes in `qweight`, scales and zeros per group and output."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tmac.codes import Codes
from tmac.formats.act_order import column_order
from tmac.formats.checkpoint import QuantizedLayer, StoredTensor, narrowest, scale_format_of
from tmac.formats.errors import format_error
from tmac.formats.numbers import Numbers
from tmac.formats.scales import FLOATS, read_bias, read_finite
from tmac.formats.source import Source
from tmac.spec import QuantSpec, centre

PARTS = ("qweight", "qzeros", "scales", "g_idx", "bias")
U8 = NDArray[np.uint8]


def quantized_modules(source: Source) -> list[str]:
    """The modules that have a `qweight`, in the order of the file. Raises FormatError where there is none."""
    names = [name[: -len(".qweight")] for name in source.store.entries if name.endswith(".qweight")]
    if not names:
        raise format_error(source.path, "expected at least one quantized layer, found none", "*.qweight")
    return names


def other_tensors(source: Source, modules: list[str]) -> dict[str, StoredTensor]:
    """What does not belong to these modules."""
    owned = {f"{module}.{part}" for module in modules for part in PARTS}
    return {name: source.store.tensor(name) for name in source.store.entries if name not in owned}


def outputs_of(source: Source, name: str) -> int:
    """Rows of the weight, from the shape of `scales`. Raises FormatError."""
    entry = source.store.expect(f"{name}.scales", FLOATS, (None, None))
    if 0 in entry.shape:
        raise format_error(entry.file, f"expected at least one group and output, found {list(entry.shape)}", name)
    return entry.shape[1]


def make_layer(
    source: Source,
    name: str,
    numbers: Numbers,
    shape: tuple[int, int],
    read_codes: Callable[[], U8],
    read_zeros: Callable[[], U8],
) -> QuantizedLayer:
    """A layer whose `qweight` and `qzeros` have been checked.

    Args:
        source: the files.
        name: the module.
        numbers: its bits and groups.
        shape: (out_features, in_features).
        read_codes: gives u8 `[out_features, in_features]`.
        read_zeros: gives u8 `[out_features, groups]`.

    Raises:
        FormatError: `scales`, `g_idx` or `bias` has another type or shape.
    """
    store = source.store
    out_features, in_features = shape
    spec = QuantSpec(numbers.bits, numbers.group_size, zero_point="fixed" if numbers.sym else "integer")
    scales = store.expect(f"{name}.scales", FLOATS, (spec.num_groups(in_features), out_features))
    spec = spec.replace(scale_format="f16" if scales.dtype == "F16" else "f32")
    if f"{name}.g_idx" in store:
        store.expect(f"{name}.g_idx", ("I32", "I64"), (in_features,))
    bias = f"{name}.bias" in store
    if bias:
        store.expect(f"{name}.bias", FLOATS, (out_features,))
    nbytes = sum(store.tensor(f"{name}.{part}").nbytes for part in PARTS if f"{name}.{part}" in store)

    def read() -> Codes:
        order = _order(source, name, spec, in_features)
        codes = read_codes()
        return _join(source, name, spec, codes if order is None else codes.take(order, axis=1), read_zeros(), order)

    return QuantizedLayer(name, spec, out_features, in_features, bias, nbytes, read)


def _join(source: Source, name: str, spec: QuantSpec, codes: U8, zeros: U8, order: NDArray[np.int32] | None) -> Codes:
    """The layer as codes. Zeros that are all in the middle, as a symmetric one's are, are said by the spec alone."""
    store = source.store
    scales = np.ascontiguousarray(narrowest(read_finite(store, f"{name}.scales")).T)
    fixed = spec.zero_point == "fixed" and bool((zeros == centre(spec.bits)).all())
    spec = spec.replace(zero_point="fixed" if fixed else "integer", scale_format=scale_format_of(scales))
    bias = read_bias(store, name)
    try:
        return Codes(spec, codes, scales, None if fixed else zeros, order, bias)
    except ValueError as error:
        raise format_error(
            store.entry(f"{name}.qweight").file, f"expected a weight of {spec} ({error})", name
        ) from error


def _order(source: Source, name: str, spec: QuantSpec, in_features: int) -> NDArray[np.int32] | None:
    """The order of columns in which groups are contiguous, or None where they already are."""
    key = f"{name}.g_idx"
    if key not in source.store:
        return None
    try:
        return column_order(source.store.read(key), spec.group_size, in_features)
    except ValueError as error:
        raise format_error(source.store.entry(key).file, str(error), key) from error
