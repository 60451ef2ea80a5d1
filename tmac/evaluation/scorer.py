"""What is asked of a model when it is measured: `Scorer`, and the native engine as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tmac.runtime.engine import Engine
from tmac.runtime.native import Floats

Losses = NDArray[np.float64]
_NO_NUMBERS = ("a NaN among the logits", "the largest logit of row")  # of log_probabilities.cpp


class NoNumbersError(ValueError):
    """A model's logits are no numbers."""


def negative(log_probabilities: Callable[[], Floats]) -> Losses:
    """Losses of what a function returns. Raises what that raises, `NoNumbersError` where logits are no numbers."""
    try:
        return -log_probabilities().astype(np.float64)
    except ValueError as error:
        if any(text in str(error) for text in _NO_NUMBERS):
            raise NoNumbersError(str(error)) from error
        raise


class Scorer(Protocol):
    """A model that says how likely texts are. `EngineScorer` and `tmac.hf.scorer.HFScorer` are two."""

    @property
    def name(self) -> str:
        """What tables and messages call it."""

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""

    @property
    def context_length(self) -> int:
        """Positions of the longest text."""

    @property
    def bos_id(self) -> int | None:
        """The model's token for the beginning of a text; None: it has none, or nobody knows it."""

    @property
    def add_bos(self) -> bool:
        """Whether the model's tokenizer begins every text with `bos_id`."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it. Raises ValueError where there is no tokenizer."""

    def logits(self, ids: Sequence[int]) -> Floats:
        """Logits of every token of a text: f32 `[tokens, vocab_size]`, row i for the token after `ids[: i + 1]`."""

    def losses(self, ids: Sequence[int]) -> Losses:
        """-log p of every token but the first, given those before it, in nats: f64 `[tokens - 1]`."""

    def losses_of(self, texts: Iterable[Sequence[int]]) -> Iterator[Losses]:
        """`losses` of several texts that know nothing of one another, in their order, as fast as the model can."""


class EngineScorer:
    """The native engine as a `Scorer`. Logits are looked at a chunk of a prompt at a time, and no text's are kept.

    Args:
        engine: stays the caller's, who closes it.
        name: for tables; None: "engine".

    Example:
        with tmac.Engine.from_pretrained("folder") as engine:
            losses = token_losses(EngineScorer(engine), ids)
    """

    def __init__(self, engine: Engine, name: str | None = None) -> None:
        self._engine = engine
        self.name = name or "engine"
        self.vocab_size, self.context_length = engine.vocab_size, engine.context_length
        self.bos_id: int | None = getattr(engine.tokenizer, "bos_id", None)
        self.add_bos = self.bos_id is not None and begins_with(engine.tokenizer.encode("a"), self.bos_id)

    def encode(self, text: str) -> list[int]:
        """As `Scorer.encode`."""
        return self._engine.tokenizer.encode(text, add_special_tokens=False)

    def logits(self, ids: Sequence[int]) -> Floats:
        """As `Scorer.logits`. Raises ValueError: there are none, unknown ones, or more than the context has."""
        return self._engine.logits(ids)

    def losses(self, ids: Sequence[int]) -> Losses:
        """As `Scorer.losses`. Raises as `logits`, and NoNumbersError where logits are no numbers."""
        return negative(lambda: self._engine.log_probabilities(ids))

    def losses_of(self, texts: Iterable[Sequence[int]]) -> Iterator[Losses]:
        """As `Scorer.losses_of`: one after the other."""
        return map(self.losses, texts)


def begins_with(ids: Sequence[int], bos_id: int | None) -> bool:
    """Whether a tokenizer that gives `ids` for some text puts the beginning's token before it."""
    return bool(ids) and ids[0] == bos_id
