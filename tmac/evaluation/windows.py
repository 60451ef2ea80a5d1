"""How a long text is cut into windows that a model reads one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tmac.evaluation.scorer import Scorer


class Windows:
    """Windows of a text: `window` positions each, and each starts afresh.

    With a token for the beginning, every window is that token and `window - 1` tokens of the text; without, it is
    `window` tokens, of which the first is only read. Both ways a full window predicts `window - 1` tokens. The last may
    be shorter; where it would predict nothing it is left out.

    Args:
        ids: tokens of the text, without special tokens before it.
        window: positions, at least 2.
        bos_id: the token for the beginning, or None.

    Raises:
        ValueError: the text has fewer than two tokens, or the window fewer than two positions.
    """

    def __init__(self, ids: Sequence[int], window: int = 512, bos_id: int | None = None) -> None:
        self.ids = checked_text(ids)
        if window < 2:
            raise ValueError(f"[evaluation] expected a window of at least 2 tokens, found {window}")
        self.window, self.bos_id = window, bos_id
        self._begin = [] if bos_id is None else [bos_id]
        self._step = window - len(self._begin)
        rest = len(self.ids) % self._step
        self._count = len(self.ids) // self._step + (rest + len(self._begin) >= 2)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        for begin in range(0, self._count * self._step, self._step):
            yield self._begin + self.ids[begin : begin + self._step]

    @property
    def predicted(self) -> int:
        """Tokens that all windows predict together."""
        read = min(len(self.ids), self._count * self._step)
        return read - self._count * (1 - len(self._begin))


def checked_text(ids: Any) -> list[int]:
    """Ids as integers. Raises ValueError where there are fewer than two, or they are no list of integers."""
    array = np.asarray(ids)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or not array.size):
        raise ValueError(f"[evaluation] expected token ids [tokens], found {array.dtype} {list(array.shape)}")
    if len(array) < 2:
        raise ValueError(f"[evaluation] expected a text of at least two tokens, found {len(array)}")
    found: list[int] = array.tolist()
    return found


def bos_of(scorer: Scorer, bos: bool | None) -> int | None:
    """The token that windows begin with.

    Args:
        scorer: of the model.
        bos: None: as the model's tokenizer does; True or False: with or without it.

    Raises:
        ValueError: `bos` is True, and the model has none.
    """
    if bos is None:
        return scorer.bos_id if scorer.add_bos else None
    if bos and scorer.bos_id is None:
        raise ValueError(f"[evaluation] {scorer.name} has no token for the beginning of a text")
    return scorer.bos_id if bos else None


def check_window(scorer: Scorer, window: int) -> None:
    """Raises ValueError where a window is longer than the model's context."""
    if window > scorer.context_length:
        raise ValueError(
            f"[evaluation] a window of {window} tokens is more than the context of {scorer.name}, "
            f"{scorer.context_length}"
        )
