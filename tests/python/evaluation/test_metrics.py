"""Windows, perplexity and divergence, against counts made by hand."""

import math

import numpy as np
import pytest
from table_scorer import TableScorer, random_scorer

from tmac.evaluation.divergence import row_divergence
from tmac.evaluation.metrics import compare, perplexity, token_losses
from tmac.evaluation.windows import Windows

PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]])
IDS = [0, 1, 1, 2, 0, 0, 2, 1, 0, 2, 1]


def losses_by_hand(pairs):
    return [-math.log(PROBABILITIES[before, after]) for before, after in pairs]


@pytest.mark.parametrize("tokens", range(2, 20))
@pytest.mark.parametrize("window", [2, 3, 7, 30])
@pytest.mark.parametrize("bos", [None, 99])
def test_windows_predict_every_token_once_that_something_stands_before(tokens, window, bos):
    windows = Windows(range(tokens), window, bos)
    cut = list(windows)
    assert len(cut) == len(windows)
    assert all(2 <= len(each) <= window for each in cut)
    assert all(len(each) == window for each in cut[:-1])
    read = [token for each in cut for token in each if token != bos]
    assert read == list(range(len(read)))
    assert len(read) >= tokens - (bos is None)
    predicted = [token for each in cut for token in each[1:]]
    assert len(predicted) == windows.predicted
    if bos is not None:
        assert all(each[0] == bos for each in cut)
        assert predicted == list(range(tokens))


def test_the_first_token_of_a_window_is_not_predicted():
    scorer = TableScorer(np.log(PROBABILITIES))
    pairs = [(IDS[i], IDS[i + 1]) for i in range(10) if i % 4 != 3]  # windows of 4: 0-3, 4-7, 8-10
    found = token_losses(scorer, IDS, window=4)
    np.testing.assert_allclose(found, losses_by_hand(pairs), rtol=1e-6)
    assert found.dtype == np.float64
    assert perplexity(found) == pytest.approx(math.exp(sum(losses_by_hand(pairs)) / len(pairs)), rel=1e-6)
    assert [len(text) for text in scorer.texts] == [4, 4, 3]


def test_windows_begin_with_the_token_that_the_tokenizer_puts_there():
    scorer = TableScorer(np.log(PROBABILITIES), bos_id=2, add_bos=True)
    pairs = [(2 if i % 3 == 0 else IDS[i - 1], IDS[i]) for i in range(11)]
    np.testing.assert_allclose(token_losses(scorer, IDS, window=4), losses_by_hand(pairs), rtol=1e-6)
    assert scorer.texts[0] == [2, *IDS[:3]]
    assert len(token_losses(scorer, IDS, window=4, bos=False)) == 8
    scorer.add_bos = False
    assert len(token_losses(scorer, IDS, window=4)) == 8
    assert len(token_losses(scorer, IDS, window=4, bos=True)) == 11


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    assert perplexity(token_losses(TableScorer(np.zeros((7, 7))), np.arange(100) % 7, 16)) == pytest.approx(7)
    assert perplexity(np.array([1e4])) == math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": []}, "at least two tokens, found 0"),
        ({"ids": [1]}, "at least two tokens, found 1"),
        ({"ids": [[1, 2]]}, r"\[tokens\], found int64 \[1, 2\]"),
        ({"ids": [0.5, 1.5]}, "found float64"),
        ({"window": 1}, "window of at least 2 tokens, found 1"),
        ({"window": 1001}, "1001 tokens is more than the context of table, 1000"),
        ({"bos": True}, "table has no token for the beginning"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        token_losses(random_scorer(), **{"ids": [1, 2, 3], **change})


def test_models_of_different_vocabularies_are_named():
    with pytest.raises(ValueError, match="gold has a vocabulary of 11 tokens, packed one of 12"):
        compare(random_scorer(name="gold"), random_scorer(vocab=12, name="packed"), IDS)


def divergence_by_hand(reference, logits):
    def log_softmax(rows):
        wide = rows.astype(np.float64)
        wide -= wide.max(1, keepdims=True)
        return wide - np.log(np.exp(wide).sum(1, keepdims=True))

    wanted, found = log_softmax(reference), log_softmax(logits)
    return (np.exp(wanted) * (wanted - found)).sum(1)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (300, 40), (5, 300_000)])
@pytest.mark.parametrize("distance", [0.0, 0.01, 3.0])
def test_divergence_against_the_definition(shape, distance):
    rng = np.random.default_rng(1)
    reference = rng.normal(0, 4, shape).astype(np.float32)
    logits = (reference + distance * rng.normal(size=shape) + 2).astype(np.float32)
    kl, same = row_divergence(reference, logits)
    # Logits up to 20 from the largest: 2^-22 of that is 5e-6.
    np.testing.assert_allclose(kl, divergence_by_hand(reference, logits), rtol=1e-5, atol=5e-6)
    assert (kl >= 0).all()
    np.testing.assert_array_equal(same, reference.argmax(1) == logits.argmax(1))


def test_tokens_that_a_model_forbids():
    nothing = -np.inf
    reference = np.array([[0, 0, nothing], [0, 0, 0], [0, nothing, nothing]], np.float32)
    logits = np.array([[0, 0, nothing], [0, 0, nothing], [0, 1, 2]], np.float32)
    kl, _ = row_divergence(reference, logits)
    assert kl[0] == 0
    assert kl[1] == np.inf
    assert kl[2] == pytest.approx(math.log(1 + math.e + math.e**2))
    logits[1, 0] = np.nan
    with pytest.raises(ValueError, match="NaN among the logits of row 1"):
        row_divergence(reference, logits)


def test_logits_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"found \[2, 3\] and \[2, 4\]"):
        row_divergence(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))
    kl, same = row_divergence(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    assert len(kl) == len(same) == 0


def test_a_comparison_is_both_perplexities_and_what_lies_between():
    reference, other = random_scorer(), random_scorer()
    other.table = other.table + np.random.default_rng(5).normal(0, 0.3, other.table.shape).astype(np.float32)
    ids = np.random.default_rng(2).integers(0, 11, 200).tolist()
    found = compare(reference, other, ids, window=32)
    np.testing.assert_array_equal(found.reference_losses, token_losses(reference, ids, 32))
    np.testing.assert_array_equal(found.losses, token_losses(other, ids, 32))
    before = [token for window in Windows(ids, 32) for token in window[:-1]]
    np.testing.assert_allclose(found.kl, divergence_by_hand(reference.table, other.table)[before], rtol=1e-5)
    assert found.mean_kl == pytest.approx(found.kl.mean())
    same = (reference.table.argmax(1) == other.table.argmax(1))[before]
    assert 0 < found.top1 == same.mean() < 1
    assert found.ratio().ratio == pytest.approx(found.perplexity / found.reference_perplexity)


def test_a_model_is_no_distance_from_itself():
    found = compare(random_scorer(scale=5.0), random_scorer(scale=5.0), IDS * 20, window=16)
    assert found.mean_kl <= 1e-7
    assert found.top1 == 1
    assert (found.ratio().lower, found.ratio().ratio, found.ratio().upper) == (1, 1, 1)
