"""Guesses from the text itself: what followed the last tokens when they occurred before (prompt lookup).

Copies are common in code that is edited, in JSON, in quotations. A guess costs no pass of any model.
"""

from __future__ import annotations

from collections.abc import Sequence

from tmac.runtime.speculation.drafts import Guess, NoPasses
from tmac.runtime.speculation.tree import TokenTree

KIND = "ngram"
SHORT, LONG = 2, 4  # tokens that are looked up
MOST_LINKS = 4  # earlier places of the same two tokens that are looked at
MOST_MATCHES = 8  # places that are followed at a time
LONGEST = 64  # a longer match is no better
MOST_GUESSES = 3

Match = tuple[int, int]  # where an earlier place has the last token, and how many tokens up to it are the same


class NgramText(NoPasses):
    """Earlier places of the text whose ends are the same as the end of the text now.

    A token costs the same whatever the length of the text: places that were followed go on or fall away, and two
    dictionaries (of pairs, and of runs of four) give new ones.
    """

    def __init__(self) -> None:
        self._source: list[int] | None = None
        self._forget()

    def _forget(self) -> None:
        self._text: list[int] = []
        self._pairs: dict[tuple[int, int], int] = {}  # where they were last, by their second token
        self._runs: dict[tuple[int, ...], int] = {}
        self._before: list[int] = []  # the place before each place of the same pair
        self._matches: list[Match] = []
        self._states: dict[int, list[Match]] = {}

    def sync(self, tokens: list[int]) -> None:
        """The text so far."""
        if tokens is not self._source or len(tokens) < len(self._text):
            self._forget()
            self._source = tokens
        for token in tokens[len(self._text) :]:
            self._feed(token)
        self._states = {0: self._matches}

    def prompt(self, tokens: list[int], end: int) -> None:
        """Looks at the whole prompt."""
        self.sync(tokens)

    def free(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """The tokens that followed, the likeliest first."""
        matches = self._state(tree, node)
        if not matches:
            return ()
        path = tree.path(node)
        longest: dict[int, int] = {}
        weights: dict[int, float] = {}
        for place, length in matches:
            token = self._token(tree, path, place + 1)
            longest[token] = max(longest.get(token, 0), length)
            weights[token] = weights.get(token, 0.0) + 2.0 ** min(length, 20)
        whole = sum(weights.values())
        guesses = [Guess(token, sureness(longest[token]) * weights[token] / whole, KIND) for token in weights]
        return sorted(guesses, key=lambda guess: -guess.confidence)[:MOST_GUESSES]

    def _feed(self, token: int) -> None:
        text = self._text
        place = len(text)
        text.append(token)
        self._matches = [(at + 1, min(length + 1, LONGEST)) for at, length in self._matches if text[at + 1] == token]
        self._before.append(-1)
        if place < SHORT - 1:
            return
        pair = (text[place - 1], token)
        at = self._before[place] = self._pairs.get(pair, -1)
        self._pairs[pair] = place
        for _ in range(MOST_LINKS):
            if at < 0:
                break
            self._follow(at, place)
            at = self._before[at]
        if place >= LONG - 1:
            run = tuple(text[place - LONG + 1 :])
            at = self._runs.get(run, -1)
            self._runs[run] = place
            if at >= 0:
                self._follow(at, place)

    def _follow(self, at: int, place: int) -> None:
        """Adds an earlier place, in place of the shortest match if there are too many."""
        if any(at == known for known, _ in self._matches):
            return
        text, length = self._text, SHORT
        while length < LONGEST and length <= at and text[at - length] == text[place - length]:
            length += 1
        self._matches.append((at, length))
        if len(self._matches) > MOST_MATCHES:
            self._matches.remove(min(self._matches, key=lambda match: (match[1], match[0])))

    def _state(self, tree: TokenTree, node: int) -> list[Match]:
        """The matches as they would be if the text went on to a node."""
        found = self._states.get(node)
        if found is None:
            parent, path = tree.parents[node], tree.path(node)
            found = [
                (at + 1, min(length + 1, LONGEST))
                for at, length in self._state(tree, parent)
                if self._token(tree, path, at + 1) == tree.tokens[node]
            ]
            if not found and (at := self._pairs.get((tree.tokens[parent], tree.tokens[node]), -1)) >= 0:
                found = [(at, SHORT)]
            self._states[node] = found
        return found

    def _token(self, tree: TokenTree, path: list[int], place: int) -> int:
        """The token at a place of the text, or of the path behind it: a match may reach to the end of the text."""
        beyond = place - len(self._text)
        return self._text[place] if beyond < 0 else tree.tokens[path[beyond + 1]]


def sureness(length: int) -> float:
    """A first guess of how likely a token follows again after `length` tokens that are the same."""
    return length / (length + 2.0)


class NgramDraft:
    """Drafts from the text itself."""

    name = KIND
    separate = False

    def open(self, seq: int) -> NgramText:
        """For a new text."""
        return NgramText()

    def clear(self) -> None:
        """Nothing is kept."""
