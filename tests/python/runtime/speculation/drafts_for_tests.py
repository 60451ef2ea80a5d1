"""Drafts that guess at random, always wrong, always right or not at all, and a controller that always lets them."""

import random
import threading
from contextlib import contextmanager

from tmac.runtime.speculation.controller import Controller, TextControl
from tmac.runtime.speculation.drafts import Guess, NoPasses
from tmac.runtime.speculation.pipeline import SecondThread

PATIENCE = 60.0  # seconds in which a thread makes a step, however busy the machine is
CONTEXT = 72
PLAIN = {}  # texts without a draft


class Eager(TextControl):
    """Trees of any size in any pass, whatever they cost."""

    def __init__(self, shared, seed):
        super().__init__(shared)
        self.random = random.Random(seed)

    def rests(self):
        return False

    def probes(self):
        return False

    def least_chance(self):
        return 0.0

    def draft_depth(self, kind, behind, most, ready=0):
        return 15

    def expands(self, kind, chance, steps, depth, spent, promised):
        return self.random.random() < 0.8

    def choose(self, tree, *, probe):
        return tree.best()[: self.random.choice([0, 1, 2, 5, 15])]

    def plain_done(self, seconds, spent):
        pass

    def tree_done(self, tokens, seconds, expected):
        pass


class EagerController(Controller):
    """Controls every text eagerly."""

    def __init__(self, seed=0):
        super().__init__(16)
        self.seed = seed
        for rows in (1, 16):  # so that none is too many to try
            self.passes.add(rows, 1.0)

    def start(self):
        self.seed += 1
        return Eager(self, self.seed)


class TreeText(NoPasses):
    """Guesses by a function of the tokens up to a node."""

    def __init__(self, guess, kind=None):
        self.guess, self.kind, self.tokens = guess, kind, []

    def sync(self, tokens):
        self.tokens = tokens

    def prompt(self, tokens, end):
        assert 0 <= end <= len(tokens)

    def free(self, tree, node):
        return self.found(tree, node) if self.kind is None else ()

    def expand(self, tree, node):
        return self.found(tree, node)

    def ahead(self, tree, node):
        return self.found(tree, node)

    def found(self, tree, node):
        before = self.tokens[:-1] + [tree.tokens[each] for each in tree.path(node)]
        return [Guess(token, confidence, self.kind or "free") for token, confidence in self.guess(before)]


class TreeDraft:
    """A draft of such texts.

    Args:
        guess: tokens so far -> (token, confidence) pairs.
        kind: of a draft with passes; None: the guesses are free.
    """

    name = "test"
    separate = True

    def __init__(self, guess, kind=None):
        self.guess, self.kind, self.opened, self.closed = guess, kind, 0, 0

    def open(self, seq):
        self.opened += 1
        text = TreeText(self.guess, self.kind)
        text.close = self.count
        return text

    def count(self):
        self.closed += 1

    def clear(self):
        pass


def plain(make_engine, prompt, **options):
    """What a prompt gives without a draft."""
    key = repr((prompt, options))
    if key not in PLAIN:
        PLAIN[key] = make_engine(context_length=CONTEXT).generate(prompt, **options)
    return PLAIN[key]


def same(result, expected):
    assert (result.token_ids, result.text, result.finish_reason) == (
        expected.token_ids,
        expected.text,
        expected.finish_reason,
    )
    assert (result.logprobs, result.stop) == (expected.logprobs, expected.stop)


def random_guesses(texts, vocab, seed=0, right=0.7):
    """Guesses of which about `right` are the next token of one of the texts (whole token lists); some are no tokens."""
    draw = random.Random(seed)

    def guess(before):
        found = []
        for text in texts:
            if len(text) > len(before) and text[: len(before)] == before and draw.random() < right:
                found.append((text[len(before)], draw.choice([0.1, 0.5, 0.9, 1.0])))
        wrong = [(draw.randrange(-1, vocab + 3), draw.choice([0.0, 0.3, 0.99, float("nan")]))]
        found += wrong * draw.randrange(3)
        draw.shuffle(found)
        return found

    return guess


def raising(before):
    raise ArithmeticError("a draft that fails")


class PacedThread(SecondThread):
    """The thread of a draft, for passes of the target that wait until it has got somewhere.

    Args:
        steps: of the draft in a pass, unless there is less to do.
    """

    def __init__(self, steps):
        super().__init__()
        self.steps, self.there = steps, threading.Event()
        self.there.set()

    @contextmanager
    def running(self, work):
        if work is None:
            with super().running(None) as beside:
                yield beside
            return
        there, asked = self.there, 0
        there.clear()

        def paced(stopped):
            def is_stopped():
                nonlocal asked
                asked += 1  # before each step
                if asked > self.steps:
                    there.set()
                return stopped()

            try:
                work(is_stopped)
            finally:
                there.set()

        try:
            with super().running(paced) as beside:
                yield beside
        finally:
            there.set()

    def wait(self):
        assert self.there.wait(PATIENCE), "the draft makes no steps"


def paced(speculator, steps):
    """Its draft makes at least so many steps beside each pass: no clock ends them."""
    speculator._second = PacedThread(steps)
    speculator._clock = lambda: 0.0
    return speculator._second
