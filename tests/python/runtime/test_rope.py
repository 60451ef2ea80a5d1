"""Rotary frequencies against transformers' rotary modules."""

import json

import numpy as np
import pytest
import torch
from runtime_models import FAMILIES, config_of, model_of

from tmac.runtime.families import describe

FACTORS = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
KINDS = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.5},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn-all": {
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 20,
        "beta_slow": 2,
        "mscale": 0.7,
        "mscale_all_dim": 0.4,
        "truncate": False,
    },
    "yarn-scale": {"factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.25},
    "longrope": {**FACTORS, "original_max_position_embeddings": 64},
    "longrope-scale": {**FACTORS, "original_max_position_embeddings": 64, "factor": 3.0, "attention_factor": 1.5},
}
FAMILIES_OF = {kind: "Phi3" if kind.startswith("longrope") else "Llama" for kind in KINDS}
WHOLE = {"Llama": {"head_dim": 32}, "Phi3": {"partial_rotary_factor": 1.0}}  # so that all of a head is rotated


def ulps(ours, theirs):
    """The largest distance in units in the last place."""
    ours = np.asarray(ours, np.float32).view(np.int32).astype(np.int64)
    return int(np.abs(ours - theirs.detach().numpy().view(np.int32)).max())


def expect_same(entry, inv_freq, scale):
    assert np.asarray(entry["inv_freq"], np.float32).tolist() == entry["inv_freq"]  # all of them are f32
    assert len(entry["inv_freq"]) == len(inv_freq)
    assert ulps(entry["inv_freq"], inv_freq) <= 1
    assert entry["scale"] == pytest.approx(scale, rel=1e-12)


def saved(config):
    return json.loads(config.to_json_string(use_diff=False))


@pytest.mark.parametrize("theta", [10000.0, 500000.0, 1e6, 2e6])
@pytest.mark.parametrize("kind", KINDS)
def test_every_type(kind, theta):
    parameters = {"rope_type": kind.partition("-")[0], "rope_theta": theta, **KINDS[kind]}
    config = config_of(FAMILIES_OF[kind], rope_parameters=dict(parameters), **WHOLE[FAMILIES_OF[kind]])
    rotary = model_of(config).model.rotary_emb
    entry = describe(saved(config)).config["rope"][0]
    expect_same(entry, rotary.inv_freq, rotary.attention_scaling)


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_transformers_4_say_the_same(kind):
    """`rope_scaling` with "type", and `rope_theta` beside it."""
    family = FAMILIES_OF[kind]
    changes = WHOLE[family] | ({"original_max_position_embeddings": 64} if family == "Phi3" else {})
    new = config_of(
        family,
        rope_parameters={"rope_type": kind.partition("-")[0], "rope_theta": 5e5, **KINDS[kind]},
        **changes,
    )
    old = {key: value for key, value in saved(new).items() if key not in ("rope_parameters", "rope_theta")}
    scaling = {"type": kind.partition("-")[0], **KINDS[kind]} if KINDS[kind] else None
    old |= {"rope_theta": 5e5, "rope_scaling": scaling}
    assert describe(old).config["rope"] == describe(saved(new)).config["rope"]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "Gemma3Text"])
def test_every_family(family):
    config = config_of(family)
    model = model_of(config).get_decoder()
    content = describe(saved(config)).config
    assert len(content["rope"]) == 1
    expect_same(content["rope"][0], model.rotary_emb.inv_freq, model.rotary_emb.attention_scaling)
    assert content["rope"][0]["dynamic"] is None
    assert 2 * len(content["rope"][0]["inv_freq"]) <= content["head_dim"]


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 8.0}])
def test_gemma3_has_two(scaling):
    config = config_of("Gemma3Text", rope_scaling=scaling, rope_theta=3e5, rope_local_base_freq=2e4)
    rotary = model_of(config).model.rotary_emb
    old = {key: value for key, value in saved(config).items() if key != "rope_parameters"}
    old |= {"rope_theta": 3e5, "rope_local_base_freq": 2e4, "rope_scaling": scaling}
    for values in (saved(config), old):
        content = describe(values).config
        expect_same(content["rope"][0], rotary.full_attention_inv_freq, 1.0)
        expect_same(content["rope"][1], rotary.sliding_attention_inv_freq, 1.0)
        assert content["layer_rope"] == [int(kind == "sliding_attention") for kind in config.layer_types]


