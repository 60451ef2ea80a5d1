"""The order of columns that `g_idx` gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmac.formats.act_order import column_order


@given(data=st.data(), k=st.integers(1, 200), group_size=st.sampled_from((-1, 1, 8, 32, 64)))
def test_columns_stand_group_after_group(data, k, group_size):
    order = np.array(data.draw(st.permutations(range(k))))
    size = k if group_size == -1 else group_size
    g_idx = np.empty(k, np.int32)
    g_idx[order] = np.arange(k) // size
    perm = column_order(g_idx, group_size, k)
    if perm is None:
        assert np.array_equal(g_idx, np.arange(k) // size)
    else:
        assert perm.dtype == np.int32
        assert np.array_equal(np.sort(perm), np.arange(k))
        assert np.array_equal(g_idx[perm], np.arange(k) // size)
        assert not np.array_equal(g_idx, np.arange(k) // size)


@pytest.mark.parametrize(
    ("g_idx", "message"),
    [
        ([0, 0, 1, 2], "expected groups from 0 to 1, found group 2 at column 3"),
        ([0, -1, 1, 1], "expected groups from 0 to 1, found group -1 at column 1"),
        ([0, 1, 1, 1], "expected 2 columns in group 0, found 1"),
        ([1, 0, 1, 1], "expected 2 columns in group 0, found 1"),
        ([0, 0, 1], r"expected the group of each of 4 columns, found int32 \(3,\)"),
    ],
)
def test_groups_that_are_not_there(g_idx, message):
    with pytest.raises(ValueError, match=message):
        column_order(np.array(g_idx, np.int32), 2, 4)


def test_only_the_last_group_may_have_fewer_columns():
    assert column_order(np.array([0, 0, 0, 1]), 3, 4) is None
    assert column_order(np.array([0, 1, 0, 0]), 3, 4).tolist() == [0, 2, 3, 1]
    with pytest.raises(ValueError, match="expected 3 columns in group 0, found 1"):
        column_order(np.array([1, 1, 0, 1]), 3, 4)
