"""AWQ checkpoints written from the rules."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_models import awq_tensors, random_layer, weight_of, write_model

from tmac import FormatError
from tmac.formats import open_checkpoint

NAME = "model.layers.0.mlp.up_proj"
CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def group_of(k, group_size):
    return np.arange(k) // (k if group_size == -1 else group_size)


@given(
    group_size=st.sampled_from([-1, 7, 16, 32, 64, 128, 1024]),
    n=st.integers(1, 20),
    k=st.integers(1, 200),
    sym=st.booleans(),
    bias=st.booleans(),
    shards=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32),
)
def test_any_layer_reads_back(tmp_path_factory, group_size, n, k, sym, bias, shards, seed):
    n *= 8
    codes, zeros, scales = random_layer(np.random.default_rng(seed), n, k, 4, group_size, sym)
    offsets = np.random.default_rng(seed).standard_normal(n).astype(np.float16) if bias else None
    tensors = {**awq_tensors(NAME, codes, zeros, scales, bias=offsets), "lm_head.weight": np.ones((4, n), np.float16)}
    config = {**CONFIG, "group_size": group_size, "zero_point": not sym, "modules_to_not_convert": ["lm_head"]}
    checkpoint = open_checkpoint(write_model(tmp_path_factory.mktemp("awq"), tensors, config, shards))
    assert checkpoint.format == "awq"
    assert list(checkpoint.tensors) == ["lm_head.weight"]
    layer = checkpoint.layers[NAME]
    assert (layer.out_features, layer.in_features, layer.bias) == (n, k, bias)
    read = layer.read()
    assert read.spec == layer.spec
    assert read.spec.zero_point == ("fixed" if sym else "integer")
    np.testing.assert_array_equal(read.codes, codes)
    np.testing.assert_array_equal(read.dequantize(), weight_of(codes, zeros, scales, group_of(k, group_size)))
    if bias:
        np.testing.assert_array_equal(read.bias, offsets.astype(np.float32))


def test_the_order_within_a_word(tmp_path):
    """The word 0x76543210 holds, from the lowest nibble on, the codes of outputs 0 2 4 6 1 3 5 7."""
    word = np.array([[0x76543210]], np.int32)
    tensors = {f"{NAME}.qweight": word, f"{NAME}.qzeros": word, f"{NAME}.scales": np.ones((1, 8), np.float16)}
    read = open_checkpoint(write_model(tmp_path, tensors, CONFIG)).layers[NAME].read()
    assert read.codes[:, 0].tolist() == read.zeros[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_the_names_of_a_quant_config_json(tmp_path):
    codes, zeros, scales = random_layer(np.random.default_rng(1), 16, 64, 4, 32)
    folder = write_model(tmp_path, awq_tensors(NAME, codes, zeros, scales), None)
    old = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (folder / "quant_config.json").write_text(json.dumps(old))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "awq"
    np.testing.assert_array_equal(
        checkpoint.layers[NAME].read().dequantize(), weight_of(codes, zeros, scales, group_of(64, 32))
    )


def test_what_gptqmodel_writes_of_awq(tmp_path):
    """It has `checkpoint_format` and `sym` in place of `version` and `zero_point`."""
    codes, zeros, scales = random_layer(np.random.default_rng(2), 16, 64, 4, 32, sym=True)
    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "checkpoint_format": "gemm",
        "format": "gemm",
    }
    layer = open_checkpoint(write_model(tmp_path, awq_tensors(NAME, codes, zeros, scales), config)).layers[NAME]
    assert layer.spec.zero_point == "fixed"
    np.testing.assert_array_equal(layer.read().dequantize(), weight_of(codes, zeros, scales, group_of(64, 32)))


ERRORS = {
    "gemv": ({"version": "gemv"}, None, r"config.json: version: expected gemm, found 'gemv'"),
    "gemv fast": ({"version": "gemv_fast"}, None, r"version: expected gemm, found 'gemv_fast'"),
    "exllama": ({"version": "exllama"}, None, r"version: expected gemm, found 'exllama'"),
    "marlin": (
        {"version": None, "checkpoint_format": "marlin"},
        None,
        r"checkpoint_format: expected gemm, found 'marlin'",
    ),
    "version no text": ({"version": 1}, None, r"version: expected str, found 1"),
    "eight bits": ({"bits": 8}, None, rf"{NAME}: expected 4 bits, found 8"),
    "zero_point no bool": ({"zero_point": "yes"}, None, r"zero_point: expected bool, found 'yes'"),
    "other groups": ({"group_size": 16}, None, rf"{NAME}.qzeros: expected shape \[4, 2\], found \[2, 2\]"),
    "no zeros": ({}, ("qzeros", None), rf"{NAME}.qzeros: expected this tensor, but it is missing"),
    "no scales": ({}, ("scales", None), rf"{NAME}.scales: expected this tensor, but it is missing"),
    "GPTQ's shape": (
        {},
        ("qweight", np.zeros((8, 16), np.int32)),
        rf"{NAME}.qweight: expected shape \[\?, 2\], found \[8, 16\]",
    ),
    "no inputs": ({}, ("qweight", np.zeros((0, 2), np.int32)), r"at least one input, found 16 outputs and 0 inputs"),
    "no multiple of 8": ({}, ("scales", np.ones((2, 15), np.float16)), r"expected a multiple of 8 outputs"),
    "scale NaN": (
        {},
        ("scales", np.full((2, 16), np.nan, np.float16)),
        rf"{NAME}.scales: expected finite numbers, found nan at 0",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_wrong_is_named(tmp_path, case):
    config, tensor, message = ERRORS[case]
    tensors = awq_tensors(NAME, *random_layer(np.random.default_rng(3), 16, 64, 4, 32))
    if tensor:
        tensors[f"{NAME}.{tensor[0]}"] = tensor[1]
    folder = write_model(
        tmp_path, {name: array for name, array in tensors.items() if array is not None}, {**CONFIG, **config}
    )
    with pytest.raises(FormatError, match=message) as error:
        open_checkpoint(folder).layers[NAME].read()
    assert str(folder) in str(error.value)
