from itertools import product

import pytest
import torch

from tmac import QuantSpec
from tmac.quant.methods.rtn import round_to_nearest
from tmac.quant.methods.ternary import ternary

from .layers import make_layer, weighted_error


def best_of_all(weight, importance):
    """Every code of a group and the scale that fits it."""
    codes = torch.tensor(list(product((-1.0, 0.0, 1.0), repeat=len(weight))), dtype=torch.float64)[:, :]
    weight, importance = weight.double(), importance.double()
    square = (codes**2 * importance).sum(1)
    scale = torch.where(square > 0, (codes * weight * importance).sum(1) / square, 0.0)
    return float(((codes * scale[:, None] - weight) ** 2 * importance).sum(1).min())


def test_no_codes_are_better():
    spec = QuantSpec(2, 8, "ternary", scale_format="f32")
    weight, statistics = make_layer(6, 16)
    found = (weight - torch.from_numpy(ternary(weight, spec, statistics).dequantize())) ** 2 * statistics.importance
    for row in range(6):
        for part in (slice(0, 8), slice(8, 16)):
            least = best_of_all(weight[row, part], statistics.importance[part])
            assert float(found[row, part].sum()) <= least * (1 + 1e-5)


@pytest.mark.parametrize("group_size", [16, 64, -1])
@pytest.mark.parametrize("scale_format", ["f16", "f32", "two_level"])
def test_it_is_not_worse_than_a_search(group_size, scale_format):
    if scale_format == "two_level" and group_size != 16:
        return
    spec = QuantSpec(2, group_size, "ternary", scale_format=scale_format)
    weight, statistics = make_layer(16, 200)
    searched, found = (
        weighted_error(weight, of(weight, spec, statistics), statistics) for of in (round_to_nearest, ternary)
    )
    assert found <= searched * (1 + 1e-6)


def test_other_codebooks_are_refused():
    with pytest.raises(ValueError, match="codebook='ternary'"):
        ternary(torch.ones(2, 32), QuantSpec(2, 32))
