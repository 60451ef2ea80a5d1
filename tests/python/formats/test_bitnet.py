"""BitNet: models that transformers wrote, models written from its rules, and its own activation rounding."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors_writer import bfloat16, float32_of, write_model

from tmac import Codes, _core
from tmac.formats import FormatError, open_checkpoint

FIXTURES = ("bitnet-bitlinear", "bitnet-autobitlinear-offline")
NAME = "model.layers.0.mlp.down_proj"
EPS = 2.0**-24  # of one rounding to f32
FLOATS = {
    "float16": lambda values: values.astype(np.float16),
    "bfloat16": bfloat16,
    "float32": lambda values: values.astype(np.float32),
}


@pytest.fixture(scope="module")
def bitnet():
    """transformers' own BitNet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch._inductor's imports warn of torch.jit
        from transformers.integrations import bitnet

        assert bitnet.pack_weights  # the module is imported when something in it is asked for
    return bitnet


def forward(codes, x):
    return _core.linear(x, codes.pack().buffer(), codes.bias)


@pytest.mark.parametrize("folder", FIXTURES)
def test_fixtures_give_the_weights_of_the_tool(fixtures_dir, folder):
    """The codes exactly; the weight is one f32 operation away from them: / weight_scale, or * weight_scale."""
    checkpoint = open_checkpoint(fixtures_dir / folder)
    assert checkpoint.format == "bitnet"
    assert len(checkpoint.layers) == 7
    assert set(checkpoint.tensors) >= {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"}
    assert len(checkpoint.tensors) == 5
    with np.load(fixtures_dir / folder / "ref.npz") as arrays:
        for part in ("self_attn.k_proj", "mlp.down_proj"):
            codes = checkpoint.layers[f"model.layers.0.{part}"].read()
            ternary, scale = arrays[f"ternary.{part}"], arrays[f"weight_scale.{part}"]
            assert np.array_equal(codes.codes.astype(int) - 1, ternary)
            weight = ternary / scale if folder == "bitnet-bitlinear" else ternary * scale
            assert weight.dtype == np.float32
            assert np.array_equal(codes.dequantize(), weight)
            assert np.array_equal(Codes.from_buffer(codes.pack().buffer()).dequantize(), codes.dequantize())
    for layer in checkpoint.layers.values():
        assert (layer.spec.codebook, layer.spec.activation, layer.spec.group_size) == ("ternary", "token", -1)
        assert layer.read().codes.shape == (layer.out_features, layer.in_features)


@pytest.mark.parametrize("folder", FIXTURES)
def test_the_lossless_path_gives_the_outputs_of_the_tool(fixtures_dir, folder):
    """Both round activations to the same int8 values; they differ in how they multiply the scales.

    Our kernels and bitlinear sum exact integers and round a few products and quotients; autobitlinear divides the
    integers by the scale again and sums in f32: two more roundings for each term.
    """
    with np.load(fixtures_dir / folder / "ref.npz") as arrays:
        x, expected = arrays["down_in"], arrays["down_out"]
    codes = open_checkpoint(fixtures_dir / folder).layers[NAME].read()
    result = forward(codes, x)
    if folder == "bitnet-bitlinear":
        bound = 8 * EPS * np.abs(expected)
    else:
        terms = np.abs(quantized(x)).sum(axis=1, keepdims=True) * codes.scales.max().astype(np.float32)
        bound = (16 + 2 * x.shape[1]) * EPS * terms
    assert (np.abs(result - expected) <= bound).all()
    assert np.abs(result - expected).max() <= 1e-6 * np.abs(expected).max()


def quantized(x):
    """What activations become: `ActQuant`, f32."""
    scale = np.float32(127) / np.abs(x).max(axis=1, keepdims=True).clip(np.float32(1e-5))
    return np.rint(x * scale).clip(-128, 127) / scale


@pytest.mark.parametrize("size", [3.0, 1e-3, 1e-5, 1e-6, 0.0])
def test_activations_are_rounded_as_transformers_does(tmp_path, size):
    """A ternary identity shows the integers: round half to even of x * (127 / max|x|), max|x| at least 1e-5.

    transformers' -128 is out of reach of both: |x * scale| rounds to at most 127.
    """
    k = 256
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (8, k)).astype(np.float32)
    x[:, :2] = (1.0, -1.0)
    x[1, 2:] = (np.arange(k - 2) % 127 + 0.5) / 127  # halves
    x *= np.float32(size)
    largest = np.abs(x).max(axis=1, keepdims=True).clip(np.float32(1e-5))
    integers = np.rint(x * (np.float32(127) / largest)).clip(-128, 127)
    tensors = {"weight": pack(np.eye(k, dtype=int)), "weight_scale": np.ones(1, np.float32)}
    folder = write_model(tmp_path, prefixed(tensors), {"quant_method": "bitnet"})
    result = forward(open_checkpoint(folder).layers[NAME].read(), x)
    step = largest / np.float32(127)
    assert np.array_equal(result, integers * step)


