"""Evaluated prompts that stay in the cache: a prompt that begins in the same way need not be evaluated again."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from tmac.runtime.native import Decoder, Ids

WORTH_SHARING = 16  # tokens: fewer are not worth a sequence's copy of a page


def common_prefix(one: Ids, other: Ids) -> int:
    """How many first tokens are the same."""
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


@dataclass
class Prefix:
    """A sequence whose tokens were all evaluated as a prompt.

    Args:
        seq: in the decoder.
        tokens: all of its tokens.
        key: sequences share tokens only if their keys are equal (what their positions mean may depend on lengths).
        source: the file that it comes from, and which version of it.
    """

    seq: int
    tokens: Ids
    key: Hashable
    source: Hashable = None


class Prefixes:
    """The prefixes of a decoder, the least recently used first.

    Args:
        decoder: holds the sequences.
        max_positions: tokens of all prefixes together; the one that was used last may have more.
    """

    def __init__(self, decoder: Decoder, max_positions: int) -> None:
        self._decoder, self._max_positions = decoder, max_positions
        self._kept: list[Prefix] = []

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, tokens: Ids, key: Hashable) -> tuple[Prefix | None, int]:
        """The prefix that begins with the most of `tokens`, and how many these are."""
        best, most = None, 0
        for prefix in self._kept:
            length = common_prefix(prefix.tokens, tokens) if prefix.key == key else 0
            if length > most:
                best, most = prefix, length
        return best, most

    def find_source(self, source: Hashable) -> Prefix | None:
        """The prefix that comes from a file."""
        return next((prefix for prefix in self._kept if prefix.source == source), None)

    def use(self, prefix: Prefix) -> None:
        """It is the most recently used one now."""
        self._kept.remove(prefix)
        self._kept.append(prefix)

    def keep(self, new: Prefix) -> None:
        """Takes the sequence over. Those that it begins with are dropped; it is, if another one begins with it."""
        for prefix in list(self._kept):
            if prefix.key != new.key:
                continue
            common = common_prefix(prefix.tokens, new.tokens)
            if common == len(new.tokens) and new.source is None:
                self._decoder.release(new.seq)
                self.use(prefix)
                return
            if common == len(prefix.tokens) and prefix.source is None:
                self._drop(prefix)
        self._kept.append(new)
        while len(self._kept) > 1 and sum(len(prefix.tokens) for prefix in self._kept) > self._max_positions:
            self.drop_oldest()

    def drop_oldest(self, besides: Prefix | None = None) -> bool:
        """Releases the least recently used one but for `besides`; False if there is none."""
        for prefix in self._kept:
            if prefix is not besides:
                self._drop(prefix)
                return True
        return False

    def clear(self) -> None:
        """Releases all."""
        while self.drop_oldest():
            pass

    def _drop(self, prefix: Prefix) -> None:
        self._kept.remove(prefix)
        self._decoder.release(prefix.seq)
