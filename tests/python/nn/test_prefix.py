"""The leading planes of a layer as a layer of its own, beside what they say they are."""

import copy

import numpy as np
import pytest
import torch

from tmac import Codes, QuantSpec, _core
from tmac.nn import QuantLinear
from tmac.nn.prefix import PrefixLinear


def layer_of(bits, *, bias=True, n=96, k=256, seed=0, **spec):
    torch.manual_seed(seed)
    linear = torch.nn.Linear(k, n, bias)
    return QuantLinear.from_linear(linear, QuantSpec(bits=bits, **{"group_size": 64, "activation": "float", **spec}))


def expected_weight(layer, planes, scale, base):
    """f64 [n, k]: the weight with `scale * top + base` in place of every code."""
    codes = Codes.from_buffer(layer.weight.numpy())
    whole = layer.dequantize().double().numpy()
    c = codes.codes.astype(np.float64)
    size = layer.spec.group_size if layer.spec.group_size > 0 else layer.in_features
    steps = np.repeat(codes.scales.astype(np.float64), size, 1)[:, : layer.in_features]
    top = np.floor(c / 2 ** (layer.spec.bits - planes))
    return whole + steps * (scale * top + base - c)


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize(("bits", "planes"), [(8, 4), (6, 4), (4, 3), (4, 2), (3, 2)])
@pytest.mark.parametrize("spec", [{}, {"zero_point": "offset"}, {"group_size": -1, "zero_point": "integer"}])
def test_products(bits, planes, spec, tokens):
    layer = layer_of(bits, **spec)
    prefix = PrefixLinear(layer, planes)
    assert prefix.planes == planes
    x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(1))
    weight = expected_weight(layer, planes, *prefix._prefix[1:])
    want = x.double().numpy() @ weight.T + layer.bias.detach().double().numpy()
    # Sums in f32 of 256 products and some more terms for each group: 2^-24 of their magnitudes for each addition.
    bound = 2**-24 * 300 * (np.abs(x.double().numpy()) @ (np.abs(weight) + np.abs(layer.dequantize().numpy())).T + 1)
    assert np.all(np.abs(prefix(x).double().numpy() - want) <= bound)


def test_the_fit_is_the_least_squares_one():
    layer = layer_of(8)
    prefix = PrefixLinear(layer, 4)
    _, scale, base = prefix._prefix
    assert prefix._prefix[1:] == _core.prefix_fit(layer.weight.numpy(), 4)

    def error(scale, base):
        rows = slice(None, None, 1)
        return float(((expected_weight(layer, 4, scale, base) - layer.dequantize().numpy())[rows] ** 2).sum())

    # 64 of the 96 rows are looked at, so the best one of all rows may be a bit beside it.
    least = error(scale, base)
    assert least < error(16.0, 7.5) * 1.001
    for step in (0.5, -0.5):
        assert least < error(scale + step, base)
        assert least < error(scale, base + step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_inputs_of_every_kind(dtype):
    layer = layer_of(8, bias=False, activation="group")
    prefix = PrefixLinear(layer, 4)
    x = torch.randn(2, 3, 256).to(dtype)
    y = prefix(x)
    assert (y.shape, y.dtype) == ((2, 3, 96), dtype)
    assert torch.equal(prefix(x.reshape(6, 256)).reshape(2, 3, 96), y)
    assert prefix(torch.empty(0, 256)).shape == (0, 96)


def test_the_memory_is_the_layer_s():
    layer = layer_of(4, activation="group")
    x = torch.randn(3, 256)
    before = layer(x)
    prefix = PrefixLinear(layer, 3)
    assert torch.equal(layer(x), before)  # in another order by now
    assert prefix.state_dict() == {}
    assert list(prefix.parameters()) == []
    first = prefix(x)
    other = layer_of(4, activation="group", seed=1)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(prefix(x), PrefixLinear(other, 3)(x))
    assert not torch.equal(prefix(x), first)
    copied = copy.deepcopy(prefix)
    assert torch.equal(copied(x), prefix(x))


def test_an_order_without_so_few_planes_gives_more():
    assert PrefixLinear(layer_of(8, activation="group"), 2).planes >= 2
    assert "planes=" in repr(PrefixLinear(layer_of(8), 4))


def test_what_cannot_be():
    layer = layer_of(4)
    for planes in (0, 4, 5):
        with pytest.raises(ValueError, match=r"\[PrefixLinear\] expected 1 to 3 planes"):
            PrefixLinear(layer, planes)
    with pytest.raises(ValueError, match="the module has no weight"):
        PrefixLinear(QuantLinear(8, 8, spec=QuantSpec(bits=4)), 2)
    ternary = QuantLinear.from_linear(torch.nn.Linear(128, 16), QuantSpec(2, 128, "ternary"))
    with pytest.raises(ValueError, match=r"1 planes of a weight of 2 bits for .* cannot be read alone"):
        PrefixLinear(ternary, 1)
    with pytest.raises(ValueError, match="there are no gradients here"):
        PrefixLinear(layer, 3)(torch.randn(1, 256, requires_grad=True))
    with pytest.raises(ValueError, match=r"\[prefix\] expected 1 to 3 planes, got 4"):
        _core.prefix_fit(layer.weight.numpy(), 4)
