"""GPTQ: exact where it must be, never worse than rounding on its own objective, and clear about bad input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tmac import Codes, QuantSpec, round_to_nearest
from tmac.quant.methods.gptq import GPTQOptions, gptq, round_with_factor
from tmac.quant.methods.hessian_factor import Factor, factor
from tmac.quant.statistics import LayerStatistics

PLAIN = GPTQOptions(damping_own=0.0)
SPECS = [
    QuantSpec(bits, group, zero_point=zero, scale_format=form)
    for bits, group in ((1, 32), (2, 16), (3, -1), (4, 48), (8, 32))
    for zero, form in (("fixed", "f16"), ("integer", "f16"), ("real", "f32"), ("offset", "f16"))
] + [
    QuantSpec(2, 32, "ternary"),
    QuantSpec(3, 32, fixed_zero=3.5),
]  # fmt: skip


def correlated(tokens: int, k: int, seed: int = 0) -> Tensor:
    """Inputs whose channels depend on each other and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = 0.5 * torch.randn(k, k, generator=generator) + torch.eye(k)
    return torch.randn(tokens, k, generator=generator) @ mixing * torch.exp(0.5 * torch.randn(k, generator=generator))


def random_weight(n: int, k: int, seed: int = 1) -> Tensor:
    return 0.1 * torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def statistics_of(inputs: Tensor, hessian: Tensor | None = None, cross: Tensor | None = None) -> LayerStatistics:
    hessian = inputs.T @ inputs / len(inputs) if hessian is None else hessian
    return LayerStatistics(len(inputs), hessian, inputs.abs().amax(0), cross)


def with_hessian(hessian: Tensor) -> LayerStatistics:
    return LayerStatistics(1, hessian, torch.ones(len(hessian)))


def dequantized(codes: Codes) -> Tensor:
    return torch.from_numpy(codes.dequantize())


def error(codes: Codes, weight: Tensor, hessian: Tensor) -> float:
    difference = (dequantized(codes) - weight).double()
    return float(((difference @ hessian.double()) * difference).sum())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_channels_that_do_not_depend_on_each_other_are_rounded_to_nearest(spec: QuantSpec) -> None:
    weight = random_weight(20, 150)
    codes = gptq(weight, spec, with_hessian(2.0 * torch.eye(150)))
    nearest = round_to_nearest(weight.numpy(), spec)
    np.testing.assert_array_equal(codes.scales, nearest.scales)
    if nearest.zeros is not None:
        np.testing.assert_array_equal(codes.zeros, nearest.zeros)
    step = nearest.group_values()[0].max()
    # A code may differ where a weight lies half way between two: then the error is the same but for rounding.
    np.testing.assert_allclose(
        (codes.dequantize() - weight.numpy()) ** 2, (nearest.dequantize() - weight.numpy()) ** 2, atol=1e-5 * step**2
    )


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_output_error_is_far_below_that_of_rounding(spec: QuantSpec) -> None:
    inputs, weight = correlated(1000, 160), random_weight(24, 160)
    statistics = statistics_of(inputs)
    found = error(gptq(weight, spec, statistics, PLAIN), weight, statistics.hessian)
    nearest = error(round_to_nearest(weight.numpy(), spec), weight, statistics.hessian)
    assert found < (0.95 if spec.bits == 1 or spec.codebook == "ternary" else 0.8) * nearest


def test_two_columns_are_rounded_as_well_as_they_can_be() -> None:
    """The last of two columns is chosen best for the first; the first is nearest. Both stated by brute force."""
    hessian = torch.tensor([[2.0, 1.2], [1.2, 1.0]])
    weight, spec = random_weight(200, 2), QuantSpec(3, -1, scale_format="f32")
    codes = gptq(weight, spec, with_hessian(hessian), GPTQOptions(0.0, 0.0, act_order=False))
    scales = codes.scales.astype(np.float64)
    first = np.clip(np.round(weight[:, 0].numpy() / scales[:, 0] + 4), 0, 7)
    assert (codes.codes[:, 0] == first).mean() > 0.99
    for row in range(200):
        levels = (np.arange(8) - 4) * scales[row, 0]
        chosen = (codes.codes[row, 0] - 4.0) * scales[row, 0]
        d = np.stack([np.full(8, chosen), levels], 1) - weight[row].double().numpy()
        costs = ((d @ hessian.double().numpy()) * d).sum(1)
        assert costs[codes.codes[row, 1]] <= costs.min() * (1 + 1e-5) + 1e-12


