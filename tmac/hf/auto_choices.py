"""Multiple choice as the metric of the automatic flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac.evaluation.choices import Question, answer_questions
from tmac.evaluation.scorer import NoNumbersError
from tmac.evaluation.significance import accuracy_difference, mcnemar
from tmac.hf.auto_judge import CONFIDENCE, array_bytes, choose_scorer, read_array, trial_scorer, wrecked
from tmac.hf.auto_model import FloatModel
from tmac.hf.scorer import HFScorer
from tmac.quant.codes_cache import digest, write_atomically
from tmac.quant.search import Measurement, Stage, Trial


class ChoicesJudge:
    """Accuracy beside that of the float model on the same questions.

    Args:
        model: the float model.
        questions: at least one.
        float_model: gives the float model of transformers, for its own answers.
        tokenizer: of transformers.
        folder: for trials and the answers of the float model.
        scorer: "engine", "hf", or "auto".
        progress: as everywhere.

    Raises:
        ValueError: there are no questions, or no tokenizer.
    """

    stages: tuple[Stage, ...] = ("full",)

    def __init__(
        self,
        model: FloatModel,
        questions: Sequence[Question],
        float_model: Callable[[], Any],
        tokenizer: Any,
        folder: Path,
        scorer: str = "auto",
        progress: bool | None = None,
    ) -> None:
        if not questions or tokenizer is None:
            raise ValueError("[auto_quantize] accuracy needs questions and a tokenizer")
        self._model, self._questions, self._float_model, self._tokenizer = model, questions, float_model, tokenizer
        self._folder, self._progress = folder, progress
        self.scorer = choose_scorer(model, scorer)
        self.full_count = len(questions)
        self.fingerprint = digest([[each.prompt, list(each.choices), each.answer] for each in questions])[:32]

    @property
    def rule(self) -> str:
        """See `Judge`."""
        return (
            f"the one-sided {CONFIDENCE:.0%} upper bound of the relative loss of accuracy, paired on {self.full_count} "
            "questions, is at most max_loss; beside it McNemar's exact test"
        )

    def measure(self, trial: Trial, stage: Stage) -> Measurement:
        """See `Judge`."""
        wanted = self._reference()
        with trial_scorer(self._model, trial, self._folder, self.scorer, self._tokenizer) as scorer:
            try:
                found = answer_questions(scorer, self._questions, progress=self._progress).correct
            except NoNumbersError as error:
                return wrecked(self.full_count, str(error))
        accuracy = float(wanted.mean())
        if accuracy == 0:
            raise ValueError("[auto_quantize] the float model answers no question: a relative loss has no meaning")
        difference = accuracy_difference(wanted, found, CONFIDENCE)
        about = {
            "accuracy": float(found.mean()),
            "float accuracy": accuracy,
            "McNemar's p": mcnemar(wanted, found).p_value,
        }
        return Measurement(-difference.difference / accuracy, -difference.lower / accuracy, len(found), about)

    def _reference(self) -> NDArray[np.bool_]:
        name = digest(self.fingerprint, self._model.source.fingerprint)[:32]
        path = self._folder / f"reference-{name}.npy"
        kept = read_array(path, self.full_count)
        if kept is None:
            scorer = HFScorer(self._float_model(), self._tokenizer, "float model")
            kept = answer_questions(scorer, self._questions, progress=self._progress).correct.astype(np.float64)
            write_atomically(path, array_bytes(kept))
        return kept.astype(bool)
