"""Hypothesis over (n, k, m, group_size, bits, zero points, dtypes, strides). TMAC_TEST_BUDGET multiplies the examples.

The examples are derived from the test's name, not from chance, so that a run is repeatable.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tmac import _core

from . import bounds, reference
from .cases import (
    BUDGET,
    KERNELS,
    Row,
    ZeroKind,
    first_rows,
    linear,
    make_activations,
    make_spec,
    make_weight,
    modes_of,
    pack,
    same_bits,
    zero_kinds,
)
from .reference import F32, Weight

RUNNABLE = [row for row in KERNELS if row["runnable"] and row["selectable"]]


def budget(examples: int) -> settings:
    return settings(
        max_examples=max(1, int(examples * BUDGET)),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@st.composite
def weights(draw: st.DrawFn, rows: list[Row] = RUNNABLE) -> tuple[Row, Weight]:
    row = draw(st.sampled_from(rows))
    mode = draw(st.sampled_from(modes_of(row)))
    n, k = draw(st.integers(1, 70)), draw(st.integers(1, 300))
    group_size = draw(st.one_of(st.sampled_from([-1, 32, 64, 128]), st.integers(1, 310)))
    kind: ZeroKind = draw(st.sampled_from(zero_kinds(row["codebook"])))
    scale_format = draw(st.sampled_from(["f16", "f32"]))
    spec = make_spec(row["bits"], row["codebook"], mode, group_size, kind, scale_format)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return row, make_weight(rng, spec, n, k, kind.dtype, row["method"])


@st.composite
def activations(draw: st.DrawFn, k: int) -> F32:
    """Language-model-like numbers at any magnitude, some tokens all zero."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = make_activations(rng, draw(st.integers(0, 9)), k)
    x *= np.exp2(draw(st.integers(-140, 100))).astype(np.float32)
    if draw(st.booleans()):
        x[::2] = 0
    return x


@budget(400)
@given(st.data())
def test_linear_is_the_documented_product(data: st.DataObject) -> None:
    row, weight = data.draw(weights())
    x = data.draw(activations(weight.codes.shape[1]))
    bias = np.linspace(-1, 1, len(weight.codes), dtype=np.float32) if data.draw(st.booleans()) else None
    got = linear(x, pack(weight, row["name"]), bias, num_threads=data.draw(st.integers(1, 4)))
    assert same_bits(got, reference.linear(x, weight, bias))
    assert (bounds.ratio(got, reference.exact(x, weight, bias), bounds.bound(x, weight, bias)) <= 1).all()


@budget(150)
@given(st.data())
def test_tokens_do_not_see_each_other(data: st.DataObject) -> None:
    """Any rearrangement of the tokens, with anything beside them, gives each the same bits."""
    row, weight = data.draw(weights())
    x = data.draw(activations(weight.codes.shape[1]))
    packed = pack(weight, row["name"])
    order = data.draw(st.permutations(range(len(x))))
    poisoned = np.concatenate(
        [x[order], np.full((1, x.shape[1]), data.draw(st.sampled_from([np.nan, np.inf, 3e38])), np.float32)]
    )
    assert same_bits(linear(poisoned, packed)[:-1], linear(x, packed)[order])


@budget(150)
@given(st.data())
def test_rows_do_not_see_each_other(data: st.DataObject) -> None:
    row, weight = data.draw(weights())
    x = data.draw(activations(weight.codes.shape[1]))
    keep = data.draw(st.integers(1, len(weight.codes)))
    part = first_rows(weight, keep)
    assert same_bits(
        linear(x, pack(part, row["name"])), np.ascontiguousarray(linear(x, pack(weight, row["name"]))[:, :keep])
    )


@budget(200)
@given(st.data())
def test_pack_loses_nothing(data: st.DataObject) -> None:
    row, weight = data.draw(weights())
    _n, k = weight.codes.shape
    perm = np.array(data.draw(st.permutations(range(k))), np.int32) if data.draw(st.booleans()) and k < 40 else None
    planes = _core.codes_to_planes(weight.codes, weight.spec.bits)
    supers = (weight.super_scales, weight.super_offsets)
    packed = _core.pack(weight.spec, planes, k, weight.scales, weight.zeros, perm, row["name"], 1, *supers)
    back = _core.unpack(packed.buffer())
    np.testing.assert_array_equal(_core.planes_to_codes(back["planes"], k), weight.codes)
    for name in ("scales", "zeros", "super_scales", "super_offsets"):
        want = getattr(weight, name)
        assert (back[name] is None) == (want is None)
        if want is not None:
            np.testing.assert_array_equal(back[name], want)
    dense = _core.dequantize(packed.buffer())
    assert same_bits(dense if perm is None else np.ascontiguousarray(dense[:, perm]), weight.dequantize_f32())


