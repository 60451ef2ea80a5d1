"""quantize_: what is replaced, what stays, and what a refusal leaves behind."""

import sys

import pytest
import torch
from torch import nn

import tmac
from tmac import QuantConfig, QuantSpec
from tmac.nn import QuantLinear

from .models import Language, tiny_llama


def quantized(model):
    return {name for name, module in model.named_modules() if isinstance(module, QuantLinear)}


INNER = {f"layers.{i}.{name}" for i in range(2) for name in ("up", "down")} | {"extra.gate.0"}


def test_every_linear_layer_but_the_head_is_replaced_in_place():
    model = Language().eval()
    weights = {name: model.get_submodule(name).weight.detach().clone() for name in INNER}
    assert tmac.quantize_(model) is model
    assert quantized(model) == INNER
    assert type(model.head) is nn.Linear
    for name, weight in weights.items():
        layer = model.get_submodule(name)
        assert layer.spec == QuantSpec(4, 32, zero_point="offset")
        assert not layer.training
        # 15 steps over a group's range, at most twice the largest weight: half a step, and f16 rounding on top
        assert (layer.dequantize() - weight).square().mean().sqrt() < weight.abs().max() / 15


def test_the_quantized_model_is_the_dense_model_of_its_weights():
    model = tmac.quantize_(Language().eval(), QuantConfig(head_bits=8, activation="float"))
    dense = Language().eval()
    with torch.no_grad():
        for name in INNER | {"head"}:
            dense.get_submodule(name).weight.copy_(model.get_submodule(name).dequantize())
        ids = torch.arange(50)[None]
        expected, result = dense(ids), model(ids)
    # exact mode: f32 sums of up to 128 terms in another order, through five layers
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("tied", [False, True])
def test_head_bits_replace_the_head_and_untie_it(tied):
    model = Language(tied=tied)
    embedding = model.embedding.weight
    before = embedding.detach().clone()
    tmac.quantize_(model, QuantConfig(head_bits=8))
    assert quantized(model) == INNER | {"head"}
    assert model.head.spec == QuantSpec(8, 32, zero_point="offset")
    assert model.embedding.weight is embedding
    assert torch.equal(embedding, before)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head_bits", [None, 8])
def test_a_hugging_face_model(tied, head_bits):
    model = tiny_llama(tied)
    tmac.quantize_(model, QuantConfig(head_bits=head_bits))
    assert len(quantized(model)) == 2 * 7 + (head_bits is not None)
    assert ("lm_head" in quantized(model)) == (head_bits is not None)
    assert model.config.tie_word_embeddings == (tied and head_bits is None)
    model.tie_weights()
    ids = torch.arange(10)[None]
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 13)
    assert isinstance(model.lm_head, QuantLinear if head_bits else nn.Linear)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (tied and head_bits is None)


def test_a_hugging_face_model_inside_another_module():
    outer = nn.Sequential(nn.Linear(8, 8), tiny_llama(True))
    tmac.quantize_(outer)
    assert len(quantized(outer)) == 15
    assert type(outer[1].lm_head) is nn.Linear


def test_filters_and_names_are_both_asked():
    model = Language()
    seen = []

    def only_up(module, name):
        assert isinstance(module, nn.Linear)
        seen.append(name)
        return name.endswith("up")

    tmac.quantize_(model, QuantConfig(modules_to_not_convert=["layers.1"]), filter_fn=only_up)
    assert quantized(model) == {"layers.0.up"}
    assert "layers.1.up" not in seen
    assert "layers.0.down" in seen


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_refused_weight_is_named_and_leaves_the_model_as_it_was(value, dtype):
    model = Language().to(dtype)
    modules = dict(model.named_modules())
    with torch.no_grad():
        model.extra["gate"][0].weight[63, 63] = value
    with pytest.raises(ValueError, match=r"extra\.gate\.0"):
        tmac.quantize_(model)
    assert dict(model.named_modules()) == modules


