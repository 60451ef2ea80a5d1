"""Wrong arrays raise ValueError with a message; none crashes, none is copied or converted silently."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tmac import _core

from .cases import ZERO_KINDS, linear, make_activations, make_spec, make_weight, pack, same_bits

N, K = 20, 70
KINDS = {kind.name: kind for kind in ZERO_KINDS}


def spec_of(kind: str = "centre", bits: int = 2) -> Any:
    return make_spec(bits, "uniform", "group", 32, KINDS[kind])


def arguments(kind: str = "centre") -> dict[str, Any]:
    """Arguments of _core.pack that are right: the changes below make one of them wrong."""
    weight = make_weight(np.random.default_rng(0), spec_of(kind), N, K, KINDS[kind].dtype)
    return {
        "spec": weight.spec,
        "planes": _core.codes_to_planes(weight.codes, 2),
        "in_features": K,
        "scales": weight.scales,
        "zeros": weight.zeros,
        "perm": None,
        "super_scales": weight.super_scales,
        "super_offsets": weight.super_offsets,
    }


def set_item(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(values: dict[str, Any]) -> None:
        values[name] = change(values[name])

    return apply


WRONG_PACKS = {
    "planes i8": ("centre", set_item("planes", lambda a: a.view(np.int8))),
    "planes 2-D": ("centre", set_item("planes", lambda a: a[0])),
    "planes too few": ("centre", set_item("planes", lambda a: a[:1].copy())),
    "planes too many": ("centre", set_item("planes", lambda a: np.concatenate([a, a]))),
    "planes too narrow": ("centre", set_item("planes", lambda a: a[:, :, :-1].copy())),
    "planes strided": ("centre", set_item("planes", lambda a: a[:, ::-1])),
    "planes of no rows": ("centre", set_item("planes", lambda a: a[:, :0])),
    "in_features 0": ("centre", set_item("in_features", lambda k: 0)),
    "in_features -1": ("centre", set_item("in_features", lambda k: -1)),
    "in_features other": ("centre", set_item("in_features", lambda k: k + 8)),
    "scales f64": ("centre", set_item("scales", lambda a: a.astype(np.float64))),
    "scales i16": ("centre", set_item("scales", lambda a: a.view(np.int16))),
    "scales one group short": ("centre", set_item("scales", lambda a: a[:, :-1].copy())),
    "scales one row short": ("centre", set_item("scales", lambda a: a[:-1].copy())),
    "scales 1-D": ("centre", set_item("scales", lambda a: a.ravel())),
    "scales transposed": ("centre", set_item("scales", np.asfortranarray)),
    "scales missing": ("centre", set_item("scales", lambda a: None)),
    "zeros missing": ("integer", set_item("zeros", lambda a: None)),
    "offsets missing": ("offset_f16", set_item("zeros", lambda a: None)),
    "zeros of a fixed zero": ("centre", set_item("zeros", lambda a: np.zeros((N, 3), np.uint8))),
    "zeros i32": ("integer", set_item("zeros", lambda a: a.astype(np.int32))),
    "zeros f64": ("real_f32", set_item("zeros", lambda a: a.astype(np.float64))),
    "zeros one row short": ("integer", set_item("zeros", lambda a: a[:-1].copy())),
    "zeros transposed": ("real_f16", set_item("zeros", np.asfortranarray)),
    "two-level scales u8": ("two_level", set_item("scales", lambda a: a.view(np.uint8))),
    "two-level scales f16": ("two_level", set_item("scales", lambda a: a.astype(np.float16))),
    "two-level offsets f16": ("two_level_offset", set_item("zeros", lambda a: a.astype(np.float16))),
    "two-level offsets u8": ("two_level_offset", set_item("zeros", lambda a: a.view(np.uint8))),
    "super_scales missing": ("two_level", set_item("super_scales", lambda a: None)),
    "super_scales f32": ("two_level", set_item("super_scales", lambda a: a.astype(np.float32))),
    "super_scales i16": ("two_level", set_item("super_scales", lambda a: a.view(np.int16))),
    "super_scales one row short": ("two_level", set_item("super_scales", lambda a: a[:-1].copy())),
    "super_scales one too many": ("two_level", set_item("super_scales", lambda a: np.concatenate([a, a], axis=1))),
    "super_scales strided": ("two_level", set_item("super_scales", lambda a: np.repeat(a, 2, axis=0)[::2])),
    "super_scales of one level": ("centre", set_item("super_scales", lambda a: np.ones((N, 1), np.float16))),
    "super_offsets missing": ("two_level_offset", set_item("super_offsets", lambda a: None)),
    "super_offsets f32": ("two_level_offset", set_item("super_offsets", lambda a: a.astype(np.float32))),
    "super_offsets of no columns": ("two_level_offset", set_item("super_offsets", lambda a: a[:, :0])),
    "super_offsets of a fixed zero": ("two_level", set_item("super_offsets", lambda a: np.ones((N, 1), np.float16))),
    "super_offsets of one level": ("offset_f16", set_item("super_offsets", lambda a: np.ones((N, 1), np.float16))),
    "perm i64": ("centre", set_item("perm", lambda a: np.arange(K))),
    "perm short": ("centre", set_item("perm", lambda a: np.arange(K - 1, dtype=np.int32))),
    "perm out of range": ("centre", set_item("perm", lambda a: np.arange(1, K + 1, dtype=np.int32))),
    "perm negative": ("centre", set_item("perm", lambda a: np.arange(-1, K - 1, dtype=np.int32))),
    "perm twice": ("centre", set_item("perm", lambda a: np.zeros(K, np.int32))),
}


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in WRONG_PACKS.values()}))
def test_right_arguments_pack(kind: str) -> None:
    assert _core.pack(**arguments(kind)).out_features == N


@pytest.mark.parametrize("name", WRONG_PACKS)
def test_wrong_arguments_of_pack(name: str) -> None:
    kind, change = WRONG_PACKS[name]
    values = arguments(kind)
    change(values)
    with pytest.raises((ValueError, TypeError) if "missing" in name or "in_features" in name else ValueError):
        _core.pack(**values)


WRONG_INPUTS: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "f64": lambda x: x.astype(np.float64),
    "f16": lambda x: x.astype(np.float16),
    "i32": lambda x: x.astype(np.int32),
    "one column short": lambda x: x[:, :-1].copy(),
    "one column more": lambda x: np.concatenate([x, x[:, :1]], axis=1),
    "1-D": lambda x: x[0],
    "3-D": lambda x: x[None],
    "0-D": lambda x: np.float32(1),
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(x, 2, axis=0)[::2],
    "big-endian": lambda x: x.astype(">f4"),
    "list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_wrong_activations(name: str) -> None:
    packed = _core.pack(**arguments())
    x = make_activations(np.random.default_rng(0), 3, K)
    with pytest.raises((ValueError, TypeError)):
        _core.linear(WRONG_INPUTS[name](x), packed.buffer())


@pytest.mark.parametrize(
    "bias",
    [
        np.zeros(N + 1, np.float32),
        np.zeros(N - 1, np.float32),
        np.zeros((1, N), np.float32),
        np.zeros(N),
        np.zeros(2 * N, np.float32)[::2],
    ],
    ids=repr,
)
def test_wrong_bias(bias: Any) -> None:
    with pytest.raises(ValueError, match=r"\[\w+"):
        _core.linear(np.ones((1, K), np.float32), _core.pack(**arguments()).buffer(), bias)


def test_wrong_pointers_shapes() -> None:
    packed = _core.pack(**arguments())
    buffer, x, y = packed.buffer(), np.ones((2, 80), np.float32), np.zeros((2, 80), np.float32)

    def call(
        x_type: int = 0,
        y_type: int = 0,
        k: int = K,
        n: int = N,
        tokens: int = 2,
        size: int = buffer.nbytes,
        x_stride: int = 80,
    ) -> None:
        _core.linear_pointers(
            x.ctypes.data, x_type, x_stride, tokens, buffer.ctypes.data, size, 0, y.ctypes.data, y_type, 80, k, n, 1
        )

    call()
    assert y[:, :N].any()
    assert not y[:, N:].any()
    for wrong in (
        {"x_type": 3},
        {"y_type": -1},
        {"k": K + 1},
        {"n": N - 1},
        {"tokens": -1},
        {"size": buffer.nbytes - 1},
        {"size": 8},
    ):
        with pytest.raises(ValueError, match=r"\[\w+"):
            call(**wrong)  # type: ignore[arg-type]


def test_empty_batch_is_an_empty_result() -> None:
    got = _core.linear(np.zeros((0, K), np.float32), _core.pack(**arguments()).buffer(), np.zeros(N, np.float32))
    assert got.shape == (0, N)
    assert got.dtype == np.float32


def test_misaligned_activations() -> None:
    """At an address that is no multiple of four: the same result, or a ValueError."""
    packed = pack(make_weight(np.random.default_rng(0), spec_of(), N, K))
    x = make_activations(np.random.default_rng(0), 2, K)
    raw = np.empty(x.nbytes + 1, np.uint8)
    shifted = np.ndarray(x.shape, np.float32, raw, offset=1)
    shifted[...] = x
    assert not shifted.flags.aligned
    with contextlib.suppress(ValueError):
        assert same_bits(_core.linear(shifted, packed.buffer()), linear(x, packed))


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 0},
        {"bits": 9},
        {"bits": -1},
        {"bits": 2.5},
        {"bits": True},
        {"bits": "4"},
        {"group_size": 0},
        {"group_size": -2},
        {"group_size": 1.5},
        {"group_size": "32"},
        {"codebook": "nf4"},
        {"zero_point": "float"},
        {"activation": "int4"},
        {"scale_format": "bf16"},
        {"scale_format": "two_level", "group_size": 64},
        {"scale_format": "two_level", "zero_point": "integer"},
        {"scale_format": "two_level", "zero_point": "real"},
        {"fixed_zero": float("nan")},
        {"fixed_zero": float("inf")},
        {"codebook": "ternary", "bits": 3},
        {"codebook": "ternary", "bits": 2, "zero_point": "integer"},
    ],
    ids=str,
)
def test_invalid_specs(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        spec_of().replace(**change)
