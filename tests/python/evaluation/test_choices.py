"""Multiple choice: what is read, and that the likeliest choice is the one that is counted."""

import importlib.util
import json
import math

import numpy as np
import pytest
from table_scorer import TableScorer, random_scorer

from tmac.evaluation.choices import LOGIQA, Question, answer_questions, load_questions


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_question_and_a_text_that_goes_on(tmp_path):
    path = write(
        tmp_path / "q.jsonl",
        {"question": "What? ", "choices": ["This", " that"], "answer": 1},
        {"context": "It rains. ", "question": "So?", "choices": ["a", "b", "c"], "answer": "C"},
        {"context": "The sun ", "choices": ["rises.", "A"], "answer": "A"},
    )
    assert load_questions(path) == [
        Question("Question: What?\nAnswer:", (" This", " that"), 1),
        Question("It rains.\nQuestion: So?\nAnswer:", (" a", " b", " c"), 2),
        Question("The sun", (" rises.", " A"), 1),  # the text of a choice before its letter
    ]
    assert len(load_questions(path, max_questions=2)) == 2


GOOD = {"question": "q", "choices": ["x", "y"], "answer": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": ["x"]}, "two or more texts in 'choices'"),
        ({"choices": "xy"}, "two or more texts in 'choices', found 'xy'"),
        ({"choices": ["x", 2]}, "two or more texts in 'choices'"),
        ({"choices": ["x", ""]}, "two or more texts in 'choices'"),
        ({"answer": 2}, "expected an 'answer' of 0 to 1, A to B, or one of the choices, found 2"),
        ({"answer": -1}, "found -1"),
        ({"answer": True}, "found True"),
        ({"answer": None}, "found None"),
        ({"answer": "C"}, "found 'C'"),
        ({"question": 5}, "expected a text in 'question', found int"),
        ({"context": 5}, "expected a text in 'context', found int"),
    ],
)
def test_a_bad_question_is_named(tmp_path, change, message):
    path = write(tmp_path / "q.jsonl", GOOD, {**GOOD, **change})
    with pytest.raises(ValueError, match=f"q.jsonl, line 2: .*{message}"):
        load_questions(path)


def test_a_question_without_a_question(tmp_path):
    with pytest.raises(ValueError, match="line 1: expected a 'question' or a 'context'"):
        load_questions(write(tmp_path / "q.jsonl", {"choices": ["x", "y"], "answer": 0}))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"empty.jsonl: expected a JSON object a line, found none"):
        load_questions(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="a file of JSON lines or package:evals/logiqa, found package:gensim/news"):
        load_questions("package:gensim/news")


def test_logiqa_has_its_questions():
    if importlib.util.find_spec("evals") is None:
        pytest.skip("needs the package evals")
    questions = load_questions(LOGIQA)
    assert len(questions) == 1354
    assert all(len(each.choices) == 4 for each in questions)
    assert questions[0].prompt.startswith("The company sent Zhang")
    assert questions[0].prompt.endswith("can be drawn?\nAnswer:")
    assert questions[0].choices[2] == " Li chose to travel by ship."
    assert questions[0].answer == 2


class Letters(TableScorer):
    """Tokens are characters of this alphabet."""

    ALPHABET = " abc"

    def encode(self, text):
        return [self.ALPHABET.index(character) for character in text]


def letters(**options):
    probabilities = np.array([[0.1, 0.5, 0.3, 0.1], [0.1, 0.1, 0.7, 0.1], [0.25] * 4, [0.1, 0.1, 0.1, 0.7]])
    return Letters(np.log(probabilities), **options)


def test_the_likeliest_choice_is_the_answer():
    questions = [
        Question("a", (" a", " b"), 0),  # .1 .5 against .1 .3
        Question("a", (" a", " b"), 1),
        Question("c", (" c", " ccc"), 1),  # .1 .1 against .1 .1 .7 .7: the longer one is the likelier per byte only
        Question("b", (" a", " ab", " b"), 0),
    ]
    found = answer_questions(letters(), questions)
    assert found.correct.tolist() == [True, False, False, True]
    per_byte = [math.log(0.125) / 2, math.log(0.25 * 0.5 * 0.7) / 3, math.log(0.25 * 0.3) / 2]
    assert found.correct_norm.tolist() == [True, False, True, per_byte.index(max(per_byte)) == 0]
    assert found.accuracy == 0.5
    assert found.accuracy_norm == found.correct_norm.mean()


def test_texts_are_evaluated_longest_first_and_begin_as_the_model_wants():
    scorer = letters(bos_id=3, add_bos=True)
    answer_questions(scorer, [Question("a", (" a", " bb"), 0), Question("abc", (" a", " b"), 0)])
    assert all(text[0] == 3 for text in scorer.texts)
    assert [len(text) for text in scorer.texts] == [6, 6, 5, 4]
    scorer.texts.clear()
    answer_questions(scorer, [Question("a", (" a", " b"), 0)], bos=False)
    assert scorer.texts == [[1, 0, 1], [1, 0, 2]]


def test_of_a_long_text_the_beginning_is_left_out():
    scorer = letters(bos_id=3, add_bos=True, context_length=5)
    answer_questions(scorer, [Question("aaaabc", (" a", " bb"), 0)])
    assert scorer.texts == [[3, 2, 3, 0, 1], [3, 3, 0, 2, 2]] or scorer.texts == [[3, 3, 0, 2, 2], [3, 2, 3, 0, 1]]
    with pytest.raises(ValueError, match="expected a choice of 1 to 3 tokens, found 4: ' aaa' after 'a'"):
        answer_questions(scorer, [Question("a", (" aaa", " b"), 0)])


def test_questions_without_a_score():
    with pytest.raises(ValueError, match="at least one question"):
        answer_questions(random_scorer(), [])
    with pytest.raises(ValueError, match="found 0: '' after 'a'"):
        answer_questions(letters(), [Question("a", ("", "b"), 0)])
