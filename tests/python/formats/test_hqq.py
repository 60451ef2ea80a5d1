"""HQQ: layers that the tool saved, and layers written from its rules."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors_writer import Raw, bfloat16, float32_of, write_model

from tmac import Codes
from tmac.formats import FormatError, open_checkpoint

FIXTURES = {"hqq-w1g64": 1, "hqq-w3g64": 3, "hqq-w4g64": 4}
NAME = "model.layers.0.mlp.up_proj"
SLICES = {8: 1, 6: 1, 5: 1, 4: 2, 3: 10, 2: 4, 1.58: 4, 1: 8}
PACKINGS = {1: "8bit_u8", 2: "4bit_u8", 10: "3bit_32", 4: "2bit_u8", 8: "1bit_u8"}
WIDTHS = {1: 8, 2: 4, 10: 3, 4: 2, 8: 1}
FLOATS = {
    "float16": lambda values: values.astype(np.float16),
    "bfloat16": bfloat16,
    "float32": lambda values: values.astype(np.float32),
}


@pytest.mark.parametrize("folder", FIXTURES)
def test_fixtures_give_the_weights_of_the_tool(fixtures_dir, folder):
    """Bit for bit: these layers compute in f32. In f16 and bf16 the tool rounds after the subtraction and again after
    the product, where `dequantize` stays in f32."""
    checkpoint = open_checkpoint(fixtures_dir / folder)
    assert checkpoint.format == "hqq"
    assert checkpoint.config is None
    assert not checkpoint.tensors
    assert set(checkpoint.layers) == {"self_attn.k_proj", "mlp.down_proj"}
    with np.load(fixtures_dir / folder / "ref.npz") as arrays:
        for name, layer in checkpoint.layers.items():
            codes = layer.read()
            assert (codes.spec.bits, codes.spec.group_size) == (FIXTURES[folder], 64)
            assert np.array_equal(codes.dequantize(), arrays[f"W.{name}"]), name
            assert np.array_equal(Codes.from_buffer(codes.pack().buffer()).dequantize(), codes.dequantize())


def number(value):
    if isinstance(value, bool):
        return np.array(int(value), np.uint8)
    return np.array(value, np.int32 if isinstance(value, int) else np.float32)


def text(value):
    return np.frombuffer(value.encode(), np.uint8)


def pack_slices(q, slices):
    """Codes [rows, columns] -> W_q: row r of slice s is row s * step + r; the first slice lies highest."""
    step = -(-len(q) // slices)
    padded = np.zeros((step * slices, q.shape[1]), np.int64)
    padded[: len(q)] = q
    bits = WIDTHS[slices]
    packed = sum(padded[index * step : (index + 1) * step] << (bits * (slices - 1 - index)) for index in range(slices))
    return packed.astype(np.int32 if slices == 10 else np.uint8)


@st.composite
def layers(draw):
    """How a layer is stored: group_size columns of q in `rows` rows, `k` of the weight any divisor of their number."""
    nbits = draw(st.sampled_from(tuple(SLICES)))
    slices = SLICES[nbits]
    rows = draw(st.integers(1, 40)) if slices == 10 else slices * draw(st.integers(1, 12))
    group_size = draw(st.sampled_from((4, 8, 24, 32, 64, 96)))
    elements = rows * group_size
    return {
        "nbits": nbits,
        "rows": rows,
        "group_size": group_size,
        "k": draw(st.sampled_from([k for k in range(1, elements + 1) if elements % k == 0])),
        "channel_wise": draw(st.sampled_from((True, True, False))),
        "view_as_float": draw(st.booleans()),
        "float": draw(st.sampled_from(sorted(FLOATS))),
        "stacked": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def tensors_of(how):
    """The tensors of a random layer, and what they mean: codes [n, k], zero and scale of every element, bias."""
    rng = np.random.default_rng(how["seed"])
    nbits, rows, group_size, k = how["nbits"], how["rows"], how["group_size"], how["k"]
    n, slices = rows * group_size // k, SLICES[nbits]
    q = rng.integers(0, round(2**nbits - 1) + 1, (rows, group_size))
    as_float = FLOATS[how["float"]]
    shape = (rows, 1) if how["channel_wise"] else ()
    scale, zero = as_float(rng.uniform(0.001, 1.0, shape)), as_float(rng.uniform(0.0, 2.0**nbits, shape))
    packed = pack_slices(q, slices) if how["channel_wise"] else pack_slices(q.reshape(n, k), slices)
    if how["view_as_float"] and packed.nbytes % 4 == 0 and packed.shape[1] * packed.itemsize % 4 == 0:
        packed = packed.view(np.float16) if how["float"] == "float16" else packed.view(np.float32)
    tensors = {
        "W_q": packed,
        "scale": scale,
        "zero": zero,
        "nbits": number(nbits),
        "group_size": number(group_size),
        "shape": np.array([n, k]),
        "axis": number(1),
        "packing": text(PACKINGS[slices]),
        "unpack_view_dtype": text("torch.int32" if slices == 10 else "torch.uint8"),
        "compute_dtype": text(f"torch.{how['float']}"),
        "view_as_float": number(packed.dtype.kind == "f"),
        "channel_wise": number(how["channel_wise"]),
    }
    for flag in ("quant_scale", "quant_zero", "offload_meta", "optimize", "round_zero"):
        tensors[flag] = number(False)
    tensors["encoded_state_dict"] = tensors["stores_quant_config"] = number(True)
    bias = rng.standard_normal(n).astype(np.float32) if how["bias"] else None
    if bias is not None:
        tensors["bias"] = bias
    scales = np.broadcast_to(float32_of(scale).reshape(-1, 1), q.shape).reshape(n, k)
    zeros = np.broadcast_to(float32_of(zero).reshape(-1, 1), q.shape).reshape(n, k)
    if how["stacked"] and how["channel_wise"]:
        scale, zero = tensors.pop("scale"), tensors.pop("zero")
        bits = [value.bits if isinstance(value, Raw) else value for value in (zero, scale)]
        tensors["zero_scale"] = Raw("BF16", np.stack(bits)) if isinstance(scale, Raw) else np.stack(bits)
    return tensors, q.reshape(n, k), zeros, scales, bias


BASE = {
    "nbits": 4,
    "rows": 12,
    "group_size": 32,
    "k": 96,
    "channel_wise": True,
    "view_as_float": False,
    "float": "float32",
    "stacked": False,
    "bias": True,
    "seed": 0,
}


def writable(how):
    """hqq packs the rows that it has; without groups these are the weight's own."""
    return how["channel_wise"] or how["rows"] * how["group_size"] // how["k"] % SLICES[how["nbits"]] == 0


