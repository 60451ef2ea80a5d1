"""GPTQ checkpoints: those of gptqmodel, of AutoGPTQ, and of other tools that write their form.

`qweight` i32 `[ceil(in * bits / 32), out]`: column n is a stream of codes that goes down the rows. `qzeros` i32
`[groups, ceil(out * bits / 32)]`: a stream along each row. `scales` `[groups, out]`. `g_idx` i32 `[in]`: the group of
each input; absent, it is `k // group_size`. `w[n, k] = scales[g, n] * (code - zero)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tmac.formats.checkpoint import Array, Checkpoint, QuantizedLayer
from tmac.formats.errors import format_error
from tmac.formats.grouped import U8, make_layer, other_tensors, outputs_of, quantized_modules
from tmac.formats.numbers import Numbers, dynamic_numbers, read_numbers
from tmac.formats.packing import PLANES, num_words, unpack_down, unpack_planes_down, unpack_stream
from tmac.formats.source import Source

BLOCK = 32  # codes that end with a word, whatever their bits
SIDE_BY_SIDE_BITS = (2, 4, 8)  # no code of these crosses the border of a word
CONTIGUOUS_BITS = (2, 3, 4, 8)  # what `gptq` and `gptq_v2` are defined for

# What is stored of a zero: itself (v2); less one, taken from whole words, so that a zero of 0 borrows from the next
# (v1); less one in each field, and one more than it fits is meant as such (AutoRound).
Zeros = Literal["same", "less_one", "less_one_per_field"]


@dataclass(frozen=True)
class Packing:
    """How a file's words hold their codes.

    Args:
        zeros: what is stored of a zero.
        planar: gptqmodel's `gptq_p`, codes of 3, 5, 6 and 7 bits split into planes.
    """

    zeros: Zeros
    planar: bool = False


FORMATS = {"gptq": Packing("less_one"), "gptq_v2": Packing("same"), "gptq_p": Packing("same", planar=True)}


def open_checkpoint(source: Source) -> Checkpoint:
    """A GPTQ model, v1 or v2.

    Raises:
        FormatError: the configuration or a tensor is not what the format says, or is of a kind that is not read.
    """
    packing = _packing(source)
    default = read_numbers(source, source.quantization, None)
    numbers_of = dynamic_numbers(source, default)
    modules = quantized_modules(source)
    layers = {}
    for name in modules:
        numbers = numbers_of(name)
        if numbers.bits not in CONTIGUOUS_BITS and not packing.planar:
            message = f"expected 2, 3, 4 or 8 bits, or the format gptq_p, found {numbers.bits} bits"
            raise format_error(source.config_path, message, name)
        layers[name] = gptq_layer(source, name, numbers, packing)
    return source.checkpoint("gptq", layers, other_tensors(source, modules))


def gptq_layer(source: Source, name: str, numbers: Numbers, packing: Packing) -> QuantizedLayer:
    """The layer of a module, its tensors' headers checked.

    Raises:
        FormatError: a tensor is missing, or has another type or shape than `numbers` says.
    """
    store, bits = source.store, numbers.bits
    out_features = outputs_of(source, name)
    height = store.expect(f"{name}.qweight", ("I32",), (None, out_features)).shape[0]
    if f"{name}.g_idx" in store:
        in_features = store.expect(f"{name}.g_idx", ("I32", "I64"), (None,)).shape[0]
    else:
        whole = height if bits in SIDE_BY_SIDE_BITS else height // bits * bits
        in_features = whole * 32 // bits
    if in_features == 0:
        raise format_error(store.entry(f"{name}.qweight").file, f"expected at least one input of {bits} bits", name)
    planar = packing.planar and bits in PLANES
    if planar and (in_features % BLOCK or out_features % BLOCK):
        message = f"expected multiples of {BLOCK} in planes, found {out_features} outputs and {in_features} inputs"
        raise format_error(store.entry(f"{name}.qweight").file, message, name)
    store.expect(f"{name}.qweight", ("I32",), (num_words(in_features, bits), out_features))
    groups = 1 if numbers.group_size == -1 else -(-in_features // numbers.group_size)
    store.expect(f"{name}.qzeros", ("I32",), (groups, num_words(out_features, bits)))
    unpack = unpack_planes_down if planar else unpack_down

    def read_codes() -> U8:
        return unpack(store.read(f"{name}.qweight"), bits, in_features)

    def read_zeros() -> U8:
        words = store.read(f"{name}.qzeros")
        try:
            return _unpack_zeros(words, bits, out_features, packing)
        except OverflowError as error:
            raise format_error(store.entry(f"{name}.qzeros").file, str(error), f"{name}.qzeros") from error

    return make_layer(source, name, numbers, (out_features, in_features), read_codes, read_zeros)


def _unpack_zeros(words: Array, bits: int, count: int, packing: Packing) -> U8:
    """Zeros u8 `[count, groups]`. Raises OverflowError where one does not fit into a byte."""
    if packing.planar and bits in PLANES:
        return np.ascontiguousarray(unpack_planes_down(np.ascontiguousarray(words.T), bits, count).T)
    if packing.zeros == "less_one" and bits in SIDE_BY_SIDE_BITS:
        ones = sum(1 << shift for shift in range(0, 32, bits))
        words = (words.view(np.uint32) + np.uint32(ones)).view(np.int32)  # wraps, as the subtraction did
    zeros = unpack_stream(words, bits, count)
    if packing.zeros == "less_one" and bits not in SIDE_BY_SIDE_BITS:
        zeros = (zeros + np.uint8(1)) & np.uint8(2**bits - 1)
    elif packing.zeros == "less_one_per_field":
        if zeros.max() == np.iinfo(np.uint8).max:
            raise OverflowError("expected zeros of at most 255, found 256")
        zeros = zeros + np.uint8(1)
    return np.ascontiguousarray(zeros.T)


def _packing(source: Source) -> Packing:
    """What `checkpoint_format` names. Raises FormatError for layouts of one GPU kernel and unknown ones."""
    quantization = source.quantization
    key = "checkpoint_format" if quantization.get("checkpoint_format") is not None else "format"
    name = quantization.get(key)
    if name is None:
        name = "marlin" if quantization.get("is_marlin_format") else "gptq"
    if not isinstance(name, str) or name.lower() not in FORMATS:
        message = (
            f"expected one of {', '.join(FORMATS)}, found {name!r}: the layouts of single GPU kernels (marlin, "
            "exllama, bitblas, ...) are not read; save the model in the format gptq"
        )
        raise format_error(source.config_path, message, key)
    meta = quantization.get("meta")
    for values in (quantization, meta if isinstance(meta, Mapping) else {}):
        if values.get("rotation"):
            message = f"expected weights that are not rotated, found {values['rotation']!r}"
            raise format_error(source.config_path, message, "rotation")
    return FORMATS[name.lower()]
