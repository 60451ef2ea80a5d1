"""What a float model loses on a text, with one of its blocks in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from tmac.progress import with_progress
from tmac.quant.blocks import BlockSource

Losses = NDArray[np.float64]
BATCH_TOKENS = 2048
GROUP_TOKENS = 16_384
HIDDEN_BYTES = 512 << 20


def together(source: BlockSource, window: int) -> int:
    """How many windows go through all blocks together: every group reads the model once, and is lost by a kill.

    At most 16,384 tokens, whose hidden states take at most 512 MiB.
    """
    hidden_size = source.begin(torch.zeros(1, 1, dtype=torch.int64)).shape[-1]
    return max(1, min(GROUP_TOKENS, HIDDEN_BYTES // (4 * hidden_size)) // window)


def source_losses(
    source: BlockSource, windows: Sequence[Sequence[int]], together: int, progress: bool | None = None
) -> Iterator[Losses]:
    """-log p in nats of every token but the first of each window, f64 `[tokens - 1]`, in their order.

    Args:
        source: the float model.
        windows: token ids.
        together: windows that go through the blocks together.
        progress: as everywhere.
    """
    parts = list(_parts(windows, together))
    steps = iter(with_progress(range(len(parts) * len(source)), "float model", progress))
    for part in parts:
        yield from _part_losses(source, torch.tensor(part), steps)
    next(steps, None)


def _parts(windows: Sequence[Sequence[int]], together: int) -> Iterator[list[list[int]]]:
    """Groups of windows of one length that follow each other."""
    for begin in range(0, len(windows), together):
        for _, group in groupby(windows[begin : begin + together], key=len):
            yield [list(window) for window in group]


def _part_losses(source: BlockSource, ids: torch.Tensor, steps: Iterator[int]) -> list[Losses]:
    hidden = source.begin(ids)
    rows = max(1, BATCH_TOKENS // ids.shape[1])
    last = len(source) - 1
    for index in range(last):
        next(steps)
        with source.block(index) as module, torch.no_grad():
            for part in torch.split(hidden, rows):
                part.copy_(source.run(index, module, part))
    losses = []
    next(steps)
    with source.block(last) as module, torch.no_grad():
        for one, text in zip(hidden, ids, strict=True):
            logits = source.run(last, module, one[None])[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits, text[1:], reduction="none").double().numpy())
    return losses
