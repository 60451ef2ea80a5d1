"""A target and a draft that only cost time, on a clock of their own: what the controller makes of them."""

import random
from dataclasses import dataclass, field

from tmac.runtime.speculation.controller import Controller, TextControl
from tmac.runtime.speculation.drafts import Guess
from tmac.runtime.speculation.speculator import Speculator

VOCAB = 1 << 20
WRONG = VOCAB - 1


def steady(value):
    return lambda place: value


def changing(before, after, at=300):
    return lambda place: before if place < at else after


def linear(slope):
    """Seconds of a pass by its rows, in units of one row."""
    return lambda rows: 1.0 + slope * (rows - 1)


@dataclass
class Scenario:
    """What happens. Functions take the place in the text.

    Args:
        right: how often the draft is right, if all before was.
        step: seconds of a step of the draft; None: it is free.
        verify: place -> rows -> seconds of a pass of the target.
        there: how often a free draft has a guess at all.
        behind: seconds of each token that the draft must catch up with.
        honest: the draft's confidence is how often it is right; else it always says 0.9.
        tokens: of the text.
        noise: of the target's passes, as a share of them.
        disturbed: other programs use the machine: everything takes a changing multiple of its time.
    """

    right: object
    step: object = None
    verify: object = field(default_factory=lambda: steady(linear(0.1)))
    there: object = field(default_factory=lambda: steady(1.0))
    behind: float = 0.0
    honest: bool = True
    tokens: int = 640
    noise: float = 0.05
    disturbed: bool = False


class Disturbance:
    """How many times slower a machine is that others use too: for long times, and for moments.

    The shares are those of passes that were timed on two cores of a shared host, of whose time others took a third.
    """

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.level = self.burst = 1.0
        self.level_end = self.burst_end = 0.0

    def seconds(self, now, work):
        """How long some work takes that begins now."""
        begin = now
        while work > 1e-9:
            if now >= self.level_end:
                self.level, self.level_end = (
                    self.random.choice((1.0, 1.0, 1.6, 2.2)),
                    now + self.random.expovariate(1 / 80),
                )
            if now >= self.burst_end:
                self.burst = self.random.choices((1.0, 1.1, 1.6, 2.6), (40, 30, 20, 10))[0]
                self.burst_end = now + self.random.expovariate(1)
            factor = self.level * self.burst
            done = min(work, (min(self.level_end, self.burst_end) - now) / factor + 1e-9)
            now, work = now + done * factor, work - done
        return now - begin


class World:
    """Clock, target, draft and text of a scenario."""

    def __init__(self, scenario, seed=0):
        self.scenario, self.random = scenario, random.Random(seed)
        self.now, self.tokens, self.seq, self.generated = 0.0, [0], 0, 0
        self.speculation, self.times = None, [0.0]
        self.kind, self.name = ("sim" if scenario.step else None), "sim"
        self.seen = 0
        self.disturbance = Disturbance(seed + 1000) if scenario.disturbed else None

    def spend(self, seconds):
        self.now += self.disturbance.seconds(self.now, seconds) if self.disturbance else seconds

    # The text: the token at each place is its place.

    @property
    def room(self):
        return self.scenario.tokens - self.generated

    def abandoned(self):
        return False

    def accept(self, logits):
        self.tokens.append(len(self.tokens))
        self.generated += 1
        self.times.append(self.now)

    # The target.

    def clock(self):
        return self.now

    def passes(self, rows):
        noise = self.random.uniform(1 - self.scenario.noise, 1 + self.scenario.noise)
        self.spend(self.scenario.verify(self.generated)(rows) * noise)

    def plain(self):
        self.passes(1)
        self.accept(None)

    def run(self, seq, tokens, parents, *, first, draft):
        self.passes(len(tokens))
        return [None] * len(tokens)

    def keep(self, seq, rows):
        pass

    # The draft.

    separate = False

    def open(self, seq):
        return self

    def prompt(self, tokens, end):
        pass

    def sync(self, tokens):
        self.there = self.random.random() < self.scenario.there(self.generated)

    def behind(self):
        return len(self.tokens) - self.seen if self.scenario.behind else 0

    def catch_up(self):
        rows = min(self.behind(), 64)
        self.spend(rows * self.scenario.behind)
        self.seen = len(self.tokens)

    def free(self, tree, node):
        return self.guess(tree, node) if self.scenario.step is None and self.there else ()

    def expand(self, tree, node):
        self.spend(self.scenario.step(self.generated))
        return self.guess(tree, node)

    def guess(self, tree, node):
        right = self.scenario.right(self.generated)
        correct = tree.tokens[node] != WRONG and self.random.random() < right
        confidence = right if self.scenario.honest else 0.9
        return [Guess(len(self.tokens) + tree.depths[node] if correct else WRONG, max(confidence, 0.01), "sim")]

    def kept(self, tree, path):
        self.seen = len(self.tokens)

    def close(self):
        pass

    def clear(self):
        pass


class Fixed(TextControl):
    """Always the same number of guesses."""

    def __init__(self, shared, count):
        super().__init__(shared)
        self.count = count

    def rests(self):
        return False

    def probes(self):
        return False

    def least_chance(self):
        return 0.0

    def draft_depth(self, kind, behind, most, ready=0):
        return self.count

    def expands(self, kind, chance, steps, depth, spent, promised):
        return steps < self.count

    def choose(self, tree, *, probe):
        return tree.best()[: self.count]

    def tree_done(self, tokens, seconds, expected):
        pass


class FixedController(Controller):
    def __init__(self, count):
        super().__init__(16)
        self.count = count
        for rows in (1, 16):  # so that none is too many to try
            self.passes.add(rows, 1.0)

    def start(self):
        return Fixed(self, self.count)


def simulate(scenario, controller=None, seed=0):
    """The time at which each token came."""
    world = World(scenario, seed)
    speculator = Speculator(
        world, run=world.run, keep=world.keep, vocab_size=VOCAB, controller=controller, clock=world.clock
    )
    while world.generated < scenario.tokens:
        speculator.round(world, world.plain, world.accept)
    return world


def measured(scenario):
    """A controller that knows what the passes cost at first, as an engine measures when it is loaded."""
    controller = Controller(16)
    for rows in (1, 1, 2, 4, 8, 16):
        controller.passes.add(rows, scenario.verify(0)(rows))
    return controller


def seconds(world, begin=32):
    """After the warm-up."""
    return world.times[-1] - world.times[begin]


def speed(scenario, controller=None, seed=0):
    """Tokens per second after the warm-up."""
    world = simulate(scenario, controller, seed)
    return (world.generated - 32) / seconds(world)
