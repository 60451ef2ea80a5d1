"""Everything that is measured of a model, as one object that can be printed or written as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tmac.evaluation.choices import ChoiceResult, Question, answer_questions
from tmac.evaluation.loss_cache import cached_losses
from tmac.evaluation.metrics import Comparison, check_same_vocabulary, compare, perplexity, token_losses
from tmac.evaluation.scorer import Losses, Scorer
from tmac.evaluation.significance import (
    AccuracyDifference,
    McNemar,
    Ratio,
    accuracy_difference,
    mcnemar,
    perplexity_bounds,
    perplexity_ratio,
)
from tmac.evaluation.texts import load_text
from tmac.evaluation.windows import bos_of

CHARACTERS_PER_TOKEN = 8  # more than texts have, mostly
# Tokenizers are compared by it.
SAMPLE = 'In 1984, 12,345 naïve readers (of 東京) said: "it\'s\n\n  100 % x_y = foo(bar)" …'


@dataclass(frozen=True)
class TextResult:
    """Perplexity on a text, and beside a reference where there is one.

    Args:
        tokens: predicted ones.
        windows: the last may be shorter.
        window: positions of a window.
        bos: whether windows begin with the model's token for that.
        perplexity: of the model.
        bounds: of it, for other text of this kind; None where there is one window.
        reference_perplexity: of the reference.
        ratio: over the reference's perplexity; None where there is no reference, or one window.
        mean_kl: KL(reference || model), nats per token; None where it was not asked for.
        top1: share of places at which both find the same token the most likely.
    """

    tokens: int
    windows: int
    window: int
    bos: bool
    perplexity: float
    bounds: Ratio | None = None
    reference_perplexity: float | None = None
    ratio: Ratio | None = None
    mean_kl: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class ChoicesResult:
    """Right answers to multiple choice, and beside a reference where there is one.

    Args:
        questions: how many.
        accuracy: by log-likelihood.
        accuracy_norm: by log-likelihood per byte.
        reference_accuracy: the reference's, by log-likelihood; the three below compare that.
        reference_accuracy_norm: by log-likelihood per byte.
        difference: of the accuracies, with its bounds.
        test: McNemar's; `first` is the reference.
    """

    questions: int
    accuracy: float
    accuracy_norm: float
    reference_accuracy: float | None = None
    reference_accuracy_norm: float | None = None
    difference: AccuracyDifference | None = None
    test: McNemar | None = None


def text_ids(scorer: Scorer, source: str, max_tokens: int | None = None) -> list[int]:
    """The first tokens of a text, without special ones. Raises as `load_text` and `Scorer.encode`."""
    if max_tokens is None:
        return scorer.encode(load_text(source))
    ids = scorer.encode(load_text(source, CHARACTERS_PER_TOKEN * max_tokens))
    if len(ids) < max_tokens:
        ids = scorer.encode(load_text(source))
    return ids[:max_tokens]


def check_same_tokenizer(reference: Scorer, scorer: Scorer) -> None:
    """Raises ValueError where two models have vocabularies of different sizes, or read a text as different tokens."""
    check_same_vocabulary(reference, scorer)
    if reference.encode(SAMPLE) != scorer.encode(SAMPLE):
        raise ValueError(f"[evaluation] {reference.name} and {scorer.name} read a text as different tokens")


def evaluate_text(
    scorer: Scorer,
    ids: Sequence[int],
    reference: Scorer | None = None,
    *,
    kl: bool = False,
    window: int = 512,
    bos: bool | None = None,
    confidence: float = 0.95,
    progress: bool | None = False,
    cache: Path | None = None,
) -> TextResult:
    """Perplexity of a model, and how it compares with a reference.

    Args:
        scorer: the model.
        ids: of the text, as for `token_losses`.
        reference: what it is compared with, the float model mostly.
        kl: also their divergence and agreement: both run side by side.
        window: positions of a window.
        bos: as for `token_losses`; None asks the reference's tokenizer where there is one.
        confidence: of each bound.
        progress: as for `token_losses`.
        cache: a folder for the reference's losses, which are taken from there without `kl`.

    Raises:
        ValueError: as `token_losses` and `compare`.
    """
    bos_id = bos_of(reference or scorer, bos)
    begins = bos_id is not None
    options: dict[str, Any] = {"window": window, "bos": begins, "progress": progress}
    if reference is None:
        losses = token_losses(scorer, ids, **options)
        return _text_result(losses, None, window, begins, confidence)
    if kl:
        both = compare(reference, scorer, ids, **options)
        return _text_result(both.losses, both.reference_losses, window, begins, confidence, both)
    check_same_vocabulary(reference, scorer)
    wanted = cached_losses(reference, ids, folder=cache, **options)
    return _text_result(token_losses(scorer, ids, **options), wanted, window, begins, confidence)


def evaluate_choices(
    scorer: Scorer,
    questions: Sequence[Question],
    reference: Scorer | None = None,
    *,
    bos: bool | None = None,
    confidence: float = 0.95,
    progress: bool | None = False,
) -> ChoicesResult:
    """Right answers of a model, and how they compare with a reference's. Arguments as `evaluate_text`.

    Raises:
        ValueError: as `answer_questions`.
    """
    found = answer_questions(scorer, questions, bos, progress)
    if reference is None:
        return ChoicesResult(len(questions), found.accuracy, found.accuracy_norm)
    wanted: ChoiceResult = answer_questions(reference, questions, bos, progress)
    return ChoicesResult(
        len(questions),
        found.accuracy,
        found.accuracy_norm,
        wanted.accuracy,
        wanted.accuracy_norm,
        accuracy_difference(wanted.correct, found.correct, confidence),
        mcnemar(wanted.correct, found.correct),
    )


def _text_result(
    losses: Losses,
    reference: Losses | None,
    window: int,
    bos: bool,
    confidence: float,
    both: Comparison | None = None,
) -> TextResult:
    several = len(losses) > window - 1
    return TextResult(
        tokens=len(losses),
        windows=-(-len(losses) // (window - 1)),
        window=window,
        bos=bos,
        perplexity=perplexity(losses),
        bounds=perplexity_bounds(losses, window, confidence) if several else None,
        reference_perplexity=None if reference is None else perplexity(reference),
        ratio=None if reference is None or not several else perplexity_ratio(reference, losses, window, confidence),
        mean_kl=None if both is None else both.mean_kl,
        top1=None if both is None else both.top1,
    )


def to_dict(result: TextResult | ChoicesResult) -> dict[str, Any]:
    """A result as JSON takes it."""
    return asdict(result)
