"""GPTQ checkpoints written from the rules, with every setting that changes their tensors."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed_models import (
    gptq_tensors,
    less_one,
    planar,
    random_groups,
    random_layer,
    stream,
    to_bf16,
    weight_of,
    write_file,
    write_model,
)

from tmac import FormatError
from tmac.formats import open_checkpoint

NAME = "model.layers.0.mlp.up_proj"
CONFIG = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}


def model(folder, bits=4, group_size=32, sym=False, n=48, k=96, config=None, rng=None, **others):
    """One layer in a folder; (folder, the weight that it stands for)."""
    codes, zeros, scales = random_layer(rng or np.random.default_rng(0), n, k, bits, group_size, sym)
    group_of = others.get("g_idx")
    if group_of is None:
        group_of = np.arange(k) // (k if group_size == -1 else group_size)
    config = {**CONFIG, "bits": bits, "group_size": group_size, "sym": sym, **(config or {})}
    write_model(folder, gptq_tensors(NAME, codes, zeros, scales, bits, **others), config)
    return folder, weight_of(codes, zeros, scales, group_of)


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([-1, 1, 7, 16, 32, 64, 100, 128, 1024]),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 300)),
    version=st.sampled_from(["gptq", "gptq_v2"]),
    groups=st.sampled_from(["absent", "in order", "by activation"]),
    sym=st.booleans(),
    bias=st.booleans(),
    scale_type=st.sampled_from(["f16", "f32", "bf16"]),
    shards=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32),
)
def test_any_layer_reads_back(
    tmp_path_factory, bits, group_size, shape, version, groups, sym, bias, scale_type, shards, seed
):
    rng = np.random.default_rng(seed)
    n, k = shape
    if groups == "absent":
        k = -(-k // 32) * 32  # nothing else tells where the last word ends
    codes, zeros, scales = random_layer(rng, n, k, bits, group_size, sym)
    group_of = np.arange(k, dtype=np.int32) // (k if group_size == -1 else group_size)
    if groups == "by activation":
        group_of = random_groups(rng, k, group_size)
    stored = scales
    if scale_type != "f16":
        scales = rng.standard_normal(scales.shape).astype(np.float32)
        stored = scales
    if scale_type == "bf16":
        stored = to_bf16(scales)
        scales = (stored.astype(np.uint32) << 16).view(np.float32)
    offsets = rng.standard_normal(n).astype(np.float16) if bias else None
    tensors = gptq_tensors(
        NAME,
        codes,
        zeros,
        stored,
        bits,
        pack_zeros=less_one if version == "gptq" else stream,
        g_idx=None if groups == "absent" else group_of.astype(np.int32),
        bias=offsets,
    )
    norm = rng.standard_normal(k).astype(np.float32)
    config = {**CONFIG, "bits": bits, "group_size": group_size, "sym": sym, "checkpoint_format": version}
    folder = write_model(tmp_path_factory.mktemp("gptq"), {**tensors, "model.norm.weight": norm}, config, shards)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "gptq"
    assert list(checkpoint.layers) == [NAME]
    assert list(checkpoint.tensors) == ["model.norm.weight"]
    np.testing.assert_array_equal(checkpoint.tensors["model.norm.weight"].read(), norm)
    layer = checkpoint.layers[NAME]
    assert (layer.out_features, layer.in_features, layer.bias) == (n, k, bias)
    assert layer.nbytes == sum(array.nbytes for array in tensors.values())
    read = layer.read()
    assert read.spec.replace(scale_format=layer.spec.scale_format) == layer.spec
    assert scale_type != "f16" or read.spec == layer.spec
    assert (read.spec.zero_point, read.zeros is None) == (("fixed", True) if sym else ("integer", False))
    np.testing.assert_array_equal(read.dequantize(), weight_of(codes, zeros, scales, group_of))
    in_order = codes if read.perm is None else codes[:, read.perm]
    np.testing.assert_array_equal(read.codes, in_order)
    assert (read.perm is None) == bool((np.diff(group_of) >= 0).all())
    if bias:
        np.testing.assert_array_equal(read.bias, offsets.astype(np.float32))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_codes_in_planes_are_joined(tmp_path, bits):
    codes, zeros, scales = random_layer(np.random.default_rng(1), 64, 160, bits, 64)
    config = {**CONFIG, "bits": bits, "group_size": 64, "checkpoint_format": "gptq_p"}
    tensors = gptq_tensors(NAME, codes, zeros, scales, bits, pack=planar, pack_zeros=planar)
    read = open_checkpoint(write_model(tmp_path, tensors, config)).layers[NAME].read()
    np.testing.assert_array_equal(read.dequantize(), weight_of(codes, zeros, scales, np.arange(160) // 64))


def test_planes_as_gptqmodel_packs_them():
    """Words that gptqmodel 7.6's planar_pack_rows made of codes 0 to 31 in 5 bits."""
    codes = np.arange(32)[None]
    words = planar(codes, 5).view(np.uint32)[0]
    assert [hex(word) for word in words] == ["0x76543210", "0xfedcba98", "0x76543210", "0xfedcba98", "0xffff0000"]


