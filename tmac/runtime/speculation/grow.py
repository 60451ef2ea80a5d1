"""From guesses to the nodes that are verified: compute goes to the most promising branch (LLMCad's pacing)."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tmac.runtime.speculation.controller import PROBE_NODES, TextControl
from tmac.runtime.speculation.drafts import DraftText, Guess
from tmac.runtime.speculation.tree import TokenTree

FREE_SHARE = 0.8  # a free guess that is so likely, beside one of the draft's passes, is as good


@dataclass
class Grown:
    """A tree, and what of it is to be verified.

    Args:
        tree: all guesses.
        nodes: to verify, without the root; none: a plain pass is better.
        steps: passes of the draft.
        frontier: chance of the most promising node that was not followed.
        seconds: that all this took.
    """

    tree: TokenTree
    nodes: list[int]
    steps: int = 0
    frontier: float = 0.0
    seconds: float = 0.0


class Growth:
    """Grows one tree.

    Args:
        control: decides.
        text: guesses; it knows the text.
        root: the text's last token.
        vocab_size: of the target: guesses beyond it are none.
        most_depth: tokens that the text may still become longer than one.
        clock: seconds.
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
    ) -> None:
        self._control, self._text, self._clock = control, text, clock
        self._vocab_size, self._most_depth = vocab_size, most_depth
        self._begin = clock()
        self._grown = Grown(TokenTree(root), [])
        self._probe = control.probes()
        self._depth: int | None = None  # that is planned for the draft's passes; None: not asked yet
        self._drafts = text.kind is not None
        self._caught_up = False

    def run(self) -> Grown:
        """Guesses until no further one is worth it, then chooses."""
        grown, tree, control = self._grown, self._grown.tree, self._control
        least = control.least_chance()
        followed, most = 0, control.passes.most_rows - 1
        frontier = [(-1.0, 0)]
        while frontier and followed < most:
            negative, node = frontier[0]
            grown.frontier = -negative
            if node and -negative <= least and not self._probe:
                break
            heapq.heappop(frontier)
            followed += node > 0  # all of them are likelier than what they are followed by
            if tree.depths[node] >= self._most_depth:
                continue
            for guess in self._guesses(node, -negative):
                if 0.0 < guess.confidence <= 1.0 and 0 <= guess.token < self._vocab_size:
                    step = control.acceptance.chance(guess.kind, guess.confidence)
                    child = tree.add(node, guess.token, guess.kind, guess.confidence, step)
                    heapq.heappush(frontier, (-tree.chances[child], child))
        if not frontier:
            grown.frontier = 0.0
        grown.seconds = self._clock() - self._begin
        grown.nodes = control.choose(tree, grown.seconds, probe=self._probe) if len(tree) > 1 else []
        return grown

    def _guesses(self, node: int, chance: float) -> Sequence[Guess]:
        free = self._text.free(self._grown.tree, node)
        if not self._drafts:
            return free
        kind = self._text.kind or ""
        if free:
            acceptance = self._control.acceptance
            if max(acceptance.chance(each.kind, each.confidence) for each in free) >= FREE_SHARE * acceptance.hit(kind):
                return free
        if not self._worth_a_pass(kind, chance):
            self._drafts = False  # no other node is more promising
            return free
        return self._expand(kind, node)

    def _worth_a_pass(self, kind: str, chance: float) -> bool:
        control, grown = self._control, self._grown
        behind = 0 if self._caught_up else self._text.behind()
        if self._depth is None:
            self._depth = control.draft_depth(kind, behind, self._most_depth)
        spent = self._clock() - self._begin + control.drafts.behind(kind, behind)
        if self._depth and control.expands(kind, chance, grown.steps, self._depth, spent):
            return True
        passes = control.passes
        rest = (PROBE_NODES - grown.steps) * control.drafts.step(kind) + passes.of(PROBE_NODES + 1) - passes.of(1)
        return self._probe and grown.steps < PROBE_NODES and control.affords(spent + rest)

    def _expand(self, kind: str, node: int) -> Sequence[Guess]:
        control, clock = self._control, self._clock
        if not self._caught_up:
            rows, begin = self._text.behind(), clock()
            self._text.catch_up()
            control.drafts.add_behind(kind, rows, clock() - begin)
            self._caught_up = True
        begin = clock()
        guesses = self._text.expand(self._grown.tree, node)
        control.drafts.add_step(kind, clock() - begin)
        self._grown.steps += 1
        return guesses