def test_small_cases_are_near_the_best_codes_of_all() -> None:
    """Of all 4^5 rounding choices on the same grids, GPTQ's is within a factor; rounding to nearest is not."""
    hessian = statistics_of(correlated(200, 5)).hessian
    weight, spec = random_weight(12, 5), QuantSpec(2, -1, scale_format="f32")
    codes = gptq(weight, spec, with_hessian(hessian), GPTQOptions(0.0, 0.0))
    every = torch.tensor(list(itertools.product(range(4), repeat=5)), dtype=torch.float64)
    best = 0.0
    for row in range(12):
        d = (every - 2.0) * float(codes.scales[row, 0]) - weight[row].double()
        best += float(((d @ hessian.double()) * d).sum(1).min())
    assert best <= error(codes, weight, hessian) <= 2.0 * best


@pytest.mark.parametrize("act_order", [False, True])
def test_the_factor_is_that_of_the_damped_hessian(act_order: bool) -> None:
    hessian = statistics_of(correlated(300, 70)).hessian
    made = factor(hessian, 32, mean=0.02, own=0.25, act_order=act_order)
    diagonal = torch.diagonal(hessian)
    damped = hessian + torch.diag(0.02 * diagonal.mean() + 0.25 * diagonal)
    upper = made.feedback.double()
    assert torch.equal(made.feedback, made.feedback.triu())
    assert bool((torch.diagonal(made.feedback) == 1).all())
    product = (upper * made.pivots.double()) @ upper.T
    # Entries of both factors are rounded to f32: two relative errors of 2^-24 for each product, and three of sums.
    bound = 4 * 2.0**-24 * (upper.abs() * made.pivots.double()) @ upper.abs().T
    assert bool(((product - damped[made.order][:, made.order]).abs() <= bound + 1e-6 * damped.abs().max()).all())
    groups = made.order // 32
    assert torch.equal(groups, groups.sort().values)
    if act_order:
        for group in made.order.split(32):
            assert bool((diagonal[group].diff() <= 0).all())
    else:
        assert torch.equal(made.order, torch.arange(70))


def test_a_factor_is_made_once_for_a_hessian() -> None:
    hessian = statistics_of(correlated(100, 40)).hessian
    assert factor(hessian, 16) is factor(hessian, 16)
    assert factor(hessian, 16) is not factor(hessian, 16, mean=0.5)
    before = factor(hessian, 16)
    hessian[0, 0] += 1.0
    assert factor(hessian, 16) is not before
    assert factor(hessian.clone(), 16) is not factor(hessian, 16)


def test_the_order_of_visits_does_not_show_in_the_codes_of_independent_channels() -> None:
    weight, spec = random_weight(8, 96), QuantSpec(4, 32)
    statistics = with_hessian(torch.diag(torch.rand(96) + 0.5))
    ordered = gptq(weight, spec, statistics)
    assert ordered.perm is None
    plain = gptq(weight, spec, statistics, GPTQOptions(act_order=False))
    np.testing.assert_allclose(ordered.dequantize(), plain.dequantize(), atol=1e-6)


def test_act_order_within_groups_helps_where_channels_differ() -> None:
    inputs = correlated(2000, 128) * torch.exp(torch.randn(128, generator=torch.Generator().manual_seed(5)))
    statistics, weight = statistics_of(inputs), random_weight(64, 128)
    errors = [
        error(gptq(weight, QuantSpec(2, 64), statistics, GPTQOptions(0.01, 0.0, order)), weight, statistics.hessian)
        for order in (False, True)
    ]
    assert errors[1] < errors[0]


def test_outputs_come_near_to_those_of_the_float_model() -> None:
    """GPTAQ: with inputs that are off, the error against the float outputs, not that for the inputs at hand."""
    exact, weight = correlated(3000, 96), random_weight(48, 96)
    noise = 0.2 * torch.randn(3000, 96, generator=torch.Generator().manual_seed(3))
    seen = 0.9 * exact + noise
    cross = (exact - seen).T @ seen / 3000
    options, spec = GPTQOptions(1e-4, 0.0), QuantSpec(4, 32)

    def float_error(statistics: LayerStatistics) -> float:
        rounded = dequantized(gptq(weight, spec, statistics, options))
        return float((exact @ weight.T - seen @ rounded.T).square().mean())

    plain, corrected = float_error(statistics_of(seen)), float_error(statistics_of(seen, cross=cross))
    assert corrected < 0.8 * plain


