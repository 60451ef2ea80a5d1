"""Multiple choice by log-likelihood: questions from JSONL, and which answers a model finds the likeliest."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac.evaluation.jsonl import read_jsonl, text_field
from tmac.evaluation.packaged import is_packaged, packaged_file
from tmac.evaluation.scorer import Scorer
from tmac.evaluation.windows import bos_of
from tmac.progress import with_progress

LOGIQA = "package:evals/logiqa"
LOGIQA_ITEM = re.compile(
    r"\s*Passage: (.*?)\s*Question: (.*?)\nA\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)\nAnswer:\s*", re.DOTALL
)
LETTER = re.compile(r"[A-D]\.\s*")


@dataclass(frozen=True)
class Question:
    """A text that goes on in one of several ways.

    Args:
        prompt: what stands before every choice.
        choices: continuations, each of which begins with what sets it apart from the prompt, a space mostly.
        answer: index of the right one.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, eq=False)
class ChoiceResult:
    """What a model answers, for each of `n` questions.

    Args:
        correct: whether the right choice has the largest log-likelihood, bool `[n]`.
        correct_norm: whether it has the largest log-likelihood per byte of UTF-8, bool `[n]`.
    """

    correct: NDArray[np.bool_]
    correct_norm: NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """Share of right answers by log-likelihood, 0 to 1."""
        return float(self.correct.mean())

    @property
    def accuracy_norm(self) -> float:
        """Share of right answers by log-likelihood per byte, 0 to 1."""
        return float(self.correct_norm.mean())


def load_questions(source: str | os.PathLike[str], max_questions: int | None = None) -> list[Question]:
    """Questions of a JSONL file, or of `package:evals/logiqa`.

    A line has `"choices"` (texts, at least two), `"answer"` (an index from 0, a letter from A on, or the text of a
    choice) and `"question"`, `"context"` or both:
        question: "Question: {question}\\nAnswer: {choice}", after "{context}\\n" where there is a context;
        context alone: "{context} {choice}", a text that goes on.

    Args:
        source: the file, or the name.
        max_questions: no more are read.

    Raises:
        ValueError: a line is no such question; it is named. Or the package is not installed.
        OSError: the file cannot be read.
    """
    if is_packaged(source) and source != LOGIQA:
        raise ValueError(f"[choices] expected a file of JSON lines or {LOGIQA}, found {source}")
    packaged = is_packaged(source)
    path = packaged_file(str(source)) if packaged else Path(source)
    read = _logiqa if packaged else _question
    found = []
    for place, value in read_jsonl(path):
        found.append(read(place, value))
        if len(found) == max_questions:
            break
    return found


def answer_questions(
    scorer: Scorer, questions: Sequence[Question], bos: bool | None = None, progress: bool | None = False
) -> ChoiceResult:
    """Which choices a model finds the likeliest, each scored by the sum of its tokens' log-probabilities.

    A choice's tokens are those that come after the prompt's when both are encoded together. Of a text that is longer
    than the context the beginning is left out.

    Args:
        scorer: the model.
        questions: at least one.
        bos: whether texts begin with the model's token for that; None: as its tokenizer does.
        progress: a bar over the choices; None: on a terminal, if it takes over two seconds.

    Raises:
        ValueError: there is no question, a choice adds no token to its prompt, or is longer than the context.
    """
    if not questions:
        raise ValueError("[choices] expected at least one question")
    begin = [] if (bos_id := bos_of(scorer, bos)) is None else [bos_id]
    encoded = [_encode(scorer, begin, question, choice) for question in questions for choice in question.choices]
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index][0]))  # texts of a length in one batch
    scores = np.empty(len(encoded))
    losses = scorer.losses_of(encoded[index][0] for index in order)
    title = f"choices of {scorer.name}"
    for index, found in zip(order, with_progress(losses, title, progress, len(encoded)), strict=True):
        scores[index] = -found[-encoded[index][1] :].sum()
    return _result(questions, scores)


def _encode(scorer: Scorer, begin: list[int], question: Question, choice: str) -> tuple[list[int], int]:
    """(token ids, how many of them are the choice's)."""
    prompt, ids = scorer.encode(question.prompt), scorer.encode(question.prompt + choice)
    count = len(ids) - len(prompt)
    room = scorer.context_length - len(begin)
    if not 0 < count < room:
        raise ValueError(
            f"[choices] expected a choice of 1 to {room - 1} tokens, found {count}: {choice[:60]!r} after "
            f"{question.prompt[-60:]!r}"
        )
    return [*begin, *ids[-room:]], count


def _result(questions: Sequence[Question], scores: NDArray[np.float64]) -> ChoiceResult:
    correct, correct_norm, at = [], [], 0
    for question in questions:
        own = scores[at : at + len(question.choices)]
        sizes = [len(choice.encode()) for choice in question.choices]
        correct.append(int(own.argmax()) == question.answer)
        correct_norm.append(int((own / sizes).argmax()) == question.answer)
        at += len(question.choices)
    return ChoiceResult(np.array(correct), np.array(correct_norm))


def _question(place: str, value: dict[str, Any]) -> Question:
    choices = value.get("choices")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(each, str) and each for each in choices):
        raise ValueError(f"[choices] {place}: expected two or more texts in 'choices', found {choices!r:.100}")
    answer = _answer(place, value.get("answer"), choices)
    context = text_field(place, value, "context").rstrip() if "context" in value else ""
    if "question" not in value and not context:
        raise ValueError(f"[choices] {place}: expected a 'question' or a 'context'")
    if "question" not in value:
        prompt = context
    else:
        asked = f"Question: {text_field(place, value, 'question').strip()}\nAnswer:"
        prompt = f"{context}\n{asked}" if context else asked
    return Question(prompt, tuple(f" {each.strip()}" for each in choices), answer)


def _answer(place: str, answer: Any, choices: list[str]) -> int:
    letters = ascii_uppercase[: len(choices)]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, str) and len(answer) == 1 and answer in letters:
        return letters.index(answer)
    raise ValueError(
        f"[choices] {place}: expected an 'answer' of 0 to {len(choices) - 1}, A to {letters[-1:]}, or one of the "
        f"choices, found {answer!r:.100}"
    )


def _logiqa(place: str, value: dict[str, Any]) -> Question:
    """An item of LogiQA as `evals` stores it: a chat of instructions and the passage, with the letter of the answer."""
    try:
        content, answer = value["input"][-1]["content"], value["ideal"]
        match = LOGIQA_ITEM.fullmatch(content)
    except (KeyError, IndexError, TypeError):
        match = None
    if match is None:
        raise ValueError(f"[choices] {place}: expected an item of LogiQA")
    passage, question, *texts = (part.strip() for part in match.groups())
    choices = [LETTER.sub("", text, count=1) or text for text in texts]
    return _question(place, {"context": passage, "question": question, "choices": choices, "answer": answer})
