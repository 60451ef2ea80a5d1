"""`g_idx`: checkpoints whose columns were quantized in the order of their activations (`desc_act`, `actorder`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tmac.formats.checkpoint import Array


def column_order(g_idx: Array, group_size: int, in_features: int) -> NDArray[np.int32] | None:
    """The order in which columns stand group after group: `Codes.perm`, for codes that were taken in this order.

    Args:
        g_idx: the group of each column, integers `[in_features]`.
        group_size: columns of a group, -1 for all of them; only the last group may have fewer.
        in_features: columns of the weight.

    Returns:
        int32 `[in_features]`, columns of one group in rising order; None where they stand in groups already.

    Raises:
        ValueError: a group does not exist, or has another number of columns than `group_size` says.
    """
    if g_idx.dtype.kind not in "iu" or g_idx.shape != (in_features,):
        raise ValueError(f"expected the group of each of {in_features} columns, found {g_idx.dtype} {g_idx.shape}")
    size = group_size if group_size > 0 else in_features
    groups = -(-in_features // size)
    outside = np.flatnonzero((g_idx < 0) | (g_idx >= groups))
    if outside.size:
        column = int(outside[0])
        raise ValueError(f"expected groups from 0 to {groups - 1}, found group {g_idx[column]} at column {column}")
    order = None if bool((g_idx[1:] >= g_idx[:-1]).all()) else np.argsort(g_idx, kind="stable").astype(np.int32)
    expected = np.full(groups, size)
    expected[-1] = in_features - (groups - 1) * size
    found = np.bincount(g_idx.astype(np.int64), minlength=groups)
    wrong = np.flatnonzero(found != expected)
    if wrong.size:
        group = int(wrong[0])
        raise ValueError(f"expected {expected[group]} columns in group {group}, found {found[group]}")
    return order
