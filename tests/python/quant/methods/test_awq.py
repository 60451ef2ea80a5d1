import pytest
import torch

from tmac import QuantSpec
from tmac.quant.methods.awq import awq, awq_scales, scaled_statistics
from tmac.quant.methods.rtn import round_to_nearest

from .layers import SPECS, make_layer, make_statistics, output_error


def outliers():
    """Inputs with a few large channels in every group, the case that AWQ is made for."""
    weight, _ = make_layer(48, 128)
    generator = torch.Generator().manual_seed(3)
    return weight, make_statistics(
        torch.randn(500, 128, generator=generator) * (1 + 30 * (torch.arange(128) % 16 == 5))
    )


@pytest.mark.parametrize("spec", [QuantSpec(3, 64), QuantSpec(3, 64, zero_point="integer")], ids=str)
def test_scales_lower_the_output_error(spec):
    weight, statistics = outliers()
    scales = awq_scales([weight, weight[:8] * 2], spec, statistics)
    assert scales.min() > 0
    assert float(scales.min() * scales.max()) == pytest.approx(1, rel=1e-4)
    assert scales[5] > scales[6]
    codes = round_to_nearest(weight * scales, spec, scaled_statistics(statistics, scales))
    difference = torch.from_numpy(codes.dequantize()) / scales - weight
    before = output_error(weight, round_to_nearest(weight, spec, statistics), statistics)
    assert float(statistics.output_error(difference).sum()) < before


def test_inputs_that_are_all_alike_need_no_scales():
    weight, _ = make_layer(8, 64)
    statistics = make_statistics(torch.eye(64))
    torch.testing.assert_close(awq_scales([weight], QuantSpec(4, 32), statistics), torch.ones(64))
    assert torch.equal(awq_scales([weight], QuantSpec(4, 32), make_statistics(torch.zeros(2, 64))), torch.ones(64))


def test_tied_channels_share_a_scale():
    weight, statistics = outliers()
    scales = awq_scales([weight], QuantSpec(3, 64), statistics, tie=lambda m: m.view(2, 64).mean(0).repeat(2))
    assert torch.equal(scales[:64], scales[64:])


def test_scaled_statistics_are_those_of_scaled_inputs():
    inputs = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    scales = torch.linspace(0.5, 2, 12)
    found, expected = scaled_statistics(make_statistics(inputs), scales), make_statistics(inputs / scales)
    torch.testing.assert_close(found.hessian, expected.hessian)
    torch.testing.assert_close(found.channel_max, expected.channel_max)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_clipping_is_not_worse_in_any_block(spec):
    weight, statistics = make_layer(16, 300)
    block = 256 if spec.scale_format == "two_level" else 300 if spec.group_size == -1 else spec.group_size
    plain, clipped = (
        torch.from_numpy(of(weight, spec, statistics).dequantize()) - weight for of in (round_to_nearest, awq)
    )
    for start in range(0, 300, block):
        part = slice(start, start + block)
        hessian = statistics.hessian[part, part]
        errors = [((each[:, part] @ hessian) * each[:, part]).sum(1) for each in (clipped, plain)]
        assert (errors[0] <= errors[1] * (1 + 1e-4)).all()


def test_nothing_to_scale_is_refused():
    _, statistics = make_layer(2, 32)
    with pytest.raises(ValueError, match="a weight and a step at least"):
        awq_scales([], QuantSpec(4, 32), statistics)
