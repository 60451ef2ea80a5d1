"""Every layer of a quantized llama against docs/numerics.md in torch, on the inputs that the model gave it."""

import pytest
import torch

import tmac
from tmac import Codes, QuantConfig
from tmac.nn import QuantLinear

from .emulation import emulated


@pytest.mark.parametrize("tokens", [9, 20])  # the decoding class, and the one for prompts
@pytest.mark.parametrize("group_size", [32, 160])
@pytest.mark.parametrize("fast_aggregation", [False, True])
def test_every_layer_rounds_as_the_document_says(fast_aggregation, group_size, tokens):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=70,
        hidden_size=72,
        intermediate_size=196,  # of the group of 160: act groups of 128, 32 and 36 columns
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tmac.quantize_(model, QuantConfig(bits=4, group_size=group_size, head_bits=8, fast_aggregation=fast_aggregation))
    seen = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLinear):
            layer.register_forward_hook(lambda layer, x, y, name=name: seen.update({name: (layer, x[0][0], y[0])}))
    with torch.no_grad():
        model(torch.randint(0, 70, (1, tokens)))
    assert len(seen) == 2 * 7 + 1
    assert seen["lm_head"][0].spec.bits == 8
    for name, (layer, x, y) in seen.items():
        assert ("_lut_fast_" in layer.kernel) == (fast_aggregation and name != "lm_head")
        want = emulated(
            x, Codes.from_buffer(layer.weight.numpy()), layer.kernel if tokens <= 16 else layer.prompt_kernel
        )
        assert (y.double() - want).norm() <= 1e-5 * want.norm(), name
        dense = x.double() @ layer.dequantize().double().T
        assert (y.double() - dense).norm() > 1e-5 * dense.norm(), name  # the fast mode, not the exact one
