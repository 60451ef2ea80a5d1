"""What every recipe has to keep to."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tmac import QuantSpec
from tmac.quant.methods import RECIPES
from tmac.quant.methods.grids import GroupGrids

from .layers import SPECS, make_layer, make_statistics

ALL_PAIRS = [
    pytest.param(name, spec, id=f"{name}-{spec}")
    for name in RECIPES
    for spec in SPECS
    if name != "ternary" or spec.codebook == "ternary"
]
# Those that give a weight the nearest code. The others mind the errors of other columns: test_gptq, test_signround.
PAIRS = [pair for pair in ALL_PAIRS if pair.values[0] not in ("gptq", "signround")]


@pytest.mark.parametrize(("name", "spec"), PAIRS)
@pytest.mark.parametrize("columns", [1, 15, 100, 272])
def test_any_width(name, spec, columns):
    weight, statistics = make_layer(3, columns)
    for given_statistics in (None, statistics):
        codes = RECIPES[name](weight, spec, given_statistics)
        assert codes.spec == spec
        assert codes.codes.shape == (3, columns)
        again = GroupGrids.of(codes).codes(weight)
        np.testing.assert_array_equal(again.codes, codes.codes)
        np.testing.assert_array_equal(again.dequantize(), codes.dequantize())


@pytest.mark.parametrize(("name", "spec"), PAIRS)
def test_zeros_and_constant_rows(name, spec):
    _, statistics = make_layer(3, 80)
    weight = torch.tensor([[0.0], [0.25], [-0.25]]).expand(3, 80)
    for given_statistics in (None, statistics):
        result = torch.from_numpy(RECIPES[name](weight, spec, given_statistics).dequantize())
        if spec.fixed_zero == int(spec.fixed_zero) or spec.zero_point != "fixed":
            assert not result[0].any()
        # f16 scales and zeros, of up to 2^bits codes, and the 8 bits of two levels
        torch.testing.assert_close(result, weight.clone(), rtol=0.2 if spec.fixed_zero == 3.4 else 0.02, atol=0)


@pytest.mark.parametrize(("name", "spec"), ALL_PAIRS)
def test_channels_that_are_never_active(name, spec):
    weight, _ = make_layer(3, 80)
    for statistics in (make_statistics(torch.zeros(5, 80)), make_statistics(torch.eye(80)[:1])):
        result = torch.from_numpy(RECIPES[name](weight, spec, statistics).dequantize())
        assert result.isfinite().all()
        assert float(((result - weight) ** 2).sum()) < float((weight**2).sum())


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e-9, 1e6])
def test_weights_that_cannot_be_stored_are_refused(name, value):
    weight = torch.zeros(4, 64)
    weight[2, 5] = value
    message = "NaN or Inf" if abs(value) == float("inf") or value != value else "the largest weight"
    with pytest.raises(ValueError, match=message):
        RECIPES[name](weight, QuantSpec(2, 32, "ternary"), None)


@pytest.mark.parametrize("name", RECIPES)
def test_other_bad_arguments_are_refused(name):
    weight, statistics = make_layer(2, 32)
    spec = QuantSpec(2, 32, "ternary")
    with pytest.raises(ValueError, match="statistics of 32 channels do not fit a weight of 31 columns"):
        RECIPES[name](weight[:, :31], spec, statistics)
    for bad in (weight[0], weight[:0], weight.to("meta")):
        with pytest.raises(ValueError, match="expected a matrix with data"):
            RECIPES[name](bad, spec, None)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(PAIRS),
    st.integers(1, 4),
    st.integers(1, 150),
    st.integers(0, 2**32 - 1),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_results_are_near_the_weight(pair, rows, columns, seed, dtype):
    name, spec = pair.values
    weight, statistics = make_layer(rows, columns, seed)
    weight = weight.to(dtype)
    codes = RECIPES[name](weight, spec, statistics)
    error = (weight.float() - torch.from_numpy(codes.dequantize())) ** 2 * statistics.importance
    # never worse than nothing at all, whose norm may be another one than the recipe's
    assert float(error.sum()) <= 1.05 * float((weight.float() ** 2 * statistics.importance).sum())
