"""What a draft that is never right costs: Python's work for each token, beside the passes.

The work is counted, in calls of functions, for a time would tell of the machine. A call takes about 0.2 us.
"""

import random
import sys

import pytest
from simulation import VOCAB, World

from tmac.runtime.speculation.ngram import NgramDraft
from tmac.runtime.speculation.speculator import Speculator
from tmac.runtime.speculation.stats import SpeculationStats

MOST = 250  # calls for a token: about 40 us
TOKENS, BATCHES = 200, 12


class Calls:
    """Counts calls, of Python's functions and of compiled ones, while it is entered."""

    def __init__(self):
        self.count = 0

    def __enter__(self):
        self.before = sys.getprofile()
        sys.setprofile(self.add)
        return self

    def __exit__(self, *error):
        sys.setprofile(self.before)

    def add(self, frame, event, argument):
        self.count += event in ("call", "c_call")


class Text:
    """Random tokens, or few different ones, on a clock of its own."""

    def __init__(self, vocabulary):
        draw = random.Random(0)
        self.source = [draw.randrange(vocabulary) for _ in range(2 * TOKENS * BATCHES)]
        self.tokens, self.seq, self.generated, self.room = [0], 0, 0, 10**6
        self.speculation, self.now = None, 0.0

    def plain(self):
        self.now += 0.005
        self.accept(None)

    def accept(self, logits):
        self.tokens.append(self.source[self.generated])
        self.generated += 1

    def run(self, seq, tokens, parents, *, first, draft):
        self.now += 0.005 * len(tokens)
        return [None] * len(tokens)

    def abandoned(self):
        return False


class Far(World):
    """A draft with passes, as slow as the target."""

    name = kind = "far"

    def __init__(self, text):
        self.text = text

    def sync(self, tokens):
        pass

    def behind(self):
        return 0

    def catch_up(self):
        pass

    def free(self, tree, node):
        return ()

    def expand(self, tree, node):
        self.text.now += 0.006
        return []

    def kept(self, tree, path):
        pass


@pytest.mark.parametrize("kind", ["no match", "always a match that is wrong", "passes"])
def test_a_plain_token_costs_little_more(kind):
    text = Text(30 if kind == "always a match that is wrong" else 50_000)
    draft = Far(text) if kind == "passes" else NgramDraft()
    speculator = Speculator(draft, run=text.run, keep=lambda seq, rows: None, vocab_size=VOCAB, clock=lambda: text.now)
    for batch in range(BATCHES):
        with Calls() as calls:
            while text.generated < (batch + 1) * TOKENS:
                speculator.round(text, text.plain, text.accept)
    assert isinstance(text.speculation, SpeculationStats)
    assert sum(budget > 0 for budget in text.speculation.budgets[TOKENS:]) < 20
    assert 0 < calls.count < MOST * TOKENS
    assert text.now < 0.005 * text.generated * 1.02