def test_symmetric_zeros_that_are_not_in_the_middle_stay_what_they_are(tmp_path):
    codes, zeros, scales = random_layer(np.random.default_rng(2), 8, 64, 4, 32)
    folder = write_model(tmp_path, gptq_tensors(NAME, codes, zeros, scales, 4), {**CONFIG, "sym": True})
    layer = open_checkpoint(folder).layers[NAME]
    assert layer.spec.zero_point == "fixed"
    read = layer.read()
    assert read.spec.zero_point == "integer"
    np.testing.assert_array_equal(read.zeros, zeros)
    np.testing.assert_array_equal(read.dequantize(), weight_of(codes, zeros, scales, np.arange(64) // 32))


def test_a_zero_of_nothing_borrows_from_the_next_and_gives_it_back(tmp_path):
    """As the fixture of the first version stores them: packed words less 0x11111111."""
    zeros = np.array([[0], [8], [0], [15], [1], [0], [0], [0]])
    codes = np.arange(8 * 8).reshape(8, 8) % 16
    tensors = gptq_tensors(NAME, codes, zeros, np.ones((8, 1), np.float16), 4)
    assert hex(int(tensors[f"{NAME}.qzeros"].view(np.uint32)[0, 0])) == hex((0x0001F080 - 0x11111111) % 2**32)
    folder = write_model(tmp_path, tensors, {**CONFIG, "group_size": -1})
    np.testing.assert_array_equal(open_checkpoint(folder).layers[NAME].read().zeros, zeros)


def test_dynamic_says_what_single_modules_have(tmp_path):
    rng = np.random.default_rng(3)
    dynamic = {
        "-:.*gate.*": {},
        r"+:.*\.1\..*down_proj": {"bits": 8, "group_size": -1, "sym": True},
        r".*\.down_proj": {"bits": 2},
        r"+:.*\.1\.": {"group_size": 64},
        "lm_head": {"bits": 3, "group_size": 128},
    }
    wanted = {
        "model.layers.0.down_proj": (2, 32, False),
        "model.layers.1.down_proj": (8, -1, True),
        "model.layers.1.up_proj": (4, 64, False),
        "model.layers.0.up_proj": (4, 32, False),
        "lm_head": (3, 128, False),
        "model.lm_head.up_proj": (4, 32, False),  # patterns begin at the start
    }
    tensors, weights = {}, {}
    for name, (bits, group_size, sym) in wanted.items():
        codes, zeros, scales = random_layer(rng, 32, 192, bits, group_size, sym)
        tensors |= gptq_tensors(name, codes, zeros, scales, bits)
        weights[name] = weight_of(codes, zeros, scales, np.arange(192) // (192 if group_size == -1 else group_size))
    tensors["model.layers.0.gate.weight"] = np.ones((8, 192), np.float16)
    checkpoint = open_checkpoint(write_model(tmp_path, tensors, {**CONFIG, "dynamic": dynamic}))
    assert list(checkpoint.tensors) == ["model.layers.0.gate.weight"]
    for name, (bits, group_size, sym) in wanted.items():
        spec = checkpoint.layers[name].spec
        assert (spec.bits, spec.group_size, spec.zero_point == "fixed") == (bits, group_size, sym), name
        np.testing.assert_array_equal(checkpoint.layers[name].read().dequantize(), weights[name])


def test_files_of_old_autogptq(tmp_path):
    """quantize_config.json beside a file of another name, and nothing in config.json."""
    folder, weight = model(tmp_path)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-32g.safetensors")
    old = {"bits": 4, "group_size": 32, "damp_percent": 0.01, "desc_act": False, "sym": False, "true_sequential": True}
    (folder / "quantize_config.json").write_text(json.dumps(old))
    np.testing.assert_array_equal(open_checkpoint(folder).layers[NAME].read().dequantize(), weight)


def test_a_group_index_that_is_in_order_leaves_the_columns_alone(tmp_path):
    folder, weight = model(tmp_path, k=100, g_idx=np.arange(100, dtype=np.int32) // 32)
    read = open_checkpoint(folder).layers[NAME].read()
    assert read.perm is None
    np.testing.assert_array_equal(read.dequantize(), weight)


CONFIG_ERRORS = {
    "bits missing": ({"bits": None}, r"config.json: bits: expected int, found None"),
    "bits 9": ({"bits": 9}, r"bits: expected 2 to 8, found 9"),
    "bits as text": ({"bits": "4"}, r"bits: expected int, found '4'"),
    "group size 0": ({"group_size": 0}, r"group_size: expected -1 or at least 1, found 0"),
    "group size huge": ({"group_size": 2**40}, r"group_size: expected -1 or at least 1"),
    "sym no bool": ({"sym": 1}, r"sym: expected bool, found 1"),
    "other bits than the file": ({"bits": 3}, rf"{NAME}.qzeros: expected shape \[4, 5\], found \[3, 6\]"),
    "other groups than the file": ({"group_size": 64}, rf"{NAME}.qzeros: expected shape \[2, 6\], found \[3, 6\]"),
    "marlin": (
        {"checkpoint_format": "marlin"},
        r"checkpoint_format: expected one of gptq, gptq_v2, gptq_p, found 'marl",
    ),
    "exllama": ({"format": "exllama"}, r"format: expected one of gptq, .* found 'exllama'"),
    "old marlin": ({"is_marlin_format": True}, r"found 'marlin'"),
    "format no text": ({"checkpoint_format": 2}, r"checkpoint_format: expected one of gptq"),
    "five bits": ({"bits": 5}, rf"{NAME}: expected 2, 3, 4 or 8 bits, or the format gptq_p, found 5 bits"),
    "rotation": ({"rotation": "hadamard"}, r"rotation: expected weights that are not rotated, found 'hadamard'"),
    "rotation in meta": ({"meta": {"rotation": "random"}}, r"rotation: expected weights that are not rotated"),
    "dynamic no object": ({"dynamic": []}, r"dynamic: expected dict"),
    "dynamic entry no object": ({"dynamic": {"+:a": 4}}, r"dynamic.\+:a: expected an object, found 4"),
    "dynamic no pattern": ({"dynamic": {"+:(": {}}}, r"dynamic: expected a pattern of names"),
    "dynamic bits": ({"dynamic": {"a": {"bits": 0}}}, r"dynamic.a.bits: expected 2 to 8, found 0"),
    "dynamic leaves it": ({"dynamic": {"-:.*up": {}}}, rf"{NAME}: expected a float weight, because dynamic"),
}


@pytest.mark.parametrize("case", CONFIG_ERRORS)
def test_a_configuration_that_is_wrong_is_named(tmp_path, case):
    changes, message = CONFIG_ERRORS[case]
    folder, _ = model(tmp_path, config=changes)
    with pytest.raises(FormatError, match=message):
        open_checkpoint(folder)


def without(part):
    return lambda tensors: tensors.pop(f"{NAME}.{part}")


def changed(part, change):
    return lambda tensors: tensors.update({f"{NAME}.{part}": change(tensors[f"{NAME}.{part}"])})


def poisoned(value):
    def change(scales):
        scales[1, 2] = value
        return scales

    return change


def grouped(*pairs):
    def change(g_idx):
        g_idx[[at for at, _ in pairs]] = [group for _, group in pairs]
        return g_idx

    return change


TENSOR_ERRORS = {
    "no scales": (without("scales"), r"scales: expected this tensor, but it is missing"),
    "no zeros": (without("qzeros"), r"qzeros: expected this tensor, but it is missing"),
    "scales of integers": (
        changed("scales", lambda a: a.astype(np.int32)),
        r"scales: expected F32 or F16 or BF16, found I32",
    ),
    "scales of one group less": (
        changed("scales", lambda a: a[:-1]),
        r"scales: expected shape \[3, 48\], found \[2, 48\]",
    ),
    "scales flat": (changed("scales", lambda a: a.reshape(-1)), r"scales: expected shape \[\?, \?\]"),
    "no outputs": (changed("scales", lambda a: a[:, :0]), r"expected at least one group and output"),
    "codes of floats": (changed("qweight", lambda a: a.astype(np.float32)), r"qweight: expected I32, found F32"),
    "codes of other words": (changed("qweight", lambda a: a.astype(np.int64)), r"qweight: expected I32, found I64"),
    "fewer codes": (changed("qweight", lambda a: a[:-1]), r"qweight: expected shape \[12, 48\], found \[11, 48\]"),
    "fewer outputs": (changed("qweight", lambda a: a[:, 1:]), r"qweight: expected shape \[\?, 48\], found \[12, 47\]"),
    "fewer zeros": (changed("qzeros", lambda a: a[:, 1:]), r"qzeros: expected shape \[3, 6\], found \[3, 5\]"),
    "bias of another length": (changed("bias", lambda a: a[1:]), r"bias: expected shape \[48\], found \[47\]"),
    "bias of integers": (
        changed("bias", lambda a: a.astype(np.int32)),
        r"bias: expected F32 or F16 or BF16, found I32",
    ),
    "index of floats": (changed("g_idx", lambda a: a.astype(np.float32)), r"g_idx: expected I32 or I64, found F32"),
    "index too short": (changed("g_idx", lambda a: a[:-8]), r"qweight: expected shape \[11, 48\], found \[12, 48\]"),
    "index empty": (changed("g_idx", lambda a: a[:0]), r"expected at least one input"),
    "scale NaN": (changed("scales", poisoned(np.nan)), r"scales: expected finite numbers, found nan at"),
    "scale Inf": (changed("scales", poisoned(-np.inf)), r"scales: expected finite numbers, found -inf"),
    "group too large": (
        changed("g_idx", grouped((5, 3))),
        r"g_idx: expected groups from 0 to 2, found group 3 at column 5",
    ),
    "group negative": (
        changed("g_idx", grouped((5, -1))),
        r"g_idx: expected groups from 0 to 2, found group -1 at column 5",
    ),
    "group too full": (changed("g_idx", grouped((5, 2))), r"g_idx: expected 32 columns in group 0, found 31"),
}


@pytest.mark.parametrize("case", TENSOR_ERRORS)
def test_a_tensor_that_is_wrong_is_named(tmp_path, case):
    change, message = TENSOR_ERRORS[case]
    rng = np.random.default_rng(4)
    codes, zeros, scales = random_layer(rng, 48, 96, 4, 32)
    others = {"g_idx": np.arange(96, dtype=np.int32) // 32, "bias": np.ones(48, np.float16)}
    tensors = gptq_tensors(NAME, codes, zeros, scales, 4, **others)
    change(tensors)
    folder = write_model(tmp_path, tensors, CONFIG)
    with pytest.raises(FormatError, match=message) as error:
        open_checkpoint(folder).layers[NAME].read()
    assert str(folder) in str(error.value)
    assert NAME in str(error.value)


def test_a_quantized_model_without_quantized_layers_is_an_error(tmp_path):
    folder = write_model(tmp_path, {"lm_head.weight": np.ones((4, 4), np.float16)}, CONFIG)
    with pytest.raises(FormatError, match=r"\*\.qweight: expected at least one quantized layer, found none"):
        open_checkpoint(folder)


def test_planes_need_whole_blocks(tmp_path):
    tensors = gptq_tensors(NAME, *random_layer(np.random.default_rng(5), 40, 96, 4, 32), 4)
    folder = write_model(tmp_path, tensors, {**CONFIG, "bits": 3, "checkpoint_format": "gptq_p"})
    with pytest.raises(FormatError, match=r"expected multiples of 32 in planes, found 40 outputs and 128 inputs"):
        open_checkpoint(folder)


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(tmp_path):
    folder, _ = model(tmp_path)
    layer = open_checkpoint(folder).layers[NAME]
    write_file(folder / "model.safetensors", {})
    with pytest.raises(FormatError, match="became shorter while it was read"):
        layer.read()
