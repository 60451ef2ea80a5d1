"""TMACConfig and TMACQuantizer: quantize while loading, save, read back."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from families import FAMILIES, IDS, assert_same_state, logits, tiny
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM

import tmac
from tmac import QuantConfig, TMACConfig
from tmac.formats import FormatError, open_checkpoint
from tmac.nn import QuantEmbedding, QuantExperts, QuantLinear

CASES = {
    "w4": {"bits": 4, "group_size": 32},
    "w2-head8": {"bits": 2, "group_size": 64, "sym": True, "head_bits": 8},
    "ternary-table4": {"codebook": "ternary", "bits": 2, "group_size": -1, "embedding_bits": 4},
    "w3-head-table": {"bits": 3, "group_size": 48, "head_bits": 8, "embedding_bits": 5, "zero_point": "integer"},
}


@pytest.fixture
def saved(tmp_path):
    def save(family="Llama", dtype=torch.float32, **changes):
        folder = tmp_path / "float"
        tiny(family, dtype, **changes).save_pretrained(folder)
        return folder

    return save


def reload(model, folder, **options):
    model.save_pretrained(folder, **options)
    twin, report = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(report.values()), report
    return twin


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_while_loading_saved_and_read_back(saved, tmp_path, family, case):
    folder = saved(family)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=TMACConfig(**CASES[case]))
    in_place = tmac.quantize_(AutoModelForCausalLM.from_pretrained(folder), QuantConfig(**CASES[case]))
    assert_same_state(model, in_place)
    want = logits(in_place)
    assert torch.equal(logits(model), want)
    kept = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    assert all("head" in name or name.endswith("shared_expert_gate") for name in kept)
    for source, size in ((model, "50GB"), (in_place, "20KB")):
        twin = reload(source, tmp_path / size, max_shard_size=size)
        assert_same_state(twin, model)
        assert torch.equal(logits(twin), want)
        assert twin.generation_config.eos_token_id == 2
    assert_same_state(reload(twin, tmp_path / "again"), model)


@pytest.mark.parametrize("family", ["Llama", "GPTNeoX", "Gemma3", "Qwen2Moe"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(saved, tmp_path, family, dtype):
    folder = saved(family, dtype)
    config = TMACConfig(embedding_bits=4)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype="auto")
    assert model.dtype == logits(model).dtype == dtype
    twin = reload(model, tmp_path / "low")
    assert twin.dtype == dtype
    assert_same_state(twin, model)
    assert torch.equal(logits(twin), logits(model))
    assert_same_state(twin, tmac.quantize_(tiny(family, dtype), QuantConfig(embedding_bits=4)))


@pytest.mark.parametrize("bits", [{}, {"head_bits": 8}, {"embedding_bits": 4}, {"embedding_bits": 4, "head_bits": 8}])
@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings(saved, tmp_path, tied, bits):
    folder = saved(tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=TMACConfig(**bits))
    shares = tied and "head_bits" not in bits
    twin = reload(model, tmp_path / "low")
    for each in (model, twin):
        assert (each.lm_head.weight is each.model.embed_tokens.weight) == shares
        assert each.config.tie_word_embeddings == shares
        assert isinstance(each.model.embed_tokens, QuantEmbedding) == ("embedding_bits" in bits)
        assert isinstance(each.lm_head, QuantLinear) == ("head_bits" in bits or (shares and "embedding_bits" in bits))
    assert torch.equal(logits(twin), logits(model))
    with safe_open(tmp_path / "low" / "model.safetensors", "pt") as file:
        heads = [name for name in file.keys() if "lm_head" in name]  # noqa: SIM118
    assert bool(heads) != shares


def test_what_is_written_is_docs_format(saved, tmp_path):
    config = TMACConfig(head_bits=8, embedding_bits=4, modules_to_not_convert=["0.mlp"])
    model = AutoModelForCausalLM.from_pretrained(saved(hidden_size=68, head_dim=16), quantization_config=config)
    model.save_pretrained(tmp_path / "low")
    written = json.loads((tmp_path / "low" / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert (written["quant_method"], written["format_version"], written["bits"]) == ("tmac", 1, 4)
    assert "head_bits" not in written
    assert written["layers"]["lm_head"] == {"bits": 8, "in_features": 68}
    assert written["layers"]["model.embed_tokens"] == {"kind": "embedding", "in_features": 68}
    assert written["modules_to_not_convert"] == [f"model.layers.0.mlp.{part}_proj" for part in ("down", "gate", "up")]
    checkpoint = open_checkpoint(tmp_path / "low")
    assert checkpoint.layers["model.embed_tokens"].kind == "embedding"
    for name, layer in checkpoint.layers.items():
        weight = model.get_submodule(name).dequantize()
        assert torch.equal(torch.from_numpy(layer.read().dequantize()), weight), name


def test_a_moved_layer_and_other_classes(saved, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(saved(), quantization_config=TMACConfig())
    model.model.layers[1].mlp.up_proj = QuantLinear.from_weight(torch.randn(96, 64), tmac.QuantSpec(3, 16), None)
    twin = reload(model, tmp_path / "low")
    assert twin.model.layers[1].mlp.up_proj.spec.bits == 3
    assert_same_state(twin, model)
    base = AutoModel.from_pretrained(tmp_path / "low")
    with torch.no_grad():
        assert torch.equal(base(IDS).last_hidden_state, model.model(IDS).last_hidden_state)


def test_float_conversions_of_transformers_still_happen(saved, tmp_path):
    """Mixtral's experts are one matrix each in its files, one tensor in the model, and our matrices afterwards."""
    folder = saved("Mixtral")
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert any(".experts.3.w1.weight" in name for name in file.keys())  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=TMACConfig())
    experts = model.model.layers[0].mlp.experts
    assert isinstance(experts, QuantExperts)
    model.save_pretrained(tmp_path / "low")
    assert "model.layers.0.mlp.experts.3.down_proj" in open_checkpoint(tmp_path / "low").layers


