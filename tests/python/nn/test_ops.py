"""The operator under autograd, torch.compile, torch.export and torch.func."""

import importlib

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import tmac.nn.ops
from tmac.nn import QuantLinear

from .layers import EXACT, TERNARY, W4, assert_same_bits, random_input, random_layer

# Two products of the same f32 numbers over at most 96 terms in another order: (96 + 2) u sum |w x| each
TOLERANCE = {"rtol": 0, "atol": 2 * 98 * 2.0**-24 * 96 * 64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(dtype, bias, grad):
    layer = random_layer(bias=bias)
    x = random_input(2, 3, 96, dtype=dtype).requires_grad_(grad)
    offset = layer.bias.detach().clone().requires_grad_(grad) if bias else None
    torch.library.opcheck(torch.ops.tmac.linear.default, (x, layer.weight, offset, 40))
    torch.library.opcheck(torch.ops.tmac.dequantize.default, (layer.weight, 40, 96))


@pytest.mark.parametrize("spec", [W4, TERNARY], ids=str)
def test_gradients_are_those_of_a_dense_layer(spec):
    layer = random_layer(spec, perm=spec is W4)
    layer.bias.requires_grad_()
    x = random_input(2, 3, 96).requires_grad_()
    upstream = random_input(2, 3, 40, seed=5)
    y = layer(x)
    assert_same_bits(y.detach(), layer(x.detach()).detach())
    y.backward(upstream)
    dense_x = x.detach().clone().requires_grad_()
    dense_bias = layer.bias.detach().clone().requires_grad_()
    torch.nn.functional.linear(dense_x, layer.dequantize(), dense_bias).backward(upstream)
    torch.testing.assert_close(x.grad, dense_x.grad, **TOLERANCE)
    torch.testing.assert_close(layer.bias.grad, dense_bias.grad, **TOLERANCE)


def test_finite_differences_agree_with_the_gradient():
    layer = random_layer(EXACT, 8, 16, bias=False)
    x = random_input(1, 16).requires_grad_()
    direction = random_input(1, 16, seed=2)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x)
    # The layer is linear: the difference quotient is exact but for the rounding of two results of about 100
    quotient = (layer(x + 0.5 * direction) - layer(x - 0.5 * direction)).sum()
    assert float((gradient * direction).sum() - quotient.detach()) == pytest.approx(0, abs=2 * 8 * 100 * 18 * 2.0**-24)


def test_gradients_keep_the_dtype_and_can_be_differentiated_again():
    layer = random_layer()
    x = random_input(2, 96, dtype=torch.bfloat16).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.dtype == torch.bfloat16
    x = random_input(2, 96).requires_grad_()
    (gradient,) = torch.autograd.grad((layer(x) ** 2).sum(), x, create_graph=True)
    assert gradient.requires_grad
    (second,) = torch.autograd.grad(gradient.sum(), x)
    weight = layer.dequantize()
    expected = 2 * torch.ones(2, 96) @ (weight.T @ weight)
    torch.testing.assert_close(second, expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-5)


def test_without_need_of_a_gradient_none_is_recorded():
    layer = random_layer()
    x = random_input(2, 96)
    assert layer(x).grad_fn is None
    with torch.no_grad():
        assert layer(x.requires_grad_()).grad_fn is None
    assert layer(x).grad_fn is not None
    with torch.inference_mode():
        assert layer(x).is_inference()


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # raised by the compiler itself
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_in_one_graph(dynamic):
    torch.compiler.reset()
    model = torch.nn.Sequential(random_layer(n=96), torch.nn.GELU(), random_layer(seed=3, bias=False))
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for tokens in (1, 4):
        x = random_input(2, tokens, 96)
        hidden = model[0](x)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5 * float(hidden.abs().max()) * 96 * 64)
    x = random_input(3, 96).requires_grad_()
    compiled(x).sum().backward()
    again = x.detach().clone().requires_grad_()
    model(again).sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-4, atol=1e-4 * float(again.grad.abs().max()))


