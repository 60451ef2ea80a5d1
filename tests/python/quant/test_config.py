"""QuantConfig: from what a user asks to the spec of a layer."""

import json

import pytest

from tmac import QuantConfig, QuantSpec


def test_the_default_is_four_bits_with_offsets_and_a_float_head():
    config = QuantConfig()
    assert config.spec() == QuantSpec(4, 32, zero_point="offset")
    assert config.head_spec() is None


@pytest.mark.parametrize(
    ("values", "spec", "head"),
    [
        ({"sym": True, "head_bits": 8}, QuantSpec(4, 32), QuantSpec(8, 32)),
        ({"zero_point": "integer"}, QuantSpec(4, 32, zero_point="integer"), None),
        ({"zero_point": "real", "bits": 3}, QuantSpec(3, 32, zero_point="real"), None),
        (
            {"bits": 2, "sym": True, "head_bits": 8, "fast_aggregation": True},
            QuantSpec(2, 32, fast_aggregation=True),
            QuantSpec(8, 32),
        ),
        (
            {"bits": 3, "sym": True, "head_bits": 4, "fast_aggregation": True},
            QuantSpec(3, 32, fast_aggregation=True),
            QuantSpec(4, 32, fast_aggregation=True),
        ),
        (
            {"bits": 2, "codebook": "ternary", "head_bits": 6, "group_size": -1, "activation": "token"},
            QuantSpec(2, -1, "ternary", activation="token"),
            QuantSpec(6, -1, zero_point="offset", activation="token"),
        ),
    ],
    ids=str,
)
def test_specs_of_the_layers_and_of_the_head(values, spec, head):
    config = QuantConfig(**values)
    assert config.spec() == spec
    assert config.head_spec() == head


@pytest.mark.parametrize(
    "values",
    [
        {"bits": 0},
        {"bits": 9},
        {"group_size": 0},
        {"head_bits": 16},
        {"sym": True, "zero_point": "integer"},
        {"codebook": "ternary"},
        {"codebook": "ternary", "bits": 2, "zero_point": "offset"},
        {"activation": "channel"},
        {"bits": 8, "fast_aggregation": True},
        {"bits": 2, "activation": "token", "fast_aggregation": True},
        {"modules_to_not_convert": "lm_head"},
    ],
    ids=str,
)
def test_values_without_meaning_are_refused(values):
    with pytest.raises(ValueError, match=r"\[Quant(Config|Spec)\]"):
        QuantConfig(**values)


def test_dictionaries_go_through_json():
    config = QuantConfig(3, 64, True, head_bits=8, modules_to_not_convert=["a", "b.*"])
    assert QuantConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(QuantConfig.from_dict(config.to_dict()))
    with pytest.raises(ValueError, match="wbits"):
        QuantConfig.from_dict({"wbits": 4})


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("lm_head", {"lm_head"}),
        ("mlp", {"layers.0.mlp.up", "layers.1.mlp.up"}),
        ("layers.0", {"layers.0.mlp.up", "layers.0.attention.q"}),
        ("up", {"layers.0.mlp.up", "layers.1.mlp.up"}),
        ("layers.*.q", {"layers.0.attention.q"}),
        ("ml", set()),
        ("head", set()),
    ],
)
def test_names_to_leave_alone(pattern, kept):
    names = {"layers.0.mlp.up", "layers.1.mlp.up", "layers.0.attention.q", "lm_head"}
    config = QuantConfig(modules_to_not_convert=[pattern])
    assert {name for name in names if not config.converts(name)} == kept
