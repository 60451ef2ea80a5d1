"""Known values of the distributions, and what the bounds promise, by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmac.evaluation.distributions import incomplete_beta, t_quantile, t_upper_tail
from tmac.evaluation.significance import accuracy_difference, mcnemar, perplexity_ratio

# Tables of Student's t: one-sided probability, degrees of freedom, quantile.
STUDENT = [
    (0.95, 1, 6.313751514675),
    (0.975, 1, 12.706204736432),
    (0.95, 2, 2.919985580355),
    (0.99, 5, 3.364929998907),
    (0.95, 10, 1.812461122812),
    (0.975, 30, 2.042272456301),
    (0.95, 195, 1.652705309),
    (0.995, 120, 2.617421145106),
    (0.95, 10**6, 1.644855150725),  # z + (z^3 + z) / 4e6
]


@pytest.mark.parametrize(("probability", "freedom", "value"), STUDENT)
def test_quantiles_of_student(probability, freedom, value):
    assert t_quantile(probability, freedom) == pytest.approx(value, rel=1e-8)
    assert t_quantile(1 - probability, freedom) == pytest.approx(-value, rel=1e-8)


@given(st.floats(0.5001, 0.9999), st.integers(1, 5000))
def test_quantile_and_tail_are_inverse(probability, freedom):
    assert t_upper_tail(t_quantile(probability, freedom), freedom) == pytest.approx(1 - probability, rel=1e-9)


def test_one_degree_of_freedom_is_the_distribution_of_cauchy():
    for value in (0.0, 0.3, 1.0, 40.0):
        assert t_upper_tail(value, 1) == pytest.approx(0.5 - math.atan(value) / math.pi, rel=1e-12)


@pytest.mark.parametrize(("a", "b", "x", "value"), [(1, 1, 0.3, 0.3), (2, 3, 0.5, 0.6875), (3, 1, 0.2, 0.008)])
def test_incomplete_beta_of_whole_numbers_is_a_polynomial(a, b, x, value):
    assert incomplete_beta(a, b, x) == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize(("probability", "freedom"), [(0, 3), (1, 3), (0.5, 0)])
def test_quantiles_that_do_not_exist(probability, freedom):
    with pytest.raises(ValueError, match="t_quantile"):
        t_quantile(probability, freedom)


def test_the_ratio_by_hand():
    reference = np.zeros(6)
    losses = np.array([0.1, 0.3, 0.0, 0.2, 0.5, 0.1])  # windows of 3 tokens predict 2: means 0.2, 0.1, 0.3
    found = perplexity_ratio(reference, losses, window=3)
    margin = 2.919985580355 * 0.1 / math.sqrt(3)
    assert found.ratio == pytest.approx(math.exp(0.2))
    assert found.lower == pytest.approx(math.exp(0.2 - margin))
    assert found.upper == pytest.approx(math.exp(0.2 + margin))
    assert (found.windows, found.tokens, found.confidence) == (3, 6, 0.95)


def test_a_short_last_window_weighs_less():
    reference, losses = np.zeros(7), np.array([1.0, 1, 1, 1, 1, 1, 9])
    found = perplexity_ratio(reference, losses, window=4)
    assert found.ratio == pytest.approx(math.exp(15 / 7))
    mean = 15 / 7
    variance = 3 / 2 * (2 * (3 - 3 * mean) ** 2 + (9 - mean) ** 2) / 49
    assert found.upper == pytest.approx(math.exp(mean + 2.919985580355 * math.sqrt(variance)))


def test_the_bounds_hold_as_often_as_they_promise():
    """Tokens that depend on their window: the bound over windows covers, one over tokens would not."""
    rng, runs, windows, size, truth = np.random.default_rng(7), 2000, 30, 15, 0.01
    above = below = 0
    for _ in range(runs):
        shared = rng.normal(0, 0.05, (windows, 1)) + rng.normal(truth, 0.1, (windows, size))
        reference = rng.exponential(3, windows * size)
        found = perplexity_ratio(reference, reference + shared.ravel()[: len(reference)], window=size + 1)
        above += math.exp(truth) <= found.upper
        below += math.exp(truth) >= found.lower
    # 5 standard deviations of a share of 2000 at 95 %: 0.024
    assert abs(above / runs - 0.95) < 0.024
    assert abs(below / runs - 0.95) < 0.024


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        (np.zeros(5), {}, r"found \[6\] and \[5\]"),
        (np.zeros((2, 3)), {}, r"found \[6\] and \[2, 3\]"),
        (np.zeros(6), {"window": 7}, "at least two windows of 7 tokens, found 6"),
        (np.zeros(6), {"window": 1}, "at least 2 tokens, found 1"),
        (np.zeros(6), {"window": 3, "confidence": 0.5}, "above 0.5 and below 1, found 0.5"),
        (np.array([0, 0, 0, np.nan, 0, 0]), {"window": 3}, "token 3 is not finite"),
        (np.array([0, np.inf, 0, 0, 0, 0]), {"window": 3}, "token 1 is not finite"),
    ],
)
def test_losses_without_a_ratio(losses, options, message):
    with pytest.raises(ValueError, match=message):
        perplexity_ratio(np.zeros(6), losses, **options)


def outcomes(both, only_first, only_second, neither):
    first = [1] * (both + only_first) + [0] * (only_second + neither)
    second = [1] * both + [0] * only_first + [1] * only_second + [0] * neither
    return first, second


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (3, 7, 0.34375), (10, 10, 1.0), (6, 16, 0.052478790283203125)],
)
def test_mcnemar_is_a_fair_coin(only_first, only_second, p_value):
    found = mcnemar(*outcomes(4, only_first, only_second, 9))
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p_value == p_value
    assert mcnemar(*outcomes(1, only_second, only_first, 0)).p_value == p_value


def test_mcnemar_of_many_questions_is_exact():
    assert mcnemar(*outcomes(0, 0, 2000, 0)).p_value == 0  # 2^-1999 is less than a float can hold
    assert mcnemar(*outcomes(0, 4900, 5100, 0)).p_value == pytest.approx(0.0466, abs=5e-4)  # z = 199 / 100, corrected


@pytest.mark.parametrize("rates", [(0.5, 0.05, 0.03), (0.2, 0.01, 0.01), (0.3, 0.1, 0.2)])
def test_bounds_of_an_accuracy_difference_hold_as_often_as_they_promise(rates):
    rng, runs, questions = np.random.default_rng(11), 4000, 200
    truth, above, below = rates[2] - rates[1], 0, 0
    for drawn in rng.multinomial(questions, [*rates, 1 - sum(rates)], runs):
        found = accuracy_difference(*outcomes(*drawn), confidence=0.95)
        above += truth <= found.upper
        below += truth >= found.lower
    assert above / runs > 0.935
    assert below / runs > 0.935


def test_an_accuracy_difference_by_hand():
    found = accuracy_difference(*outcomes(50, 12, 8, 30))
    assert found.difference == pytest.approx(-0.04)
    margin = 1.6448536269514722 * math.sqrt(21 - 16 / 102) / 102
    assert found.lower == pytest.approx(-4 / 102 - margin)
    assert found.upper == pytest.approx(-4 / 102 + margin)


@pytest.mark.parametrize("function", [mcnemar, accuracy_difference])
def test_answers_to_different_questions(function):
    with pytest.raises(ValueError, match=r"found \[2\] and \[3\]"):
        function([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="at least one"):
        function([], [])