def stored(values: F32, name: str) -> tuple[Any, int]:
    """The values as raw f32, f16 or bf16 bits, and linear_pointers' number for that type."""
    if name == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16), 2
    return (values, 0) if name == "f32" else (values.astype(np.float16), 1)


def loaded(values: Any, name: str) -> F32:
    return (values.astype(np.uint32) << 16).view(np.float32) if name == "bf16" else values.astype(np.float32)


def rounded(values: F32, name: str) -> Any:
    """f32 to the stored type, nearest even."""
    if name == "bf16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values if name == "f32" else values.astype(np.float16)


@budget(200)
@given(st.data())
def test_pointers_take_any_type_and_stride(data: st.DataObject) -> None:
    """f32, f16 and bf16 in and out, with gaps between the tokens that are neither read nor written."""
    row, weight = data.draw(weights())
    n, k = weight.codes.shape
    m, x_gap, y_gap = data.draw(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, 9)))
    x_name, y_name = data.draw(st.tuples(*[st.sampled_from(["f32", "f16", "bf16"])] * 2))
    room, x_type = stored(make_activations(np.random.default_rng(n), max(m, 1), k + x_gap), x_name)
    room[:, k:] = stored(np.full(1, np.nan, np.float32), x_name)[0]
    y, y_type = stored(np.full((max(m, 1), n + y_gap), 7, np.float32), y_name)
    buffer = pack(weight, row["name"]).buffer()
    _core.linear_pointers(
        room.ctypes.data,
        x_type,
        k + x_gap,
        m,
        buffer.ctypes.data,
        buffer.nbytes,
        0,
        y.ctypes.data,
        y_type,
        n + y_gap,
        k,
        n,
        data.draw(st.integers(0, 3)),
    )
    want = rounded(reference.linear(np.ascontiguousarray(loaded(room[:m, :k], x_name)), weight), y_name)
    np.testing.assert_array_equal(y[:m, :n], want)
    assert (loaded(np.ascontiguousarray(y[:, n:]), y_name) == 7).all()


@pytest.mark.parametrize("dtype_name", ["float32", "float16", "bfloat16"])
def test_torch_layer_is_the_same_product(dtype_name: str) -> None:
    torch = pytest.importorskip("torch")
    nn = pytest.importorskip("tmac.nn")
    dtype = getattr(torch, dtype_name)

    @budget(40)
    @given(
        st.integers(1, 40),
        st.integers(1, 200),
        st.integers(0, 5),
        st.sampled_from([2, 3, 4, 8]),
        st.sampled_from([-1, 32, 50]),
        st.sampled_from(["contiguous", "transposed", "sliced", "expanded"]),
    )
    def check(n: int, k: int, m: int, bits: int, group_size: int, memory: str) -> None:
        torch.manual_seed(n * k)
        dense = torch.nn.Linear(k, n)
        layer = nn.QuantLinear.from_linear(
            dense, make_spec(bits, "uniform", "group", group_size, zero_kinds("uniform")[0])
        )
        x = torch.randn(m, 2, k).to(dtype)
        views = {
            "contiguous": x,
            "transposed": x.transpose(0, 1),
            "sliced": torch.cat([x, x], -1)[..., :k],
            "expanded": x[:, :1].expand(m, 2, k),
        }
        view = views[memory]
        with torch.no_grad():
            got = layer(view)
        assert got.shape == (*view.shape[:-1], n)
        assert got.dtype == dtype
        flat = np.ascontiguousarray(view.reshape(-1, k).float().numpy())
        codes = _core.unpack(layer.weight.numpy())
        name = layer.prompt_kernel if len(flat) > 16 else layer.kernel
        method = next(row["method"] for row in RUNNABLE if row["name"] == name)
        codes = [_core.planes_to_codes(codes["planes"], k), codes["scales"], codes["zeros"]]
        weight = Weight(layer.spec, *codes, method)
        want = torch.from_numpy(reference.linear(flat, weight, dense.bias.detach().numpy())).to(dtype)
        assert torch.equal(got.reshape(-1, n), want)

    check()
