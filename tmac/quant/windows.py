"""Calibration text in windows, and how many of them go through a block at once."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

LEAST_TOKENS = 128


def windows(function: str, ids: Tensor, window: int) -> Tensor:
    """Token ids as int64 `[windows, window]`; of `[tokens]` a last window that is shorter is left out.

    Args:
        function: named in messages.
        ids: integers `[tokens]`, or `[batch, tokens]` whose rows are the windows already.
        window: tokens, at least 2.

    Raises:
        ValueError: the shape is another one, or there are fewer than 128 tokens in windows.
    """
    if ids.dim() not in (1, 2) or ids.is_floating_point() or window < 2:
        found = f"{ids.dtype} {list(ids.shape)} and window={window}"
        raise ValueError(
            f"[{function}] expected integer ids [tokens] or [batch, tokens] and windows of 2 tokens, got {found}"
        )
    ids = ids.long()
    if ids.dim() == 1:
        ids = ids[: len(ids) // window * window].view(-1, window)
    if ids.numel() < LEAST_TOKENS or ids.shape[1] < 2:
        least = -(-LEAST_TOKENS // window) * window
        raise ValueError(
            f"[{function}] expected a text of at least {least} tokens (in windows of {window}), found {ids.numel()} "
            "that fill windows"
        )
    return ids


def batches(text: Tensor, batch_tokens: int) -> Iterator[slice]:
    """Slices of the rows of `[windows, tokens, ...]` with at most `batch_tokens` tokens, but at least one window."""
    step = max(1, batch_tokens // text.shape[1])
    for first in range(0, len(text), step):
        yield slice(first, min(first + step, len(text)))
