"""QuantLinear called eagerly: every input that nn.Linear takes, and what is refused."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conformance.bounds import bound
from conformance.reference import Weight, exact
from hypothesis import given, settings
from hypothesis import strategies as st

import tmac
from tmac import QuantSpec, _core
from tmac.nn import QuantLinear
from tmac.nn.ops import run_linear

from .layers import EXACT, TERNARY, W4, assert_same_bits, random_codes, random_input, random_layer

SPECS = [W4, EXACT, TERNARY, QuantSpec(1, 64), QuantSpec(3, 64, zero_point="integer"), QuantSpec(8, -1)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HALF_ULP = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def assert_close_to_dense(layer, x, y):
    """The class `float`: the product is summed in f32 from exact f32 weights.

    Each of k products and at most k sums is rounded once, the bias and the conversion to the output's dtype once more:
    |error| <= (k + 2) u sum |w x| with u = 2^-24, and half an ulp of the output's dtype of the result. An f16 below
    its smallest normal number has a spacing of 2^-24.
    """
    weight = layer.dequantize().double()
    bias = 0 if layer.bias is None else layer.bias.detach().double()
    x = x.double()
    exact = x @ weight.T + bias
    magnitude = x.abs() @ weight.abs().T + torch.as_tensor(bias).abs()
    bound = (x.shape[-1] + 2) * 2.0**-24 * magnitude + HALF_ULP[y.dtype] * exact.abs() * 1.01 + 2.0**-25
    assert ((y.double() - exact).abs() <= bound).all()


@settings(max_examples=50, deadline=None)
@given(
    n=st.integers(1, 70),
    k=st.integers(1, 300),
    shape=st.lists(st.integers(0, 4), max_size=3),
    group_size=st.sampled_from([-1, 16, 32, 128]),
    zero_point=st.sampled_from(["fixed", "integer", "real", "offset"]),
    bits=st.integers(1, 8),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    perm=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_exact_class_is_a_dense_layer(n, k, shape, group_size, zero_point, bits, dtype, bias, perm, seed):
    spec = QuantSpec(bits, group_size, zero_point=zero_point, activation="float")
    layer = random_layer(spec, n, k, bias, perm, seed)
    x = random_input(*shape, k, dtype=dtype, seed=seed)
    y = layer(x)
    assert y.shape == (*shape, n)
    assert y.dtype == dtype
    assert_close_to_dense(layer, x, y)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_layer_is_the_core_and_one_rounding(spec, dtype):
    layer = random_layer(spec, 33, 200)
    x = random_input(5, 200, dtype=dtype)
    wide = _core.linear(x.float().numpy(), layer.weight.numpy(), layer.bias.detach().numpy())
    assert_same_bits(layer(x), torch.from_numpy(wide).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_and_alignment_change_no_bit(dtype):
    layer = random_layer(n=33, k=96)
    x = random_input(6, 96, dtype=dtype)
    expected = layer(x)
    wide = torch.zeros(12, 200, dtype=dtype)
    wide[::2, 3:99] = x
    byte = x.element_size()
    storage = torch.zeros(x.numel() * byte + 64, dtype=torch.uint8)
    views = {
        "rows of a wider tensor": wide[::2, 3:99],
        "transposed": x.T.contiguous().T,
        "every second column": torch.stack([x, x], -1).reshape(6, 192)[:, ::2],
        "three dimensions": x.reshape(2, 3, 96),
        "three dimensions, permuted": x.reshape(2, 3, 96).transpose(0, 1).contiguous().transpose(0, 1),
        "one element past an aligned address": storage[byte : byte + x.numel() * byte].view(dtype).reshape(6, 96),
    }
    views["one element past an aligned address"].copy_(x)
    for name, view in views.items():
        assert torch.equal(layer(view).reshape(6, 33), expected), name
    assert_same_bits(layer(x[:1].expand(4, 96)), expected[:1].expand(4, 33))
    assert_same_bits(layer(x[2]), expected[2])


def test_an_address_that_is_no_multiple_of_the_element_size():
    layer = random_layer()
    x = random_input(3, 96)
    raw = np.zeros(x.numel() * 4 + 1, np.uint8)
    raw[1:] = x.numpy().reshape(-1).view(np.uint8)
    odd = torch.frombuffer(raw, dtype=torch.float32, offset=1).reshape(3, 96)
    assert odd.data_ptr() % 4 == 1
    assert_same_bits(layer(odd), layer(x))


@pytest.mark.parametrize("shape", [(0, 96), (0, 3, 96), (2, 0, 96)])
def test_an_empty_batch_has_an_empty_result(shape):
    assert random_layer()(torch.empty(shape)).shape == (*shape[:-1], 40)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 33), (7, 1), (1, 129)])
def test_the_smallest_layers(spec, n, k):
    layer = random_layer(spec, n, k)
    x = random_input(2, k)
    codes = tmac.Codes.from_buffer(layer.weight.numpy())
    weight = Weight(spec, codes.codes, codes.scales, codes.zeros)
    bias = layer.bias.numpy()
    error = np.abs(layer(x).numpy() - exact(x.numpy(), weight, bias))
    assert (error <= bound(x.numpy(), weight, bias)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_that_hold_no_plain_numbers(dtype):
    layer = random_layer()
    x = random_input(3, 96, dtype=dtype)
    assert torch._neg_view(x).is_contiguous()
    assert_same_bits(layer(torch._neg_view(x)), layer(-x))
    assert_same_bits(layer(torch._neg_view(x)[:, ::1][1:]), layer(-x[1:]))
    zeros = torch._efficientzerotensor((3, 96), dtype=dtype)
    assert zeros.data_ptr() == 0
    assert_same_bits(layer(zeros), layer(torch.zeros(3, 96, dtype=dtype)))
    bias = torch._neg_view(layer.bias.detach())
    assert_same_bits(run_linear(x, layer.weight, bias, 40), run_linear(x, layer.weight, -layer.bias.detach(), 40))


@pytest.mark.parametrize("layout", ["to_sparse", "to_mkldnn"])
@pytest.mark.parametrize("grad", [False, True])
def test_other_layouts_are_named(layout, grad):
    if layout == "to_mkldnn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch is built without mkldnn")
    layer = random_layer()
    layer.bias.requires_grad_(grad)
    x = getattr(random_input(3, 96), layout)()
    with pytest.raises(ValueError, match=rf"\[linear\] x has layout {x.layout}, but torch.strided is needed"):
        layer(x)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_zero_scales_leave_the_offsets_and_the_bias(spec):
    codes = random_codes(spec, 20, 70)
    flat = tmac.Codes(spec, codes.codes, np.zeros_like(codes.scales), codes.zeros)
    layer = QuantLinear.from_codes(flat, torch.arange(20.0))
    x = random_input(3, 70).abs()
    if spec.zero_point != "offset":
        assert_same_bits(layer(x), torch.arange(20.0).repeat(3, 1))
    else:
        exact = x.double() @ layer.dequantize().double().T + torch.arange(20.0)
        magnitude = x.double() @ layer.dequantize().double().abs().T + torch.arange(20.0)
        # only sums of activations meet the offsets, and those are f32 sums: (k + 2) roundings
        assert ((layer(x).double() - exact).abs() <= 72 * 2.0**-24 * magnitude).all()


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_activations_that_are_not_finite_reach_their_tokens_only(spec, value):
    layer = random_layer(spec, 20, 150)
    x = random_input(5, 150)
    clean = layer(x)
    x[1, 149], x[3, 0] = value, value
    result = layer(x)
    assert not result[[1, 3]].isfinite().any()
    assert_same_bits(result[[0, 2, 4]], clean[[0, 2, 4]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.int8, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_other_dtypes_are_named(dtype, grad):
    layer = random_layer()
    layer.bias.requires_grad_(grad)  # the operator instead of the direct call
    with pytest.raises(ValueError, match=rf"\[linear\] x has dtype {dtype}, but float32, float16 or bfloat16"):
        layer(torch.zeros(2, 96, dtype=dtype))


@pytest.mark.parametrize("shape", [(2, 95), (2, 97), (1,), (3, 0), (96, 2)])
def test_other_widths_are_refused(shape):
    with pytest.raises(ValueError, match=rf"\[linear\] in_features={shape[-1]}, but the weight was packed for 96"):
        random_layer()(torch.zeros(shape))


def test_a_scalar_is_refused():
    with pytest.raises(ValueError, match="x has no dimension"):
        random_layer()(torch.tensor(1.0))


def test_another_device_is_refused():
    layer = random_layer()
    with pytest.raises(ValueError, match="x is on meta and the weight on cpu"):
        layer(torch.zeros(2, 96, device="meta"))
    layer.to("meta")
    assert layer.kernel == ""
    with pytest.raises(ValueError, match="x is on cpu and the weight on meta"):
        layer(torch.zeros(2, 96))
    with pytest.raises(ValueError, match="no weight on the CPU"):
        layer.dequantize()


@pytest.mark.parametrize("content", ["empty", "zeros", "random", "short", "head"])
def test_a_weight_that_is_no_packed_weight_is_refused(content):
    layer = random_layer()
    good = layer.weight
    layer.weight = {
        "empty": torch.empty(0, dtype=torch.uint8),
        "zeros": torch.zeros_like(good),
        "random": torch.randint(0, 256, good.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        "short": good[:-64].clone(),
        "head": good.clone().index_fill_(0, torch.arange(9, 12), 255),
    }[content]
    with pytest.raises(ValueError, match="packed"):
        layer(torch.zeros(1, 96))


def test_another_bias_is_refused():
    layer = random_layer()
    with pytest.raises(ValueError, match=r"bias must be .* float32 \[40\] on the CPU, got torch.float16 \[40\]"):
        torch.ops.tmac.linear(torch.zeros(1, 96), layer.weight, layer.bias.half(), 40)
    with pytest.raises(ValueError, match=r"\[39\] on the CPU, got torch.float32 \[40\]"):
        torch.ops.tmac.linear(torch.zeros(1, 96), layer.weight, layer.bias, 39)
    with pytest.raises(ValueError, match="out_features=39"):
        torch.ops.tmac.linear(torch.zeros(1, 96), layer.weight, None, 39)
    with pytest.raises(ValueError, match=r"bias must have shape \[40\], got \[39\]"):
        QuantLinear.from_codes(random_codes(W4, 40, 96), torch.zeros(39))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_many_python_threads_get_equal_bits(spec):
    layer = random_layer(spec, 64, 256)
    inputs = [random_input(tokens, 256, seed=tokens) for tokens in (1, 2, 5, 17)] * 8
    expected = [layer(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(layer, inputs), expected, strict=True):
            assert_same_bits(got, want)


def assert_pieces_have_the_bits_of_the_whole(layer, x, sizes):
    """Whatever the threads, and however `x` is cut."""
    expected = layer(x)
    try:
        for count in (1, 2, 3):
            tmac.set_num_threads(count)
            assert_same_bits(layer(x), expected)
            for size in sizes:
                assert_same_bits(torch.cat([layer(piece) for piece in x.split(size)]), expected)
    finally:
        tmac.set_num_threads(0)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_neither_threads_nor_neighbours_change_a_bit(spec):
    layer = random_layer(spec, 130, 200)
    x = random_input(51, 200)
    assert_pieces_have_the_bits_of_the_whole(layer, x[:16], sizes=(1, 3, 8))  # the class of generated tokens
    assert_pieces_have_the_bits_of_the_whole(layer, x, sizes=(17, 34))  # the class of prompts: no piece below 17


CANDIDATES = [(spec, pair) for spec in SPECS for pair in _core.candidate_kernels(spec)]
PAIRS = [pytest.param(*each, id=f"{'-'.join(each[1])}-{each[0]}") for each in CANDIDATES]


@pytest.mark.parametrize(("spec", "pair"), PAIRS)
def test_one_class_for_both_phases_knows_no_number_of_tokens(spec, pair):
    layer = random_layer(spec, 130, 200, kernel=pair[0])
    assert layer.kernel == layer.prompt_kernel == pair[0]
    assert_pieces_have_the_bits_of_the_whole(layer, random_input(19, 200), sizes=(1, 16, 18))


@pytest.mark.parametrize(("spec", "pair"), PAIRS)
def test_without_a_phase_seventeen_tokens_are_a_prompt(spec, pair):
    layer = random_layer(spec, 130, 200, bias=False, kernel=",".join(pair))
    x = random_input(17, 200)
    for tokens, phase in ((16, "decode"), (17, "prompt")):
        expected = _core.linear(x[:tokens].numpy(), layer.weight.numpy(), phase=phase)
        assert_same_bits(layer(x[:tokens]), torch.from_numpy(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_from_linear_rounds_the_weight_and_keeps_the_bias(dtype):
    linear = torch.nn.Linear(96, 40).to(dtype)
    layer = QuantLinear.from_linear(linear, QuantSpec(8, 32, zero_point="offset"))
    # a group of 32 spans at most 2/sqrt(96); half a step of 1/255 of it, and f16 rounding of scale and offset
    step = 2 / 96**0.5 / 255
    assert (layer.dequantize() - linear.weight.float()).abs().max() < 1.5 * step
    assert torch.equal(layer.bias, linear.bias.float())
    assert layer.bias.dtype == torch.float32
    assert not layer.bias.requires_grad
    assert QuantLinear.from_linear(torch.nn.Linear(8, 4, bias=False), W4).bias is None


def test_from_linear_refuses_what_it_cannot_read():
    linear = torch.nn.Linear(96, 40)
    with torch.no_grad():
        linear.weight[39, 95] = torch.nan
    with pytest.raises(ValueError, match="NaN or Inf in weight"):
        QuantLinear.from_linear(linear, W4)
    with pytest.raises(ValueError, match="meta device"):
        QuantLinear.from_linear(torch.nn.Linear(96, 40, device="meta"), W4)


@pytest.mark.parametrize(("n", "k"), [(0, 4), (4, 0), (-1, 4)])
def test_a_layer_without_features_is_refused(n, k):
    with pytest.raises(ValueError, match="features must be positive"):
        QuantLinear(k, n, True, W4)


def test_repr_says_the_spec_and_the_kernel():
    layer = random_layer()
    assert layer.kernel in {row["name"] for row in tmac.kernels()}
    text = repr(layer)
    assert "in_features=96, out_features=40, bias=True, spec=QuantSpec(bits=4, group_size=32" in text
    assert f"kernel={layer.kernel!r}" in text
    assert not isinstance(layer, torch.nn.Linear)
