"""What is measured of a model beside a reference, and the reference's losses on disk."""

import json
import os

import numpy as np
import pytest
from table_scorer import random_scorer

from tmac.evaluation import loss_cache
from tmac.evaluation.choices import Question, answer_questions
from tmac.evaluation.evaluate import (
    check_same_tokenizer,
    evaluate_choices,
    evaluate_text,
    text_ids,
    to_dict,
)
from tmac.evaluation.loss_cache import cached_losses
from tmac.evaluation.metrics import compare, token_losses
from tmac.evaluation.significance import mcnemar

IDS = np.random.default_rng(3).integers(0, 11, 300).tolist()


@pytest.fixture
def near():
    """A model that is a little off `random_scorer()`."""
    scorer = random_scorer(name="near")
    scorer.table = scorer.table + np.random.default_rng(5).normal(0, 0.2, scorer.table.shape).astype(np.float32)
    return scorer


def test_a_text_alone():
    found = evaluate_text(random_scorer(), IDS, window=32)
    assert (found.tokens, found.windows, found.window, found.bos) == (290, 10, 32, False)
    assert found.bounds.lower < found.bounds.ratio < found.bounds.upper
    assert found.perplexity == pytest.approx(found.bounds.ratio)
    assert found.reference_perplexity is found.ratio is found.mean_kl is found.top1 is None
    assert json.loads(json.dumps(to_dict(found)))["perplexity"] == found.perplexity


def test_one_window_has_no_bounds(near):
    found = evaluate_text(near, IDS[:20], random_scorer(), window=32)
    assert (found.tokens, found.windows) == (19, 1)
    assert found.bounds is found.ratio is None
    assert found.reference_perplexity > 1


@pytest.mark.parametrize("kl", [False, True])
def test_a_text_beside_a_reference(near, kl, tmp_path):
    found = evaluate_text(near, IDS, random_scorer(), kl=kl, window=32, cache=tmp_path)
    both = compare(random_scorer(), near, IDS, 32)
    assert found.perplexity == both.perplexity
    assert found.reference_perplexity == both.reference_perplexity
    assert found.ratio == both.ratio()
    assert found.mean_kl == (both.mean_kl if kl else None)
    assert found.top1 == (both.top1 if kl else None)


def test_both_models_begin_as_the_reference_does(near):
    near.bos_id = 4
    reference = random_scorer(bos_id=4, add_bos=True)
    found = evaluate_text(near, IDS, reference, window=32)
    assert found.bos
    assert found.tokens == 300
    assert near.texts[0][0] == reference.texts[0][0] == 4


def test_choices_beside_a_reference(near):
    rng = np.random.default_rng(9)
    words = ["".join(chr(97 + code) for code in rng.integers(0, 11, 5)) for _ in range(180)]
    questions = [Question(*words[i : i + 1], tuple(words[i + 1 : i + 3]), i % 2) for i in range(0, 180, 3)]
    alone = evaluate_choices(near, questions)
    assert alone.questions == 60
    assert alone.test is alone.difference is alone.reference_accuracy is None
    found = evaluate_choices(near, questions, random_scorer())
    one, two = answer_questions(random_scorer(), questions), answer_questions(near, questions)
    assert (found.accuracy, found.accuracy_norm) == (two.accuracy, two.accuracy_norm)
    assert (found.reference_accuracy, found.reference_accuracy_norm) == (one.accuracy, one.accuracy_norm)
    assert found.test == mcnemar(one.correct, two.correct)
    assert found.difference.difference == pytest.approx(two.accuracy - one.accuracy)


def test_models_that_read_text_differently_are_named(near):
    check_same_tokenizer(random_scorer(), near)
    near.encode = lambda text: [0]
    with pytest.raises(ValueError, match="table and near read a text as different tokens"):
        check_same_tokenizer(random_scorer(), near)
    with pytest.raises(ValueError, match="table has a vocabulary of 11 tokens, other one of 12"):
        check_same_tokenizer(random_scorer(), random_scorer(vocab=12, name="other"))


def test_as_many_tokens_as_were_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "ab " * 50}) + "\n" for _ in range(5)))
    scorer = random_scorer()
    whole = text_ids(scorer, path)
    assert len(whole) == 5 * 149 + 8
    assert text_ids(scorer, path, 30) == whole[:30]
    assert text_ids(scorer, path, 700) == whole[:700]
    assert text_ids(scorer, path, 10**6) == whole
    scorer.encode = lambda text: [1] * (len(text) // 20)  # fewer tokens than the first look expects
    assert len(text_ids(scorer, path, 30)) == 30


class TestCache:
    def test_a_second_time_costs_one_probe(self, tmp_path):
        scorer = random_scorer()
        wanted = token_losses(scorer, IDS, 32)
        np.testing.assert_array_equal(cached_losses(scorer, IDS, 32, folder=tmp_path), wanted)
        scorer.texts.clear()
        np.testing.assert_array_equal(cached_losses(scorer, IDS, 32, folder=tmp_path), wanted)
        assert [len(text) for text in scorer.texts] == [loss_cache.PROBE_TOKENS]
        assert len(list(tmp_path.iterdir())) == 1

    def test_another_model_text_window_or_beginning_is_another_file(self, tmp_path, near):
        scorer = random_scorer(bos_id=1)
        cached_losses(scorer, IDS, 32, folder=tmp_path)
        for other, ids, window, bos in [
            (near, IDS, 32, None),
            (scorer, IDS[1:], 32, None),
            (scorer, IDS, 33, None),
            (scorer, IDS, 32, True),
        ]:
            found = cached_losses(other, ids, window, bos, folder=tmp_path)
            np.testing.assert_array_equal(found, token_losses(other, ids, window, bos))
        assert len(list(tmp_path.iterdir())) == 5

    @pytest.mark.parametrize("damage", [b"", b"x" * 40, None])
    def test_a_damaged_file_is_written_again(self, tmp_path, damage):
        scorer = random_scorer()
        wanted = cached_losses(scorer, IDS, 32, folder=tmp_path)
        (path,) = tmp_path.iterdir()
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]) if damage is None else damage)
        np.testing.assert_array_equal(cached_losses(scorer, IDS, 32, folder=tmp_path), wanted)
        assert path.read_bytes() == good

    def test_a_folder_that_cannot_be_written_changes_nothing(self, tmp_path, monkeypatch):
        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        scorer = random_scorer()
        np.testing.assert_array_equal(cached_losses(scorer, IDS, folder=tmp_path), token_losses(scorer, IDS))
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "file").touch()
        assert len(cached_losses(scorer, IDS, folder=tmp_path / "file" / "losses")) == 299
