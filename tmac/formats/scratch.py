"""Memory for what is read and soon done with, taken once by each thread: fresh memory costs as much as reading."""

from __future__ import annotations

from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = 16 << 20  # bytes that a thread keeps


class _Scratch(local):
    buffer: NDArray[np.uint8] = np.empty(0, np.uint8)


_scratch = _Scratch()


def scratch_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array of any values. The next call of the same thread may give the same memory: one is in use at a time."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if nbytes > LARGEST:
        return np.empty(shape, dtype)
    if _scratch.buffer.nbytes < nbytes:
        _scratch.buffer = np.empty(nbytes, np.uint8)
    return _scratch.buffer[:nbytes].view(dtype).reshape(shape)
