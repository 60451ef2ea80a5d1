"""QuantSpec: what is valid, and how it travels."""

import json
import math

import numpy as np
import pytest

from tmac import Codes, QuantSpec, UnsupportedSpecError


def test_the_usual_zero_follows_the_bits_and_the_codebook():
    assert [QuantSpec(bits=bits).fixed_zero for bits in range(1, 9)] == [0.5, 2, 4, 8, 16, 32, 64, 128]
    assert QuantSpec(bits=2, codebook="ternary").fixed_zero == 1
    assert QuantSpec(bits=4, fixed_zero=7.5).fixed_zero == 7.5


@pytest.mark.parametrize(
    "values",
    [
        {"bits": 0},
        {"bits": 9},
        {"bits": -1},
        {"bits": 2.5},
        {"bits": "4"},
        {"group_size": 0},
        {"group_size": -2},
        {"group_size": 32.5},
        {"group_size": "all"},
        {"codebook": "nf4"},
        {"codebook": "ternary", "bits": 4},
        {"codebook": "ternary", "bits": 2, "zero_point": "offset"},
        {"zero_point": "asymmetric"},
        {"fixed_zero": math.nan},
        {"fixed_zero": math.inf},
        {"fixed_zero": 1e39},
        {"fixed_zero": 10**400},
        {"fixed_zero": -(10**400)},
        {"fixed_zero": "8"},
        {"activation": "channel"},
        {"scale_format": "bf16"},
        {"scale_format": "two_level"},  # of groups of 128
        {"scale_format": "two_level", "group_size": 64},
        {"scale_format": "two_level", "group_size": -1},
        {"scale_format": "two_level", "group_size": 32, "zero_point": "integer"},
        {"scale_format": "two_level", "group_size": 16, "zero_point": "real"},
        {"fast_aggregation": 1},
        {"fast_aggregation": None},
        {"fast_aggregation": True, "bits": 5},
        {"fast_aggregation": True, "activation": "token"},
        {"fast_aggregation": True, "activation": "float"},
    ],
    ids=str,
)
def test_values_without_meaning_are_value_errors(values):
    with pytest.raises(ValueError, match="QuantSpec"):
        QuantSpec(**values)


def test_specs_are_frozen_values():
    assert QuantSpec(bits=3) == QuantSpec(bits=3, fixed_zero=4.0)
    assert len({QuantSpec(bits=3), QuantSpec(bits=3), QuantSpec(bits=2)}) == 2
    with pytest.raises(AttributeError):
        QuantSpec().bits = 3


def test_dictionaries_go_through_json():
    spec = QuantSpec(3, -1, "uniform", "real", activation="token", scale_format="f32")
    assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(ValueError, match="groupsize"):
        QuantSpec.from_dict({"bits": 4, "groupsize": 128})


def test_fast_aggregation_is_named_only_where_it_is_on():
    fast = QuantSpec(2, 64, fast_aggregation=True)
    assert "fast_aggregation" not in QuantSpec(2, 64).to_dict()
    assert QuantSpec.from_dict(QuantSpec(2, 64).to_dict()).fast_aggregation is False
    assert QuantSpec.from_dict(json.loads(json.dumps(fast.to_dict()))) == fast != QuantSpec(2, 64)


def test_fast_aggregation_ends_with_the_activation_groups():
    fast = QuantSpec(2, 64, fast_aggregation=True)
    assert fast.replace(group_size=32).fast_aggregation
    assert fast.replace(activation="float") == QuantSpec(2, 64, activation="float")
    with pytest.raises(ValueError, match="fast_aggregation"):
        fast.replace(activation="token", fast_aggregation=True)
    with pytest.raises(ValueError, match="at most 4 bits"):
        fast.replace(bits=8)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_fast_aggregation_stays_with_a_packed_weight(bits):
    spec = QuantSpec(bits, 32, fast_aggregation=True)
    codes = Codes(spec, np.zeros((2, 64), np.uint8), np.ones((2, 2), np.float16))
    packed = codes.pack()
    assert packed.kernel.startswith(f"qgemm_lut_fast_w{bits}_")
    assert Codes.from_buffer(packed.buffer()).spec == spec
    with pytest.raises(UnsupportedSpecError, match="fast_aggregation=True"):
        codes.pack(f"qgemm_lut_w{bits}_scalar")


@pytest.mark.parametrize("zero_point", ["fixed", "offset"])
@pytest.mark.parametrize("group_size", [16, 32])
def test_two_levels_of_scales(group_size, zero_point):
    spec = QuantSpec(6, group_size, zero_point=zero_point, scale_format="two_level")
    assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert [spec.num_super_groups(k) for k in (1, 256, 257, 4096)] == [1, 1, 2, 16]
    for k in (1, 16, 250, 256, 257, 300, 1024):
        first_columns = np.arange(0, k, group_size)
        np.testing.assert_array_equal(spec.super_groups(k), first_columns // 256)


@pytest.mark.parametrize(
    ("k", "group_size", "groups"), [(1, 32, 1), (32, 32, 1), (33, 32, 2), (576, 128, 5), (576, -1, 1)]
)
def test_the_last_group_may_be_partial(k, group_size, groups):
    assert QuantSpec(group_size=group_size).num_groups(k) == groups


def test_replace_moves_the_zero_with_the_bits():
    assert QuantSpec(bits=4).replace(bits=2).fixed_zero == 2
    assert QuantSpec(bits=4).replace(group_size=64) == QuantSpec(bits=4, group_size=64)
    assert QuantSpec(bits=4, fixed_zero=7.5).replace(group_size=64).fixed_zero == 7.5


def test_the_fixed_zero_is_what_a_packed_weight_keeps():
    spec = QuantSpec(bits=4, group_size=32, fixed_zero=0.1)
    assert spec.fixed_zero == float(np.float32(0.1))
    assert type(QuantSpec(fixed_zero=np.float32(7)).fixed_zero) is type(QuantSpec(fixed_zero=7).fixed_zero) is float
    codes = Codes(spec, np.zeros((2, 32), np.uint8), np.ones((2, 1), np.float16))
    assert Codes.from_buffer(codes.pack().buffer()).spec == spec
