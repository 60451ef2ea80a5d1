"""AWQ checkpoints of the gemm version: AutoAWQ's, gptqmodel's and AutoRound's.

`qweight` i32 `[in, out / 8]`: row k is a stream of codes of the outputs, eight at a time in the order 0 2 4 6 1 3 5 7.
`qzeros` i32 `[groups, out / 8]` likewise; zeros are stored as they are. `scales` `[groups, out]`.
"""

from __future__ import annotations

from tmac.formats.checkpoint import Checkpoint, QuantizedLayer
from tmac.formats.errors import format_error
from tmac.formats.grouped import U8, make_layer, other_tensors, outputs_of, quantized_modules
from tmac.formats.numbers import Numbers, dynamic_numbers, read_numbers
from tmac.formats.packing import AWQ_LANES, num_words, unpack_across
from tmac.formats.source import Source

VERSION_KEYS = ("version", "checkpoint_format", "format")
AUTOROUND_BITS = (4, 5, 6, 7)  # AutoAWQ has 4 alone


def open_checkpoint(source: Source) -> Checkpoint:
    """An AWQ model, symmetric or not. What `modules_to_not_convert` names has no `qweight` and stays what it is.

    Raises:
        FormatError: the configuration or a tensor is not what the format says, or is of a kind that is not read.
    """
    for key in VERSION_KEYS:
        version = source.setting(key, str, "gemm")
        if version.lower() != "gemm":
            message = (
                f"expected gemm, found {version!r}: the layouts of single GPU kernels (gemv, gemv_fast, exllama, "
                "marlin, ...) are not read; save the model with version gemm"
            )
            raise format_error(source.config_path, message, key)
    numbers_of = dynamic_numbers(source, read_numbers(source, source.quantization, None))
    modules = quantized_modules(source)
    layers = {}
    for name in modules:
        numbers = numbers_of(name)
        if numbers.bits != 4:
            raise format_error(source.config_path, f"expected 4 bits, found {numbers.bits}", name)
        layers[name] = awq_layer(source, name, numbers)
    return source.checkpoint("awq", layers, other_tensors(source, modules))


def awq_layer(source: Source, name: str, numbers: Numbers) -> QuantizedLayer:
    """The layer of a module, its tensors' headers checked.

    Raises:
        FormatError: a tensor is missing, or has another type or shape than `numbers` says.
    """
    store, bits = source.store, numbers.bits
    if bits not in AUTOROUND_BITS:
        raise format_error(source.config_path, f"expected 4 to 7 bits in the order of AWQ, found {bits}", name)
    out_features = outputs_of(source, name)
    words = num_words(out_features, bits)
    qweight = store.expect(f"{name}.qweight", ("I32",), (None, words))
    if out_features % len(AWQ_LANES) or not qweight.shape[0]:
        message = (
            f"expected a multiple of {len(AWQ_LANES)} outputs and at least one input, found {out_features} outputs"
        )
        raise format_error(qweight.file, f"{message} and {qweight.shape[0]} inputs", f"{name}.qweight")
    in_features = qweight.shape[0]
    groups = 1 if numbers.group_size == -1 else -(-in_features // numbers.group_size)
    store.expect(f"{name}.qzeros", ("I32",), (groups, words))

    def read_codes() -> U8:
        return unpack_across(store.read(f"{name}.qweight"), bits, out_features)

    def read_zeros() -> U8:
        return unpack_across(store.read(f"{name}.qzeros"), bits, out_features)

    return make_layer(source, name, numbers, (out_features, in_features), read_codes, read_zeros)
