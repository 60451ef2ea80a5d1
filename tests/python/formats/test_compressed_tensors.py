"""compressed-tensors: files of the tool itself, and files written from its rules."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors_writer import Raw, bfloat16, float32_of, pack_rows, write_model

from tmac import Codes
from tmac.formats import FormatError, open_checkpoint

FIXTURES = {"ct-w4g64-asym-packq": 64, "ct-w4g128-sym-packq": 128}
NAME = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize("folder", FIXTURES)
def test_fixtures_give_the_weights_of_the_tool(fixtures_dir, folder):
    """The tool's layer ran on the identity matrix: its weight in f32, to the last bit."""
    checkpoint = open_checkpoint(fixtures_dir / folder)
    assert checkpoint.format == "compressed-tensors"
    assert len(checkpoint.layers) == 7
    assert "quantization_config" not in checkpoint.config
    compared = 0
    with np.load(fixtures_dir / folder / "ref.npz") as arrays:
        for key, weight in arrays.items():
            if key.startswith("Wfwd."):
                layer = checkpoint.layers["model.layers.0." + key[len("Wfwd.") :]]
                assert layer.spec.group_size == FIXTURES[folder]
                assert np.array_equal(layer.read().dequantize(), weight), key
                compared += 1
    assert compared == 2
    for layer in checkpoint.layers.values():
        codes = layer.read()
        assert (codes.out_features, codes.in_features) == (layer.out_features, layer.in_features)
        assert np.array_equal(Codes.from_buffer(codes.pack().buffer()).dequantize(), codes.dequantize())


@pytest.mark.parametrize("folder", FIXTURES)
def test_what_is_not_quantized_passes_through(fixtures_dir, folder):
    checkpoint = open_checkpoint(fixtures_dir / folder)
    base = open_checkpoint(fixtures_dir / "base256-fp16")
    assert set(checkpoint.tensors) == {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.norm.weight",
    }
    for name, tensor in checkpoint.tensors.items():
        assert np.array_equal(tensor.read().astype(np.float16), base.tensors[name].read()), name


def config_of(bits, strategy, group_size, symmetric, version="0.20.0", layout="pack-quantized", **changes):
    weights = {"num_bits": bits, "strategy": strategy, "group_size": group_size, "symmetric": symmetric, "type": "int"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "version": version,
        **changes,
    }


SCALES = {
    "float16": lambda values: values.astype(np.float16),
    "bfloat16": bfloat16,
    "float32": lambda values: values.astype(np.float32),
}