def test_a_weight_without_data_is_refused():
    with torch.device("meta"):
        model = Language()
    with pytest.raises(ValueError, match=r"layers\.0\.up: the weight .* on meta has no data"):
        tmac.quantize_(model)
    with pytest.raises(ValueError, match="model is itself an"):
        tmac.quantize_(nn.Linear(4, 4))


def test_a_spec_that_no_kernel_serves_leaves_the_model_as_it_was(monkeypatch):
    def nothing(spec):
        raise tmac.UnsupportedSpecError("no kernel")

    monkeypatch.setattr(tmac._core, "select_kernel", nothing)
    model = Language()
    with pytest.raises(tmac.UnsupportedSpecError):
        tmac.quantize_(model)
    assert quantized(model) == set()


def test_a_shared_layer_is_quantized_once():
    shared = nn.Linear(32, 32)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU()), "c": nn.Linear(32, 32)})
    tmac.quantize_(model)
    assert isinstance(model["a"], QuantLinear)
    assert model["a"] is model["b"][0]
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    tmac.quantize_(model, QuantConfig(modules_to_not_convert=["b"]))
    assert model["a"] is shared


def test_hooks_and_the_mode_go_over_to_the_new_layer():
    model = nn.Sequential(nn.Linear(32, 32))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("after"))
    model[0].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[0].eval()
    tmac.quantize_(model)
    model(torch.zeros(1, 32))
    assert calls == ["before", "after"]
    assert not model[0].training


def test_layers_whose_weight_the_owner_reads_stay():
    model = nn.Sequential(nn.MultiheadAttention(32, 4), nn.Linear(32, 32))
    tmac.quantize_(model)
    assert quantized(model) == {"1"}
    x = torch.randn(3, 1, 32)
    assert model[0](x, x, x)[0].shape == (3, 1, 32)


def test_a_model_without_linear_layers_is_left_alone():
    assert quantized(tmac.quantize_(nn.Sequential(nn.ReLU()))) == set()


def test_gradients_reach_the_layers_below():
    model = tmac.quantize_(Language())
    model(torch.arange(10)[None]).sum().backward()
    assert model.embedding.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("progress", [None, False, True])
def test_the_bar_shows_when_it_is_asked_for(progress, capsys):
    tmac.quantize_(Language(), progress=progress)
    assert ("5/5" in capsys.readouterr().err) == bool(progress)


def test_the_bar_needs_no_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert quantized(tmac.quantize_(Language(), progress=True)) == INNER


def error_of(model, config):
    """Relative error of the logits, root of the mean square."""
    ids = torch.arange(50)[None]
    with torch.no_grad():
        before = model(ids)
        return float((tmac.quantize_(model, config)(ids) - before).norm() / before.norm())


def test_errors_stay_in_their_budgets():
    """Fixed budgets for one seed, about one and a half times what was measured; each further bit must pay."""
    budgets = {8: 0.02, 6: 0.03, 5: 0.05, 4: 0.1, 3: 0.2, 2: 0.45}
    errors = [error_of(Language(), QuantConfig(bits=bits)) for bits in budgets]
    assert all(error < budget for error, budget in zip(errors, budgets.values(), strict=True)), errors
    assert errors[0] < errors[3] < errors[4] < errors[5]


def test_what_chooses_among_experts_stays_float():
    model = nn.Module()
    model.experts, model.gate, model.shared_expert_gate = (
        nn.ModuleList([nn.Linear(8, 8)]),
        nn.Linear(8, 4),
        nn.Linear(8, 1),
    )
    plain = nn.Module()
    plain.gate = nn.Linear(8, 4)
    outer = nn.ModuleDict({"block": model, "plain": plain})
    tmac.quantize_(outer, tmac.QuantConfig(bits=4, group_size=8))
    assert type(model.gate) is type(model.shared_expert_gate) is nn.Linear
    assert isinstance(model.experts[0], tmac.nn.QuantLinear)
    assert isinstance(plain.gate, tmac.nn.QuantLinear)
