import pytest
import torch

from tmac import QuantSpec
from tmac.quant.methods.grids import sum_groups
from tmac.quant.methods.hqq import _shrink, hqq
from tmac.quant.methods.rtn import round_to_nearest

from .layers import SPECS, make_layer


def norm_of_errors(weight, codes, importance, spec):
    error = (weight - torch.from_numpy(codes.dequantize())).abs() ** 0.7
    return sum_groups(error * importance, spec)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_no_group_has_a_larger_norm_than_at_the_start(spec):
    weight, statistics = make_layer(16, 200)
    for given, importance in ((None, torch.ones(200)), (statistics, statistics.importance)):
        before = norm_of_errors(weight, round_to_nearest(weight, spec, given), importance, spec)
        after = norm_of_errors(weight, hqq(weight, spec, given), importance, spec)
        assert (after <= before * (1 + 1e-5)).all()
        if spec.zero_point in ("real", "offset") and spec.bits < 8:
            assert after.sum() < 0.999 * before.sum()


def test_the_shrinking_solves_its_problem():
    """One fixed-point step from x towards the least of |e|^p / p + pull / 2 (e - x)^2."""
    x = torch.linspace(-3, 3, 601)
    for norm in (0.5, 0.7, 1.0):
        e = _shrink(x, 10.0, norm)
        before, after = (each.abs() ** norm / norm + 5 * (each - x) ** 2 for each in (x, e))
        assert (after < before)[x.abs() > 0.3].all()
        assert (e.abs() <= x.abs()).all()
        assert not e[x.abs() < 0.05].any()
    torch.testing.assert_close(_shrink(x, 10.0, 1.0), torch.nn.functional.softshrink(x, 0.1))


@pytest.mark.parametrize("norm", [0.0, -1.0, 1.1, float("nan")])
def test_norms_out_of_range_are_refused(norm):
    with pytest.raises(ValueError, match="norm must be"):
        hqq(torch.ones(2, 32), QuantSpec(4, 32), norm=norm)
