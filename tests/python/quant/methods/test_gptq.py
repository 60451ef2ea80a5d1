"""GPTQ: exact where it must be, never worse than rounding on its own objective, and clear about bad input."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.methods.cases import correlated, dequantized, error, random_weight, statistics_of, with_hessian
from tmac import Codes, QuantSpec, _core, round_to_nearest
from tmac.codes import Array
from tmac.quant.methods.gptq import GPTQOptions, gptq, round_with_factor
from tmac.quant.methods.hessian_factor import Factor, factor
from tmac.quant.statistics import LayerStatistics

PLAIN = GPTQOptions(0.01, 0.0)
SPECS = [
    QuantSpec(bits, group, zero_point=zero, scale_format=form)
    for bits, group in ((1, 32), (2, 16), (3, -1), (4, 48), (8, 32))
    for zero, form in (("fixed", "f16"), ("integer", "f16"), ("real", "f32"), ("offset", "f16"))
] + [
    QuantSpec(2, 32, "ternary"),
    QuantSpec(3, 32, fixed_zero=3.5),
    QuantSpec(4, 4),
    QuantSpec(4, 20, zero_point="offset"),
    QuantSpec(3, 32, scale_format="two_level"),
    QuantSpec(2, 16, zero_point="offset", scale_format="two_level"),
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_channels_that_do_not_depend_on_each_other_are_rounded_to_nearest(spec: QuantSpec) -> None:
    """Every code is the nearest of its grid, and the grids are as good as those that rounding finds."""
    weight = random_weight(20, 150)
    codes = gptq(weight, spec, with_hessian(2.0 * torch.eye(150)))
    scales, zeros = codes.group_values()
    group = np.arange(150) // (spec.group_size if spec.group_size > 0 else 150)
    top = 2 if spec.codebook == "ternary" else 2**spec.bits - 1
    levels = np.arange(top + 1, dtype=np.float64)[:, None, None]
    scale = scales[:, group].astype(np.float64)
    zero = np.float64(spec.fixed_zero) if zeros is None else zeros[:, group].astype(np.float64)
    values = levels * scale + zero if spec.zero_point == "offset" else (levels - zero) * scale
    nearest = np.abs(values - weight.numpy()).min(0)
    # Half way between two codes, f32 may choose either: a part of 2^-20 of a step (codes below 2^8, five roundings).
    found = np.abs(codes.dequantize() - weight.numpy())
    assert np.all(found <= nearest + 2.0**-20 * 256 * np.abs(scale).max())
    rounded = round_to_nearest(weight.numpy(), spec, np.ones(150, np.float32)).dequantize()
    assert (found**2).sum() <= 1.02 * ((rounded - weight.numpy()) ** 2).sum()


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


@pytest.mark.parametrize("power", [-40, 50])
def test_the_size_of_the_hessian_does_not_matter(power: int) -> None:
    """Powers of two leave every digit as it is. 70 columns do not fill the last tile of 24."""
    hessian = statistics_of(correlated(300, 70)).hessian
    made, scaled = factor(hessian, 32), factor(hessian * 2.0**power, 32)
    assert torch.equal(scaled.order, made.order)
    assert torch.equal(scaled.strips, made.strips)
    assert torch.equal(scaled.pivots, made.pivots * 2.0**power)


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
    dead, alike = (gptq(weight, spec, with_hessian(hessian)) for hessian in (torch.zeros(64, 64), torch.eye(64)))
    np.testing.assert_array_equal(dead.dequantize(), alike.dequantize())


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
    with pytest.raises(ValueError, match="statistics of 16 channels do not fit a weight of 17 columns"):
        gptq(random_weight(4, 17), QuantSpec(), with_hessian(torch.eye(16)))


def test_a_factor_can_be_given() -> None:
    statistics, weight = statistics_of(correlated(100, 64)), random_weight(5, 64)
    made = factor(statistics.hessian, 32, mean=0.01, own=0.0)
    assert isinstance(made, Factor)
    spec = QuantSpec(4, 32)
    np.testing.assert_array_equal(
        round_with_factor(weight, spec, made).codes, gptq(weight, spec, statistics, PLAIN).codes
    )


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.scale_format != "two_level"], ids=str)
def test_the_walk_is_that_of_the_formula(spec: QuantSpec) -> None:
    """Given the grids that the pass has found, its codes are those of a plain walk in numpy, bit for bit."""
    weight, k = random_weight(50, 87), 87
    made = factor(statistics_of(correlated(300, k)).hessian, spec.group_size)
    visited = np.ascontiguousarray(weight[:, made.order].numpy())
    arguments = (made.order.numpy(), made.strips.numpy(), made.pivots.numpy())
    found, scales, zeros = _core.round_with_feedback(weight.numpy(), *arguments, spec, 1)
    assert spec.group_size < 32 or (made.order != torch.arange(k)).any()
    grids = Codes(spec, found, scales, zeros).group_values()
    np.testing.assert_array_equal(walk(visited, made.feedback.numpy(), spec, *grids), found[:, made.order])


def walk(weight: Array, feedback: Array, spec: QuantSpec, scales: Array, zeros: Array | None) -> Array:
    """Rounding with feedback as csrc/kernels/vector_feedback.h states it, a column at a time."""
    one, codes, errors = np.float32(1), np.zeros(weight.shape, np.uint8), np.zeros_like(weight)
    top = np.float32(2 if spec.codebook == "ternary" else 2**spec.bits - 1)
    for j in range(weight.shape[1]):
        target = weight[:, j]
        for i in range(j):
            target = fused(errors[:, i], feedback[i, j], target)
        group = j // spec.group_size if spec.group_size > 0 else 0
        scale = scales[:, group]
        zero = np.full_like(scale, spec.fixed_zero) if zeros is None else zeros[:, group]
        with np.errstate(divide="ignore"):
            inverse = np.where(scale == 0, np.float32(0), one / scale)
        offset = spec.zero_point == "offset"
        code = np.rint(np.clip(fused(target, inverse, -zero * inverse if offset else zero), 0, top))
        value = code * scale + zero if offset else (code - zero) * scale
        errors[:, j], codes[:, j] = weight[:, j] - value, code
    return codes


def fused(a: Array, b: Array, c: Array) -> Array:
    """a * b + c, rounded to f32 once: the sum in f64 is made odd where it is not exact, so that it rounds right."""
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    even = (bits & 1) == 0
    toward = np.where((lost > 0) == (total > 0), 1, -1)
    return np.where((lost != 0) & even, bits + toward, bits).view(np.float64).astype(np.float32)


def test_the_bits_do_not_depend_on_the_number_of_threads() -> None:
    weight, hessian = random_weight(300, 200), statistics_of(correlated(500, 200)).hessian
    for spec in SPECS:
        if spec.scale_format != "two_level":
            made = factor(hessian, spec.group_size)
            arguments = (weight.numpy(), made.order.numpy(), made.strips.numpy(), made.pivots.numpy())
            one, three = (_core.round_with_feedback(*arguments, spec, threads) for threads in (1, 3))
            for a, b in zip(one, three, strict=True):
                np.testing.assert_array_equal(a, b)


def test_what_does_not_fit_is_refused() -> None:
    weight, made = random_weight(4, 20).numpy(), factor(torch.eye(20), 4)
    order, strips, pivots = made.order.numpy(), made.strips.numpy(), made.pivots.numpy()
    with pytest.raises(ValueError, match=r"strips. expected shape \[3, 20, 8\], got \[2, 20, 8\]"):
        _core.round_with_feedback(weight, order, strips[:2].copy(), pivots, QuantSpec(4, 4))
    with pytest.raises(ValueError, match=r"pivots. expected 20 columns, got 19"):
        _core.round_with_feedback(weight, order, strips, pivots[:19].copy(), QuantSpec(4, 4))
    with pytest.raises(ValueError, match="row 2 of the weight holds a NaN"):
        _core.round_with_feedback(
            np.where(np.arange(4)[:, None] == 2, np.float32(np.nan), weight), order, strips, pivots, QuantSpec(4, 4)
        )
    with pytest.raises(ValueError, match="row 0, group 0 does not fit f16: use scale_format='f32'"):
        _core.round_with_feedback(weight * np.float32(1e8), order, strips, pivots, QuantSpec(4, 4))
    for wrong in (order[:19], np.append(order[:19], 20), np.append(order[:19], order[0]), np.roll(order, 4)):
        with pytest.raises(ValueError, match=r"\[order\] expected"):
            _core.round_with_feedback(weight, wrong.copy(), strips, pivots, QuantSpec(4, 4))