@given(how=layers().filter(writable))
@example(how={**BASE, "nbits": 3, "rows": 13, "group_size": 64, "k": 16})  # a group spans four rows
@example(how={**BASE, "rows": 12, "group_size": 64, "k": 96})  # a group ends within a row
@example(how={**BASE, "view_as_float": True, "float": "float16"})
@example(how={**BASE, "nbits": 3, "rows": 9, "view_as_float": True, "float": "float16"})
def test_layers_written_from_the_rules(how, tmp_path_factory):
    tensors, q, zeros, scales, bias = tensors_of(how)
    folder = write_model(tmp_path_factory.mktemp("model"), prefixed(tensors))
    checkpoint = open_checkpoint(folder)
    layer = checkpoint.layers[NAME]
    codes = layer.read()
    assert (layer.out_features, layer.in_features) == q.shape
    assert np.array_equal(codes.codes, q)
    assert np.array_equal(codes.dequantize(), (q.astype(np.float32) - zeros) * scales)
    assert codes.bias is None if bias is None else np.array_equal(codes.bias, bias)
    assert codes.spec.bits == math.ceil(how["nbits"])
    assert layer.spec.replace(scale_format=codes.spec.scale_format) == codes.spec
    groups = codes.spec.num_groups(layer.in_features)
    assert groups == max(1, layer.in_features // math.gcd(how["group_size"], how["k"])) or not how["channel_wise"]
    assert not checkpoint.tensors


def prefixed(tensors, name=NAME):
    return {f"{name}.{part}": value for part, value in tensors.items()}


def test_a_model_of_transformers(tmp_path):
    """`HqqConfig` saved layers of several kinds; the tensors say which, and what was skipped stays."""
    other = NAME.replace("up", "down")
    tensors = {
        **prefixed(tensors_of(BASE)[0]),
        **prefixed(tensors_of({**BASE, "nbits": 2, "group_size": 64, "float": "bfloat16"})[0], other),
        "lm_head.weight": bfloat16(np.ones((8, 96))),
        "model.norm.weight": bfloat16(np.ones(96)),
    }
    params = {"weight_quant_params": {"nbits": 4, "group_size": 32, "axis": 1}, "scale_quant_params": None}
    config = {"quant_method": "hqq", "quant_config": params, "skip_modules": ["lm_head"]}
    checkpoint = open_checkpoint(write_model(tmp_path, tensors, config, {"model_type": "llama"}))
    assert {name: layer.spec.bits for name, layer in checkpoint.layers.items()} == {NAME: 4, other: 2}
    assert set(checkpoint.tensors) == {"lm_head.weight", "model.norm.weight"}
    assert checkpoint.config == {"model_type": "llama"}
    assert checkpoint.layers[other].read().scales.dtype == np.float16  # bf16 numbers that are f16 numbers as well


def broken(tmp_path, tensors=(), name=NAME):
    parts = {**tensors_of(BASE)[0], **dict(tensors)}
    parts = {key: value for key, value in parts.items() if value is not None}
    for layer in open_checkpoint(write_model(tmp_path, prefixed(parts, name))).layers.values():
        layer.read()


def test_the_layer_that_is_broken_below_is_whole(tmp_path):
    broken(tmp_path)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("W_q", np.zeros((5, 32), np.uint8), r"expected shape \[6, 32\], found \[5, 32\]"),
        ("W_q", np.zeros((6, 32), np.int32), "expected U8, found I32"),
        ("W_q", np.zeros((6, 32), np.float16), "expected U8, found F16"),
        ("scale", None, "expected this tensor, but it is missing"),
        ("scale", np.ones((1, 12), np.float32), r"expected shape \[12, 1\], found \[1, 12\]"),
        ("scale", np.ones((12, 1), np.int32), "expected F32 or F16 or BF16, found I32"),
        ("scale", np.full((12, 1), np.nan, np.float32), "expected finite numbers, found nan at 0"),
        ("zero", None, "expected this tensor, but it is missing"),
        ("zero", bfloat16(np.full((12, 1), np.inf)), "expected finite numbers, found inf at 0"),
        ("zero", np.ones((11, 1), np.float32), r"expected shape \[12, 1\], found \[11, 1\]"),
        ("shape", None, "expected this tensor, but it is missing"),
        ("shape", np.array([4, 0]), r"expected rows and columns, found \[4, 0\]"),
        ("shape", np.array([4, 2**62]), r"W_q: expected shape"),
        ("shape", np.array([4.0, 96.0], np.float32), "expected I64 or I32, found F32"),
        ("nbits", None, "expected this tensor, but it is missing"),
        ("nbits", number(7), "nbits: expected one of 8, 6, 5, 4, 3, 2, 1.58, 1, found 7"),
        ("nbits", np.array(np.nan, np.float32), "nbits: expected one of"),
        ("nbits", np.array([4, 4], np.int32), r"nbits: expected one number, found I32 \[2\]"),
        ("packing", None, "expected this tensor, but it is missing"),
        ("packing", text("2bit_u8"), "packing: expected '4bit_u8' for 4.0 bits, found '2bit_u8'"),
        ("packing", text("x" * 1000), "packing: expected '4bit_u8' for 4.0 bits, found ''"),
        ("group_size", None, "expected this tensor, but it is missing"),
        ("group_size", number(0), "group_size: expected a divisor of the 4 x 96 elements, found 0"),
        ("group_size", number(36), "group_size: expected a divisor of the 4 x 96 elements, found 36"),
        ("group_size", np.array(np.inf, np.float32), "group_size: expected a whole number, found inf"),
        ("group_size", number(64), r"W_q: expected shape \[3, 64\], found \[6, 32\]"),
        ("axis", None, "expected this tensor, but it is missing"),
        ("axis", number(0), "expected groups along the rows .* quantize the float model again with axis=1"),
        ("view_as_float", number(True), "W_q: expected F32 or F16 or BF16, found U8"),
        ("quant_zero", number(True), "quant_zero: expected scales and zeros in floats, found quantized ones"),
        ("quant_scale", number(True), "quant_scale: expected scales and zeros in floats, found quantized ones"),
        ("bias", np.zeros(5, np.float32), r"expected shape \[4\], found \[5\]"),
    ],
)
def test_a_tensor_that_is_not_what_it_should_be(tmp_path, part, value, message):
    with pytest.raises(FormatError, match=message) as error:
        broken(tmp_path, {part: value})
    assert str(tmp_path) in str(error.value)
    assert f"{NAME}." in str(error.value)


def test_codes_above_the_largest(tmp_path):
    """Codes of 5 and 6 bits are stored in whole bytes."""
    how = {**BASE, "nbits": 5, "rows": 12}
    tensors, *_ = tensors_of(how)
    tensors["W_q"] = np.full((12, 32), 32, np.uint8)
    folder = write_model(tmp_path, prefixed(tensors))
    with pytest.raises(FormatError, match=f"{NAME}: expected a weight of .* a code is 32, but"):
        open_checkpoint(folder).layers[NAME].read()


def test_no_layer(tmp_path):
    folder = write_model(tmp_path, {"model.norm.weight": np.ones(4, np.float32)}, {"quant_method": "hqq"})
    with pytest.raises(FormatError, match="expected layers with a tensor W_q, found none"):
        open_checkpoint(folder)
