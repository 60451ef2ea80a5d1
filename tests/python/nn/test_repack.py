"""A layer moves to other kernels: the same weight, the bits of the other class. And `tmac.tune` moves a model."""

import copy

import pytest
import torch

import tmac
from tmac import Codes, QuantSpec, UnsupportedSpecError, _core
from tmac.nn import QuantLinear

from .layers import TERNARY, W4, assert_same_bits, random_codes, random_input, random_layer

SPECS = [W4, TERNARY, QuantSpec(3, 50, zero_point="integer"), QuantSpec(8, -1), QuantSpec(2, 64, zero_point="real")]


def scalar_twin(name, spec):
    """The portable kernel of the same class: the reference of its bits."""
    method = next(row["method"] for row in tmac.kernels() if row["name"] == name)
    return next(
        row["name"]
        for row in tmac.kernels()
        if (row["isa"], row["method"], row["bits"], row["codebook"]) == ("scalar", method, spec.bits, spec.codebook)
    )


def assert_bits_of_its_classes(layer, codes):
    for tokens, kernel in [(1, layer.kernel), (16, layer.kernel), (17, layer.prompt_kernel)]:
        x = random_input(tokens, codes.in_features)
        want = _core.linear(x.numpy(), codes.pack(scalar_twin(kernel, codes.spec)).buffer())
        assert_same_bits(layer(x), torch.from_numpy(want))


@pytest.mark.parametrize("perm", [False, True])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_repacked_layer_has_the_bits_of_its_classes(spec, perm):
    codes = random_codes(spec, 70, 201, perm)
    layer = QuantLinear.from_codes(codes)
    before, state = layer.dequantize(), layer.state_dict()
    for decode, prompt in reversed(_core.candidate_kernels(spec)):
        moves = (layer.kernel, layer.prompt_kernel) != (decode, prompt)
        assert layer.repack_(f"{decode},{prompt}") == moves
        assert (layer.kernel, layer.prompt_kernel) == (decode, prompt)
        assert_bits_of_its_classes(layer, codes)
        assert_same_bits(layer.dequantize(), before)
        assert layer.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in layer.state_dict().items())


def test_repacking_refuses_what_does_not_serve():
    layer = random_layer()
    before = layer.kernel
    with pytest.raises(ValueError, match="nonsense"):
        layer.repack_("nonsense")
    with pytest.raises(UnsupportedSpecError, match="w2"):
        layer.repack_("qgemm_lut_w2_scalar")
    assert layer.kernel == before
    assert not QuantLinear(8, 8, spec=W4).repack_()


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.gate = random_layer(n=40, k=96, seed=1), random_layer(n=40, k=96, seed=2)
        self.down = random_layer(n=96, k=40)
        self.head = random_layer(QuantSpec(8, 32), n=50, k=96)
        self.float = torch.nn.Linear(96, 96)
        self.empty = QuantLinear(7, 7, spec=W4)

    def layers(self):
        return [self.up, self.gate, self.down, self.head]

    def forward(self, x):
        return self.head(x + self.down(torch.relu(self.gate(x)) * self.up(x)))


def test_tuning_moves_every_layer_to_its_choice(timer):
    model = Block()
    codes = [Codes.from_buffer(layer.weight.numpy()) for layer in model.layers()]
    report = tmac.tune(model)
    assert [call[1:3] for call in timer.calls] == [(40, 96), (96, 40), (50, 96), (7, 7)]
    assert report.repacked == 4
    for layer, its_codes in zip(model.layers(), codes, strict=True):
        assert (layer.kernel, layer.prompt_kernel) == _core.candidate_kernels(layer.spec)[-1]
        layer.bias = None
        assert_bits_of_its_classes(layer, its_codes)


def test_tuning_again_does_nothing(timer):
    model = Block()
    tmac.tune(model)
    again = tmac.tune(model)
    assert again.repacked == 0
    assert not any(shape.measured for shape in again.shapes)


def test_a_tuned_model_has_the_bits_of_one_that_is_packed_later(timer):
    model = Block()
    del model.empty  # which has no weight to load
    x = random_input(3, 96)
    before = model(x)
    tmac.tune(model)
    twin = Block()  # packed with the choices in the cache
    del twin.empty
    assert [layer.kernel for layer in twin.layers()] == [layer.kernel for layer in model.layers()]
    twin.load_state_dict(model.state_dict())
    assert_same_bits(twin(x), model(x))
    assert_same_bits(copy.deepcopy(model)(x), model(x))
    torch.testing.assert_close(model(x), before, rtol=0.1, atol=0.1 * float(before.detach().abs().max()))


def test_a_state_dict_is_packed_by_the_choice(timer):
    source = random_layer(n=40, k=96)
    tmac.tune([(W4, 40, 96)])
    empty = QuantLinear(96, 40, spec=W4)
    empty.load_state_dict(source.state_dict())
    assert (empty.kernel, empty.prompt_kernel) == _core.candidate_kernels(W4)[-1]


def test_a_model_without_quantized_layers(timer):
    report = tmac.tune(torch.nn.Linear(4, 4))
    assert report.shapes == ()
    assert report.repacked == 0


@pytest.mark.parametrize("progress", [None, False, True])
def test_the_bar_shows_when_it_is_asked_for(timer, progress, capsys):
    tmac.tune(Block(), progress=progress)
    assert ("4/4" in capsys.readouterr().err) == bool(progress)
