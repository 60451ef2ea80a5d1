"""Checkpoints of every format through the loader, with a builder that records what it is given."""

import json

import numpy as np
import pytest
import torch
from recording_builder import RecordingBuilder
from runtime_models import FAMILIES, config_of, model_of
from safetensors.torch import load_file, save_file

import tmac
from tmac import FormatError, QuantConfig, _core, cli
from tmac.formats import open_checkpoint
from tmac.runtime import loading, low_bits
from tmac.runtime.loading import load_weights, open_model
from tmac.runtime.low_bits import low_bit_spec

WITH_MODEL = (
    "base256-fp16",
    "gptq-w2g64-sym",
    "gptq-w3g64-by-autoround",
    "gptq-w3g64-sym",
    "gptq-w4g64-asym-descact-v1",
    "gptq-w4g64-sym",
    "gptq-w8-perchannel",
    "autoround-w4g64-autoround_auto_gptq",
    "autoround-w4g64-autoround_auto_awq",
    "awq-w4g64-gemm",
    "ct-w4g64-asym-packq",
    "ct-w4g128-sym-packq",
    "bitnet-bitlinear",
    "bitnet-autobitlinear-offline",
    "gguf/base-Q2_K.gguf",
    "gguf/base-Q4_0.gguf",
    "gguf/base-Q4_1.gguf",
    "gguf/base-Q4_K_S.gguf",
    "gguf/base-Q6_K.gguf",
    "gguf/base-TQ1_0.gguf",
    "gguf/base-TQ2_0.gguf",
    "gguf/base-f16.gguf",
    "gguf/tern-i2_s.gguf",
)


def load(path, **options):
    opened = open_model(path)
    builder = RecordingBuilder(opened.description.config)
    load_weights(opened, builder, **options)
    return opened, builder


def by_runtime_names(opened, model):
    """(weight of the runtime, module of the Hugging Face model) of every weight but experts."""
    modules = dict(model.named_modules())
    for place in opened.places:
        for source in place.weight.sources:
            if source in modules:
                yield place, modules[source]
                break


def dense(module):
    """The float weight of a module of any kind."""
    return (module.dequantize() if hasattr(module, "dequantize") else module.weight).detach().float().numpy()


