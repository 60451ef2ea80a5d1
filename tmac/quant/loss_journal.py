"""Losses of windows in a file that grows while they are measured, so that a measurement goes on where it ended."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
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
            it behind the last whole group of windows, or is damaged, is measured again.
        windows: token ids.
        measure: the losses of some windows, one after the other.
        together: windows in a group, whose losses may depend, in their last bits, on what they are measured with.

    Raises:
        OSError: the disk is full; the windows before that are in the file.
    """
    counts = [len(window) - 1 for window in windows]
    found = _read(path, counts)
    if len(found) < len(windows):
        done = len(found) - len(found) % together
        del found[done:]
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(sum(_BYTES * (count + 1) for count in counts[:done]))
            for losses, count in zip(measure(windows[done:]), counts[done:], strict=True):
                assert losses.shape == (count,)
                found.append(losses.astype(np.float64))
                _append(file, _record(found[-1]))
    return np.concatenate(found)


def _record(losses: Losses) -> bytes:
    """The losses of a window and their checksum, as another eight bytes."""
    content = losses.tobytes()
    return content + zlib.crc32(content).to_bytes(_BYTES, "little")


def _read(path: Path, counts: Sequence[int]) -> list[Losses]:
    """The windows of the file up to the first that is not whole."""
    found: list[Losses] = []
    with suppress(FileNotFoundError), path.open("rb") as file:
        for count in counts:
            content, checksum = file.read(_BYTES * count), file.read(_BYTES)
            if len(content) < _BYTES * count or content + checksum != _record(np.frombuffer(content, np.float64)):
                break
            found.append(np.frombuffer(content, np.float64))
    return found


def _append(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
