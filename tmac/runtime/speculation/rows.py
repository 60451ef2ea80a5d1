"""A token tree in a draft's decoder, evaluated a node at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tmac.runtime.interrupts import allowed_interrupts
from tmac.runtime.native import Decoder, Floats, Ids, core
from tmac.runtime.speculation.drafts import Guess
from tmac.runtime.speculation.tree import TokenTree

MOST_GUESSES = 3
MOST_CARRIED = 128  # rows behind a sequence, from one tree to the next


class RunTree(Protocol):
    """`Decoder.forward_tree` of one decoder, which Ctrl-C may interrupt."""

    def __call__(self, seq: int, tokens: Ids, parents: Ids, *, first: int, draft: bool) -> Floats:
        """Logits of the nodes from `first` on."""


class TreeRows:
    """Which nodes of a tree the draft has evaluated behind a sequence.

    Where the next tree begins within the last one, all rows stay, and the path to its root is the `trunk`.

    Args:
        run: evaluates nodes.
        draft: with the decoder's draft weights.

    Attributes:
        tree: whose nodes these are; None: of any tree.
        trunk: rows of what the text has in front of the tree's root, and the sequence has not.
    """

    def __init__(self, run: RunTree, *, draft: bool) -> None:
        self._run, self._draft = run, draft
        self.forget()

    def forget(self) -> None:
        """The sequence has changed, or there is a new tree."""
        self.tree: TokenTree | None = None
        self.trunk: list[int] = []
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._row_of: dict[int, int] = {}

    def rows(self, path: Sequence[int]) -> list[int]:
        """Rows of the nodes at the beginning of a path that have been evaluated."""
        found = []
        for node in path:
            if node not in self._row_of:
                break
            found.append(self._row_of[node])
        return found

    def carry(self, path: Sequence[int], rest: TokenTree, origin: Sequence[int]) -> bool:
        """Goes on with what lies behind a path and a guess: see `DraftText.carried`.

        Returns:
            False, and nothing has happened, where some of the path has no row, or there are too many of them.
        """
        rows = self.rows(path)
        if len(rows) < len(path) or len(self._tokens) > MOST_CARRIED:
            return False
        self.tree = rest
        self.trunk += rows
        self._row_of = {node: self._row_of[old] for node, old in enumerate(origin) if old in self._row_of}
        return True

    def guesses(self, seq: int, tree: TokenTree, node: int, kind: str, run: RunTree | None = None) -> list[Guess]:
        """What may follow a node; evaluates it, and what comes before it where that is missing.

        Args:
            seq: that the tree follows.
            tree: the same until `carry` or `forget`.
            node: of it, not asked for before.
            kind: of the guesses.
            run: in place of the one for all passes.
        """
        above = self.trunk[-1] if self.trunk else -1
        missing = [each for each in tree.path(node) if each not in self._row_of]
        assert missing[-1:] == [node], "a node is expanded once"
        first = len(self._tokens)
        row_of = dict(self._row_of)
        tokens, parents = list(self._tokens), list(self._parents)
        for each in missing:
            row_of[each] = len(tokens)
            tokens.append(tree.tokens[each])
            parents.append(row_of[tree.parents[each]] if each else above)
        nodes = np.array(tokens, np.int32), np.array(parents, np.int32)
        try:
            logits = (run or self._run)(seq, *nodes, first=first, draft=self._draft)
        except BaseException:
            self.forget()  # so does the decoder
            raise
        self._tokens, self._parents, self._row_of = tokens, parents, row_of
        return likeliest(logits[-1], kind)


def likeliest(logits: Floats, kind: str) -> list[Guess]:
    """The most likely tokens of a row of logits, f32 `[vocab]`."""
    ids, values = core.top_log_probabilities(logits, min(MOST_GUESSES, len(logits)))
    return [
        Guess(token, chance, kind)
        for token, chance in zip(ids.tolist(), np.exp(values).tolist(), strict=True)
        if chance > 0  # not of NaN either
    ]


def tree_runner(decoder: Decoder, num_threads: int = 0) -> RunTree:
    """`forward_tree` of a decoder. `first` and `draft` are only passed where they are not the defaults."""

    def run(seq: int, tokens: Ids, parents: Ids, *, first: int, draft: bool) -> Floats:
        options: dict[str, int] = {"first": first} if first else {}
        if draft:
            options["draft"] = True
        with allowed_interrupts():
            return decoder.forward_tree(seq, tokens, parents, num_threads=num_threads, **options)

    return run
