"""10^6 draws through trees have the distribution of plain sampling, and with a seed they are the same tokens."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from drafts_for_tests import EagerController

from tmac.runtime.sampling import SamplingParams
from tmac.runtime.speculation.grow import Grown
from tmac.runtime.speculation.ngram import NgramDraft
from tmac.runtime.speculation.speculator import Speculator
from tmac.runtime.speculation.stats import SpeculationStats
from tmac.runtime.speculation.tree import TokenTree

VOCAB = 5
LOGITS = np.random.default_rng(3).normal(0, 1.5, (VOCAB, VOCAB)).astype(np.float32)
DRAWS = 250_000  # of each of four kinds of trees
PARAMS = {"temperature": 1.3, "top_p": 0.93}


def chain(order):
    """The most (or least) likely token after each token, four deep."""
    return lambda before, depth: [int(np.argsort(order * LOGITS[before])[-1])] if depth < 4 else []


def bushy(before, depth):
    return list(range(VOCAB)) if depth < 2 else []


def lopsided(before, depth):
    return [(before + depth) % VOCAB, (before + 2) % VOCAB][: 1 + depth % 2] if depth < 5 else []


KINDS = {"likely chain": chain(1), "unlikely chain": chain(-1), "all tokens, two deep": bushy, "lopsided": lopsided}


def trees_of(guess):
    """For each last token: the tree, its nodes, and the target's logits of each."""
    found = []
    for root in range(VOCAB):
        tree = TokenTree(root)
        for node in range(100):
            if node < len(tree):
                for token in guess(tree.tokens[node], tree.depths[node]):
                    tree.add(node, token, "test", 0.5, 0.5)
        nodes = list(range(len(tree)))
        found.append((Grown(tree, nodes[1:]), nodes, LOGITS[tree.tokens]))
    return found


class Text:
    """A text that only knows its last token."""

    def __init__(self, seed):
        self.sampler = SamplingParams(**PARAMS, seed=seed).make_sampler(VOCAB)
        self.tokens, self.generated, self.seq = [0], 0, 0
        self.history = np.empty(0, np.int32)
        self.drawn = np.zeros(DRAWS + 10, np.int8)

    def accept(self, logits):
        token = self.sampler.sample(logits, self.history, None, 0)
        self.tokens[0] = token
        self.generated += 1
        self.drawn[self.generated] = token

    def abandoned(self):
        return self.generated >= DRAWS


def drawn_with(guess, seed):
    speculator = Speculator(NgramDraft(), run=None, keep=None, vocab_size=VOCAB, controller=EagerController())
    control = SimpleNamespace(learn=lambda tree, node, token: None)
    stats = SpeculationStats("test", accepted=[0] * 9)
    state, text, trees = SimpleNamespace(control=control, stats=stats), Text(seed), trees_of(guess)
    while text.generated < DRAWS:
        grown, nodes, logits = trees[text.tokens[0]]
        speculator._walk(state, text, grown, nodes, logits, text.accept)
    return text.drawn[: DRAWS + 1], stats


def plain(seed):
    text = Text(seed)
    while text.generated < DRAWS:
        text.accept(LOGITS[text.tokens[0]])
    return text.drawn[: DRAWS + 1]


@pytest.fixture(scope="module")
def drawn():
    """What each kind of tree gives, with a seed of its own."""
    return {kind: drawn_with(KINDS[kind], seed) for seed, kind in enumerate(KINDS)}


def probabilities():
    """What top-p and temperature leave of each row."""
    scaled = LOGITS.astype(np.float64) / PARAMS["temperature"]
    rows = np.exp(scaled - scaled.max(1, keepdims=True))
    rows /= rows.sum(1, keepdims=True)
    for row in rows:
        order = np.argsort(-row)
        count = int(np.searchsorted(np.cumsum(row[order]), PARAMS["top_p"])) + 1
        row[order[count:]] = 0
        row /= row.sum()
    return rows


def chi_square(*texts):
    """(statistic, degrees of freedom) of the tokens after each token."""
    statistic = freedom = 0
    for before, row in enumerate(probabilities()):
        counts = sum(np.bincount(text[1:][text[:-1] == before], minlength=VOCAB) for text in texts)
        assert not counts[row == 0].any()
        expected = row[row > 0] * counts.sum()
        statistic += float(((counts[row > 0] - expected) ** 2 / expected).sum())
        freedom += int((row > 0).sum()) - 1
    return statistic, freedom


def fits(*texts, quantile=3.0902):
    """Whether chi-square is below its value at p = 0.001 (Wilson and Hilferty)."""
    statistic, freedom = chi_square(*texts)
    assert freedom >= 10
    share = 2 / (9 * freedom)
    return statistic < freedom * (1 - share + quantile * math.sqrt(share)) ** 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_distribution_of_each_kind_of_tree(kind, drawn):
    tokens, stats = drawn[kind]
    assert fits(tokens)
    assert sum(stats.accepted) > 0.01 * DRAWS


def test_the_distribution_of_a_million_draws(drawn):
    texts = [tokens for tokens, _ in drawn.values()]
    assert sum(len(text) - 1 for text in texts) == 10**6
    assert fits(*texts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_tokens(kind, drawn):
    np.testing.assert_array_equal(drawn[kind][0], plain(list(KINDS).index(kind)))


def test_the_test_notices_what_is_not_the_distribution():
    """One draw in fifty is another one of the tokens that may stand there."""
    text, rows = plain(9), probabilities()
    assert fits(text)
    wrong = text.copy()
    for place in range(1, len(wrong) - 1, 50):
        before, token, after = wrong[place - 1 : place + 2]
        others = [each for each in range(VOCAB) if each != token and rows[before, each] > 0 and rows[each, after] > 0]
        wrong[place] = others[0] if others else token
    assert 0.01 * DRAWS < (wrong != text).sum() <= 0.02 * DRAWS
    assert not fits(wrong)
