import pytest
import torch

import tmac
from tmac import QuantSpec
from tmac.quant.methods.rtn import best_fixed_zero, round_to_nearest

from .layers import SPECS, make_layer, weighted_error


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_statistics_lower_the_error_that_counts(spec):
    weight, statistics = make_layer(16, 200)
    plain, weighted = round_to_nearest(weight, spec), round_to_nearest(weight, spec, statistics)
    assert plain.codes.tolist() == tmac.round_to_nearest(weight.numpy(), spec).codes.tolist()
    assert weighted_error(weight, weighted, statistics) < weighted_error(weight, plain, statistics)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_zero_beside_the_middle_is_better(bits):
    weight, statistics = make_layer(300, 128)
    spec = QuantSpec(bits, 64)
    found = best_fixed_zero(weight, spec, statistics)
    assert found == spec.replace(fixed_zero=found.fixed_zero)
    assert 2 ** (bits - 1) - 1 <= found.fixed_zero <= 2 ** (bits - 1)
    before, after = (
        weighted_error(weight, round_to_nearest(weight, each, statistics), statistics) for each in (spec, found)
    )
    assert after <= before
    assert bits == 2 or after < before


def test_specs_without_a_number_to_choose_stay():
    weight, statistics = make_layer(4, 64)
    for spec in (QuantSpec(4, 32, zero_point="offset"), QuantSpec(2, 32, "ternary")):
        assert best_fixed_zero(weight, spec, statistics) is spec
    with pytest.raises(ValueError, match="at least 2 candidates"):
        best_fixed_zero(weight, QuantSpec(4, 32), candidates=1)


def test_all_codes_on_one_side():
    spec = QuantSpec(3, 32)
    grid = (torch.arange(64 * 32).view(64, 32) % 8 - 3.0) * 0.125
    found = best_fixed_zero(grid, spec)
    assert found.fixed_zero in (3.0, 4.0)  # of -3 to 4, and of 4 to -3 with a negative scale
    assert torch.equal(torch.from_numpy(round_to_nearest(grid, found).dequantize()), grid)
