"""tmac.from_pretrained on the tools' own checkpoints: their logits, and the rounding of the fast mode."""

import json

import numpy as np
import pytest
import torch
from families import IDS, assert_same_state, logits, tiny
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import tmac
from tmac import Codes, QuantConfig, TMACConfig
from tmac.cli import main
from tmac.formats import FormatError
from tmac.nn import QuantEmbedding, QuantExperts, QuantLinear

WITH_LOGITS = (
    "gptq-w4g64-sym",
    "gptq-w2g64-sym",
    "gptq-w3g64-sym",
    "gptq-w4g64-asym-descact-v1",
    "gptq-w8-perchannel",
    "gptq-w3g64-by-autoround",
    "autoround-w4g64-autoround_auto_gptq",
    "autoround-w4g64-autoround_auto_awq",
    "ct-w4g64-asym-packq",
    "ct-w4g128-sym-packq",
    "bitnet-bitlinear",
    "bitnet-autobitlinear-offline",
)


def reference(folder):
    for path in sorted(folder.glob("ref*.npz")):
        arrays = np.load(path)
        if "logits" in arrays:
            return torch.from_numpy(arrays["logits"])
    return None


@pytest.mark.parametrize("name", WITH_LOGITS)
def test_logits_are_those_of_the_tool(fixtures_dir, name):
    """In the exact mode; BitNet's own mode rounds activations, which our lossless ternary kernels do exactly."""
    activation = None if name.startswith("bitnet") else "float"
    model = tmac.from_pretrained(fixtures_dir / name, activation=activation, dtype=torch.float32)
    want = reference(fixtures_dir / name)
    if want is None:
        pytest.fail(f"{name} has no logits")
    got = logits(model, torch.arange(4, 36)[None]).reshape(want.shape)
    assert (got - want).norm() <= 1e-4 * want.norm()
    assert (got - want).abs().max() <= 1e-4 * want.abs().max()


@pytest.mark.parametrize("name", [name for name in WITH_LOGITS if not name.startswith("bitnet")])
@pytest.mark.parametrize("tokens", [9, 32])  # the decoding class, and the one for prompts
def test_fast_mode_rounds_as_the_document_says(fixtures_dir, emulated, name, tokens):
    model = tmac.from_pretrained(fixtures_dir / name, dtype=torch.float32)
    seen = {}
    for module_name, layer in model.named_modules():
        if isinstance(layer, QuantLinear):
            layer.register_forward_hook(
                lambda layer, x, y, name=module_name: seen.update({name: (layer, x[0][0], y[0])})
            )
    logits(model, torch.arange(4, 4 + tokens)[None])
    assert len(seen) >= 7
    for module_name, (layer, x, y) in seen.items():
        kernel = layer.kernel if tokens <= 16 else layer.prompt_kernel
        want = emulated(x, Codes.from_buffer(layer.weight.numpy()), kernel)
        if layer.bias is not None:
            want += layer.bias.double()
        assert (y.double() - want).norm() <= 1e-5 * want.norm(), module_name
        dense = x.double() @ layer.dequantize().double().T
        assert (y.double() - dense).norm() > 1e-5 * dense.norm(), module_name  # the fast mode, not the exact one


@pytest.mark.parametrize("name", ["gptq-w3g64-sym", "ct-w4g64-asym-packq", "bitnet-bitlinear", "base256-fp16"])
def test_what_was_read_is_saved_as_our_format(fixtures_dir, tmp_path, name):
    config = QuantConfig(bits=3) if name.startswith("base") else None
    model = tmac.from_pretrained(fixtures_dir / name, quantization_config=config)
    model.save_pretrained(tmp_path / "low")
    for twin in (AutoModelForCausalLM.from_pretrained(tmp_path / "low"), tmac.from_pretrained(tmp_path / "low")):
        assert_same_state(twin, model)
        assert torch.equal(logits(twin), logits(model))


def low(folder, family="Llama", config=None, **changes):
    model = tmac.quantize_(tiny(family, **changes), config or QuantConfig())
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", ["Llama", "Gemma3", "Qwen2Moe", "Mixtral"])
def test_our_own_format(tmp_path, family):
    model = low(tmp_path, family, QuantConfig(embedding_bits=4))
    twin = tmac.from_pretrained(tmp_path)
    assert type(twin) is type(model)
    assert not twin.training
    assert_same_state(twin, model)
    assert torch.equal(logits(twin), logits(model))
    assert twin.generation_config.eos_token_id == 2
    assert all(not tensor.is_meta for tensor in [*twin.parameters(), *twin.buffers()])
    exact = tmac.from_pretrained(tmp_path, activation="float")
    layers = [module for module in exact.modules() if isinstance(module, (QuantLinear, QuantEmbedding))]
    assert {module.spec.activation for module in layers} == {"float"}
    assert not torch.equal(logits(exact), logits(model))


@pytest.mark.parametrize("tied", [False, True])
def test_heads_and_embeddings_that_the_file_has_as_floats(tmp_path, tied):
    low(tmp_path, tie_word_embeddings=tied)
    model = tmac.from_pretrained(tmp_path, head_bits=8, embedding_bits=8)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert isinstance(model.lm_head, QuantLinear)
    assert isinstance(tmac.from_pretrained(tmp_path, head_bits=8).model.embed_tokens, torch.nn.Embedding)


