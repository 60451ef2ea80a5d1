"""Perplexity, and how far a model's predictions are from those of a reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tmac._core import log_probabilities
from tmac.evaluation.divergence import row_divergence
from tmac.evaluation.scorer import Losses, Scorer
from tmac.evaluation.significance import Ratio, perplexity_ratio
from tmac.evaluation.windows import Windows, bos_of, check_window
from tmac.progress import with_progress


def token_losses(
    scorer: Scorer,
    ids: Sequence[int],
    window: int = 512,
    bos: bool | None = None,
    progress: bool | None = False,
) -> Losses:
    """-log p, in nats, of every token of a text that its windows predict: f64 `[predicted]`.

    Args:
        scorer: the model.
        ids: of the text, without special tokens before it, at least two.
        window: positions of a window; `Windows` says how the text is cut. Each window predicts `window - 1` tokens.
        bos: whether windows begin with the model's token for that; None: as its tokenizer does.
        progress: a bar over the windows; None: on a terminal, if it takes over two seconds.

    Raises:
        ValueError: there are too few tokens, or unknown ones, the window is longer than the model's context, it has no
            token for the beginning, or its logits are no numbers.
    """
    check_window(scorer, window)
    windows = Windows(ids, window, bos_of(scorer, bos))
    found = scorer.losses_of(windows)
    return np.concatenate([*with_progress(found, f"perplexity of {scorer.name}", progress, len(windows))])


def perplexity(losses: Losses) -> float:
    """exp of the mean loss; infinite where that is more than a float can hold."""
    mean = float(np.mean(losses))
    return math.exp(mean) if mean < 700 else math.inf


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a model and a reference predict at the same places of a text, `n` of them.

    Args:
        reference_losses: nats, f64 `[n]`.
        losses: of the model, f64 `[n]`.
        kl: Kullback-Leibler divergence KL(reference || model) of each place's distribution, nats, f64 `[n]`.
        same_top: whether both find the same next token the most likely, bool `[n]`.
        window: positions of a window, which predicts one token less.
    """

    reference_losses: Losses
    losses: Losses
    kl: Losses
    same_top: NDArray[np.bool_]
    window: int

    @property
    def reference_perplexity(self) -> float:
        """Of the reference."""
        return perplexity(self.reference_losses)

    @property
    def perplexity(self) -> float:
        """Of the model."""
        return perplexity(self.losses)

    @property
    def mean_kl(self) -> float:
        """Nats per token."""
        return float(self.kl.mean())

    @property
    def top1(self) -> float:
        """Share of the places at which both find the same token the most likely, 0 to 1."""
        return float(self.same_top.mean())

    def ratio(self, confidence: float = 0.95) -> Ratio:
        """The model's perplexity over the reference's, with its bounds."""
        return perplexity_ratio(self.reference_losses, self.losses, self.window, confidence)


def compare(
    reference: Scorer,
    scorer: Scorer,
    ids: Sequence[int],
    window: int = 512,
    bos: bool | None = None,
    progress: bool | None = False,
) -> Comparison:
    """Both models on the same windows, side by side: no more than one window's logits of each are in memory.

    Args:
        reference: the float model, mostly.
        scorer: the model that is compared with it.
        ids: of the text, as for `token_losses`.
        window: positions of a window.
        bos: as for `token_losses`; None asks the reference's tokenizer.
        progress: as for `token_losses`.

    Raises:
        ValueError: the models have vocabularies of different sizes; else as `token_losses`.
    """
    check_same_vocabulary(reference, scorer)
    check_window(reference, window)
    check_window(scorer, window)
    windows = Windows(ids, window, bos_of(reference, bos))
    parts: list[tuple[Losses, Losses, Losses, NDArray[np.bool_]]] = []
    for each in with_progress(windows, f"{scorer.name} beside {reference.name}", progress, len(windows)):
        wanted, found = reference.logits(each)[:-1], scorer.logits(each)[:-1]
        following = np.array(each[1:], np.int32)
        kl, same_top = row_divergence(wanted, found)
        parts.append((_losses(wanted, following), _losses(found, following), kl, same_top))
    reference_losses, losses, kls, tops = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Comparison(reference_losses, losses, kls, tops, window)


def check_same_vocabulary(reference: Scorer, scorer: Scorer) -> None:
    """Raises ValueError where two models have vocabularies of different sizes."""
    if reference.vocab_size != scorer.vocab_size:
        raise ValueError(
            f"[evaluation] {reference.name} has a vocabulary of {reference.vocab_size} tokens, {scorer.name} one of "
            f"{scorer.vocab_size}: they cannot be compared"
        )


def _losses(logits: NDArray[np.float32], following: NDArray[np.int32]) -> Losses:
    return -log_probabilities(logits, following).astype(np.float64)
