"""Files of llama.cpp's own converter against the models they were made of: names, values, order and configuration."""

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tmac.formats.gguf_checkpoint import open_checkpoint

DATA = Path(__file__).parents[2] / "data"
sys.path.insert(0, str(DATA))
from gguf_families import configs, weight  # noqa: E402

CONFIGS = configs()
Q8_0 = gguf.GGMLQuantizationType.Q8_0
# In the file only as numbers that mean the same, or not at all: nothing that a prediction depends on.
UNSAID = {"transformers_version", "dtype", "architectures", "_sliding_window_pattern", "max_window_layers"}


def by_module(checkpoint):
    """Hugging Face name -> values, experts stacked as transformers 5 holds them."""
    found = {f"{name}.weight": layer.read().dequantize() for name, layer in checkpoint.layers.items()}
    found |= {f"{name}.bias": layer.read().bias for name, layer in checkpoint.layers.items() if layer.bias}
    found |= {name: tensor.read().astype(np.float32) for name, tensor in checkpoint.tensors.items()}
    for name in list(found):
        if ".experts.0.gate_proj" in name:
            prefix = name.split(".experts.")[0] + ".experts"
            count = sum(key.startswith(f"{prefix}.") and key.endswith("gate_proj.weight") for key in found)
            parts = {
                part: np.stack([found.pop(f"{prefix}.{i}.{part}_proj.weight") for i in range(count)])
                for part in ("gate", "up", "down")
            }
            found[f"{prefix}.gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], axis=1)
            found[f"{prefix}.down_proj"] = parts["down"]
    return found


def rounded(name, values, config):
    """What the converter stores: Q8_0 for matrices, and BitNet's ternary weights before that."""
    if values.ndim == 1 or name.endswith(("mlp.gate.weight", "shared_expert_gate.weight")):
        return values
    if config.model_type == "bitnet" and "_proj" in name:
        inverse = 1 / torch.from_numpy(values).abs().mean().clamp(min=1e-5)
        values = ((torch.from_numpy(values) * inverse).round().clamp(-1, 1) / inverse).numpy()
    return gguf.quants.dequantize(gguf.quants.quantize(values, Q8_0), Q8_0)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_those_of_the_model(name):
    config = CONFIGS[name]
    checkpoint = open_checkpoint(DATA / "gguf_families" / f"{name}.gguf")
    with torch.device("meta"):
        shapes = {
            key: tuple(value.shape) for key, value in AutoModelForCausalLM.from_config(config).state_dict().items()
        }
    tied = checkpoint.tied
    assert bool(tied) == bool(config.tie_word_embeddings)
    for target, source in tied.items():
        assert shapes.pop(f"{target}.weight") == shapes[f"{source}.weight"]
    found = by_module(checkpoint)
    assert found.keys() == shapes.keys()
    for key, shape in shapes.items():
        expected = rounded(key, weight(key, shape), config)
        assert found[key].shape == shape, key
        assert np.array_equal(found[key].view(np.uint32), expected.astype(np.float32).view(np.uint32)), key
    kinds = {layer.kind for layer in checkpoint.layers.values()}
    assert kinds == {"linear", "embedding"}


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration(name, tmp_path):
    checkpoint = open_checkpoint(DATA / "gguf_families" / f"{name}.gguf")
    found = AutoConfig.for_model(**checkpoint.config).to_dict()
    expected = CONFIGS[name].to_dict()
    assert found["architectures"] == checkpoint.config["architectures"]
    if name == "mistral":  # no file says that it is no llama
        expected |= {"model_type": "llama", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
        del expected["sliding_window"]
    if name == "llama_rope_unknown":
        rope = found.pop("rope_parameters")
        expected.pop("rope_parameters")
        assert rope["rope_type"] == "longrope"
    differing = {
        key: (found.get(key), expected.get(key))
        for key in (found.keys() | expected.keys()) - UNSAID
        if not same(found.get(key), expected.get(key))
    }
    assert not differing


def same(found, expected):
    if isinstance(expected, dict) and isinstance(found, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float) and isinstance(found, float):
        return np.float32(found) == np.float32(expected)  # metadata are f32
    return found == expected
