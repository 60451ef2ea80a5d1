"""`tmac.assistant`: a draft for Hugging Face's own assisted generation, in the memory of the model."""

import copy

import pytest
import torch
from native_models import IDS, low, runtime_models
from torch import nn

import tmac
from tmac import QuantConfig
from tmac.nn import QuantExperts, QuantLinear
from tmac.nn.prefix import PrefixLinear

LONG = {"do_sample": False, "max_new_tokens": 24, "min_new_tokens": 24}


def eight(family="Llama", **changes):
    """A model of 8 bits without rounded activations: HF's passes of several tokens then choose the same tokens."""
    model = runtime_models.model_of(runtime_models.config_of(family, **changes), 0, scale=0.2)
    return tmac.quantize_(model, QuantConfig(bits=8, head_bits=8, embedding_bits=8, activation="float"))


def tensors(model):
    """Addresses of everything that the model has in memory."""
    found = {each.data_ptr() for each in (*model.parameters(), *model.buffers())}
    found |= {each.layer.weight.data_ptr() for each in model.modules() if isinstance(each, PrefixLinear)}
    return found | {each.layer.bias.data_ptr() for each in model.modules() if _has_bias(each)}


def _has_bias(module):
    return isinstance(module, PrefixLinear) and module.layer.bias is not None


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma3Text"])
def test_assisted_generation(family):
    model = eight(family)
    want = model.generate(IDS[:1], **LONG)
    draft = tmac.assistant(model, planes=4)
    assert type(draft) is type(model)
    assert tensors(draft) == tensors(model)
    assert torch.equal(model.generate(IDS[:1], assistant_model=draft, **LONG), want)
    assert torch.equal(model.generate(IDS[:1], **LONG), want)  # the model is as it was


def test_it_computes_with_the_leading_planes():
    model = eight()
    draft = tmac.assistant(model, planes=4)
    assert [each.planes for each in draft.modules() if isinstance(each, PrefixLinear)]
    assert not [each for each in draft.modules() if isinstance(each, QuantLinear)]
    floats = copy.deepcopy(draft)
    for name, each in draft.named_modules():
        if isinstance(each, PrefixLinear):
            parent, _, attribute = name.rpartition(".")
            setattr(floats.get_submodule(parent), attribute, float_layer(each))
    with torch.no_grad():
        got, want = draft(IDS).logits, floats(IDS).logits
        assert float((got - want).abs().max()) < 1e-4 * float(want.abs().max())
        assert float((got - model(IDS).logits).abs().max()) > 1e-2 * float(want.abs().max())


def float_layer(prefix):
    """The same product with a float weight; nothing is rounded on the way."""
    linear = nn.Linear(prefix.in_features, prefix.out_features, prefix.layer.bias is not None)
    with torch.no_grad():
        bias = 0 if prefix.layer.bias is None else linear.bias.copy_(prefix.layer.bias)
        linear.weight.copy_((prefix(torch.eye(prefix.in_features)) - bias).T)
    return linear


def test_layers_of_few_planes_stay():
    model = runtime_models.model_of(runtime_models.config_of("Llama"), 0, scale=0.2)
    model = tmac.quantize_(model, QuantConfig(bits=4, head_bits=8, embedding_bits=4))
    before = model.generate(IDS[:1], **LONG)
    draft = tmac.assistant(model, planes=4)
    assert isinstance(draft.lm_head, PrefixLinear)
    assert draft.model.layers[0].mlp.up_proj is model.model.layers[0].mlp.up_proj
    assert draft.model.embed_tokens is model.model.embed_tokens
    few = tmac.assistant(model, planes=3)  # of four, in another order then
    assert few.model.layers[0].mlp.up_proj.planes == 3
    assert torch.equal(model.generate(IDS[:1], **LONG), before)


def test_experts_stay():
    model = runtime_models.model_of(runtime_models.config_of("Mixtral"), 0, scale=0.2)
    model = tmac.quantize_(model, QuantConfig(bits=8, head_bits=8, activation="float"))
    draft = tmac.assistant(model, planes=4)
    shared = [each for each in draft.modules() if isinstance(each, QuantExperts)]
    assert shared
    assert all(one is other for one, other in zip(shared, _experts(model), strict=True))
    with torch.no_grad():
        assert draft(IDS).logits.isfinite().all()


def _experts(model):
    return [each for each in model.modules() if isinstance(each, QuantExperts)]


def test_settings_are_its_own():
    model = eight()
    draft = tmac.assistant(model, planes=4)
    draft.generation_config.num_assistant_tokens = 3
    draft.config.use_cache = False
    assert model.generation_config.num_assistant_tokens != 3
    assert model.config.use_cache
    assert not draft.training
    assert torch.equal(
        copy.deepcopy(draft).generate(IDS[:1], use_cache=True, **LONG), draft.generate(IDS[:1], use_cache=True, **LONG)
    )


def test_what_cannot_be():
    for model in (low(quantize=False), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match=r"\[assistant\] expected layers of more than 4 planes, found none"):
            tmac.assistant(model)
    for planes in (0, 8, True, "4"):
        with pytest.raises(ValueError, match=r"\[assistant\] planes: expected 1 to 7, found"):
            tmac.assistant(low(), planes=planes)
    with pytest.raises(TypeError, match=r"\[assistant\] expected a model, found str"):
        tmac.assistant("model")
    with pytest.raises(ValueError, match=r"\[attach\] .*PrefixLinear is not supported here"):
        tmac.attach(tmac.assistant(eight()))
