"""From guesses to the nodes that are verified: compute goes to the most promising branch (LLMCad's pacing)."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tmac.runtime.speculation.controller import PROBE_NODES, TextControl
from tmac.runtime.speculation.drafts import DraftText, Guess
from tmac.runtime.speculation.tree import TokenTree

FREE_SHARE = 0.8  # a free guess that is so likely, beside one of the draft's passes, is as good
MOST_AHEAD = 32  # passes of the draft while one of the target runs
LEAST_AHEAD = 0.02  # chance of a node that is followed then
DEEPEST_AHEAD = 48
MOST_BEHIND = 16  # tokens that the draft first catches up with, then


@dataclass
class Begun:
    """What is there of a tree before it grows.

    Args:
        tree: its guesses.
        followed: nodes behind which the draft has guessed.
        end: of the text, whose last token is the root.
    """

    tree: TokenTree
    followed: set[int]
    end: int


@dataclass
class Grown:
    """A tree, and what of it is to be verified.

    Args:
        tree: all guesses.
        nodes: to verify, without the root; none: a plain pass is better.
        steps: passes of the draft.
        ready: nodes behind which it had guessed before.
        frontier: chance of the most promising node that was not followed.
        seconds: that all this took.
        expected: what it was to take, from what the draft's passes took before.
        followed: nodes behind which the draft has guessed.
    """

    tree: TokenTree
    nodes: list[int]
    steps: int = 0
    ready: int = 0
    frontier: float = 0.0
    seconds: float = 0.0
    expected: float = 0.0
    followed: set[int] = field(default_factory=set)


class Growth:
    """Grows one tree.

    Args:
        control: decides.
        text: guesses; it knows the text.
        root: the text's last token.
        vocab_size: of the target: guesses beyond it are none.
        most_depth: tokens that the text may still become longer than one.
        clock: seconds.
        begun: where it begins; None: with the root alone.

    Attributes:
        grown: the tree, complete after `run`.
        ahead_nodes: that took a pass in `ahead`.
    """

    def __init__(
        self,
        control: TextControl,
        text: DraftText,
        root: int,
        *,
        vocab_size: int,
        most_depth: int,
        clock: Callable[[], float],
        begun: Begun | None = None,
    ) -> None:
        self._control, self._text, self._clock = control, text, clock
        self._vocab_size, self._most_depth = vocab_size, most_depth
        self._begin = clock()
        self.grown = Grown(begun.tree, [], followed=begun.followed) if begun else Grown(TokenTree(root), [])
        self.ahead_nodes: list[int] = []
        self._probe = control.probes()
        self._depth: int | None = None  # that is planned for the draft's passes; None: not asked yet
        self._promised = sum(self.grown.tree.chances[1:])  # tokens that are expected of the guesses so far
        self._drafts = text.kind is not None
        self._caught_up = False

    def run(self) -> Grown:
        """Guesses until no further one is worth it, then chooses."""
        grown, tree, control = self.grown, self.grown.tree, self._control
        least = control.least_chance()
        followed, most = 0, control.passes.reach - 1
        frontier = [(-1.0, 0)]
        while frontier and followed < most:
            negative, node = frontier[0]
            grown.frontier = -negative
            if node and -negative <= least and not (self._probe and followed < PROBE_NODES):
                break
            heapq.heappop(frontier)
            followed += node > 0  # all of them are likelier than what they are followed by
            if tree.depths[node] >= self._most_depth:
                continue
            if node in grown.followed:
                grown.ready += 1
            else:
                self._add(node, self._guesses(node, -negative))
            for child in tree.children(node):
                heapq.heappush(frontier, (-tree.chances[child], child))
        if not frontier:
            grown.frontier = 0.0
        grown.seconds = self._clock() - self._begin
        grown.expected += grown.seconds
        grown.nodes = control.choose(tree, probe=self._probe) if len(tree) > 1 else []
        return grown

    def ahead(self, stopped: Callable[[], bool]) -> None:
        """Goes on behind the most promising nodes, whatever is verified meanwhile: in another thread than `run`.

        Args:
            stopped: asked before each pass of the draft.
        """
        grown, tree, text = self.grown, self.grown.tree, self._text
        if not self._caught_up:
            if text.behind() > MOST_BEHIND or stopped():
                return
            text.catch_up()
        deepest = min(self._most_depth, DEEPEST_AHEAD)
        frontier = [(-tree.chances[node], node) for node in range(len(tree)) if node not in grown.followed]
        heapq.heapify(frontier)
        while frontier and len(self.ahead_nodes) < MOST_AHEAD and -frontier[0][0] >= LEAST_AHEAD and not stopped():
            node = heapq.heappop(frontier)[1]
            if tree.depths[node] >= deepest:
                continue
            free = text.free(tree, node)
            before = len(tree)
            if self._is_as_good(free):
                self._add(node, free)
            else:
                self._add(node, text.ahead(tree, node))
                self.ahead_nodes.append(node)
            grown.followed.add(node)
            for child in range(before, len(tree)):
                heapq.heappush(frontier, (-tree.chances[child], child))

    def _add(self, node: int, guesses: Sequence[Guess]) -> None:
        tree = self.grown.tree
        for guess in guesses:
            if 0.0 < guess.confidence <= 1.0 and 0 <= guess.token < self._vocab_size:
                step = self._control.acceptance.chance(guess.kind, guess.confidence)
                known, child = len(tree), tree.add(node, guess.token, guess.kind, guess.confidence, step)
                self._promised += tree.chances[child] if child == known else 0.0

    def _is_as_good(self, free: Sequence[Guess]) -> bool:
        """Whether one of the guesses that took no pass is about as likely as one that takes a pass."""
        if not free:
            return False
        acceptance = self._control.acceptance
        least = FREE_SHARE * acceptance.hit(self._text.kind or "")
        return any(acceptance.chance(each.kind, each.confidence) >= least for each in free)

    def _guesses(self, node: int, chance: float) -> Sequence[Guess]:
        free = self._text.free(self.grown.tree, node)
        if not self._drafts or self._is_as_good(free):
            return free
        kind = self._text.kind or ""
        if not self._worth_a_pass(kind, chance):
            self._drafts = False  # no other node is more promising
            return free
        return self._expand(kind, node)

    def _worth_a_pass(self, kind: str, chance: float) -> bool:
        control, grown = self._control, self.grown
        behind = 0 if self._caught_up else self._text.behind()
        steps = grown.ready + grown.steps
        if self._depth is None:
            self._depth = control.draft_depth(kind, behind, self._most_depth, grown.ready)
        spent = self._clock() - self._begin + control.drafts.behind(kind, behind)
        if self._depth and control.expands(kind, chance, steps, self._depth, spent, self._promised):
            return True
        passes = control.passes
        rest = (PROBE_NODES - grown.steps) * control.drafts.step(kind) + passes.of(PROBE_NODES + 1) - passes.of(1)
        return self._probe and grown.steps < PROBE_NODES and control.affords(spent + rest)

    def _expand(self, kind: str, node: int) -> Sequence[Guess]:
        control, clock = self._control, self._clock
        if not self._caught_up:
            rows, begin = self._text.behind(), clock()
            self._text.catch_up()
            took = clock() - begin
            self.grown.expected += control.drafts.behind(kind, rows) - took
            control.drafts.add_behind(kind, rows, took)
            self._caught_up = True
        begin = clock()
        guesses = self._text.expand(self.grown.tree, node)
        took = clock() - begin
        self.grown.expected += control.drafts.step(kind) - took
        control.drafts.add_step(kind, took)
        self.grown.steps += 1
        self.grown.followed.add(node)
        return guesses
