"""Checkpoints of every format: the native decoder and the Hugging Face model give the same logits."""

import numpy as np
import pytest
import torch

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
]


@pytest.mark.parametrize("name", FIXTURES)
def test_a_checkpoint_has_the_logits_of_its_model(fixtures_dir, name):
    model = tmac.from_pretrained(fixtures_dir / name, activation="float", dtype=torch.float32)
    tokens = list(range(3, 40))
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    with tmac.Engine.from_pretrained(fixtures_dir / name, activation="float", cache_type="f32") as engine:
        found = engine.logits(tokens)
    assert np.isfinite(found).all()
    assert np.abs(found - wanted).max() <= RELATIVE * np.abs(wanted).max()
