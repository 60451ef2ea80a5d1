"""The reference itself: its rounding against exact fractions, its bounds against its own errors."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from . import bounds, cases, reference
from .cases import ZERO_KINDS, make_activations, make_spec, make_weight
from .reference import F32

SPECS = [*((bits, "group") for bits in range(1, 9)), (2, "token"), (3, "float")]


def nearest_f32(value: Fraction) -> np.float32:
    """The float32 nearest to a fraction, ties to even: the definition, by looking at the neighbours."""
    if value == 0:
        return np.float32(0)
    guess = np.float32(float(value))
    around = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    finite = [each for each in around if np.isfinite(each)]
    return min(finite, key=lambda each: (abs(Fraction(float(each)) - value), int(each.view(np.uint32)) & 1))


def hard_triples(rng: np.random.Generator, count: int) -> tuple[F32, F32, F32]:
    """a, b, c whose a * b + c lie at or very near a float32 tie, or in the denormals."""
    a = (rng.integers(1, 2**24, count) * np.exp2(rng.integers(-20, 20, count))).astype(np.float32)
    b = (rng.integers(1, 2**24, count) * np.exp2(rng.integers(-20, 20, count))).astype(np.float32)
    c = (-a * b * (1 + np.exp2(rng.integers(-26, 2, count).astype(float)))).astype(np.float32)
    tie = count // 2  # 1 + 2^-24 is a tie; +- 2^-60 decides it, and float64 alone cannot see that
    c[:tie] = (1 + np.exp2(-23) * rng.integers(0, 8, tie)).astype(np.float32)
    near_one = 1 + np.exp2(-23) * rng.integers(-1, 2, (2, tie))
    a[:tie] = (np.exp2(-12) * rng.choice([-1, 1], tie) * near_one[0]).astype(np.float32)
    b[:tie] = (np.exp2(-12) * near_one[1]).astype(np.float32)
    denormal = slice(tie, tie + count // 8)
    a[denormal] *= np.float32(2.0**-100)
    b[denormal] *= np.float32(2.0**-60)
    c[denormal] = (rng.integers(0, 9, count // 8) * 2.0**-149).astype(np.float32)
    return a, b, c


def test_fma_rounds_once() -> None:
    a, b, c = hard_triples(np.random.default_rng(1), 4000)
    got = reference.fma(a, b, c)
    want = np.array(
        [
            nearest_f32(Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r)))
            for p, q, r in zip(a, b, c, strict=True)
        ]
    )
    np.testing.assert_array_equal(got, want)
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    assert (twice != want).sum() > 10, "the triples do not tell one rounding from two"


def test_fma_passes_infinities_and_nan_on() -> None:
    big, inf, nan = np.float32(3e38), np.float32(np.inf), np.float32(np.nan)
    assert reference.fma(big, big, np.float32(0)) == inf
    assert reference.fma(big, np.float32(2), -big) == big
    assert np.isnan(reference.fma(inf, np.float32(0), np.float32(1)))
    assert np.isnan(reference.fma(np.float32(0), nan, np.float32(1)))


def test_lane_sum_is_the_documented_order() -> None:
    values = np.random.default_rng(2).normal(0, 1, 37).astype(np.float32)
    lanes = [np.float32(0)] * 16
    for column, value in enumerate(values):
        lanes[column % 16] = lanes[column % 16] + value
    for half in (8, 4, 2, 1):
        lanes = [lanes[j] + lanes[j + half] for j in range(half)]
    assert reference.lane_sum(values) == lanes[0]
    assert lanes[0] != np.float32(values.astype(np.float64).sum()), "the sum is exact: the order cannot be seen"


@pytest.mark.parametrize("group_size", [-1, 200, 128, 32, 5])
def test_act_groups_stay_inside_weight_groups(group_size: int) -> None:
    spec = make_spec(2, "uniform", "group", group_size, ZERO_KINDS[0])
    groups = list(reference.act_groups(spec, 333))
    assert [group.begin for group in groups[1:]] == [group.end for group in groups[:-1]]
    assert (groups[0].begin, groups[-1].end) == (0, 333)
    size = 333 if group_size == -1 else group_size
    assert all(group.begin // size == (group.end - 1) // size == group.weight_group for group in groups)
    assert all(0 < group.end - group.begin <= 128 for group in groups)


@pytest.mark.parametrize("kind", ZERO_KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("bits", "activation"), SPECS)
def test_reference_is_within_its_bound(bits: int, activation: str, kind: cases.ZeroKind) -> None:
    rng = np.random.default_rng(bits)
    spec = make_spec(bits, "uniform", activation, 100, kind, "f32")
    weight = make_weight(rng, spec, 24, 330, kind.dtype)
    x, bias = make_activations(rng, 6, 330), rng.normal(0, 1, 24).astype(np.float32)
    got, want = reference.linear(x, weight, bias), reference.exact(x, weight, bias)
    ratio = bounds.ratio(got, want, bounds.bound(x, weight, bias)).max()
    assert ratio <= 1
    assert ratio > 0.01, f"the bound is {1 / ratio:.0f} times the error"


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bound_is_reached(bits: int) -> None:
    """Activations nearly half a step from an entry, all with one sign: the error is within 10 % of the bound."""
    spec = make_spec(bits, "uniform", "group", -1, ZERO_KINDS[0])
    x = np.zeros((1, 128), np.float32)
    x[0, :: 4 if bits <= 4 else 1] = 10.4999  # one a quad for the tables
    x[0, 0] = 127  # a step of 1
    weight = reference.Weight(spec, np.full((1, 128), 2**bits - 1, np.uint8), np.ones((1, 1), np.float32), None)
    ratio = bounds.ratio(reference.linear(x, weight), reference.exact(x, weight), bounds.bound(x, weight))
    assert 0.9 <= ratio.item() <= 1


def test_a_wrong_product_leaves_the_bound() -> None:
    """One code off by one, or one table entry off by two steps, must not fit in."""
    rng = np.random.default_rng(5)
    spec = make_spec(2, "uniform", "group", 32, ZERO_KINDS[0])
    weight = make_weight(rng, spec, 8, 32)
    x = np.ones((1, 32), np.float32)
    wrong = reference.Weight(spec, weight.codes.copy(), weight.scales, None)
    wrong.codes[:, 7] ^= 3
    allowed = bounds.bound(x, weight)
    assert (bounds.ratio(reference.linear(x, weight), reference.exact(x, weight), allowed) <= 1).all()
    assert (bounds.ratio(reference.linear(x, wrong), reference.exact(x, weight), allowed) > 1).all()