def test_experts_under_the_names_of_other_tools(tmp_path):
    """GPTQ's files of Mixtral name the matrices of every expert as the first transformers did."""
    model = low(tmp_path, "Mixtral")
    names = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])

    def renamed(name):
        name = name.replace(".mlp.", ".block_sparse_moe.")
        for ours, theirs in names.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
        return name

    new = json.dumps({renamed(name): value for name, value in header.items()}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])
    twin = tmac.from_pretrained(tmp_path)
    assert isinstance(twin.model.layers[0].mlp.experts, QuantExperts)
    assert_same_state(twin, model)
    assert torch.equal(logits(twin), logits(model))


def test_other_classes(tmp_path):
    model = low(tmp_path)
    base = tmac.from_pretrained(tmp_path, auto_class=AutoModel)
    with torch.no_grad():
        assert torch.equal(base(IDS).last_hidden_state, model.model(IDS).last_hidden_state)
    classifier = tmac.from_pretrained(tmp_path, auto_class=AutoModelForSequenceClassification, num_labels=3)
    assert classifier.score.weight.shape == (3, 64)


def test_float_checkpoints(tmp_path):
    tiny("Llama", torch.bfloat16).save_pretrained(tmp_path)
    assert tmac.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert tmac.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32
    for config in (TMACConfig(bits=3), QuantConfig(bits=3)):
        model = tmac.from_pretrained(tmp_path, quantization_config=config, head_bits=8)
        assert (model.model.layers[0].mlp.up_proj.spec.bits, model.lm_head.spec.bits) == (3, 8)
    tiny("Llama", torch.float16).save_pretrained(tmp_path)
    assert tmac.from_pretrained(tmp_path).dtype == torch.float32


def test_what_is_refused(tmp_path):
    low(tmp_path)
    with pytest.raises(ValueError, match="is quantized already"):
        tmac.from_pretrained(tmp_path, quantization_config=QuantConfig())
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        tmac.from_pretrained(tmp_path / "nowhere")
    path = tmp_path / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for change, message in (
        ({"architectures": ["NoSuchModel"]}, "expected an architecture of transformers"),
        ({"model_type": "nonsense"}, "transformers refuses the configuration"),
        ({"model_type": None}, "expected a name"),
        ({"intermediate_size": 100}, "expected a weight of"),
        ({"num_hidden_layers": 3}, r"layers\.2\.input_layernorm\.weight: expected 13 more tensors"),
    ):
        path.write_text(json.dumps({**content, **change}), encoding="utf-8")
        with pytest.raises(FormatError, match=message):
            tmac.from_pretrained(tmp_path)


def test_gguf(tiny_gguf):
    model = tmac.from_pretrained(tiny_gguf, activation="float")
    dense, tokenizer = tmac.hf.load_gguf(tiny_gguf)
    want = logits(dense)
    assert (logits(model) - want).norm() <= 1e-5 * want.norm()
    assert tmac.load_tokenizer(tiny_gguf).get_vocab() == tokenizer.get_vocab()


def test_bitnet_layers_that_normalize_their_input(fixtures_dir, tmp_path):
    """`use_rms_norm`: as the model without norms, whose layers are given the normed input by hooks."""
    source = fixtures_dir / "bitnet-bitlinear"
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"].update(use_rms_norm=True, rms_norm_eps=1e-3)
    tensors = load_file(source / "model.safetensors")
    plain = tmac.from_pretrained(source)
    norms = {}
    for name, module in plain.named_modules():
        if isinstance(module, QuantLinear):
            generator = torch.Generator().manual_seed(len(norms))
            norms[name] = torch.nn.RMSNorm(module.in_features, eps=1e-3)
            norms[name].weight.data = 1 + torch.rand(module.in_features, generator=generator)
            tensors[f"{name}.rms_norm.weight"] = norms[name].weight.data
            module.register_forward_pre_hook(lambda _, inputs, norm=norms[name]: norm(inputs[0]))
    folder = tmp_path / "normed"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    ids = torch.arange(4, 36)[None]
    with torch.no_grad():
        expected = plain(ids).logits
        model = tmac.from_pretrained(folder)
        logits = model(ids).logits
        assert norms
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        model.save_pretrained(tmp_path / "saved")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert torch.equal(again(ids).logits, logits)
        exact = tmac.from_pretrained(folder, activation="float")
        wanted = exact(ids).logits
        torch.testing.assert_close(exact.dequantize()(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        assert main(["convert", str(folder), str(tmp_path / "converted")]) == 0
        assert torch.equal(tmac.from_pretrained(tmp_path / "converted")(ids).logits, logits)


def test_arguments_as_transformers_takes_them(fixtures_dir):
    base = fixtures_dir / "base256-fp16"
    low = tmac.from_pretrained(base, quantization_config={"bits": 4, "group_size": 64}, torch_dtype=torch.bfloat16)
    assert isinstance(low.model.layers[0].mlp.up_proj, QuantLinear)
    assert low.model.norm.weight.dtype is torch.bfloat16
    assert tmac.from_pretrained(base, torch_dtype="auto").model.norm.weight.dtype is torch.float32
    with pytest.raises(ValueError, match="output_loading_info is not supported"):
        tmac.from_pretrained(base, output_loading_info=True)
    for options in ({"layers": {"lm_head": {"bits": 8}}}, {"scale_format": "f32"}, {"sym": True, "fixed_zero": 3.0}):
        with pytest.raises(ValueError, match="describe a saved model, but this one is to be quantized"):
            AutoModelForCausalLM.from_pretrained(base, quantization_config=TMACConfig(**options))
