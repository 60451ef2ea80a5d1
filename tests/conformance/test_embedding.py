"""Rows of a packed weight, looked up by their numbers: the rows that `dequantize` gives, in any float type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tmac import _core

from .cases import (
    GROUP_SIZES,
    SHAPES,
    ZERO_KINDS,
    Case,
    each_kernel,
    make_spec,
    make_weight,
    need,
    pack,
    same_bits,
    sample,
    zero_kinds,
)
from .test_properties import loaded, rounded, stored

N, K = 33, 70


def small_weight() -> _core.PackedWeight:
    spec = make_spec(4, "uniform", "group", 32, ZERO_KINDS[0])
    return pack(make_weight(np.random.default_rng(1), spec, N, K))


@each_kernel
def test_rows_are_those_of_the_whole_weight(case: Case) -> None:
    need(case[0])
    row, activation = case
    for at, kind in enumerate(zero_kinds(row["codebook"])):
        for n, k in [*sample(SHAPES, 3, at), (300, 140)]:
            rng = np.random.default_rng(at)
            spec = make_spec(row["bits"], row["codebook"], activation, GROUP_SIZES[at], kind)
            weight = make_weight(rng, spec, n, k, kind.dtype)
            perm = rng.permutation(k).astype(np.int32) if at % 2 else None
            packed = pack(weight, row["name"], perm=perm)
            want = weight.dequantize_f32()
            if perm is not None:
                want[:, perm] = want.copy()
            ids = np.concatenate([rng.integers(0, n, 7), [n - 1, 0, n - 1]])
            for chosen in (ids, ids[:1], ids[:0], np.arange(n)):
                got = _core.dequantize_rows(packed.buffer(), chosen, num_threads=2)
                assert same_bits(got, want[chosen]), f"{spec} n={n} k={k} ids={chosen}"
            assert same_bits(_core.dequantize(packed.buffer()), want)


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("threads", [1, 3])
def test_pointers_take_any_type_and_stride(name: str, threads: int) -> None:
    """Many rows for several threads; what stands between the rows is not written."""
    buffer = small_weight().buffer()
    ids = np.random.default_rng(0).integers(0, N, 5000)
    y, y_type = stored(np.full((len(ids), K + 3), 7, np.float32), name)
    _core.embedding_pointers(
        ids.ctypes.data, len(ids), buffer.ctypes.data, buffer.nbytes, y.ctypes.data, y_type, K + 3, K, threads
    )
    np.testing.assert_array_equal(y[:, :K], rounded(_core.dequantize(buffer)[ids], name))
    assert (loaded(np.ascontiguousarray(y[:, K:]), name) == 7).all()


@pytest.mark.parametrize("bad", [-1, N, -(2**63), 2**63 - 1, 2**32])
@pytest.mark.parametrize("place", [0, 2])
def test_an_id_that_is_no_row(bad: int, place: int) -> None:
    ids = np.array([1, 2, 3])
    ids[place] = bad
    with pytest.raises(ValueError, match=rf"\[embedding\] id {bad} at place {place} .* {N} rows"):
        _core.dequantize_rows(small_weight().buffer(), ids)


@pytest.mark.parametrize(
    "ids",
    [
        np.zeros(2, np.int32),
        np.zeros(2, np.uint64),
        np.zeros((1, 2), np.int64),
        np.zeros(2),
        np.zeros(4, np.int64)[::2],
    ],
    ids=repr,
)
def test_wrong_ids(ids: Any) -> None:
    with pytest.raises(ValueError, match=r"\[ids\]"):
        _core.dequantize_rows(small_weight().buffer(), ids)


@pytest.mark.parametrize("wrong", [{"count": -1}, {"size": 8}, {"y_type": 3}, {"y_type": -1}, {"k": K + 1}], ids=repr)
def test_wrong_pointers(wrong: dict[str, int]) -> None:
    buffer, ids, y = small_weight().buffer(), np.arange(2), np.zeros((2, 80), np.float32)

    def call(count: int = 2, size: int = buffer.nbytes, y_type: int = 0, k: int = K) -> None:
        _core.embedding_pointers(ids.ctypes.data, count, buffer.ctypes.data, size, y.ctypes.data, y_type, 80, k, 1)

    call()
    assert y[:, :K].any()
    with pytest.raises(ValueError, match=r"\[\w+"):
        call(**wrong)
