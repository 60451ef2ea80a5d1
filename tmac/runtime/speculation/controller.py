"""How many guesses are worth verifying: the number of nodes that gives the most tokens per second, zero included.

A round is worth `tokens - rate * seconds`, where `rate` is what the text reaches now, at least that of plain decoding:
the greedy rule for the best long-run ratio (Dinkelbach). Chances and costs are measured while the text is written
(`acceptance`, `costs`), and an account of what was gained bounds what may be lost if they are wrong (`account`).
"""

from __future__ import annotations

from tmac.runtime.speculation.acceptance import Acceptance
from tmac.runtime.speculation.account import Account
from tmac.runtime.speculation.costs import DraftCosts, PassCosts
from tmac.runtime.speculation.tree import TokenTree

MARGIN = 0.02  # tokens that a tree must promise more than a plain pass
ALPHA, LEAST_ALPHA, MOST_ALPHA = 0.01, 1e-4, 0.9
FIRST_PROBE, LAST_PROBE, AGAIN = 64, 1024, 8  # tokens from one try to the next
PROBE_NODES = 2
LEAST_PROBED = 0.25  # chance of the best guess: one that is hardly ever right says nothing
TREES_TO_PLAIN = 32  # so many passes with guesses, then one without: its time is what all is compared with
RATE_MEMORY = 0.97
TRUST = 0.75  # share of the tokens that are expected, which may be risked
TRUSTED = 0.2  # a round that took longer or shorter by a larger share was disturbed: what it is known to take counts


class Controller:
    """What is measured for all texts of an engine.

    Args:
        most_rows: of a pass, one of which is the text's last token.
    """

    def __init__(self, most_rows: int = 16) -> None:
        self.passes = PassCosts(most_rows)
        self.drafts = DraftCosts(self.passes)
        self.acceptance = Acceptance()

    def start(self) -> TextControl:
        """For a new text."""
        return TextControl(self)


