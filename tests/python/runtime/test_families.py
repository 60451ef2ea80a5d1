"""Descriptions of models against transformers' own classes: names, shapes, windows, factors."""

import json

import pytest
import torch
from runtime_models import EXPERTS, FAMILIES, SIZES, config_of, model_of

from tmac.runtime.families import FAMILIES as DESCRIBED
from tmac.runtime.families import describe

MODEL_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "context_length": "max_position_embeddings",
}


def as_file(config):
    """What is in config.json of a saved model."""
    return json.loads(config.to_json_string(use_diff=False))


def found(weight, state):
    """The tensor of transformers' model that the weight is in."""
    for source in weight.sources:
        if f"{source}.{weight.part}" in state:
            return f"{source}.{weight.part}", tuple(state[f"{source}.{weight.part}"].shape)
    name = next(name for name in weight.stack.tensors if name in state)
    assert tuple(state[name].shape) == weight.stack.shape
    assert 0 <= weight.stack.first_row <= weight.stack.first_row + weight.shape[0] <= weight.stack.shape[1]
    assert weight.shape[1] == weight.stack.shape[2]
    return name, weight.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_in_the_model_and_no_other(family):
    config = config_of(family)
    model = model_of(config)
    state = model.state_dict()
    description = describe(as_file(config))
    taken = set()
    for weight in description.weights:
        if weight.name == "head" and description.tied:
            continue
        name, shape = found(weight, state)
        assert shape == weight.shape, weight.name
        taken.add(name)
        owner = name.removesuffix(f".{weight.part}")
        if len(weight.shape) == 2 and weight.stack is None:
            assert weight.bias == (f"{owner}.bias" in state), weight.name
            taken.add(f"{owner}.bias")
    tied = {"lm_head.weight"} if description.tied else set()
    assert state.keys() - taken - tied == set()
    assert description.tied == config.tie_word_embeddings
    assert len({weight.name for weight in description.weights}) == len(description.weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_are_those_of_the_model(family):
    config = config_of(family)
    model = model_of(config)
    content = describe(as_file(config)).config
    for ours, theirs in MODEL_KEYS.items():
        assert content[ours] == getattr(config, theirs), ours
    layers = model.get_decoder().layers
    attention = [layer.attention if family == "GPTNeoX" else layer.self_attn for layer in layers]
    assert content["attention_scale"] == pytest.approx(attention[0].scaling, rel=1e-15)
    assert content["head_dim"] == getattr(attention[0], "head_dim", getattr(attention[0], "head_size", None))
    assert content["num_kv_heads"] == (4 if family == "GPTNeoX" else config.num_key_value_heads)
    layer_norms = [module for name, module in model.named_modules() if name.endswith("input_layernorm")]
    eps = {getattr(each, "variance_epsilon", getattr(each, "eps", None)) for each in layer_norms}
    assert eps == {content["norm_eps"]}
    assert content["attention_softcap"] == (50.0 if family == "Gemma2" else 0)
    assert content["logit_softcap"] == (getattr(config, "final_logit_softcapping", None) or 0)
    assert content["parallel_residual"] == getattr(config, "use_parallel_residual", False)
    scale = getattr(model.get_input_embeddings(), "embed_scale", None)
    if scale is not None:
        assert content["embedding_scale"] == float(scale)
    else:
        assert content["embedding_scale"] == getattr(config, "embedding_multiplier", 1.0)
    assert content["residual_scale"] == getattr(config, "residual_multiplier", 1.0)
    assert content["logit_scale"] == 1 / getattr(config, "logits_scaling", 1.0)
    mlps = [layer.mlp for layer in layers]
    assert content["sparse_layers"] == [hasattr(mlp, "experts") for mlp in mlps]
    if any(content["sparse_layers"]):
        experts = next(mlp.experts for mlp in mlps if hasattr(mlp, "experts"))
        assert content["num_experts"] == EXPERTS["num_experts"]
        assert content["experts_per_token"] == config.num_experts_per_tok
        assert content["moe_intermediate_size"] == experts.intermediate_dim
        assert content["normalize_experts"] == getattr(config, "norm_topk_prob", True)
        assert content["shared_intermediate_size"] == (80 if family == "Qwen2Moe" else 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_are_what_the_model_attends_to(family):
    """A token is changed; what the attention of a layer gives for the last one changes with it, or does not."""
    config = config_of(family, num_hidden_layers=3)
    config._attn_implementation = "eager"
    model = model_of(config).get_decoder()
    content = describe(as_file(config)).config
    seen = [{} for _ in model.layers]
    for layer, module in enumerate(model.layers):
        attention = module.attention if family == "GPTNeoX" else module.self_attn
        attention.register_forward_hook(lambda _, inputs, result, at=layer: seen[at].update(weights=result[1]))
    with torch.no_grad():
        model(torch.arange(3, 35)[None] % 90, output_attentions=True)
    for layer, window in enumerate(content["windows"]):
        weights = seen[layer]["weights"][0, 0, -1]
        reach = len(weights) - int((weights > 0).nonzero()[0])
        assert reach == (window or 32), (family, layer)
    assert any(content["windows"]) == ("sliding_window" in FAMILIES[family]) or family == "Qwen2"


def test_smollm3_rotates_some_layers():
    config = config_of("SmolLM3")
    content = describe(as_file(config)).config
    assert content["layer_rope"] == [0 if rotated else -1 for rotated in config.no_rope_layers] == [0, -1, 0, -1]


def test_activations():
    expected = {"Gemma": "gelu_tanh", "Gemma2": "gelu_tanh", "Gemma3Text": "gelu_tanh", "GPTNeoX": "gelu"}
    for family in FAMILIES:
        wanted = expected.get(family, "relu2" if family == "BitNet" else "silu")
        assert describe(as_file(config_of(family))).config["activation"] == wanted
    assert describe(as_file(config_of("Gemma")) | {"hidden_act": "gelu"}).config["activation"] == "gelu_tanh"
    assert describe(as_file(config_of("Llama")) | {"hidden_act": "relu"}).config["activation"] == "relu"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_key_is_the_default_of_the_class(family):
    """Also of windows and factors: only the sizes of the file are given, as small files on the hub do."""
    config = type(config_of(family))()
    short = {"model_type": config.model_type}
    ours, theirs = describe(short), describe(as_file(config))
    assert ours.config == theirs.config
    assert ours.tied == theirs.tied
    assert ours.weights == theirs.weights


def test_gemma_scales_the_embedding_in_the_type_of_the_model():
    config = config_of("Gemma", hidden_size=72)
    values = as_file(config)
    exact = float(torch.tensor(72**0.5))
    assert describe(values | {"dtype": "float16"}).config["embedding_scale"] == exact
    rounded = float(torch.tensor(72**0.5).bfloat16())
    assert rounded != exact
    assert describe(values | {"dtype": "bfloat16"}).config["embedding_scale"] == rounded
    old = {key: value for key, value in values.items() if key != "dtype"}
    assert describe(old | {"torch_dtype": "bfloat16"}).config["embedding_scale"] == rounded


def test_the_text_part_of_gemma3():
    text = as_file(config_of("Gemma3Text"))
    whole = describe({"model_type": "gemma3", "text_config": text, "torch_dtype": "bfloat16"})
    assert whole.config["windows"] == describe(text).config["windows"]
    assert whole.weights[0].sources == ("model.language_model.embed_tokens", "language_model.model.embed_tokens")
    assert whole.tied
    with pytest.raises(ValueError, match="text_config: expected the configuration of the text model"):
        describe({"model_type": "gemma3"})


def test_an_unknown_family_lists_the_known_ones():
    for value in ("mamba", None, 3, "x" * 500):
        with pytest.raises(ValueError, match=r"model_type: the engine decodes llama, .*tmac\.from_pretrained"):
            describe({"model_type": value})


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("Llama", {"hidden_act": "xielu"}, "hidden_act: expected one of silu, .*found xielu"),
        ("Llama", {"num_attention_heads": 0}, "num_attention_heads: expected a positive number"),
        ("Llama", {"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of 4"),
        ("Llama", {"num_hidden_layers": 10**6}, "num_hidden_layers: expected a positive number below 1025"),
        ("Llama", {"hidden_size": "64"}, "hidden_size: expected a positive number"),
        ("Llama", {"head_dim": None, "hidden_size": 63}, "num_attention_heads: expected a divisor of the hidden"),
        ("Llama", {"head_dim": 1 << 20}, "head_dim: expected a positive number below"),
        ("Llama", {"rms_norm_eps": -1}, "rms_norm_eps: expected a number above 0"),
        ("Llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps: expected a finite number"),
        ("Llama", {"attention_bias": 1}, "attention_bias: expected true or false"),
        ("Llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false"),
        ("Mistral", {"attention_bias": True}, "attention_bias: expected False: Mistral's attention has no biases"),
        ("Phi3", {"mlp_bias": True}, "mlp_bias: expected False"),
        ("Gemma3Text", {"use_bidirectional_attention": True}, "use_bidirectional_attention: expected False"),
        ("Qwen2", {"layer_types": ["linear_attention"] * 4}, "layer_types: expected full_attention or"),
        ("Qwen2", {"layer_types": ["full_attention"]}, "layer_types: expected a list of 4 names"),
        ("Qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 4}, "without a sliding_window"),
        ("SmolLM3", {"no_rope_layers": [1]}, "no_rope_layers: expected a 0 or 1 for each of 4 layers"),
        ("Qwen2Moe", {"num_experts": 10**5}, "num_experts: expected at most 65536 experts in all layers"),
        ("Mixtral", {"num_experts_per_tok": 5}, "num_experts_per_tok: expected a positive number below 5"),
        ("Gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar: expected a number above 0"),
    ],
)
def test_what_the_runtime_cannot_follow_is_named(family, changes, message):
    values = as_file(config_of(family))
    describe(values)
    with pytest.raises(ValueError, match=message):
        describe(values | changes)


def test_every_model_type_is_tested():
    tested = {config_of(family).model_type for family in FAMILIES} | {"gemma3"}
    assert tested == set(DESCRIBED)
    assert SIZES["num_hidden_layers"] == 4
