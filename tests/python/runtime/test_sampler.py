"""The sampler draws from the distribution that transformers' logits processors leave."""

import math

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as processors

from tmac import _core

DRAWS = 3000
HISTORY = np.array([3, 1, 1, 40, 7, 2, 1], np.int32)  # 40 is in no vocabulary of the tests


def expected_probabilities(
    logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, logit_bias=()
):
    """Probabilities as `generate` of transformers has them before it draws."""
    steps = [
        *([processors.SequenceBiasLogitsProcessor({(i,): bias for i, bias in logit_bias})] if logit_bias else []),
        processors.RepetitionPenaltyLogitsProcessor(repetition_penalty),
        processors.TemperatureLogitsWarper(temperature),
        *([processors.TopKLogitsWarper(top_k)] if top_k else []),
        *([processors.TopPLogitsWarper(top_p)] if top_p < 1 else []),
        processors.MinPLogitsWarper(min_p),
    ]
    ids, scores = torch.from_numpy(HISTORY[None].astype(np.int64)), torch.from_numpy(logits[None].copy())
    for step in steps:
        scores = step(ids, scores)
    return scores.double().softmax(-1)[0].numpy()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.7, "top_k": 5},
        {"top_k": 1},
        {"top_k": 100},
        {"top_p": 0.9},
        {"top_p": 0.35, "temperature": 1.4},
        {"top_p": 0.0},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"top_k": 12, "top_p": 0.8, "min_p": 0.1, "temperature": 1.3},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.7, "logit_bias": [(1, 2.5), (5, -math.inf), (9, -1.0)], "top_p": 0.95},
    ],
    ids=lambda params: " ".join(f"{name}={value}" for name, value in params.items()) or "no filter",
)
def test_draws_follow_the_distribution_of_transformers(params):
    for vocab in (10, 30):
        logits = np.random.default_rng(vocab).standard_normal(vocab).astype(np.float32) * 2
        probabilities = expected_probabilities(logits, **params)
        sampler = _core.Sampler(seed=vocab, **params)
        tokens = [sampler.sample(logits.copy(), HISTORY) for _ in range(DRAWS)]
        counts = np.bincount(tokens, minlength=vocab)
        assert not counts[probabilities == 0].any()
        expected = probabilities * DRAWS
        often = expected >= 10
        rest = (counts[~often].sum() - expected[~often].sum()) ** 2 / max(expected[~often].sum(), 1)
        chi_square = (((counts - expected) ** 2)[often] / expected[often]).sum() + rest
        # Wilson and Hilferty's quantile at 4.75 standard deviations, which one run in a million is above.
        degrees = often.sum()
        spread = 2 / (9 * degrees)
        assert chi_square < degrees * (1 - spread + 4.75 * spread**0.5) ** 3


def test_every_token_that_transformers_keeps_is_drawn():
    logits = np.random.default_rng(5).standard_normal(25).astype(np.float32)
    params = {"top_k": 15, "top_p": 0.85, "min_p": 0.15, "temperature": 1.5}
    sampler = _core.Sampler(seed=1, **params)
    drawn = {sampler.sample(logits.copy(), HISTORY) for _ in range(DRAWS)}
    assert drawn == set(np.flatnonzero(expected_probabilities(logits, **params)))


def test_log_probabilities_are_those_of_torch():
    logits = np.random.default_rng(6).standard_normal((7, 5000)).astype(np.float32) * 8
    ids = np.arange(7, dtype=np.int32) * 700
    expected = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    found = _core.log_probabilities(logits, ids)
    # f32 weights (2^-23 each) and the rounding of the result.
    np.testing.assert_allclose(found, expected[np.arange(7), ids], rtol=6e-8, atol=5e-7)
    top, values = _core.top_log_probabilities(logits[0], 20)
    assert top.tolist() == np.argsort(-logits[0], kind="stable")[:20].tolist()
    np.testing.assert_allclose(values, expected[0][top], rtol=6e-8, atol=5e-7)
