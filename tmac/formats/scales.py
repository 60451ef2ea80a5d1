"""Scales, zeros and biases of checkpoints."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tmac.formats.errors import format_error
from tmac.formats.safetensors_file import TensorStore

FLOATS = ("F32", "F16", "BF16")


def read_finite(store: TensorStore, name: str) -> NDArray[np.float32]:
    """A tensor of scales or real zeros, widened to f32. Raises FormatError where one is NaN or Inf."""
    values = store.read_float32(name)
    wrong = np.flatnonzero(~np.isfinite(values.reshape(-1)))
    if wrong.size:
        message = f"expected finite numbers, found {values.reshape(-1)[wrong[0]]} at {wrong[0]}"
        raise format_error(store.entry(name).file, message, name)
    return values


def read_bias(store: TensorStore, layer: str) -> NDArray[np.float32] | None:
    """The bias of a layer, if it has one."""
    name = f"{layer}.bias"
    return store.read_float32(name) if name in store else None
