"""A token tree in a draft's decoder, evaluated a node at a time."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tmac.runtime.interrupts import allowed_interrupts
from tmac.runtime.native import Decoder, Floats, Ids, core
from tmac.runtime.speculation.drafts import Guess
from tmac.runtime.speculation.tree import TokenTree

MOST_GUESSES = 3


class RunTree(Protocol):
    """`Decoder.forward_tree` of one decoder, which Ctrl-C may interrupt."""

    def __call__(self, seq: int, tokens: Ids, parents: Ids, *, first: int, draft: bool) -> Floats:
        """Logits of the nodes from `first` on."""


class TreeRows:
    """Which nodes of a tree the draft has evaluated behind a sequence.

    Args:
        run: evaluates nodes.
        draft: with the decoder's draft weights.
    """

    def __init__(self, run: RunTree, *, draft: bool) -> None:
        self._run, self._draft = run, draft
        self.forget()

    def forget(self) -> None:
        """The sequence has changed, or there is a new tree."""
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._row_of: dict[int, int] = {}

    def rows(self, path: list[int]) -> list[int]:
        """Rows of the nodes at the beginning of a path that have been evaluated."""
        found = []
        for node in path:
            if node not in self._row_of:
                break
            found.append(self._row_of[node])
        return found

    def guesses(self, seq: int, tree: TokenTree, node: int, kind: str) -> list[Guess]:
        """What may follow a node; evaluates it, and what comes before it where that is missing."""
        missing = [each for each in tree.path(node) if each not in self._row_of]
        assert missing[-1:] == [node], "a node is expanded once"
        first = len(self._tokens)
        row_of = dict(self._row_of)
        tokens, parents = list(self._tokens), list(self._parents)
        for each in missing:
            row_of[each] = len(tokens)
            tokens.append(tree.tokens[each])
            parents.append(row_of[tree.parents[each]] if each else -1)
        logits = self._run(seq, np.array(tokens, np.int32), np.array(parents, np.int32), first=first, draft=self._draft)
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
