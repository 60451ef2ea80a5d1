"""Losses of windows in a file that grows while they are measured, so that a measurement goes on where it ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float64]
Window = Sequence[int]
_BYTES = np.dtype(np.float64).itemsize


def measured_windows(
    path: Path, windows: Sequence[Window], measure: Callable[[Sequence[Window]], Iterable[Losses]], together: int = 1
) -> Losses:
    """The losses of all tokens but the first of each window, f64; those that the file has are taken from it.

    Args:
        path: of the file, which only ever has the losses of these windows, and maybe of more behind them. What is in
            it behind the last whole group of windows, or is no number, is measured again.
        windows: token ids.
        measure: the losses of some windows, one after the other.
        together: windows in a group, whose losses may depend, in their last bits, on what they are measured with.

    Raises:
        OSError: the disk is full; the windows before that are in the file.
    """
    ends = [0, *accumulate(len(window) - 1 for window in windows)]
    known = _read(path)[: ends[-1]]
    numbers = np.isfinite(known)
    good = len(known) if numbers.all() else int((~numbers).argmax())
    done = max(index for index, end in enumerate(ends) if end <= good)
    if done == len(windows):
        return known
    done -= done % together
    path.parent.mkdir(parents=True, exist_ok=True)
    found = [known[: ends[done]]]
    with path.open("ab") as file:
        file.truncate(_BYTES * ends[done])
        for losses, (begin, end) in zip(measure(windows[done:]), pairwise(ends[done:]), strict=True):
            assert losses.shape == (end - begin,)
            found.append(losses.astype(np.float64))
            _append(file, found[-1].tobytes())
    return np.concatenate(found)


def _append(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _read(path: Path) -> Losses:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    return np.frombuffer(content[: len(content) // _BYTES * _BYTES], np.float64)
