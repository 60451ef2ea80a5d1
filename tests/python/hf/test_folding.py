import pytest
import torch

from tmac import QuantSpec
from tmac.hf.folding import fold_awq_, fold_sites
from tmac.quant.methods.awq import awq_scales
from tmac.quant.statistics import LayerStatistics

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GQA = SMALL | {"num_key_value_heads": 2}
GEMMA = {"head_dim": 8, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
# family -> config, sites per decoder layer
FAMILIES = {
    "llama": ("LlamaConfig", GQA, 4),
    "llama_biases": ("LlamaConfig", GQA | {"attention_bias": True, "mlp_bias": True}, 4),
    "llama_one_head": ("LlamaConfig", SMALL | {"num_key_value_heads": 1}, 4),
    "qwen2": ("Qwen2Config", GQA, 4),
    "qwen3": ("Qwen3Config", GQA | {"head_dim": 16}, 4),
    "gemma3": ("Gemma3TextConfig", GQA | GEMMA, 4),
    "phi3": ("Phi3Config", GQA | {"pad_token_id": 0}, 4),
    "gpt_neox": ("GPTNeoXConfig", SMALL, 3),
    "gpt_neox_one_after_the_other": ("GPTNeoXConfig", SMALL | {"use_parallel_residual": False}, 3),
    # post-norms, one norm for both, a norm inside of attention, experts: nothing that is known
    "olmo2": ("Olmo2Config", GQA, 0),
    "cohere": ("CohereConfig", GQA | {"pad_token_id": 0}, 0),
    "bitnet": ("BitNetConfig", GQA, 0),
    "mixtral": ("MixtralConfig", GQA | {"num_local_experts": 2}, 2),
}


def make_model(family):
    name, settings, sites = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**settings)).eval()
    for parameter in model.parameters():  # norms and biases that are not 1 and 0
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.rand_like(parameter)
    return model, sites * settings["num_hidden_layers"]


def logits(model):
    with torch.no_grad():
        return model(torch.arange(2, 26)[None] * 5 % 64).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_changes_weights_and_no_output(family):
    model, expected = make_model(family)
    before, weights = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    names = []

    def random_scales(site):
        names.extend(site.linears)
        columns = next(iter(site.linears.values())).in_features
        return site.tie(torch.rand(columns, generator=generator) * 3 + 0.3)

    assert fold_awq_(model, random_scales) == expected
    for name in names:
        assert not torch.equal(model.state_dict()[f"{name}.weight"], weights[f"{name}.weight"])
    after = logits(model)
    assert float((after - before).abs().max()) <= 1e-5 * max(1.0, float(before.abs().max()))
    if not expected:
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_every_linear_layer_of_a_llama_has_a_site():
    model, _ = make_model("llama")
    names = [name for site in fold_sites(model) for name in site.linears]
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert sorted(names) == sorted(set(linears) - {"lm_head"})


def test_keys_and_values_that_serve_two_heads_tie_their_channels():
    model, _ = make_model("llama")
    site = next(site for site in fold_sites(model) if "o_proj" in next(iter(site.linears)))
    tied = site.tie(torch.arange(32.0)).view(2, 2, 8)
    assert torch.equal(tied[:, 0], tied[:, 1])
    assert not torch.equal(tied[0], tied[1])
    with pytest.raises(ValueError, match="different scales"):
        site.fold_(torch.rand(32) + 1)


@pytest.mark.parametrize("scales", [torch.ones(31), torch.zeros(32), -torch.ones(32), torch.full((32,), float("inf"))])
def test_scales_that_do_not_fit_are_refused(scales):
    model, _ = make_model("llama")
    with pytest.raises(ValueError, match="expected 32 scales above 0"):
        next(iter(fold_sites(model))).fold_(scales)


def test_layers_that_share_a_weight_have_no_site():
    model, _ = make_model("llama")
    layers = model.model.layers
    layers[1].self_attn.q_proj.weight = layers[0].self_attn.q_proj.weight
    names = {name for site in fold_sites(model) for name in site.linears}
    assert not any("q_proj" in name or "k_proj" in name for name in names)
    assert "model.layers.1.mlp.down_proj" in names


def test_values_behind_a_norm_without_a_weight_have_no_site():
    model, _ = make_model("llama")
    model.model.layers[0].self_attn.v_norm = torch.nn.LayerNorm(8, elementwise_affine=False)
    names = {name for site in fold_sites(model) for name in site.linears}
    assert not any("layers.0.self_attn" in name for name in names)
    assert {"model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"} <= names


def test_scales_that_a_search_has_found():
    model, expected = make_model("llama")
    before = logits(model)

    def searched(site):
        linears = list(site.linears.values())
        inputs = torch.randn(40, linears[0].in_features, generator=torch.Generator().manual_seed(2)) ** 3
        statistics = LayerStatistics(40, inputs.T @ inputs / 40, inputs.abs().amax(0))
        weights = [linear.weight for linear in linears]
        return awq_scales(weights, QuantSpec(3, 16, zero_point="offset"), statistics, steps=4, tie=site.tie)

    assert fold_awq_(model, searched) == expected
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
