"""Checkpoints of every format: the native decoder and the Hugging Face model give the same logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import tmac

RELATIVE = 1e-4  # of the largest logit: both sides are float32, in another order
FIXTURES = [
    "autoround-w4g64-autoround_auto_awq",
    "autoround-w4g64-autoround_auto_gptq",
    "awq-w4g64-gemm",
    "base256-fp16",
    "bitnet-autobitlinear-offline",
    "bitnet-bitlinear",
    "ct-w4g128-sym-packq",
    "ct-w4g64-asym-packq",
    "gptq-w2g64-sym",
    "gptq-w3g64-by-autoround",
    "gptq-w3g64-sym",
    "gptq-w4g64-asym-descact-v1",
    "gptq-w4g64-sym",
    "gptq-w8-perchannel",
    "gguf/base-Q2_K.gguf",
    "gguf/base-Q4_0.gguf",
    "gguf/base-Q4_1.gguf",
    "gguf/base-Q4_K_S.gguf",
    "gguf/base-Q6_K.gguf",
    "gguf/base-TQ1_0.gguf",
    "gguf/base-TQ2_0.gguf",
    "gguf/base-f16.gguf",
    "gguf/tern-i2_s.gguf",
]
HQQ = ["hqq-w1g64", "hqq-w3g64", "hqq-w4g64"]
GGUF_FAMILIES = sorted((Path(__file__).parents[2] / "data" / "gguf_families").glob("*.gguf"))
LENGTH = 200  # past the sliding windows of these models, and past what their rotary embeddings were made for


def assert_same_logits(path, tokens):
    model = tmac.from_pretrained(path, activation="float", dtype=torch.float32)
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    with tmac.Engine.from_pretrained(path, activation="float", cache_type="f32") as engine:
        found = engine.logits(tokens)
    assert np.isfinite(found).all()
    assert np.abs(found - wanted).max() <= RELATIVE * np.abs(wanted).max()


@pytest.mark.parametrize("name", FIXTURES)
def test_a_checkpoint_has_the_logits_of_its_model(fixtures_dir, name):
    assert_same_logits(fixtures_dir / name, list(range(3, 40)))


@pytest.mark.parametrize("path", GGUF_FAMILIES, ids=lambda path: path.stem)
def test_a_gguf_file_of_a_family_has_the_logits_of_its_model(path):
    assert_same_logits(path, np.random.default_rng(0).integers(4, 64, LENGTH).tolist())


@pytest.mark.parametrize("name", HQQ)
def test_layers_of_hqq_in_a_float_model_have_its_logits(fixtures_dir, tmp_path, name):
    """hqq saves layers; here they stand in the model that they were made of."""
    tensors = load_file(fixtures_dir / "base256-fp16" / "model.safetensors")
    layers = load_file(fixtures_dir / name / "model.safetensors")
    for module in {part.rpartition(".")[0] for part in layers}:
        del tensors[f"model.layers.0.{module}.weight"]
    save_file(
        tensors | {f"model.layers.0.{part}": array for part, array in layers.items()}, tmp_path / "model.safetensors"
    )
    config = json.loads((fixtures_dir / "base256-fp16" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "hqq"}}))
    assert_same_logits(tmp_path, list(range(3, 40)))
