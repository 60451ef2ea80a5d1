"""How sure a difference between two models is that were measured on the same text or the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac.evaluation.distributions import t_quantile


@dataclass(frozen=True)
class Ratio:
    """A perplexity over another one, on the same text.

    Args:
        ratio: the estimate; 1.01 is a loss of 1 %.
        lower: the true ratio is above it with `confidence`.
        upper: the true ratio is below it with `confidence`. Both together hold with `2 * confidence - 1`.
        confidence: of each bound.
        windows: independent observations.
        tokens: predicted ones.
    """

    ratio: float
    lower: float
    upper: float
    confidence: float
    windows: int
    tokens: int


def perplexity_ratio(
    reference_losses: NDArray[np.float64],
    losses: NDArray[np.float64],
    window: int = 512,
    confidence: float = 0.95,
) -> Ratio:
    """How much larger a perplexity is than the reference's, with one-sided bounds.

    Both models read the same windows, so that what counts is the difference of their losses, which varies far less than
    the losses. Tokens of one window depend on each other; windows are taken as independent. With S_b the sum of the
    differences in window b of n_b tokens, B windows and n = sum n_b,
        D = sum S_b / n,    V = B / (B - 1) * sum (S_b - n_b D)^2 / n^2,
        ratio = exp(D),    bounds = exp(D -+ t(confidence, B - 1) sqrt(V)).
    For windows of one length these are the mean of the window means and its squared standard error; for a shorter last
    one the estimator of a ratio in cluster sampling (Cochran, Sampling Techniques, 3rd edition, 1977, section 6.4 with
    clusters as units).

    Args:
        reference_losses: of `token_losses`, nats.
        losses: of the other model on the same text, window and beginning.
        window: that `token_losses` was called with: `window - 1` losses are one observation.
        confidence: of each bound, above 0.5.

    Raises:
        ValueError: the losses differ in number, are not finite, or fill fewer than two windows.
    """
    if losses.shape != reference_losses.shape or losses.ndim != 1:
        raise ValueError(
            f"[perplexity_ratio] expected losses of the same tokens, found {list(reference_losses.shape)} and "
            f"{list(losses.shape)}"
        )
    if window < 2:
        raise ValueError(f"[perplexity_ratio] expected a window of at least 2 tokens, found {window}")
    _check_confidence("perplexity_ratio", confidence)
    differences = losses.astype(np.float64) - reference_losses
    if not np.isfinite(differences).all():
        raise ValueError(
            f"[perplexity_ratio] the loss of token {int((~np.isfinite(differences)).argmax())} is not finite"
        )
    starts = np.arange(0, len(losses), window - 1)
    count, tokens = len(starts), len(losses)
    if count < 2:
        raise ValueError(f"[perplexity_ratio] expected at least two windows of {window} tokens, found {tokens} losses")
    sums = np.add.reduceat(differences, starts)
    sizes = np.diff(np.append(starts, tokens))
    mean = float(sums.sum()) / tokens
    variance = count / (count - 1) * float(np.square(sums - sizes * mean).sum()) / tokens**2
    margin = t_quantile(confidence, count - 1) * math.sqrt(variance)
    return Ratio(_exp(mean), _exp(mean - margin), _exp(mean + margin), confidence, count, tokens)


def perplexity_bounds(losses: NDArray[np.float64], window: int = 512, confidence: float = 0.95) -> Ratio:
    """A perplexity with bounds: the ratio to a model that is always right.

    The bounds say how much the perplexity of other text of this kind may differ; that of two models on one text is far
    better known (`perplexity_ratio`). Arguments and errors as there.
    """
    return perplexity_ratio(np.zeros_like(losses), losses, window, confidence)


@dataclass(frozen=True)
class McNemar:
    """Which of two models answers questions right that the other one answers wrong.

    Args:
        only_first: questions that only the first model answers right.
        only_second: questions that only the second one does.
        p_value: of the two-sided exact test that both models are equally good.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Sequence[Any] | NDArray[Any], second: Sequence[Any] | NDArray[Any]) -> McNemar:
    """The exact test of McNemar for two models that answered the same questions.

    Of the questions that exactly one of the models answers right, each is as likely to be the first's as the second's
    where the models are equally good (McNemar, Psychometrika 12, 1947, 153-157; exact as a sign test). With b and c of
    them, p = min(1, 2 P(X <= min(b, c))), X binomial of b + c and 1/2: exact integers, rounded once.

    Args:
        first: whether the first model is right, a truth value for each question.
        second: the same for the second.

    Raises:
        ValueError: the numbers of questions differ, or there is none.
    """
    b, c = _disagreements("mcnemar", first, second)[:2]
    count, term, total = b + c, 1, 1
    for index in range(1, min(b, c) + 1):
        term = term * (count - index + 1) // index
        total += term
    return McNemar(b, c, min(1.0, 2 * total / 2**count))


@dataclass(frozen=True)
class AccuracyDifference:
    """The second model's accuracy less the first's.

    Args:
        difference: the estimate, -1 to 1; below zero the second is worse.
        lower: the true difference is above it with `confidence`.
        upper: the true difference is below it with `confidence`.
        confidence: of each bound.
    """

    difference: float
    lower: float
    upper: float
    confidence: float


def accuracy_difference(
    first: Sequence[Any] | NDArray[Any], second: Sequence[Any] | NDArray[Any], confidence: float = 0.95
) -> AccuracyDifference:
    """How much better the second of two models answers the same questions, with one-sided bounds.

    The interval of Wald after half a question is added to each of the four outcomes (Agresti and Min, Statistics in
    Medicine 24, 2005, 729-740): with b' = b + 1/2, c' = c + 1/2 and N = n + 2,
        (c' - b') / N -+ z(confidence) sqrt(b' + c' - (c' - b')^2 / N) / N.

    Args:
        first: whether the first model is right, a truth value for each question.
        second: the same for the second.
        confidence: of each bound, above 0.5.

    Raises:
        ValueError: the numbers of questions differ, or there is none.
    """
    _check_confidence("accuracy_difference", confidence)
    b, c, count = _disagreements("accuracy_difference", first, second)
    total, shift = count + 2, c - b
    margin = NormalDist().inv_cdf(confidence) * math.sqrt(b + c + 1 - shift * shift / total) / total
    centre = shift / total
    lower, upper = max(-1.0, centre - margin), min(1.0, centre + margin)
    return AccuracyDifference(shift / count, lower, upper, confidence)


def _disagreements(function: str, first: Any, second: Any) -> tuple[int, int, int]:
    """(right by the first alone, right by the second alone, questions)."""
    one, two = np.asarray(first), np.asarray(second)
    if one.shape != two.shape or one.ndim != 1 or not len(one):
        raise ValueError(
            f"[{function}] expected answers to the same questions, at least one, found {list(one.shape)} and "
            f"{list(two.shape)}"
        )
    one, two = one.astype(bool), two.astype(bool)
    return int((one & ~two).sum()), int((two & ~one).sum()), len(one)


def _check_confidence(function: str, confidence: float) -> None:
    if not 0.5 < confidence < 1:
        raise ValueError(f"[{function}] expected a confidence above 0.5 and below 1, found {confidence}")


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
