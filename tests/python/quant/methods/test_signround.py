"""Rounding learned by signed gradients: never worse than its start, better where layers can help each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quant.methods.cases import correlated, error, random_weight, statistics_of
from tmac import Codes, QuantSpec, round_to_nearest
from tmac.quant.methods.gptq import gptq
from tmac.quant.methods.learned_rounding import LearnedRounding
from tmac.quant.methods.signround import signround, signround_block

SPECS = [
    QuantSpec(2, 32),
    QuantSpec(3, 16, zero_point="integer"),
    QuantSpec(2, 32, zero_point="offset"),
    QuantSpec(4, -1, zero_point="real", scale_format="f32"),
    QuantSpec(2, 32, "ternary"),
    QuantSpec(3, 32, scale_format="two_level"),
]


class Block(nn.Module):
    """Two layers around a nonlinearity, and a way past them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.silu(self.up(x)))


def run(block: Block, x: Tensor) -> Tensor:
    return block(x)


def block_case(spec: QuantSpec) -> tuple[Block, dict[str, tuple[QuantSpec, Codes]], Tensor, Tensor]:
    block = Block()
    inputs = correlated(16 * 12, 32).view(16, 12, 32) / 4
    hidden = nn.functional.silu(block.up(inputs)).detach()
    layers = {}
    for name, seen in (("up", inputs), ("down", hidden)):
        weight = block.get_submodule(name).weight.detach()
        layers[name] = (spec, gptq(weight, spec, statistics_of(seen.flatten(0, 1))))
    return block, layers, inputs, block(inputs).detach()


def block_error(block: Block, codes: dict[str, Codes], inputs: Tensor, targets: Tensor) -> float:
    copy = Block()
    copy.load_state_dict(block.state_dict())
    with torch.no_grad():
        for name, each in codes.items():
            copy.get_submodule(name).weight.copy_(torch.from_numpy(each.dequantize()))
        return float((copy(inputs) - targets).square().mean())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_start_is_where_learning_begins(spec: QuantSpec) -> None:
    weight = random_weight(9, 70)
    start = round_to_nearest(weight.numpy(), spec)
    learned = LearnedRounding(weight, start)
    np.testing.assert_array_equal(learned.codes().codes, start.codes)
    np.testing.assert_array_equal(learned.codes().scales, start.scales)
    np.testing.assert_allclose(learned.values().detach().numpy(), start.dequantize(), rtol=1e-6, atol=1e-7)


def test_offsets_move_a_code_by_one_at_most() -> None:
    weight, spec = random_weight(4, 64), QuantSpec(3, 32)
    start = round_to_nearest(weight.numpy(), spec)
    learned = LearnedRounding(weight, start)
    for _ in range(20):
        learned.offset.grad = torch.randn(4, 64)
        learned.step(0.3, 0.0)
    moved = np.abs(learned.codes().codes.astype(int) - start.codes.astype(int))
    assert moved.max() == 1
    np.testing.assert_array_equal(learned.codes().scales, start.scales)


def test_scales_of_two_levels_are_not_learned() -> None:
    """Codes that were chosen for other scales than those that are stored would be wrong."""
    weight, spec = random_weight(4, 64), QuantSpec(3, 32, scale_format="two_level")
    learned = LearnedRounding(weight, round_to_nearest(weight.numpy(), spec))
    for _ in range(20):
        (learned.values() ** 2).sum().backward()
        learned.step(0.01, 0.01)
    assert bool((learned.clip == 1).all())
    np.testing.assert_allclose(learned.codes().dequantize(), learned.values().detach().numpy(), rtol=1e-6, atol=1e-7)


def test_a_layer_is_learned_where_gradients_are_off() -> None:
    weight, statistics = random_weight(8, 64), statistics_of(correlated(400, 64))
    expected = signround(weight, SPECS[0], statistics, 20)
    with torch.no_grad():
        found = signround(weight, SPECS[0], statistics, 20)
    np.testing.assert_array_equal(found.codes, expected.codes)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_layer_gets_no_worse(spec: QuantSpec) -> None:
    weight, statistics = random_weight(16, 64), statistics_of(correlated(400, 64))
    start = round_to_nearest(weight.numpy(), spec)
    learned = error(signround(weight, spec, statistics, 120, start), weight, statistics.hessian)
    assert learned < 0.99 * error(start, weight, statistics.hessian)
    first = gptq(weight, spec, statistics)
    assert error(signround(weight, spec, statistics, 20), weight, statistics.hessian) <= error(
        first, weight, statistics.hessian
    ) * (1 + 1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_block_gets_better_and_its_module_stays_as_it_was(spec: QuantSpec) -> None:
    block, layers, inputs, targets = block_case(spec)
    before = {name: value.clone() for name, value in block.state_dict().items()}
    weight = block.up.weight
    learned = signround_block(block, layers, inputs, targets, run, 80)
    assert block.up.weight is weight
    assert weight.requires_grad
    assert weight.grad is None
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name])
    start = {name: codes for name, (_, codes) in layers.items()}
    # Four bits leave nothing to gain on so few inputs.
    less = 0.9 if spec.bits < 4 else 1.0
    assert block_error(block, learned, inputs, targets) <= less * block_error(block, start, inputs, targets)
    assert learned["up"].spec == spec


def test_the_same_seed_gives_the_same_codes_and_no_steps_give_the_start() -> None:
    block, layers, inputs, targets = block_case(SPECS[0])
    first, second = (signround_block(block, layers, inputs, targets, run, 10, seed=3) for _ in range(2))
    for name in layers:
        np.testing.assert_array_equal(first[name].codes, second[name].codes)
        np.testing.assert_array_equal(first[name].scales, second[name].scales)
    assert signround_block(block, layers, inputs, targets, run, 0)["up"] is layers["up"][1]
    by_other_names = {f"model.{name}": value for name, value in layers.items()}
    linears = {"model.up": block.up, "model.down": block.down}
    third = signround_block(block, by_other_names, inputs, targets, run, 10, seed=3, linears=linears)
    np.testing.assert_array_equal(third["model.up"].codes, first["up"].codes)


def test_an_error_leaves_the_float_weights() -> None:
    block, layers, inputs, targets = block_case(SPECS[0])

    def broken(_: Block, __: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        signround_block(block, layers, inputs, targets, broken, 5)
    assert isinstance(block.up.weight, nn.Parameter)
    assert block.up.weight.requires_grad


def test_bad_input_is_named() -> None:
    block, layers, inputs, targets = block_case(SPECS[0])
    with pytest.raises(ValueError, match="gate was expected to be a linear layer"):
        signround_block(block, {"gate": layers["up"]}, inputs, targets, run)
    with pytest.raises(ValueError, match="16 inputs do not fit 15 targets"):
        signround_block(block, layers, inputs, targets[:15], run)
    with pytest.raises(ValueError, match=r"were expected to fit a weight \[64, 32\]"):
        signround_block(block, {"up": layers["down"]}, inputs, targets, run)
    inputs[3, 3, 3] = math.nan
    with pytest.raises(ValueError, match="NaN or Inf"):
        signround_block(block, layers, inputs, targets, run)
    with pytest.raises(ValueError, match="needs the statistics"):
        signround(random_weight(4, 16), QuantSpec())
    with pytest.raises(ValueError, match="steps must not be negative, got -1"):
        signround(random_weight(4, 16), QuantSpec(), statistics_of(correlated(4, 16)), -1)