def pack(ternary):
    """u8 [ceil(n / 4), k]: row r of slice s in bits 2 s and 2 s + 1 of row r, value + 1; 0 where there is no row."""
    n, k = ternary.shape
    rows = -(-n // 4)
    codes = np.zeros((4 * rows, k), np.uint8)
    codes[:n] = ternary + 1
    return sum(
        (codes[index * rows : (index + 1) * rows] << (2 * index) for index in range(4)), np.zeros((rows, k), np.uint8)
    )


def prefixed(tensors, name=NAME):
    return {f"{name}.{part}": value for part, value in tensors.items()}


@pytest.mark.parametrize("rows", [1, 2, 4, 6, 7, 9, 64])
def test_weights_are_packed_as_transformers_does(bitnet, rows):
    ternary = np.random.default_rng(rows).integers(-1, 2, (rows, 5))
    assert np.array_equal(bitnet.pack_weights(torch.tensor(ternary)).numpy(), pack(ternary))


@given(
    n=st.integers(1, 40),
    k=st.integers(1, 70),
    linear_class=st.sampled_from(("bitlinear", "autobitlinear", None)),
    scale_type=st.sampled_from(sorted(FLOATS)),
    bias=st.booleans(),
    scalar=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(n=10, k=5, linear_class="bitlinear", scale_type="bfloat16", bias=True, scalar=False, seed=1)
def test_layers_written_from_the_rules(n, k, linear_class, scale_type, bias, scalar, seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    ternary = rng.integers(-1, 2, (n, k))
    n = n if bias else -(-n // 4) * 4  # without a bias nothing tells how many rows are padding
    ternary = np.concatenate([ternary, np.full((n - len(ternary), k), -1)])
    scale = FLOATS[scale_type](rng.uniform(0.01, 90.0, () if scalar else (1,)))
    tensors = {"weight": pack(ternary), "weight_scale": scale}
    if bias:
        tensors["bias"] = FLOATS[scale_type](rng.standard_normal(n))
    config = {"quant_method": "bitnet", "linear_class": linear_class, "modules_to_not_convert": None}
    checkpoint = open_checkpoint(write_model(tmp_path_factory.mktemp("model"), prefixed(tensors), config))
    layer = checkpoint.layers[NAME]
    codes = layer.read()
    factor = float32_of(scale).reshape(-1)[0]
    weight = ternary.astype(np.float32) * factor if linear_class == "autobitlinear" else ternary / factor
    assert np.array_equal(codes.dequantize(), weight.astype(np.float32))
    assert (layer.out_features, layer.in_features) == (n, k)
    assert layer.bias is bias
    if bias:
        scaled = float32_of(tensors["bias"]) * (factor if linear_class == "autobitlinear" else np.float32(1))
        assert np.array_equal(codes.bias, scaled)
    assert not checkpoint.tensors


def test_rows_of_the_model_tell_what_is_padding(tmp_path):
    """3 heads of 10 and a hidden size of 30: packed in 8 rows, of which the last two are padding."""
    ternary = np.random.default_rng(0).integers(-1, 2, (30, 12))
    tensors = {
        **prefixed({"weight": pack(ternary), "weight_scale": np.ones(1, np.float32)}),
        **prefixed(
            {"weight": pack(ternary[:24]), "weight_scale": np.ones(1, np.float32)}, "model.layers.0.mlp.up_proj"
        ),
    }
    config = {"hidden_size": 30, "num_attention_heads": 3, "intermediate_size": 22, "model_type": "llama"}
    folder = write_model(tmp_path, tensors, {"quant_method": "bitnet"}, {**config, "intermediate_size": 24})
    layers = open_checkpoint(folder).layers
    assert np.array_equal(layers[NAME].read().codes.astype(int) - 1, ternary)
    assert layers["model.layers.0.mlp.up_proj"].out_features == 24
    tensors[f"{NAME}.weight"][7] |= 0b01000000  # slice 3, row 7: the last of the rows that are none
    write_model(tmp_path, tensors)
    with pytest.raises(FormatError, match=f"{NAME}.weight: expected 30 rows and zero bits behind them"):
        open_checkpoint(folder).layers[NAME].read()


def test_microsofts_model(tmp_path):
    """bitnet-b1.58-2B-4T: autobitlinear, bf16 scales, norms within the layers, no head of its own."""
    ternary = np.random.default_rng(0).integers(-1, 2, (8, 12))
    tensors = {
        "model.embed_tokens.weight": bfloat16(np.ones((16, 12))),
        **prefixed({"weight": pack(ternary), "weight_scale": bfloat16(np.array([1.2109375]))}),
        "model.layers.0.mlp.ffn_sub_norm.weight": bfloat16(np.ones(12)),
        "model.layers.0.self_attn.attn_sub_norm.weight": bfloat16(np.ones(12)),
        "model.norm.weight": bfloat16(np.ones(12)),
    }
    quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    config = {"model_type": "bitnet", "architectures": ["BitNetForCausalLM"], "tie_word_embeddings": True}
    checkpoint = open_checkpoint(write_model(tmp_path, tensors, quantization, config))
    assert list(checkpoint.layers) == [NAME]
    assert len(checkpoint.tensors) == 4
    assert checkpoint.layers[NAME].input_norm_eps is None
    codes = checkpoint.layers[NAME].read()
    assert codes.scales.dtype == np.float16
    assert np.array_equal(codes.dequantize(), ternary * np.float32(1.2109375))


def test_a_weight_of_ternary_floats(tmp_path):
    """An autobitlinear weight need not be packed: the layer uses what it finds."""
    ternary = np.random.default_rng(0).integers(-1, 2, (6, 12))
    tensors = {"weight": bfloat16(ternary), "weight_scale": np.full(1, 0.25, np.float32)}
    folder = write_model(tmp_path, prefixed(tensors), {"quant_method": "bitnet", "linear_class": "autobitlinear"})
    assert np.array_equal(open_checkpoint(folder).layers[NAME].read().dequantize(), ternary * np.float32(0.25))
    tensors["weight"] = np.full((6, 12), 0.5, np.float32)
    write_model(tmp_path, prefixed(tensors))
    with pytest.raises(FormatError, match="expected a packed weight, or floats of -1, 0 and 1 alone"):
        open_checkpoint(folder).layers[NAME].read()


ONLINE = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [0.03, 1e-7])
def test_online_weights_become_ternary_as_in_transformers(bitnet, tmp_path, dtype, size):
    """The codes are the same; the scale is the mean of |w|, whose f32 sum has another order: log2(n) roundings.

    transformers rounds to the type of the model; so is ours for f16 and bf16, which hides the difference.
    """
    weight = FLOATS[dtype](np.random.default_rng(0).standard_normal((96, 320)) * size)
    bias = np.random.default_rng(1).standard_normal(96).astype(np.float32)
    folder = write_model(tmp_path, prefixed({"weight": weight, "bias": bias}), ONLINE)
    codes = open_checkpoint(folder).layers[NAME].read()
    with torch.compiler.set_stance("force_eager"):
        expected = bitnet.WeightQuant.apply(torch.tensor(float32_of(weight)).to(getattr(torch, dtype))).float().numpy()
    result = codes.dequantize()
    assert np.array_equal(np.sign(result), np.sign(expected))
    if dtype == "float32":
        assert (np.abs(result - expected) <= (math.log2(weight.size) + 8) * EPS * np.abs(expected)).all()
    else:
        rounded = torch.from_numpy(result).to(getattr(torch, dtype)).float().numpy()
        assert np.array_equal(rounded, expected)
    assert np.array_equal(codes.bias, bias)


def test_which_matrices_are_converted_online(tmp_path):
    """All linear layers but `modules_to_not_convert`; where that says nothing, all but the head."""
    tensors = {
        "model.embed_tokens.weight": np.ones((16, 8), np.float32),
        "model.layers.0.self_attn.q_proj.weight": np.ones((8, 8), np.float32),
        "model.layers.0.mlp.gate.weight": np.ones((8, 8), np.float32),
        "model.layers.0.input_layernorm.weight": np.ones(8, np.float32),
        "model.vision.conv.weight": np.ones((2, 2, 2), np.float32),
        "lm_head.weight": np.ones((16, 8), np.float32),
    }
    query, gate = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.gate"
    for skipped, expected in (
        (None, {query, gate}),
        (["lm_head", "mlp.gate"], {query}),
        (["lm_head", r"model.layers.\d+.mlp"], {query}),
        ([], {query, gate, "lm_head"}),
    ):
        folder = write_model(tmp_path, tensors, {**ONLINE, "modules_to_not_convert": skipped}, {"vocab_size": 16})
        checkpoint = open_checkpoint(folder)
        assert set(checkpoint.layers) == expected, skipped
        assert checkpoint.layers.keys() | {name.removesuffix(".weight") for name in checkpoint.tensors} == {
            name.removesuffix(".weight") for name in tensors
        }


@pytest.mark.parametrize("online", [True, False])
def test_a_norm_within_the_layer(tmp_path, online):
    ternary = np.random.default_rng(0).integers(-1, 2, (8, 12))
    tensors = {"rms_norm.weight": np.ones(12, np.float32)}
    if online:
        tensors["weight"] = ternary.astype(np.float32)
    else:
        tensors |= {"weight": pack(ternary), "weight_scale": np.ones(1, np.float32)}
    config = {**ONLINE, "quantization_mode": "online" if online else "offline", "use_rms_norm": True}
    folder = write_model(tmp_path, prefixed(tensors), {**config, "rms_norm_eps": 1e-5})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.layers[NAME].input_norm_eps == 1e-5
    assert set(checkpoint.tensors) == {f"{NAME}.rms_norm.weight"}
    write_model(tmp_path, prefixed(tensors), config)
    assert open_checkpoint(folder).layers[NAME].input_norm_eps == 1e-6
    del tensors["rms_norm.weight"]
    write_model(tmp_path, prefixed(tensors))
    with pytest.raises(FormatError, match=f"{NAME}.rms_norm.weight: expected this tensor, but it is missing"):
        open_checkpoint(folder)


def broken(tmp_path, tensors=(), **changes):
    rng = np.random.default_rng(0)
    parts = {"weight": pack(rng.integers(-1, 2, (8, 12))), "weight_scale": np.ones(1, np.float32), **dict(tensors)}
    parts = {key: value for key, value in parts.items() if value is not None}
    folder = write_model(tmp_path, prefixed(parts), {"quant_method": "bitnet", **changes})
    for layer in open_checkpoint(folder).layers.values():
        layer.read()


def test_the_layer_that_is_broken_below_is_whole(tmp_path):
    broken(tmp_path)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("weight", None, "expected this tensor, but it is missing"),
        ("weight", np.zeros((2, 12), np.int8), "expected U8, found I8"),
        ("weight", np.zeros((8, 12), np.float32), "expected U8, found F32"),
        ("weight", np.zeros((2, 12, 1), np.uint8), r"expected shape \[\?, \?\], found \[2, 12, 1\]"),
        ("weight", np.full((2, 12), 0b11000000, np.uint8), "expected codes of 0 to 2, found a 3"),
        ("weight", np.zeros((2, 0), np.uint8), "expected rows and columns"),
        ("weight_scale", None, "expected this tensor, but it is missing"),
        ("weight_scale", np.ones(2, np.float32), r"expected shape \[1\], found \[2\]"),
        ("weight_scale", np.ones(1, np.int32), "expected F32 or F16 or BF16, found I32"),
        ("weight_scale", np.zeros(1, np.float32), "expected a number to divide by, found 0.0"),
        ("weight_scale", np.full(1, 1e-45, np.float32), "expected a number to divide by, found 1.4"),
        ("weight_scale", np.full(1, np.nan, np.float32), "expected finite numbers, found nan at 0"),
        ("bias", np.zeros(9, np.float32), "expected 5 to 8 numbers beside 2 packed rows, found 9"),
        ("bias", np.zeros(8, np.int32), "expected F32 or F16 or BF16, found I32"),
    ],
)
def test_a_tensor_that_is_not_what_it_should_be(tmp_path, part, value, message):
    with pytest.raises(FormatError, match=message) as error:
        broken(tmp_path, {part: value})
    assert str(tmp_path) in str(error.value)
    assert f"{NAME}.{part}" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear_class": "linear"}, "linear_class: expected bitlinear or autobitlinear, found 'linear'"),
        ({"quantization_mode": "never"}, "quantization_mode: expected online or offline, found 'never'"),
        ({"use_rms_norm": 1}, "use_rms_norm: expected bool, found 1"),
        ({"use_rms_norm": True, "rms_norm_eps": "x"}, "rms_norm_eps: expected float or int, found 'x'"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert: expected names, found 'lm_head'"),
        ({"linear_class": "autobitlinear", "quantization_mode": "online"}, "expected at least one BitNet layer"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_a_configuration_that_is_not_supported(tmp_path, changes, message):
    with pytest.raises(FormatError, match=message):
        broken(tmp_path, **changes)


def test_an_online_weight_that_is_not_finite(tmp_path):
    folder = write_model(tmp_path, prefixed({"weight": np.full((2, 3), np.nan, np.float32)}), ONLINE)
    with pytest.raises(FormatError, match=f"{NAME}.weight: expected finite numbers, found nan at 0"):
        open_checkpoint(folder).layers[NAME].read()
