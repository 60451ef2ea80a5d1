"""Every kernel of the registry x every spec it declares x shapes with tails: the bits, the bound, the batch.

A kernel is compared three ways: bit for bit with the NumPy reference of docs/numerics.md, bit for bit with the scalar
kernel of its numerics class (also on shapes that are too large for NumPy), and inside the derived bound with the
float64 product. TMAC_TEST_BUDGET multiplies how many shapes are sampled.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tmac import _core

from . import reference
from .cases import (
    GROUP_SIZES,
    SHAPES,
    TOKENS,
    ZERO_KINDS,
    Case,
    ZeroKind,
    case_id,
    check_kernel,
    each_kernel,
    kernel_cases,
    linear,
    make_activations,
    make_spec,
    make_weight,
    need,
    pack,
    same_bits,
    sample,
    scalar_twin,
    some_kernels,
    zero_kinds,
)
from .reference import F32, Weight

LARGE = [(257, 1000), (96, 2085), (1030, 576), (40, 4096)]


def random_case(case: Case, seed: int, n: int, k: int, group_size: int, kind: ZeroKind, m: int) -> tuple[Weight, F32]:
    row, activation = case
    rng = np.random.default_rng(seed)
    spec = make_spec(row["bits"], row["codebook"], activation, group_size, kind, ("f16", "f32")[seed % 2])
    weight = make_weight(rng, spec, n, k, kind.dtype, row["method"])
    return weight, make_activations(rng, m, k)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(case, kind, id=f"{case_id(case)}-{kind.name}")
        for case in kernel_cases()
        for kind in zero_kinds(case[0]["codebook"])
    ],
)
def test_bits_and_bound(case: Case, kind: ZeroKind) -> None:
    need(case[0])
    for at, group_size in enumerate(GROUP_SIZES):
        seed = 1000 * at + ZERO_KINDS.index(kind)
        for step, (n, k) in enumerate(sample(SHAPES, 3, seed)):
            weight, x = random_case(case, seed + step, n, k, group_size, kind, m=3)
            bias = np.random.default_rng(seed).normal(0, 1, n).astype(np.float32) if step % 2 else None
            check_kernel(case[0]["name"], weight, x, bias)


@each_kernel
def test_every_shape(case: Case) -> None:
    """All shapes with tails, one group size and zero point each, in turn."""
    need(case[0])
    kinds = zero_kinds(case[0]["codebook"])
    for at, (n, k) in enumerate(SHAPES):
        weight, x = random_case(case, at, n, k, GROUP_SIZES[at % 5], kinds[at % len(kinds)], m=2)
        check_kernel(case[0]["name"], weight, x)


@some_kernels(lambda case: case[0]["isa"] != "scalar")
def test_same_bits_as_scalar(case: Case) -> None:
    need(case[0])
    row, activation = case
    twin, kinds = scalar_twin(row, activation), zero_kinds(row["codebook"])
    for at, (n, k) in enumerate(sample(LARGE, 4, 0)):
        for group_size in {16, *sample(GROUP_SIZES, 3, at)}:
            weight, x = random_case(case, at, n, k, group_size, kinds[at % len(kinds)], m=5)
            got, want = linear(x, pack(weight, row["name"]), num_threads=2), linear(x, pack(weight, twin))
            assert same_bits(got, want), f"{row['name']} and {twin}: {weight.spec} n={n} k={k}"


@each_kernel
def test_bits_do_not_change_with_the_batch(case: Case) -> None:
    need(case[0])
    for group_size, (n, k) in zip((32, 128, -1, 16), ((47, 100), (65, 129), (70, 520), (79, 150)), strict=True):
        weight, x = random_case(case, k, n, k, group_size, zero_kinds(case[0]["codebook"])[-1], m=max(TOKENS))
        packed = pack(weight, case[0]["name"])
        alone = np.concatenate([linear(x[i : i + 1], packed) for i in range(len(x))])
        for m in TOKENS:
            assert same_bits(linear(x[:m], packed), alone[:m]), f"m={m} {weight.spec} n={n} k={k}"


@each_kernel
def test_bits_do_not_change_with_the_threads(case: Case) -> None:
    need(case[0])
    for n, k, m, group_size in ((1, 64, 1, 64), (130, 300, 2, 64), (300, 257, 9, 64), (300, 257, 9, 16)):
        weight, x = random_case(case, n, n, k, group_size, ZERO_KINDS[0], m)
        want = linear(x, pack(weight, case[0]["name"]), num_threads=1)
        for threads in (2, 3, 7):
            packed = pack(weight, case[0]["name"], num_threads=threads)
            assert same_bits(linear(x, packed, num_threads=threads), want), f"{threads} threads, n={n} k={k} m={m}"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@each_kernel
def test_non_finite_activations_reach_their_tokens_only(case: Case, bad: float) -> None:
    need(case[0])
    for column in (0, 31, 128, 256):
        weight, x = random_case(case, column, 37, 257, 100, ZERO_KINDS[0], m=5)
        weight.scales[3] = 0  # also a row of zeros: 0 * inf and 0 * nan are nan
        clean = linear(x, pack(weight, case[0]["name"]))
        x[1, column] = x[3, column] = bad
        got = linear(x, pack(weight, case[0]["name"]))
        assert not np.isfinite(got[[1, 3]]).any()
        assert same_bits(got[[0, 2, 4]], clean[[0, 2, 4]])


@pytest.mark.parametrize("group_size", [16, 32])
@each_kernel
def test_two_levels_have_the_bits_of_the_f32_scales_they_stand_for(case: Case, group_size: int) -> None:
    need(case[0])
    row, mode = case
    for at, kind in enumerate(kind for kind in zero_kinds(row["codebook"]) if kind.two_level):
        for n, k in ((33, 250), (65, 300), (9, 777)):
            spec = make_spec(row["bits"], row["codebook"], mode, group_size, kind)
            weight = make_weight(np.random.default_rng(at), spec, n, k, method=row["method"])
            zeros = weight.group_zeros()
            plain = Weight(
                spec.replace(scale_format="f32"),
                weight.codes,
                weight.group_scales().astype(np.float32),
                None if zeros is None else zeros.astype(np.float32),
            )
            packed, expanded = pack(weight, row["name"]), pack(plain, row["name"])
            x = make_activations(np.random.default_rng(k), 20, k)
            for m in (1, 2, 20):
                assert same_bits(linear(x[:m], packed), linear(x[:m], expanded)), f"{spec} n={n} k={k} m={m}"


@each_kernel
def test_act_order_gathers_the_activations(case: Case) -> None:
    """perm[j] is the input column of the packed column j."""
    need(case[0])
    for n, k in ((33, 64), (19, 200)):
        weight, x = random_case(case, k, n, k, 32, ZERO_KINDS[0], m=3)
        perm = np.random.default_rng(k).permutation(k).astype(np.int32)
        planes = _core.codes_to_planes(weight.codes, weight.spec.bits)
        packed = _core.pack(weight.spec, planes, k, weight.scales, perm=perm, kernel=case[0]["name"])
        assert same_bits(linear(x, packed), linear(np.ascontiguousarray(x[:, perm]), pack(weight, case[0]["name"])))
        dense = np.empty((n, k), np.float32)
        dense[:, perm] = weight.dequantize_f32()
        np.testing.assert_array_equal(_core.dequantize(packed.buffer()), dense)


@pytest.mark.parametrize("twin", [False, True], ids=["reference", "scalar"])
@each_kernel
def test_the_comparison_sees_one_wrong_code(case: Case, twin: bool) -> None:
    """The tests above can fail: one changed code among 8192 changes bits of that row, of no other."""
    need(case[0])
    weight, x = random_case(case, 3, 64, 128, 64, ZERO_KINDS[0], m=1)
    x[x == 0] = 1
    got = linear(x, pack(weight, case[0]["name"]))
    changed = dataclasses.replace(weight, codes=weight.codes.copy())
    changed.codes[40, 77] ^= 1
    other = linear(x, pack(changed, scalar_twin(*case))) if twin else reference.linear(x, changed)
    assert (got != other)[0].nonzero()[0].tolist() == [40]
