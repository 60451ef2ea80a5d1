"""AutoRound checkpoints written from the rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_models import awq_tensors, gptq_tensors, random_layer, stream, weight_of, write_model

from tmac import FormatError
from tmac.formats import open_checkpoint

NAME = "model.layers.0.mlp.up_proj"
CONFIG = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False, "data_type": "int"}


def less_one(zeros, bits):
    """AutoRound's zeros less one, field by field; it has no zero of 0."""
    return stream(zeros - 1, bits)


def tensors_of(name, codes, zeros, scales, bits, packing):
    if "awq" in packing:
        return awq_tensors(name, codes, zeros, scales, bits)
    pack_zeros = less_one if packing.endswith(("auto_gptq", "auto_round:gptq")) else stream
    return gptq_tensors(name, codes, zeros, scales, bits, pack_zeros=pack_zeros)


def weights_of(k, group_size, layer):
    return weight_of(*layer, np.arange(k) // (k if group_size == -1 else group_size))


@given(
    packing=st.sampled_from(["auto_round", "auto_round:gptqmodel", "auto_round:auto_gptq", "auto_round:auto_awq"]),
    bits=st.integers(2, 8),
    group_size=st.sampled_from([-1, 32, 64, 100, 128]),
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    sym=st.booleans(),
    method=st.sampled_from(["auto-round", "intel/auto-round"]),
    seed=st.integers(0, 2**32),
)
def test_any_layer_reads_back(tmp_path_factory, packing, bits, group_size, blocks, sym, method, seed):
    n, k = blocks[0] * 32, blocks[1] * 32
    if "awq" in packing:
        bits = 4 + bits % 4
    codes, zeros, scales = random_layer(np.random.default_rng(seed), n, k, bits, group_size, sym)
    zeros = np.maximum(zeros, 1)
    config = {**CONFIG, "quant_method": method, "bits": bits, "group_size": group_size, "sym": sym}
    folder = write_model(
        tmp_path_factory.mktemp("autoround"),
        {**tensors_of(NAME, codes, zeros, scales, bits, packing), "model.norm.weight": np.ones(k, np.float16)},
        {**config, "packing_format": packing, "block_name_to_quantize": "model.layers"},
    )
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "auto-round"
    assert list(checkpoint.tensors) == ["model.norm.weight"]
    layer = checkpoint.layers[NAME]
    read = layer.read()
    assert read.spec == layer.spec
    assert read.spec.zero_point == ("fixed" if sym else "integer")
    np.testing.assert_array_equal(read.codes, codes)
    np.testing.assert_array_equal(read.dequantize(), weights_of(k, group_size, (codes, zeros, scales)))


@pytest.mark.parametrize("text", [None, "auto", "auto_round:gptq", "auto_round:auto_gptq", "auto_round:gptq:exllamav2"])
def test_names_of_the_form_with_zeros_less_one(tmp_path, text):
    layer = random_layer(np.random.default_rng(1), 32, 64, 4, 32)
    layer = (layer[0], np.maximum(layer[1], 1), layer[2])
    key = "backend" if text and text.count(":") == 2 else "packing_format"
    folder = write_model(tmp_path, tensors_of(NAME, *layer, 4, "auto_round:auto_gptq"), {**CONFIG, key: text})
    np.testing.assert_array_equal(open_checkpoint(folder).layers[NAME].read().dequantize(), weights_of(64, 32, layer))


def test_a_stored_field_that_is_full_is_one_more(tmp_path):
    """AutoRound adds to a field after it has cut it out of its word, so that 15 stands for 16, not for 0."""
    codes, _, scales = random_layer(np.random.default_rng(2), 32, 64, 4, 32)
    zeros = np.full((32, 2), 16)
    tensors = tensors_of(NAME, codes, zeros, scales, 4, "auto_round:auto_gptq")
    read = open_checkpoint(write_model(tmp_path, tensors, CONFIG)).layers[NAME].read()
    np.testing.assert_array_equal(read.dequantize(), weights_of(64, 32, (codes, zeros, scales)))


def test_extra_config_says_what_single_modules_have(tmp_path):
    extra = {
        "model.layers.0.down_proj": {"bits": 8, "group_size": -1, "sym": True},
        "lm_head": {"bits": 3, "group_size": 128, "act_bits": 16, "super_bits": None, "data_type": "int"},
        "model.layers.1.gate": {"bits": 16, "act_bits": 16, "data_type": "float"},  # its own name, not a pattern
        r".*layers\.1\..*down": {"bits": 2},
        "down_proj": {"bits": 3},
        "unused": {},
    }
    wanted = {
        "model.layers.0.down_proj": (8, -1, True),
        "model.layers.1.down_proj": (2, 32, False),
        "model.layers.2.down_proj": (3, 32, False),
        "model.layers.1.gate_proj": (4, 32, False),
        "lm_head": (3, 128, False),
    }
    rng = np.random.default_rng(3)
    tensors, weights = {"model.layers.1.gate.weight": np.ones((8, 192), np.float16)}, {}
    for name, (bits, group_size, sym) in wanted.items():
        layer = random_layer(rng, 32, 192, bits, group_size, sym)
        tensors |= tensors_of(name, *layer, bits, "auto_round")
        weights[name] = weights_of(192, group_size, layer)
    checkpoint = open_checkpoint(
        write_model(tmp_path, tensors, {**CONFIG, "packing_format": "auto_round", "extra_config": extra})
    )
    assert list(checkpoint.tensors) == ["model.layers.1.gate.weight"]
    for name, (bits, group_size, sym) in wanted.items():
        spec = checkpoint.layers[name].spec
        assert (spec.bits, spec.group_size, spec.zero_point == "fixed") == (bits, group_size, sym), name
        np.testing.assert_array_equal(checkpoint.layers[name].read().dequantize(), weights[name])


ERRORS = {
    "fp8": (
        {"packing_format": "auto_round:fp8_static"},
        r"packing_format: expected one of .* found 'auto_round:fp8_static'",
    ),
    "mxfp": ({"packing_format": "auto_round:llm_compressor"}, r"found 'auto_round:llm_compressor'"),
    "other family": ({"packing_format": "mlx"}, r"packing_format: expected one of auto_round:auto_gptq"),
    "format no text": ({"packing_format": 3}, r"packing_format: expected str, found 3"),
    "data type fp8": ({"data_type": "fp"}, r"data_type: expected integer weights \(int\), found 'fp'"),
    "data type mx_fp4": ({"data_type": "mx_fp4"}, r"found 'mx_fp4'"),
    "data type of a layer": (
        {"extra_config": {"a": {"data_type": "nv_fp"}}},
        r"extra_config.a.data_type: expected int",
    ),
    "activations": ({"act_bits": 8}, r"act_bits: expected float activations \(16\), found 8"),
    "activations of a layer": ({"extra_config": {"a": {"act_bits": 8}}}, r"extra_config.a.act_bits: expected float"),
    "scales of scales": ({"super_bits": 6}, r"super_bits: expected scales that are not quantized"),
    "rotated": ({"rotation_config": {"type": "hadamard"}}, r"rotation_config: expected weights that are not rotated"),
    "extra no object": ({"extra_config": []}, r"extra_config: expected dict"),
    "extra entry no object": ({"extra_config": {"a": 3}}, r"extra_config.a: expected an object, found 3"),
    "extra no pattern": ({"extra_config": {"a[": {"bits": 2}}}, r"extra_config: expected a pattern of names"),
    "extra leaves it": (
        {"extra_config": {NAME: {"bits": 16}}},
        rf"{NAME}: expected a float weight, because extra_config",
    ),
    "bits of AWQ": ({"packing_format": "auto_round:auto_awq", "bits": 8}, r"expected 4 to 7 bits in the order of AWQ"),
    "AWQ's form in GPTQ's tensors": (
        {"packing_format": "auto_round:auto_awq"},
        rf"{NAME}.qweight: expected shape \[\?, 4\]",
    ),
    "bits": ({"bits": 3}, rf"{NAME}.qweight: expected shape \[6, 32\], found \[8, 32\]"),
    "block sizes": ({"group_size": [128, 128]}, r"group_size: expected int, found \[128, 128\]"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_wrong_is_named(tmp_path, case):
    config, message = ERRORS[case]
    layer = random_layer(np.random.default_rng(4), 32, 64, 4, 32)
    folder = write_model(tmp_path, tensors_of(NAME, *layer, 4, "auto_round"), {**CONFIG, **config})
    with pytest.raises(FormatError, match=message) as error:
        open_checkpoint(folder)
    assert str(folder) in str(error.value)


def test_a_zero_beyond_a_byte_is_an_error(tmp_path):
    codes, _, scales = random_layer(np.random.default_rng(5), 32, 64, 8, 32)
    tensors = tensors_of(NAME, codes, np.full((32, 2), 256), scales, 8, "auto_round:auto_gptq")
    layer = open_checkpoint(write_model(tmp_path, tensors, {**CONFIG, "bits": 8})).layers[NAME]
    with pytest.raises(FormatError, match=rf"{NAME}.qzeros: expected zeros of at most 255, found 256"):
        layer.read()