@pytest.mark.parametrize("name", WITH_MODEL)
def test_every_format(fixtures_dir, name):
    """Numbers, biases and activations are those of the Hugging Face model with low-bit layers."""
    opened, built = load(fixtures_dir / name)
    model = tmac.from_pretrained(fixtures_dir / name, dtype=torch.float32)
    assert built.names == {place.name for place in opened.places}
    seen = 0
    for place, module in by_runtime_names(opened, model):
        if place.weight.part == "bias":
            continue
        np.testing.assert_array_equal(built.values(place.name), dense(module), err_msg=place.name)
        bias = getattr(module, "bias", None)
        if bias is not None:
            np.testing.assert_array_equal(built.biases[place.name], bias.detach().float().numpy())
        else:
            assert place.name not in built.biases
        if place.name in built.packed:
            assert built.spec(place.name) == module.spec
        seen += 1
    assert seen == len(built.names)
    assert any(built.packed) != name.endswith(("fp16", "base-f16.gguf"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_as_floats_and_in_our_format(tmp_path, family):
    model = model_of(config_of(family))
    model.save_pretrained(tmp_path / "float")
    low = tmac.quantize_(model, QuantConfig(bits=4, group_size=16, embedding_bits=4))
    low.save_pretrained(tmp_path / "low")
    plain, built_plain = load(tmp_path / "float")
    opened, built = load(tmp_path / "low")
    assert built_plain.packed == {}
    assert plain.description.config == opened.description.config
    for place, module in by_runtime_names(opened, low):
        if place.weight.part == "bias":
            np.testing.assert_array_equal(built.values(place.name), module.bias.detach().numpy())
        elif len(place.weight.shape) == 1:
            expected = dense(module) + np.float32(place.weight.shift)
            np.testing.assert_array_equal(built.values(place.name), expected)
        else:
            np.testing.assert_array_equal(built.values(place.name), dense(module), err_msg=place.name)
            close = built_plain.values(place.name)
            assert np.abs(built.values(place.name) - close).max() < 0.1 * np.abs(close).max() + 1e-6
    experts = [place for place in opened.places if ".experts." in place.name]
    assert bool(experts) == opened.description.config["num_experts"].__bool__()
    for place in experts:
        assert place.name in built.packed
        error = np.abs(built.values(place.name) - built_plain.values(place.name)).max()
        assert error < 0.1 * np.abs(built_plain.values(place.name)).max()


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe"])
def test_experts_in_one_float_tensor(tmp_path, family):
    """As a model's state dict has them, which tools write that do not know the names of the hub."""
    model = model_of(config_of(family))
    model.save_pretrained(tmp_path / "hub")
    folder = tmp_path / "fused"
    folder.mkdir()
    save_file({name: each.clone() for name, each in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text((tmp_path / "hub" / "config.json").read_text())
    _, hub = load(tmp_path / "hub")
    _, fused = load(folder)
    assert hub.names == fused.names
    for name in hub.names:
        np.testing.assert_array_equal(hub.values(name), fused.values(name))
    experts = [name for name in fused.names if ".experts." in name]
    assert experts
    assert all(fused.floats[name][0].base is not None for name in experts)  # views


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floats_stay_as_they_are_stored(tmp_path, dtype):
    model_of(config_of("Llama")).to(dtype).save_pretrained(tmp_path)
    _, built = load(tmp_path)
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    tensors = load_file(tmp_path / "model.safetensors")
    assert built.floats["layers.1.up"][1] == names[dtype]
    assert built.floats["layers.1.input_norm"][1] == "F32"
    stored = tensors["model.layers.1.mlp.up_proj.weight"].float().numpy()
    np.testing.assert_array_equal(built.values("layers.1.up"), stored)
    np.testing.assert_array_equal(built.biases["layers.1.up"], tensors["model.layers.1.mlp.up_proj.bias"].float())


@pytest.mark.parametrize(
    ("tied", "head_bits", "embedding_bits", "packed"),
    [
        (False, None, None, {}),
        (False, 8, None, {"head": 8}),
        (False, 8, 4, {"head": 8, "embedding": 4}),
        (True, None, None, {}),
        (True, 8, None, {"head": 8}),
        (True, None, 6, {"embedding": 6}),
        (True, 6, 6, {"embedding": 6}),
        (True, 8, 4, {"head": 8, "embedding": 4}),
    ],
)
def test_low_bit_heads_and_embeddings(tmp_path, tied, head_bits, embedding_bits, packed):
    """As `tmac.from_pretrained` rounds them: a tied pair has one table unless the bits differ."""
    model = model_of(config_of("Llama", tie_word_embeddings=tied))
    tmac.quantize_(model, QuantConfig(bits=4)).save_pretrained(tmp_path)
    options = {"head_bits": head_bits, "embedding_bits": embedding_bits}
    _, built = load(tmp_path, **options, activation="token")
    found = {name: built.spec(name).bits for name in ("head", "embedding") if name in built.packed}
    assert found == packed
    assert ("head" in built.names) == (not tied or "head" in packed)
    weight = model.model.embed_tokens.weight.detach().numpy()
    for name, width in packed.items():
        spec = low_bit_spec(width, "token")
        source = weight if tied or name == "embedding" else model.lm_head.weight.detach().numpy()
        np.testing.assert_array_equal(built.values(name), tmac.round_to_nearest(source, spec).dequantize())
        assert built.spec(name) == spec
    hf = tmac.from_pretrained(tmp_path, **options)
    for name, module in (("head", hf.lm_head), ("embedding", hf.model.embed_tokens)):
        if name in packed:
            np.testing.assert_array_equal(built.values(name), module.dequantize().numpy())


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_pair_that_is_written_twice(tmp_path, same):
    model_of(config_of("Llama", tie_word_embeddings=True)).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head if same else head + 1}, path)
    assert ("head" in load(tmp_path)[1].names) != same
    del tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": head}, path)  # transformers takes the one that is there
    _, built = load(tmp_path)
    assert "head" not in built.names
    np.testing.assert_array_equal(built.values("embedding"), head)


@pytest.mark.parametrize("activation", ["group", "token", "float"])
def test_another_activation(fixtures_dir, tmp_path, activation):
    tmac.quantize_(model_of(config_of("Llama")), QuantConfig(bits=4)).save_pretrained(tmp_path)
    for path in (tmp_path, fixtures_dir / "gptq-w4g64-sym"):
        _, built = load(path, activation=activation, head_bits=8)
        assert {built.spec(name).activation for name in built.packed} == {activation}
        _, usual = load(path)
        for name in usual.packed:
            np.testing.assert_array_equal(built.values(name), usual.values(name))


def test_bitnet_layers_that_normalize_their_input(fixtures_dir, tmp_path):
    config = json.loads((fixtures_dir / "bitnet-bitlinear" / "config.json").read_text())
    config["quantization_config"].update(use_rms_norm=True, rms_norm_eps=1e-3)
    tensors = load_file(fixtures_dir / "bitnet-bitlinear" / "model.safetensors")
    layers = open_checkpoint(fixtures_dir / "bitnet-bitlinear").layers
    tensors |= {f"{name}.rms_norm.weight": torch.rand(layer.in_features) for name, layer in layers.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    opened, built = load(tmp_path)
    assert built.config["input_norm_eps"] == opened.description.config["input_norm_eps"] == 1e-3
    weight = tensors["model.layers.0.mlp.up_proj.rms_norm.weight"]
    np.testing.assert_array_equal(built.values("layers.0.up.input_norm"), weight)
    assert len([name for name in built.names if name.endswith(".input_norm")]) == 1 + len(layers)
    del tensors["model.layers.0.mlp.up_proj.rms_norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=r"up_proj\.rms_norm\.weight"):
        open_model(tmp_path)


def test_zero_biases_that_the_model_does_not_have_are_dropped(fixtures_dir, tmp_path):
    source = fixtures_dir / "gptq-w4g64-sym"
    tensors = load_file(source / "model.safetensors")
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    for value, kept in ((0.0, False), (1.0, True)):
        bias = {"model.layers.0.mlp.up_proj.bias": torch.full((512,), value, dtype=torch.float16)}
        save_file(tensors | bias, tmp_path / "model.safetensors")
        assert ("layers.0.up" in load(tmp_path)[1].biases) == kept


def changed(folder, tmp_path, remove=(), add=None, **config):
    """A copy of a checkpoint with other tensors and settings."""
    tensors = load_file(folder / "model.safetensors")
    for name in remove:
        del tensors[name]
    save_file(tensors | (add or {}), tmp_path / "model.safetensors")
    content = json.loads((folder / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remove": ["model.norm.weight"]}, r"model\.norm\.weight: expected this tensor \(final_norm\)"),
        ({"remove": ["lm_head.weight"]}, r"lm_head\.weight: expected this tensor \(head\)"),
        ({"add": {"model.more": torch.ones(2)}}, r"model\.more: expected only tensors of this model"),
        ({"add": {"model.norm.weight": torch.ones(3)}}, r"model\.norm\.weight: expected shape \[256\], found \[3\]"),
        ({"add": {"model.norm.weight": torch.ones(256, dtype=torch.int32)}}, "expected F32, F16, BF16, F64, found I32"),
        ({"intermediate_size": 500}, r"expected shape \[500, 256\], found \[512, 256\]"),
        ({"num_hidden_layers": 2}, r"model\.layers\.1\.\S+: expected this tensor \(layers\.1\.q\)"),
        ({"num_hidden_layers": 1000}, "num_hidden_layers: expected the tensors of 1000, found 12 tensors"),
        ({"attention_bias": True}, r"self_attn\.q_proj: expected a bias, found none"),
        ({"model_type": "mamba"}, r"the engine decodes llama, .*tmac\.from_pretrained"),
        ({"hidden_act": "xielu"}, "hidden_act: expected one of silu"),
    ],
)
def test_what_does_not_fit_is_named(fixtures_dir, tmp_path, options, message):
    folder = changed(fixtures_dir / "base256-fp16", tmp_path, **options)
    with pytest.raises(FormatError, match=message) as caught:
        open_model(folder)
    assert str(tmp_path) in str(caught.value)


def test_a_file_that_became_shorter(fixtures_dir, tmp_path):
    folder = changed(fixtures_dir / "base256-fp16", tmp_path)
    opened = open_model(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(FormatError, match="became shorter"):
        load_weights(opened, RecordingBuilder({}))


def test_arguments_without_a_meaning(fixtures_dir):
    base = fixtures_dir / "base256-fp16"
    with pytest.raises(ValueError, match="bits"):
        load(base, head_bits=9)
    with pytest.raises(ValueError, match="requantize is for GGUF files"):
        open_model(base, requantize="all")
    with pytest.raises(FileNotFoundError):
        open_model(base / "nowhere")
    with pytest.raises(FormatError, match=r"expected a config\.json that names the model"):
        open_model(fixtures_dir / "hqq-w4g64")


def test_floats_that_cannot_be_rounded(fixtures_dir, tmp_path):
    broken = torch.full((320, 256), float("nan"), dtype=torch.float16)
    folder = changed(fixtures_dir / "base256-fp16", tmp_path, add={"lm_head.weight": broken})
    with pytest.raises(ValueError, match=r"lm_head\.weight cannot be rounded"):
        load(folder, head_bits=8)


def assert_same_in_blocks(monkeypatch, path, **options):
    """Row blocks, read by one thread and by several, give the bytes of the whole weights."""
    _, at_once = load(path, **options)
    monkeypatch.setattr(low_bits, "BLOCK", 1 << 11)
    for large in (loading.LARGE_BY_ROWS, 0):
        monkeypatch.setattr(loading, "LARGE_BY_ROWS", large)
        for most in (low_bits.MOST, 0):  # blocks of 64 rows, and of 8
            monkeypatch.setattr(low_bits, "MOST", most)
            _, in_blocks = load(path, **options)
            assert at_once.packed.keys() == in_blocks.packed.keys()
            for name, buffer in at_once.packed.items():
                np.testing.assert_array_equal(in_blocks.packed[name], buffer, err_msg=name)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K_S", "Q6_K", "TQ2_0", "Q2_K"])
def test_layers_of_gguf_files_are_packed_some_rows_at_a_time(fixtures_dir, monkeypatch, kind):
    assert_same_in_blocks(monkeypatch, fixtures_dir / "gguf" / f"base-{kind}.gguf", activation="token")


@pytest.mark.parametrize("kind", ["Q4_K_S", "TQ2_0"])
def test_layers_of_our_format_are_packed_some_rows_at_a_time(fixtures_dir, tmp_path, monkeypatch, kind):
    assert cli.main(["convert", str(fixtures_dir / "gguf" / f"base-{kind}.gguf"), str(tmp_path / "ours")]) == 0
    assert_same_in_blocks(monkeypatch, tmp_path / "ours")


def test_floats_are_rounded_some_rows_at_a_time(fixtures_dir, monkeypatch):
    base = fixtures_dir / "base256-fp16"
    _, at_once = load(base, head_bits=5)
    monkeypatch.setattr(low_bits, "BLOCK", 1 << 11)
    np.testing.assert_array_equal(load(base, head_bits=5)[1].packed["head"], at_once.packed["head"])


@pytest.mark.parametrize("name", ["gptq-w4g64-sym", "gguf/base-Q4_0.gguf", "base256-fp16"])
def test_weights_whose_leading_planes_can_be_read_alone(fixtures_dir, name):
    options = {"head_bits": 4} if name == "base256-fp16" else {}
    _, plain = load(fixtures_dir / name, **options)
    _, apart = load(fixtures_dir / name, plane_layout=True, **options)
    assert plain.packed.keys() == apart.packed.keys()
    assert plain.packed
    drafts = []
    for each, buffer in apart.packed.items():
        codes = tmac.Codes.from_buffer(buffer)
        assert np.array_equal(codes.codes, tmac.Codes.from_buffer(plain.packed[each]).codes)
        described = _core.describe(buffer)
        assert described["kernel"] == _core.describe(plain.packed[each])["kernel"]
        if codes.spec.bits == 4:
            drafts.append(described["layout"])
    assert drafts
    assert not {"nibbles", "wide_nibbles"} & set(drafts)