def test_without_rounding_the_correction_is_the_least_squares_solution() -> None:
    """8 bits leave next to no rounding: W + W C H^-1 is then what a regression of the float outputs finds."""
    exact, weight = correlated(500, 24).double(), random_weight(6, 24)
    seen = exact + 0.3 * correlated(500, 24, seed=9).double()
    hessian, cross = seen.T @ seen / 500, (exact - seen).T @ seen / 500
    best = torch.linalg.lstsq(seen, exact @ weight.double().T).solution.T
    statistics = LayerStatistics(500, hessian.float(), seen.abs().amax(0).float(), cross.float())
    codes = gptq(weight, QuantSpec(8, 8, scale_format="f32"), statistics, GPTQOptions(0.0, 0.0))
    found = (seen @ dequantized(codes).double().T - exact @ weight.double().T).square().mean()
    least = (seen @ best.T - exact @ weight.double().T).square().mean()
    assert float(found) < 1.01 * float(least)


@settings(max_examples=25, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    n=st.integers(1, 12),
    k=st.integers(1, 90),
    tokens=st.integers(1, 200),
    seed=st.integers(0, 1000),
)
def test_any_shape_and_rank_gives_finite_codes(spec: QuantSpec, n: int, k: int, tokens: int, seed: int) -> None:
    weight = random_weight(n, k, seed)
    codes = gptq(weight, spec, statistics_of(correlated(tokens, k, seed)))
    assert codes.codes.shape == (n, k)
    assert codes.spec == spec
    assert bool(torch.isfinite(dequantized(codes)).all())


@pytest.mark.parametrize("options", [GPTQOptions(), GPTQOptions(0.0, 0.0)])
def test_singular_hessians_and_dead_channels_are_no_obstacle(options: GPTQOptions) -> None:
    inputs = torch.ones(10, 1) * torch.arange(64.0)  # rank one
    inputs[:, 5] = 0.0
    inputs[:, 40:] = 0.0  # a whole group, and a half, that was never active
    weight, spec = random_weight(8, 64), QuantSpec(4, 16)
    values = dequantized(gptq(weight, spec, statistics_of(inputs), options))
    assert bool(torch.isfinite(values).all())
    assert float((values - weight)[:, 48:].abs().max()) < 0.1 * float(weight.abs().max())


def test_a_layer_that_never_saw_an_input_is_rounded_to_nearest() -> None:
    weight, spec = random_weight(8, 64), QuantSpec(4, 16)
    codes = gptq(weight, spec, with_hessian(torch.zeros(64, 64)))
    np.testing.assert_allclose(codes.dequantize(), round_to_nearest(weight.numpy(), spec).dequantize(), atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["weight", "Hessian", "cross moment"])
def test_numbers_that_are_none_are_named(value: float, where: str) -> None:
    weight, hessian, cross = random_weight(4, 16), torch.eye(16), torch.zeros(16, 16)
    {"weight": weight, "Hessian": hessian, "cross moment": cross}[where][3, 3] = value
    statistics = LayerStatistics(1, hessian, torch.ones(16), cross)
    with pytest.raises(ValueError, match=where):
        gptq(weight, QuantSpec(4, 16), statistics)


def test_what_is_no_second_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="negative diagonal: -2"):
        gptq(random_weight(4, 16), QuantSpec(), with_hessian(torch.diag(torch.linspace(-2, 1, 16))))
    with pytest.raises(ValueError, match="not positive semi-definite"):
        gptq(random_weight(4, 16), QuantSpec(), with_hessian(10 * torch.ones(16, 16) - 9 * torch.eye(16)))
    with pytest.raises(ValueError, match="needs the statistics"):
        gptq(random_weight(4, 16), QuantSpec())
    with pytest.raises(ValueError, match=r"16 channels do not fit a weight of \[4, 17\]"):
        gptq(random_weight(4, 17), QuantSpec(), with_hessian(torch.eye(16)))


def test_a_factor_can_be_given() -> None:
    statistics, weight = statistics_of(correlated(100, 64)), random_weight(5, 64)
    made = factor(statistics.hessian, 32, mean=0.01, own=0.0)
    assert isinstance(made, Factor)
    spec = QuantSpec(4, 32)
    np.testing.assert_array_equal(
        round_with_factor(weight, spec, made).codes, gptq(weight, spec, statistics, PLAIN).codes
    )
