"""Calls of the kernels over many buffers: one layer, or a chain of layers that read the same activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.weights import Floats, Weights
from tmac import _core

# Multiplies one input with several weights and prepares the activations once; None in a core that has no such call.
LINEAR_SHARED: Callable[..., Any] | None = getattr(_core, "linear_shared", None)


def prepared(layers: int) -> str:
    return "once" if layers > 1 and LINEAR_SHARED is not None else "per layer"


def multiplier(weights: Weights, x: Floats, layers: int, threads: int) -> Callable[[int], None]:
    """call(index): x times `layers` weights from number index * layers on, around the cycle of buffers."""
    if layers > 1 and LINEAR_SHARED is not None:
        return shared_multiplier(weights, x, layers, threads, LINEAR_SHARED)
    m, k, n = len(x), weights.k, weights.n
    y = np.empty((m, n), np.float32)
    places = [(buffer.ctypes.data, buffer.nbytes) for buffer in weights.buffers]
    count, x_at, y_at = len(places), x.ctypes.data, y.ctypes.data
    run = _core.linear_pointers

    def one(index: int) -> None:
        at, size = places[index % count]
        run(x_at, 0, k, m, at, size, 0, y_at, 0, n, k, n, threads)

    def several(index: int) -> None:
        for layer in range(index * layers, (index + 1) * layers):
            one(layer)

    one.y = several.y = y  # type: ignore[attr-defined]  # lives as long as the call
    return one if layers == 1 else several


def shared_multiplier(
    weights: Weights, x: Floats, layers: int, threads: int, run: Callable[..., Any]
) -> Callable[[int], None]:
    """The same through `linear_shared(x, buffers, num_threads)`."""
    count = len(weights.buffers)
    chains = [[weights.buffers[(first + layer) % count] for layer in range(layers)] for first in range(count)]

    def several(index: int) -> None:
        run(x, chains[index * layers % count], threads)

    return several