def test_export_and_make_fx_hold_the_operator():
    layer = random_layer()
    x = random_input(2, 3, 96)
    program = torch.export.export(layer, (x,), dynamic_shapes=({1: torch.export.Dim.DYNAMIC},))
    assert "torch.ops.tmac.linear" in program.graph_module.code
    other = random_input(2, 7, 96, seed=4)
    assert_same_bits(program.module()(other), layer(other))
    traced = make_fx(layer)(x)
    assert_same_bits(traced(x * 2), layer(x * 2))


def test_functional_transforms():
    layer = random_layer()
    x = random_input(4, 3, 96)
    assert_same_bits(torch.func.vmap(layer)(x), layer(x))
    assert_same_bits(torch.func.vmap(layer, in_dims=1, out_dims=1)(x), layer(x))
    gradient = torch.func.grad(lambda value: layer(value).sum())(x)
    torch.testing.assert_close(gradient, torch.ones(4, 3, 40) @ layer.dequantize(), **TOLERANCE)
    each = torch.func.vmap(torch.func.grad(lambda value: layer(value).sum()))(x)
    torch.testing.assert_close(each, gradient, **TOLERANCE)
    torch.testing.assert_close(torch.func.jacrev(layer)(x[0, 0]), layer.dequantize(), **TOLERANCE)
    stacked = torch.stack([layer.bias.detach(), -layer.bias.detach()])
    both = torch.func.vmap(torch.ops.tmac.linear, in_dims=(None, None, 0, None))(x, layer.weight, stacked, 40)
    assert_same_bits(both[0], layer(x))
    torch.testing.assert_close(both[1], layer(x) - 2 * layer.bias.detach(), **TOLERANCE)
    many = torch.func.vmap(layer)(random_input(5, 4, 96))
    assert_same_bits(many, layer(random_input(20, 96)).view(5, 4, 40))  # the tokens of all five count together


def test_shapes_without_data():
    layer = QuantLinear(96, 40, True, W4).to("meta")
    y = layer(torch.empty(5, 96, device="meta", dtype=torch.bfloat16))
    assert (y.device.type, y.shape, y.dtype) == ("meta", (5, 40), torch.bfloat16)


def test_importing_the_operators_again_is_harmless():
    layer = random_layer()
    x = random_input(2, 96).requires_grad_()
    expected = layer(x)
    module = importlib.reload(tmac.nn.ops)
    assert_same_bits(module.traced_linear(x, layer.weight, layer.bias, 40), expected)
    assert_same_bits(layer(x), expected)


def test_dequantize_refuses_another_shape():
    with pytest.raises(ValueError, match=r"packed as \[40, 96\], not as \[96, 40\]"):
        torch.ops.tmac.dequantize(random_layer().weight, 96, 40)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")  # torch itself calls it at first
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode_gives_the_layer_of_the_tangent(dtype, grad):
    layer = random_layer()
    x, tangent = random_input(3, 96, dtype=dtype), random_input(3, 96, dtype=dtype, seed=1)
    want = torch.ops.tmac.linear(tangent, layer.weight, None, 40)
    plain = layer(x)
    with forward_ad.dual_level(), torch.set_grad_enabled(grad):
        y, got = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent)))
        assert forward_ad.unpack_dual(layer(x)).tangent is None
    assert_same_bits(y, plain)
    assert_same_bits(got, want)
    y, got = torch.func.jvp(layer, (x,), (tangent,))
    assert_same_bits(y, plain)
    assert_same_bits(got, want)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is:DeprecationWarning")  # torch itself calls it at first
@pytest.mark.parametrize("with_x", [False, True])
def test_forward_mode_reaches_the_bias(with_x):
    layer = random_layer()
    x, tangent, step = random_input(3, 96), random_input(3, 96, seed=1), random_input(40, seed=2)
    want = step.expand(3, 40)
    with forward_ad.dual_level():
        bias = forward_ad.make_dual(layer.bias.detach(), step)
        value = forward_ad.make_dual(x, tangent) if with_x else x
        got = forward_ad.unpack_dual(tmac.nn.ops.transformed_linear(value, layer.weight, bias, 40)).tangent
    if with_x:
        want = torch.ops.tmac.linear(tangent, layer.weight, None, 40) + step
    assert_same_bits(got, want)
