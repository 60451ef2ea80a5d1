"""What a draft is: something that guesses how a text goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tmac.runtime.speculation.tree import TokenTree


class Guess(NamedTuple):
    """A token that may come next.

    Args:
        token: its id.
        confidence: how sure the draft is, in [0, 1]; what that is worth is measured while it is used.
        kind: of the draft; confidences of one kind are comparable.
    """

    token: int
    confidence: float
    kind: str


class DraftText(Protocol):
    """What a draft knows of one text. Nothing that it does changes the text: it may be wrong, and it may raise."""

    @property
    def kind(self) -> str | None:
        """Of what `expand` guesses; None if it never guesses anything."""

    def sync(self, tokens: list[int]) -> None:
        """The text so far. The list is only ever added to; a text that was cut is another list. Costs little."""

    def prompt(self, tokens: list[int], end: int) -> None:
        """The target has evaluated the first `end` tokens of a prompt; the draft may do so too."""

    def behind(self) -> int:
        """Tokens that `catch_up` would evaluate."""

    def catch_up(self) -> None:
        """Evaluates what `expand` needs but for the last token."""

    def free(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """Guesses after a node that take no pass."""

    def expand(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """Guesses after a node, from a pass. The tree's root is the last token of the text."""

    def ahead(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """The same in another thread, while a pass of the target runs; of a draft that is `separate` only."""

    def kept(self, tree: TokenTree, path: Sequence[int]) -> None:
        """The target agrees with this path from the root, the root included; `sync` follows."""

    def carried(self, tree: TokenTree, path: Sequence[int], rest: TokenTree, origin: Sequence[int]) -> None:
        """As `kept`, and the text goes on with a guess: the next tree may begin with what lies behind it.

        Args:
            tree: that was verified.
            path: that the target agrees with.
            rest: what lies behind the guess; it is the next tree's root.
            origin: which node of the tree each node of the rest is.
        """

    def close(self) -> None:
        """The text has ended. Twice is once."""


class Draft(Protocol):
    """Drafts of all texts of an engine."""

    @property
    def name(self) -> str:
        """As `draft=` has it."""

    @property
    def separate(self) -> bool:
        """Whether its passes may run while the target's do: they share no decoder."""

    def open(self, seq: int) -> DraftText:
        """For a new text.

        Args:
            seq: its sequence in the target's decoder.
        """

    def clear(self) -> None:
        """Releases what is kept for later texts."""


class NoPasses:
    """The parts of a draft's text that one without passes has not."""

    kind: str | None = None

    def prompt(self, tokens: list[int], end: int) -> None:
        """Nothing is evaluated."""

    def behind(self) -> int:
        """Nothing is evaluated."""
        return 0

    def catch_up(self) -> None:
        """Nothing is evaluated."""

    def expand(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """Nothing is evaluated."""
        return ()

    def ahead(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """Nothing is evaluated."""
        return ()

    def kept(self, tree: TokenTree, path: Sequence[int]) -> None:
        """Nothing is evaluated."""

    def carried(self, tree: TokenTree, path: Sequence[int], rest: TokenTree, origin: Sequence[int]) -> None:
        """Nothing is evaluated."""

    def close(self) -> None:
        """Nothing is held."""
