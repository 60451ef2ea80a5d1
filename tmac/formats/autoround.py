"""AutoRound checkpoints: GPTQ's or AWQ's tensors, with a configuration of their own.

`packing_format` names the tensors: "auto_round:auto_gptq" is GPTQ's form with zeros less one, "auto_round" and
"auto_round:gptqmodel" with zeros as they are, "auto_round:auto_awq" is AWQ's. All of them also hold 5 to 7 bits, in the
same streams. The format "auto_gptq" without a prefix writes a GPTQ checkpoint, which `gptq.py` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tmac.formats.awq import awq_layer
from tmac.formats.checkpoint import Checkpoint, QuantizedLayer
from tmac.formats.errors import format_error
from tmac.formats.gptq import Packing, gptq_layer
from tmac.formats.grouped import other_tensors, quantized_modules
from tmac.formats.numbers import Numbers, extra_numbers, read_numbers
from tmac.formats.source import Source

LESS_ONE = Packing("less_one_per_field")
SAME = Packing("same")
# What follows "auto_round:"; the names of kernels are older versions' way to say which one the file was written for.
PACKINGS: Mapping[str, Packing | None] = {
    "auto_gptq": LESS_ONE,
    "gptq": LESS_ONE,
    "": SAME,
    "gptqmodel": SAME,
    "exllamav2": SAME,
    "tritonv2": SAME,
    "auto_awq": None,
    "awq": None,
}
FLOAT_ACTIVATION_BITS = 16
ROTATIONS = ("rotation_config", "spinquant_config")

LayerReader = Callable[[Source, str, Numbers], QuantizedLayer]


def open_checkpoint(source: Source) -> Checkpoint:
    """An AutoRound model of integer weights and float activations.

    Raises:
        FormatError: the configuration or a tensor is not what the format says, or is of a kind that is not read (fp8,
            mxfp, nvfp, quantized activations, rotated weights).
    """
    layer = _layer_reader(source)
    _check_kind(source, source.quantization, "")
    for key, values in source.setting("extra_config", dict, {}).items():
        if isinstance(values, dict):
            _check_kind(source, values, f"extra_config.{key}.")
    for key in ROTATIONS:
        if source.quantization.get(key):
            raise format_error(source.config_path, "expected weights that are not rotated, found this key", key)
    numbers_of = extra_numbers(source, read_numbers(source, source.quantization, None))
    modules = quantized_modules(source)
    layers = {name: layer(source, name, numbers_of(name)) for name in modules}
    return source.checkpoint("auto-round", layers, other_tensors(source, modules))


def _layer_reader(source: Source) -> LayerReader:
    key = "packing_format" if source.quantization.get("packing_format") is not None else "backend"
    text = source.setting(key, str, "auto_round:auto_gptq")
    if text in ("auto", "auto_round:auto"):
        text = "auto_round:auto_gptq"
    family, _, kind = text.lower().replace("-", "_").partition(":")
    kind = kind.partition(":")[0]  # "gptq:exllamav2"
    if family not in ("auto_round", "autoround") or kind not in PACKINGS:
        known = ", ".join(f"auto_round:{name}" if name else "auto_round" for name in PACKINGS)
        raise format_error(source.config_path, f"expected one of {known}, found {text!r}", key)
    packing = PACKINGS[kind]
    if packing is None:
        return awq_layer
    return lambda source, name, numbers: gptq_layer(source, name, numbers, packing)


def _check_kind(source: Source, values: Mapping[str, Any], where: str) -> None:
    """Raises FormatError unless these are integer weights under float activations."""
    data_type = values.get("data_type")
    if data_type is not None and data_type not in ("int", "int_sym", "int_asym"):
        bits = values.get("bits")
        if not (type(bits) is int and bits >= FLOAT_ACTIVATION_BITS):  # a layer that is left in float
            message = f"expected integer weights (int), found {data_type!r}"
            raise format_error(source.config_path, message, f"{where}data_type")
    act_bits = values.get("act_bits")
    if act_bits is not None and (type(act_bits) is not int or act_bits < FLOAT_ACTIVATION_BITS):
        message = f"expected float activations (16), found {act_bits!r}: quantized activations are not read"
        raise format_error(source.config_path, message, f"{where}act_bits")
    if values.get("super_bits") is not None:
        raise format_error(source.config_path, "expected scales that are not quantized", f"{where}super_bits")
