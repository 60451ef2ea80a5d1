"""Values at the edges of the formats, through every kernel: bits as documented, finite where a float product is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from . import bounds, reference
from .cases import (
    ZERO_KINDS,
    Case,
    check_kernel,
    each_kernel,
    linear,
    make_activations,
    make_spec,
    make_weight,
    need,
    pack,
    same_bits,
    some_kernels,
)
from .reference import F32, Weight


def edge_weight(case: Case, n: int = 19, k: int = 200, group_size: int = 64, kind: int = 0) -> Weight:
    spec = make_spec(case[0]["bits"], case[0]["codebook"], case[1], group_size, ZERO_KINDS[kind], "f32")
    return make_weight(np.random.default_rng(n), spec, n, k, method=case[0]["method"])


def edge_activations(m: int = 3, k: int = 200) -> F32:
    return make_activations(np.random.default_rng(7), m, k)


@pytest.mark.parametrize("size", [2.0**-149, 2.0**-140, 2.0**-126, 3.7e-37, 3.8e-37, 1e-30, 1e20])
@each_kernel
def test_small_and_large_activations(case: Case, size: float) -> None:
    """Around the smallest group whose inverse is finite, and far from it."""
    need(case[0])
    x = edge_activations()
    x[1] *= np.float32(size)
    x[2, 64:128] *= np.float32(size)  # one group among others
    check_kernel(case[0]["name"], edge_weight(case), x)


@pytest.mark.parametrize("size", [1e37, 1e38, 3.4e38])
@each_kernel
def test_huge_activations_stay_finite(case: Case, size: float) -> None:
    """Sums of four overflow; the result is that of x * 2^-64, times 2^64."""
    need(case[0])
    weight = edge_weight(case)
    weight.scales[...] = np.abs(weight.scales) * np.float32(2.0**-9)
    x = np.where(edge_activations() > 0, np.float32(size), np.float32(-size)).astype(np.float32)
    x[1] = edge_activations()[1]
    got, want = linear(x, pack(weight, case[0]["name"])), reference.linear(x, weight)
    assert same_bits(got, want)
    exact = reference.exact(x, weight)
    inside = np.abs(exact) < 3e38
    assert (bounds.ratio(got, exact, bounds.bound(x, weight))[inside] <= 1).all()
    alone = linear(x[1:2], pack(weight, case[0]["name"]))
    assert same_bits(got[1:2], alone), "a huge token changed its neighbour"


@pytest.mark.parametrize("size", [1e35, 1e37, 1e38])
@some_kernels(lambda case: case[0]["codebook"] == "uniform")
def test_huge_parts_that_cancel_stay_finite(case: Case, size: float) -> None:
    """Codes near a zero point that is far from the centre: both terms of the epilogue overflow, their sum does not."""
    need(case[0])
    integer = next(kind for kind in ZERO_KINDS if kind.name == "integer")
    spec = make_spec(case[0]["bits"], "uniform", case[1], 64, integer)
    weight = make_weight(np.random.default_rng(0), spec, 19, 200, np.uint8, case[0]["method"])
    weight.codes[...] = np.random.default_rng(1).random((19, 200)) < 0.02
    zeros = np.zeros_like(weight.zeros)
    x = np.full((1, 200), size, np.float32)
    weight = dataclasses.replace(weight, scales=np.abs(weight.scales), zeros=zeros)
    got, exact = linear(x, pack(weight, case[0]["name"])), reference.exact(x, weight)
    assert (exact < 3e38).all()
    assert np.isfinite(got).all()
    check_kernel(case[0]["name"], weight, x)


@pytest.mark.parametrize("power", [55, 56, 57])
@each_kernel
def test_the_size_from_which_a_token_is_scaled_down(case: Case, power: int) -> None:
    """A huge group under zero weights: what becomes of the tiny group beside it shows whether the token was scaled."""
    need(case[0])
    weight, x = edge_weight(case), edge_activations() * np.float32(1e-26)
    weight.scales[:, 0] = 0
    x[:, 0] = np.float32(2.0**power * 127 * (2 if reference.looks_up(weight) else 1))
    check_kernel(case[0]["name"], weight, x)


@each_kernel
def test_results_that_overflow_are_infinite(case: Case) -> None:
    need(case[0])
    weight = edge_weight(case)
    weight.scales[...] = 1e4
    codes = np.full_like(weight.codes, 2 if case[0]["codebook"] == "ternary" else 2 ** case[0]["bits"] - 1)
    got = linear(
        np.full((1, 200), 1e36, np.float32),
        pack(Weight(weight.spec, codes, weight.scales, None, weight.method), case[0]["name"]),
    )
    assert (got == np.inf).all()


@each_kernel
def test_zeros(case: Case) -> None:
    need(case[0])
    x, weight = edge_activations(), edge_weight(case)
    x[1] = 0
    x[2] = -0.0
    check_kernel(case[0]["name"], weight, x)
    assert not linear(x, pack(weight, case[0]["name"]))[1:].any()
    weight.scales[:, 1] = 0
    weight.scales[5] = 0
    check_kernel(case[0]["name"], weight, edge_activations())
    assert not linear(edge_activations(), pack(weight, case[0]["name"]))[:, 5].any()


@each_kernel
def test_equal_codes(case: Case) -> None:
    need(case[0])
    weight = edge_weight(case)
    top = 2 if case[0]["codebook"] == "ternary" else 2 ** case[0]["bits"] - 1
    for code in {0, top // 2, top}:
        check_kernel(
            case[0]["name"],
            Weight(weight.spec, np.full_like(weight.codes, code), weight.scales, None, weight.method),
            edge_activations(),
        )


@pytest.mark.parametrize("scale", [6e-8, 6.1e-5, 65504.0])
@each_kernel
def test_edges_of_f16_scales(case: Case, scale: float) -> None:
    """f16 denormals, the smallest normal, the largest number; half of them negative."""
    need(case[0])
    weight = edge_weight(case)
    scales = (np.where(weight.scales > 0, scale, -scale)).astype(np.float16)
    assert scales.any()
    spec = weight.spec.replace(scale_format="f16")
    check_kernel(case[0]["name"], dataclasses.replace(weight, spec=spec, scales=scales), edge_activations())


@each_kernel
def test_f32_scales_beyond_f16(case: Case) -> None:
    need(case[0])
    weight = edge_weight(case)
    weight.scales[::2] *= np.float32(1e20)
    weight.scales[1::2] *= np.float32(1e-38)  # denormal scales, and products that underflow
    check_kernel(case[0]["name"], weight, edge_activations())


@each_kernel
def test_saturated_sums(case: Case) -> None:
    """Every entry +-127 and every code at an end: the largest integer sums, in one group of 2^17 columns."""
    need(case[0])
    k, top = 2**17, 2 if case[0]["codebook"] == "ternary" else 2 ** case[0]["bits"] - 1
    spec = make_spec(case[0]["bits"], case[0]["codebook"], case[1], -1, ZERO_KINDS[0])
    codes = np.repeat(np.array([[0], [top]], np.uint8), k, axis=1)
    weight = Weight(spec, codes, np.full((2, 1), 2.0**-12, np.float16), None, case[0]["method"])
    x = np.ones((2, k), np.float32)
    x[1, ::2] = -1
    got = linear(x, pack(weight, case[0]["name"]))
    assert same_bits(got, reference.linear(x, weight))
    np.testing.assert_allclose(got, reference.exact(x, weight), rtol=1e-4, atol=1e-3)


@each_kernel
def test_uniform_signs_saturate_every_tile(case: Case) -> None:
    """+-127 in every table and lane of a full tile of rows, where 16-bit partial sums are at their limit."""
    need(case[0])
    k, top = 512, 2 if case[0]["codebook"] == "ternary" else 2 ** case[0]["bits"] - 1
    rng = np.random.default_rng(0)
    for group_size in (-1, 128, 32):
        spec = make_spec(case[0]["bits"], case[0]["codebook"], case[1], group_size, ZERO_KINDS[0])
        codes = np.where(rng.random((64, 1)) < 0.5, 0, top).repeat(k, axis=1).astype(np.uint8)
        scales = np.ones((64, spec.num_groups(k)), np.float16)
        x = np.concatenate([np.ones((1, k)), -np.ones((1, k)), rng.choice([-1, 1], (3, k))]).astype(np.float32)
        check_kernel(case[0]["name"], Weight(spec, codes, scales, None, case[0]["method"]), x)