@pytest.mark.parametrize("family", ["Llama", "Gemma3", "Mixtral", "Qwen3"])
def test_dequantize_gives_the_float_model_back(saved, family):
    config = TMACConfig(embedding_bits=4, head_bits=4, activation="float")
    model = AutoModelForCausalLM.from_pretrained(saved(family), quantization_config=config)
    want = logits(model)
    plain = model.dequantize()
    assert not [module for module in plain.modules() if isinstance(module, (QuantLinear, QuantEmbedding, QuantExperts))]
    assert not hasattr(plain.config, "quantization_config")
    assert type(plain.get_input_embeddings()) is type(tiny(family).get_input_embeddings())
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == plain.config.tie_word_embeddings
    assert (logits(plain) - want).norm() <= 1e-5 * want.norm()


def test_what_the_quantizer_says_of_itself(saved):
    model = AutoModelForCausalLM.from_pretrained(saved(), quantization_config=TMACConfig(), device_map="cpu")
    assert (model.is_quantized, model.quantization_method) == (True, "tmac")
    quantizer = model.hf_quantizer
    assert (quantizer.is_serializable(), quantizer.is_trainable, quantizer.is_compileable) == (True, True, True)
    assert model.device == torch.device("cpu")
    with pytest.raises(ValueError, match="device_map asks for meta"):
        AutoModelForCausalLM.from_pretrained(saved(), quantization_config=TMACConfig(), device_map="meta")


