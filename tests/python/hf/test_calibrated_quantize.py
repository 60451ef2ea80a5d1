"""`quantize_` with a recipe that looks at calibration text."""

import copy

import pytest

pytest.importorskip("transformers", reason="needs the extra tmac-cpu[hf]")

import torch
import transformers

import tmac
from tmac.quant.gather import gather
from tmac.quant.methods.gptq import gptq


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
    )
    return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)


IDS = torch.randint(0, 64, (2048,), generator=torch.Generator().manual_seed(1))
CONFIG = tmac.QuantConfig(bits=3, group_size=16, head_bits=4, activation="float")


def test_the_codes_are_those_of_the_recipe(model):
    from tmac.hf.blocks import open_blocks

    quantized = tmac.quantize_(copy.deepcopy(model), CONFIG, method="gptq", calibration=IDS)
    statistics = gather(open_blocks(model), IDS)
    for name, module in quantized.named_modules():
        if not isinstance(module, tmac.nn.QuantLinear):
            continue
        old = model.get_submodule(name)
        codes = gptq(old.weight.detach(), module.spec, statistics[name])
        torch.testing.assert_close(module.dequantize(), torch.from_numpy(codes.dequantize()), rtol=0, atol=0)
        assert (module.bias is None) == (old.bias is None)
    assert quantized.lm_head.spec.bits == 4


def test_calibration_makes_outputs_better(model):
    ids = torch.randint(0, 64, (4, 64), generator=torch.Generator().manual_seed(2))
    wanted = model(input_ids=ids).logits
    errors = {}
    for method, calibration in (("rtn", None), ("rtn", IDS), ("hqq", None), ("gptq", IDS)):
        changed = tmac.quantize_(copy.deepcopy(model), CONFIG, method=method, calibration=calibration)
        errors[method, calibration is None] = float((changed(input_ids=ids).logits - wanted).square().mean())
    assert errors["gptq", False] < errors["rtn", True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method must be one of .*gptq"),
        ({"method": "gptq"}, "needs calibration"),
        ({"method": "gptq", "calibration": IDS[:1]}, "tokens"),
    ],
)
def test_wrong_arguments_leave_the_model(model, options, message):
    changed = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        tmac.quantize_(changed, CONFIG, **options)
    assert not any(isinstance(module, tmac.nn.QuantLinear) for module in changed.modules())