class TextControl:
    """Decisions for one text.

    Args:
        shared: of its engine.
    """

    def __init__(self, shared: Controller) -> None:
        self.passes, self.drafts = shared.passes, shared.drafts
        self.acceptance = shared.acceptance.of_text()
        self.account = Account()
        self.alpha = ALPHA
        self._spacing, self._since = FIRST_PROBE, 0
        self._trees = 0  # passes with guesses since one without
        self._tokens = self._time = 0.0  # of the last rounds, in units of a plain token's time
        self._prices()

    # Before a pass.

    def rests(self) -> bool:
        """Whether this pass is to be a plain one, whatever the draft says."""
        return not self.passes.known or self._trees >= TREES_TO_PLAIN or self.passes.in_doubt

    def probes(self) -> bool:
        """Whether it is time to try again what was not worth it when it was tried last."""
        return self._since >= self._spacing

    def affords(self, seconds: float, promised: float = 0.0) -> bool:
        """Whether so much may be risked now.

        Args:
            seconds: that are lost if no guess is right.
            promised: tokens that are expected for them.
        """
        return seconds <= (max(self.account.balance, 0.0) + TRUST * promised) * self.passes.plain()

    def least_chance(self) -> float:
        """A node that is less likely than this is never worth its row."""
        return self.rate * self.passes.slope / self.worth

    def draft_depth(self, kind: str, behind: int, most: int, ready: int = 0) -> int:
        """How many steps of a draft are worth it, as far as the frequency of its right guesses tells; 0: none.

        Args:
            kind: of the draft.
            behind: tokens that it must evaluate first.
            most: steps.
            ready: so many of them were made before.
        """
        rate, passes = self.rate, self.passes
        right, step = self.acceptance.hit(kind), self.drafts.step(kind)
        best, depth, gain, chance = MARGIN, 0, 0.0, 1.0
        before = self.drafts.behind(kind, behind)
        for steps in range(1, min(most, passes.reach - 1) + 1):
            chance *= right
            gain += chance
            seconds = before + max(steps - ready, 0) * step + passes.of(steps + 1) - passes.of(1)
            value = gain * self.worth - rate * seconds
            if value > best and self.affords(seconds, gain):
                best, depth = value, steps
        return depth

    def expands(self, kind: str, chance: float, steps: int, depth: int, spent: float, promised: float) -> bool:
        """Whether the draft goes on behind its most promising node, or the target verifies (LLMCad's fallback).

        Args:
            kind: of the draft.
            chance: of the node.
            steps: that the draft has made.
            depth: that is planned.
            spent: seconds, in this round.
            promised: tokens that are expected of the guesses so far.
        """
        if steps and chance < self.alpha:
            return False
        rate, passes, step = self.rate, self.passes, self.drafts.step(kind)
        rows = min(steps + 2, passes.most_rows)
        slope = passes.of(rows) - passes.of(rows - 1)
        if steps < depth:  # a first step up may be worth it for the level ones behind it
            planned = min(depth + 1, passes.most_rows)
            slope = (passes.of(planned) - passes.of(1)) / (planned - 1)
        worth = chance * self.acceptance.hit(kind) * self.worth > rate * (step + slope)
        return worth and (steps < depth or self.affords(spent + step + passes.of(rows) - passes.of(1), promised))

    def choose(self, tree: TokenTree, *, probe: bool) -> list[int]:
        """The nodes to verify, with each its parent; none is a plain pass.

        Args:
            tree: of guesses.
            probe: try some, if there are any and they may be lost.
        """
        order = tree.best()[: self.passes.reach - 1]
        rate, worth, one = self.rate, self.worth, self.passes.of(1)
        best, count, gain = MARGIN, 0, 0.0
        if probe and (not order or tree.chances[order[0]] < LEAST_PROBED):
            probe, self._since = False, self._spacing - AGAIN  # nothing to learn from: later
        for number, node in enumerate(order, 1):
            seconds = self.passes.of(number + 1) - one
            gain += tree.chances[node]
            value = gain * worth - rate * seconds
            if (value > best or (probe and number <= PROBE_NODES)) and self.affords(seconds, gain):
                best, count = max(value, best), number
        return order[:count]

    # After a pass.

    def learn(self, tree: TokenTree, node: int, token: int) -> None:
        """The target came to a node, and this token follows."""
        children = tree.children(node)
        for child in children:
            self.acceptance.add(tree.kinds[child], tree.confidences[child], tree.tokens[child] == token)
        if children:
            first = max(children, key=lambda child: tree.confidences[child])
            self.acceptance.add_hit(tree.kinds[first], tree.tokens[first] == token)

    def plain_done(self, seconds: float, spent: float) -> None:
        """A pass without guesses gave a token.

        Args:
            seconds: that it took, with choosing and delivering the token.
            spent: before it, on guesses that were not worth verifying.
        """
        self.passes.add(1, max(seconds - self.passes.token.value, 0.5 * seconds))
        self._trees = 0
        self._since += 1
        self._count(1, 1.0 + spent / self.passes.plain())

    def tree_done(self, tokens: int, seconds: float, expected: float) -> None:
        """A pass with guesses gave so many tokens.

        Args:
            tokens: that it gave.
            seconds: that all of the round took.
            expected: what it was to take, from what such passes took before.
        """
        self._trees += 1
        time = min(max(seconds, (1.0 - TRUSTED) * expected), (1.0 + TRUSTED) * expected) / self.passes.plain()
        self._count(tokens, time)
        if tokens > time:
            self._spacing = AGAIN
        elif self._since >= self._spacing:
            self._spacing = min(max(2 * self._spacing, FIRST_PROBE), LAST_PROBE)
        self._since = 0

    def adapt_alpha(self, frontier: float, right: int, depth: int) -> None:
        """LLMCad's threshold (arXiv 2309.04255, section 4.2).

        Args:
            frontier: the chance of the most promising node at which the draft stopped.
            right: tokens of the deepest path that the target agreed with.
            depth: of the tree that was verified.
        """
        if right >= depth:
            self.alpha = max(0.5 * self.alpha, LEAST_ALPHA)
        elif frontier > 0.0:
            self.alpha = min(self.alpha / frontier ** ((depth - right) / depth), MOST_ALPHA)

    def _count(self, tokens: int, time: float) -> None:
        self.account.add(tokens, time)
        self._tokens = RATE_MEMORY * self._tokens + tokens
        self._time = RATE_MEMORY * self._time + time
        self._prices()

    def _prices(self) -> None:
        """Of time in tokens: what the text reaches now; and of a token, without its own choice and delivery."""
        plain = self.passes.plain()
        speedup = max(self._tokens / self._time, 1.0) if self._time else 1.0
        self.rate = speedup / plain if plain else 0.0
        self.worth = max(1.0 - self.rate * self.passes.token.value, 0.05)
