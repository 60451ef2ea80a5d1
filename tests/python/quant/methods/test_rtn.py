import pytest

import tmac
from tmac.quant.methods.rtn import round_to_nearest

from .layers import SPECS, make_layer, weighted_error


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_statistics_lower_the_error_that_counts(spec):
    weight, statistics = make_layer(16, 200)
    plain, weighted = round_to_nearest(weight, spec), round_to_nearest(weight, spec, statistics)
    assert plain.codes.tolist() == tmac.round_to_nearest(weight.numpy(), spec).codes.tolist()
    assert weighted_error(weight, weighted, statistics) < weighted_error(weight, plain, statistics)