def test_a_float_t5_keeps_what_asks_for_the_dtype_of_its_weight(tmp_path):
    config = transformers.T5Config(vocab_size=96, d_model=64, d_kv=16, d_ff=96, num_layers=1, num_heads=4)
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "float")
    load = transformers.AutoModelForSeq2SeqLM.from_pretrained
    model = load(tmp_path / "float", quantization_config=TMACConfig(embedding_bits=4))
    assert isinstance(model.encoder.block[0].layer[1].DenseReluDense.wo, torch.nn.Linear)
    assert model.shared.weight is model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight
    model.save_pretrained(tmp_path / "low")
    twin = load(tmp_path / "low")
    assert_same_state(twin, model)
    with torch.no_grad():
        inputs = {"input_ids": IDS, "decoder_input_ids": IDS[:, :4]}
        assert torch.equal(twin(**inputs).logits, model(**inputs).logits)


def test_a_weight_that_cannot_be_quantized_is_named(saved):
    folder = saved()
    broken = AutoModelForCausalLM.from_pretrained(folder)
    broken.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    broken.save_pretrained(folder)
    with pytest.raises((ValueError, RuntimeError), match=r"(?s)layers\.1\.mlp\.up_proj.*NaN|conversion"):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=TMACConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "expected version 1, found 2"),
        ({"layers": {"model.layers.9.mlp.up_proj": {"bits": 8}}}, "expected the planes or trits of this layer"),
        ({"layers": {"lm_head": {"bits": 9}}}, "lm_head"),
        ({"bits": 3}, "expected shape"),
        ({"colour": 1}, "unknown keys"),
        ({"group_size": 0}, "group_size"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(saved, tmp_path, change, message):
    model = AutoModelForCausalLM.from_pretrained(saved(), quantization_config=TMACConfig(head_bits=8))
    model.save_pretrained(tmp_path / "low")
    path = tmp_path / "low" / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["quantization_config"].update(change)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises((FormatError, ValueError), match=message):
        AutoModelForCausalLM.from_pretrained(tmp_path / "low")


def test_a_truncated_file_and_missing_planes_are_refused(saved, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(saved(), quantization_config=TMACConfig())
    model.save_pretrained(tmp_path / "low")
    file = tmp_path / "low" / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data.replace(b"up_proj.scales", b"up_proj.scalez"))
    with pytest.raises(FormatError, match=r"up_proj.scales: expected this tensor"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "low")
    file.write_bytes(data[:-1])
    with pytest.raises(Exception, match=r"(?i)size|within|incomplete|cover"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "low")


def run(code):
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "imports",
    [
        "import tmac; import transformers.modeling_utils",
        "import transformers.modeling_utils; import tmac",
        "import tmac.hf.quantizer",
        "import tmac; tmac.TMACConfig",
        "import tmac; from transformers import AutoModelForCausalLM",
        "import peft; import tmac",
        "import tmac; import peft",
    ],
)
def test_registered_in_either_order_and_once(imports):
    code = f"""{imports}
import importlib, tmac.hf.quantizer, transformers.quantizers.auto as auto
print(auto.AUTO_QUANTIZER_MAPPING["tmac"].__name__, auto.AUTO_QUANTIZATION_CONFIG_MAPPING["tmac"].__name__)
tmac.hf.quantizer.register(); importlib.reload(tmac.hf.quantizer); importlib.reload(auto)
print("tmac" in auto.AUTO_QUANTIZER_MAPPING)"""
    result = run(code)
    assert result.stdout.split() == ["TMACQuantizer", "TMACConfig", "True"], result.stderr


def test_a_transformers_without_what_we_need_stays_importable():
    code = """
import sys, warnings
warnings.simplefilter("default")
sys.modules["tmac.hf.quantizer"] = None
import tmac, transformers.quantizers.auto as auto
print("tmac" in auto.AUTO_QUANTIZER_MAPPING)"""
    result = run(code)
    assert result.stdout.split() == ["False"], result.stderr
    assert "tmac cannot register with transformers" in result.stderr


def test_a_pickled_model_is_refused(tmp_path):
    model = tiny("Llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FormatError, match="a pickle can run any code"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=TMACConfig(bits=4))