def test_dynamic_frequencies_are_computed_anew_beyond_the_context():
    """By the numbers of the description, in f64: transformers' f32 differs by rounding."""
    config = config_of("Llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.5}, head_dim=32)
    rotary = model_of(config).model.rotary_emb
    dynamic = describe(saved(config)).config["rope"][0]["dynamic"]
    assert dynamic == {"kind": "ntk", "base": 1e4, "factor": 2.5, "dim": 32, "original": 256}
    rotary(torch.zeros(1), torch.arange(1000)[None])
    length, dim = 1000, dynamic["dim"]
    growth = dynamic["factor"] * length / dynamic["original"] - (dynamic["factor"] - 1)
    base = dynamic["base"] * growth ** (dim / (dim - 2))
    np.testing.assert_allclose(base ** (-np.arange(0, dim, 2) / dim), rotary.inv_freq.numpy(), rtol=1e-6)


def test_longrope_has_other_frequencies_beyond_the_original_context():
    config = config_of("Phi3", rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **FACTORS}, **WHOLE["Phi3"])
    rotary = model_of(config).model.rotary_emb
    entry = describe(saved(config)).config["rope"][0]
    assert entry["dynamic"]["original"] == 128
    rotary(torch.zeros(1), torch.arange(129)[None])
    assert ulps(entry["dynamic"]["long_inv_freq"], rotary.inv_freq) <= 1
    rotary(torch.zeros(1), torch.arange(128)[None])
    assert ulps(entry["inv_freq"], rotary.inv_freq) <= 1
    same = {**FACTORS, "long_factor": FACTORS["short_factor"]}
    config = config_of("Phi3", rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **same}, **WHOLE["Phi3"])
    assert describe(saved(config)).config["rope"][0]["dynamic"] is None


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_old_names_of_phi3(name):
    parameters = {"type": name, **FACTORS}
    config = config_of("Phi3", **WHOLE["Phi3"])
    values = {key: value for key, value in saved(config).items() if key != "rope_parameters"}
    wanted = describe(values | {"rope_scaling": parameters | {"type": "longrope"}})
    assert describe(values | {"rope_scaling": parameters}).config == wanted.config


@pytest.mark.parametrize(
    ("family", "parameters", "message"),
    [
        ("Llama", {"rope_type": "spiral"}, "rope_type: expected one of default, linear, .*found spiral"),
        ("Llama", {"type": ["yarn"]}, "type: expected one of default"),
        ("Llama", {"rope_type": "linear"}, "factor: expected a number above 0"),
        ("Llama", {"rope_type": "linear", "factor": 0}, "factor: expected a number above 0"),
        ("Llama", {"rope_theta": -1.0}, "rope_theta: expected a number above 0"),
        ("Llama", {"rope_theta": "many"}, "rope_theta: expected a finite number"),
        ("Llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1.0: models of this family"),
        ("Llama", {"full_attention": {"rope_theta": 1e4}}, "rope_parameters: expected the same for all layers"),
        ("Llama", {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4}, "high_freq_factor: expected more"),
        ("Llama", {"rope_type": "yarn", "rope_theta": 1}, "rope_theta: expected another number than 1"),
        ("Phi3", {"rope_type": "longrope"}, "short_factor: expected a list of numbers"),
        (
            "Phi3",
            {"rope_type": "longrope", **FACTORS, "short_factor": [1.0] * 4},
            "long_factor: expected 4 numbers above",
        ),
        ("Phi3", {"partial_rotary_factor": 0.01}, "partial_rotary_factor: expected at least one pair"),
        ("GPTNeoX", {"partial_rotary_factor": 1.5}, "partial_rotary_factor: expected at most 1"),
        ("Llama", 7, "rope_parameters: expected an object"),
    ],
)
def test_what_cannot_be_is_named(family, parameters, message):
    values = saved(config_of(family))
    with pytest.raises(ValueError, match=message):
        describe(values | {"rope_parameters": parameters})
