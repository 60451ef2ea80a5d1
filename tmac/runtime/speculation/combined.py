"""Two drafts: the text itself where it has a match, a model where it has none."""

from __future__ import annotations

from collections.abc import Sequence

from tmac.runtime.speculation.drafts import Draft, DraftText, Guess
from tmac.runtime.speculation.tree import TokenTree


class CombinedText:
    """One text.

    Args:
        first: whose guesses are free.
        second: whose guesses take passes.
    """

    def __init__(self, first: DraftText, second: DraftText) -> None:
        self._first, self._second = first, second

    @property
    def kind(self) -> str | None:
        """Of the second."""
        return self._second.kind

    def sync(self, tokens: list[int]) -> None:
        """The text so far."""
        self._first.sync(tokens)
        self._second.sync(tokens)

    def prompt(self, tokens: list[int], end: int) -> None:
        """For both."""
        self._first.prompt(tokens, end)
        self._second.prompt(tokens, end)

    def behind(self) -> int:
        """Of the second."""
        return self._second.behind()

    def catch_up(self) -> None:
        """The second's."""
        self._second.catch_up()

    def free(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """The first's."""
        return self._first.free(tree, node)

    def expand(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """The second's."""
        return self._second.expand(tree, node)

    def ahead(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """The second's."""
        return self._second.ahead(tree, node)

    def kept(self, tree: TokenTree, path: Sequence[int]) -> None:
        """For both."""
        self._first.kept(tree, path)
        self._second.kept(tree, path)

    def carried(self, tree: TokenTree, path: Sequence[int], rest: TokenTree, origin: Sequence[int]) -> None:
        """For both."""
        self._first.carried(tree, path, rest, origin)
        self._second.carried(tree, path, rest, origin)

    def close(self) -> None:
        """Both."""
        self._first.close()
        self._second.close()


class CombinedDraft:
    """Drafts of two kinds.

    Args:
        first: without passes.
        second: with passes.
    """

    def __init__(self, first: Draft, second: Draft) -> None:
        self.name = f"{first.name}+{second.name}"
        self._first, self._second = first, second
        self.separate = second.separate

    def open(self, seq: int) -> CombinedText:
        """For a new text."""
        return CombinedText(self._first.open(seq), self._second.open(seq))

    def clear(self) -> None:
        """Both."""
        self._first.clear()
        self._second.clear()