@st.composite
def layers(draw):
    """How a layer is stored: everything the format lets one choose."""
    strategy = draw(st.sampled_from(("group", "channel", "tensor")))
    return {
        "bits": draw(st.integers(1, 8)),
        "strategy": strategy,
        "group_size": draw(st.sampled_from((1, 8, 24, 32, 64, 128))) if strategy == "group" else None,
        "symmetric": draw(st.booleans()),
        "n": draw(st.integers(1, 70)),
        "k": draw(st.integers(1, 200)),
        "scale": draw(st.sampled_from(sorted(SCALES))),
        "straddle": draw(st.booleans()),
        "layout": draw(st.sampled_from(("pack-quantized", "pack-quantized", "int-quantized", "naive-quantized"))),
        "packed_zeros": draw(st.booleans()),
        "order": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def tensors_of(how):
    """The tensors of a random layer, and what they mean: q, zeros (both signed), scales [n, groups], g_idx, bias."""
    rng = np.random.default_rng(how["seed"])
    bits, n, k = how["bits"], how["n"], how["k"]
    half = 1 << (bits - 1)
    groups = -(-k // how["group_size"]) if how["strategy"] == "group" else 1
    shape = (1,) if how["strategy"] == "tensor" else (n, groups)
    q = rng.integers(-half, half, (n, k)).astype(np.int8)
    scale = SCALES[how["scale"]](rng.uniform(0.001, 1.0, shape))
    tensors = {"weight_scale": scale}
    zeros = np.zeros(shape, np.int8)
    if how["layout"] == "pack-quantized":
        tensors["weight_packed"] = pack_rows(q.astype(int) + half, bits, how["straddle"])
        tensors["weight_shape"] = np.array([n, k])
    else:
        tensors["weight"] = q
    if not how["symmetric"]:
        zeros = rng.integers(-half, half, shape).astype(np.int8)
        tensors["weight_zero_point"] = zeros
        if how["layout"] == "pack-quantized" and how["strategy"] != "tensor" and how["packed_zeros"]:
            packed = pack_rows(zeros.T.astype(int) + half, bits, how["straddle"])
            tensors["weight_zero_point"] = np.ascontiguousarray(packed.T)
    g_idx = np.arange(k) // (how["group_size"] or k)
    if how["strategy"] == "group" and how["order"]:
        g_idx = rng.permutation(g_idx)
        tensors["weight_g_idx"] = g_idx.astype(np.int32)
    bias = rng.standard_normal(n).astype(np.float32) if how["bias"] else None
    if bias is not None:
        tensors["bias"] = bias
    spread = (n, groups)
    scales = np.broadcast_to(float32_of(scale).reshape(shape if len(shape) == 2 else (1, 1)), spread)
    zeros = np.broadcast_to(zeros.reshape(shape if len(shape) == 2 else (1, 1)), spread)
    return tensors, q, zeros, scales, g_idx, bias


BASE = {
    "bits": 4,
    "strategy": "group",
    "group_size": 32,
    "symmetric": False,
    "n": 24,
    "k": 96,
    "scale": "bfloat16",
    "straddle": True,
    "layout": "pack-quantized",
    "packed_zeros": True,
    "order": False,
    "bias": True,
    "seed": 0,
}


@given(how=layers())
@example(how={**BASE, "bits": 3, "straddle": False, "order": True})
@example(how={**BASE, "bits": 3, "n": 64, "k": 20, "straddle": True})  # both layouts have two words: the version tells
@example(how={**BASE, "bits": 3, "n": 64, "k": 20, "straddle": False, "packed_zeros": False})
def test_layers_written_from_the_rules(how, tmp_path_factory):
    tensors, q, zeros, scales, g_idx, bias = tensors_of(how)
    version = "0.20.0" if how["straddle"] else "0.10.2"
    config = config_of(*(how[key] for key in ("bits", "strategy", "group_size", "symmetric")), version, how["layout"])
    folder = write_model(
        tmp_path_factory.mktemp("model"), {f"{NAME}.{part}": value for part, value in tensors.items()}, config
    )
    checkpoint = open_checkpoint(folder)
    layer = checkpoint.layers[NAME]
    codes = layer.read()
    half = 1 << (how["bits"] - 1)
    order = np.arange(how["k"]) if codes.perm is None else codes.perm
    assert np.array_equal(codes.codes, q[:, order].astype(int) + half)
    assert np.array_equal(codes.scales.astype(np.float32), scales)
    if how["symmetric"]:
        assert codes.zeros is None
        assert codes.spec.fixed_zero == half
    else:
        assert np.array_equal(codes.zeros, zeros.astype(int) + half)
    weight = (q.astype(np.float32) - zeros[:, g_idx].astype(np.float32)) * scales[:, g_idx]
    assert np.array_equal(codes.dequantize(), weight)
    assert codes.bias is None if bias is None else np.array_equal(codes.bias, bias)
    assert layer.spec.replace(scale_format=codes.spec.scale_format) == codes.spec
    assert codes.scales.dtype == (np.float32 if how["scale"] == "float32" else np.float16)
    assert layer.nbytes == sum(
        value.bits.nbytes if isinstance(value, Raw) else value.nbytes for value in tensors.values()
    )
    assert not checkpoint.tensors


def test_scales_that_are_no_f16_stay_f32(tmp_path):
    tensors, *_ = tensors_of(BASE)
    tensors["weight_scale"] = bfloat16(np.full((24, 3), 2.0**-40))
    folder = write_model(tmp_path, prefixed(tensors), config_of(4, "group", 32, False))
    codes = open_checkpoint(folder).layers[NAME].read()
    assert codes.spec.scale_format == "f32"
    assert (codes.scales == np.float32(2.0**-40)).all()


def test_g_idx_of_minus_one_says_that_there_is_no_order(tmp_path):
    tensors, q, *_ = tensors_of(BASE)
    tensors["weight_g_idx"] = np.full(96, -1, np.int32)
    folder = write_model(tmp_path, prefixed(tensors), config_of(4, "group", 32, False))
    codes = open_checkpoint(folder).layers[NAME].read()
    assert codes.perm is None
    assert np.array_equal(codes.codes, q.astype(int) + 8)


def prefixed(tensors, name=NAME):
    return {f"{name}.{part}": value for part, value in tensors.items()}


def test_every_layer_has_the_scheme_of_its_group(tmp_path):
    """A name comes before a pattern, a pattern before a class; mixed formats and embeddings are told apart."""
    expected = {
        "model.layers.0.mlp.down_proj": 8,
        "model.layers.0.self_attn.q_proj": 3,
        "model.layers.0.self_attn.k_proj": 5,
        "model.layers.1.mlp.up_proj": 4,
        "model.embed_tokens": 6,
    }
    tensors = {}
    for seed, (name, bits) in enumerate(expected.items()):
        layout = "int-quantized" if bits == 8 else "pack-quantized"
        tensors.update(prefixed(tensors_of({**BASE, "bits": bits, "layout": layout, "seed": seed})[0], name))
    config = config_of(4, "group", 32, False, layout="mixed-precision")
    base = config["config_groups"]["group_0"]

    def group(bits, targets, layout="pack-quantized"):
        return {**base, "targets": targets, "format": layout, "weights": {**base["weights"], "num_bits": bits}}

    config["config_groups"] = {
        "a": group(4, ["Linear"]),
        "b": group(3, ["re:.*self_attn.*"]),
        "c": group(5, ["model.layers.0.self_attn.k_proj"]),
        "d": group(8, [r"re:.*layers\.0\.mlp\.(up|down)_proj"], "int-quantized"),
        "e": group(6, ["Embedding"]),
    }
    checkpoint = open_checkpoint(write_model(tmp_path, tensors, config))
    assert {name: layer.spec.bits for name, layer in checkpoint.layers.items()} == expected
    assert {name for name, layer in checkpoint.layers.items() if layer.kind == "embedding"} == {"model.embed_tokens"}
    for layer in checkpoint.layers.values():
        assert layer.read().spec.bits == layer.spec.bits


def broken(tmp_path, tensors=(), **changes):
    """A model of one layer with some tensors replaced (None: missing) and some settings changed, opened and read."""
    parts = {**tensors_of(BASE)[0], **dict(tensors)}
    config = config_of(4, "group", 32, False)
    weights = config["config_groups"]["group_0"]["weights"]
    for key, value in changes.items():
        if key in weights:
            weights[key] = value
        elif key in ("input_activations", "output_activations", "targets", "weights"):
            config["config_groups"]["group_0"][key] = value
        else:
            config[key] = value
    folder = write_model(tmp_path, prefixed({key: value for key, value in parts.items() if value is not None}), config)
    for layer in open_checkpoint(folder).layers.values():
        layer.read()


def test_the_model_that_is_broken_below_is_whole(tmp_path):
    broken(tmp_path)


INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"input_activations": INT8},
            r"input_activations: .* found input_activations of 8 bits \(int, dynamic, strategy",
        ),
        ({"output_activations": FP8}, r"found output_activations of 8 bits \(float, static, strategy tensor\)"),
        ({"type": "float"}, r"weights: expected integers of 1 to 8 bits, found 4 bits \(float"),
        ({"num_bits": 9}, "expected integers of 1 to 8 bits, found 9 bits"),
        ({"num_bits": True}, "expected integers of 1 to 8 bits"),
        ({"format": "marlin-24"}, "format: expected pack-quantized or .* found 'marlin-24'"),
        ({"format": "float-quantized"}, f"for {NAME}, found 'float-quantized'"),
        ({"format": "nvfp4-pack-quantized"}, "found 'nvfp4-pack-quantized'"),
        ({"format": None}, "format: expected str, found None"),
        ({"strategy": "block"}, "weights.strategy: expected group or channel or tensor, found 'block'"),
        ({"strategy": "attn_head"}, "found 'attn_head'"),
        ({"group_size": None}, "weights.group_size: expected a number of columns, found None"),
        ({"group_size": 2**31}, "weights.group_size: expected a number of columns or -1, found 2147483648"),
        ({"group_size": 64}, r"weight_scale: expected shape \[24, 2\], found \[24, 3\]"),
        ({"symmetric": "no"}, "weights.symmetric: expected true or false, found 'no'"),
        ({"weights": None}, f"weights: expected how {NAME} is quantized, found None"),
        ({"targets": "Linear"}, "targets: expected a list of names, found 'Linear'"),
        ({"targets": ["re:("]}, r"'\(' ends too early"),
        ({"targets": ["re:(?<=a)b"]}, "unknown kind of group"),
        ({"config_groups": {}}, "config_groups: expected at least one group"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "config_groups.W4A16: expected a scheme"),
        ({"config_groups": [1]}, "config_groups: expected dict"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "expected dense weights, found 'sparse-24-bitmask'"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "expected weights that are not transformed"),
        ({"kv_cache_scheme": FP8}, r"expected a cache that is not quantized, found 8 bits \(float"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_configuration_that_is_not_supported(tmp_path, changes, message):
    with pytest.raises(FormatError, match=message) as error:
        broken(tmp_path, **changes)
    assert str(tmp_path) in str(error.value)


def test_a_layer_that_no_group_describes(tmp_path):
    config = config_of(4, "group", 32, False)
    group = config["config_groups"]["group_0"]
    config["config_groups"] = {"a": {**group, "targets": ["lm_head"]}, "b": {**group, "targets": ["re:.*q_proj"]}}
    folder = write_model(tmp_path, prefixed(tensors_of(BASE)[0]), config)
    with pytest.raises(FormatError, match=f"expected a group for {NAME}"):
        open_checkpoint(folder)


NAN = np.where(np.arange(72).reshape(24, 3) == 40, np.nan, 1.0)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("weight_packed", None, "expected this tensor, but it is missing"),
        ("weight_packed", np.zeros((24, 12), np.int64), "expected I32, found I64"),
        (
            "weight_packed",
            np.zeros((24, 11), np.int32),
            r"weight_shape \[24, 96\] in codes of 4 bits, found \[24, 11\]",
        ),
        (
            "weight_packed",
            np.zeros((23, 12), np.int32),
            r"weight_shape \[24, 96\] in codes of 4 bits, found \[23, 12\]",
        ),
        ("weight_packed", np.zeros((1, 24, 12), np.int32), r"expected shape \[\?, \?\], found \[1, 24, 12\]"),
        ("weight_scale", None, "expected this tensor, but it is missing"),
        ("weight_scale", np.zeros((24, 3), np.int32), "expected F32 or F16 or BF16, found I32"),
        ("weight_scale", Raw("F8_E4M3", np.zeros((24, 3), np.uint8)), "expected F32 or F16 or BF16, found F8_E4M3"),
        ("weight_scale", np.ones((24, 1), np.float32), r"expected shape \[24, 3\], found \[24, 1\]"),
        ("weight_scale", np.ones(24, np.float32), r"expected shape \[24, 3\], found \[24\]"),
        ("weight_scale", NAN.astype(np.float32), "expected finite numbers, found nan at 40"),
        ("weight_scale", bfloat16(np.where(np.isnan(NAN), np.inf, NAN)), "expected finite numbers, found inf at 40"),
        ("weight_shape", None, "expected this tensor, but it is missing"),
        ("weight_shape", np.array([24, 97]), "weight_packed: expected weight_shape"),
        ("weight_shape", np.array([24, 2**62]), "weight_packed: expected weight_shape"),
        ("weight_shape", np.array([-24, 96]), r"expected rows and columns, found \[-24, 96\]"),
        ("weight_shape", np.array([24, 96, 1]), r"expected shape \[2\], found \[3\]"),
        ("weight_zero_point", None, "expected this tensor, but it is missing"),
        ("weight_zero_point", np.zeros((4, 3), np.int32), r"expected shape \[3, 3\], found \[4, 3\]"),
        ("weight_zero_point", np.zeros((24, 3), np.float32), "expected I8, found F32"),
        ("weight_zero_point", np.full((24, 3), 8, np.int8), "expected integers of 4 bits, found 8 to 8"),
        ("weight_g_idx", np.full(96, 3, np.int32), "expected groups from 0 to 2, found group 3 at column 0"),
        ("weight_g_idx", np.full(96, 1, np.int32), "expected 32 columns in group 0, found 0"),
        ("weight_g_idx", np.zeros(95, np.int32), r"expected shape \[96\], found \[95\]"),
        ("weight_g_idx", np.zeros(96, np.float32), "expected I32 or I64, found F32"),
        ("bias", np.zeros(23, np.float32), r"expected shape \[24\], found \[23\]"),
    ],
)
def test_a_tensor_that_is_not_what_it_should_be(tmp_path, part, value, message):
    with pytest.raises(FormatError, match=message) as error:
        broken(tmp_path, {part: value})
    assert str(tmp_path) in str(error.value)
    assert NAME in str(error.value)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.full((24, 96), 8, np.int8), "weight: expected integers of 4 bits, found 8 to 8"),
        (np.zeros((24, 96), np.float16), "weight: expected I8, found F16"),
        (Raw("F8_E4M3", np.zeros((24, 96), np.uint8)), "weight: expected I8, found F8_E4M3"),
        (np.zeros((24, 96, 1), np.int8), r"weight: expected shape \[\?, \?\], found \[24, 96, 1\]"),
        (np.zeros((0, 96), np.int8), "expected at least one row and one column"),
    ],
)
def test_an_int8_weight_that_is_not_what_it_should_be(tmp_path, weight, message):
    parts = {"weight": weight, "weight_packed": None, "weight_shape": None, "weight_zero_point": None}
    with pytest.raises(FormatError, match=message):
        broken(tmp_path, parts, format="naive-quantized", symmetric=True)
