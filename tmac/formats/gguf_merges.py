"""The merges of a byte-pair encoding, held in a few bytes each, and the JSON of a vocabulary with them.

Gemma has 580,000 merges: as lists of two strings they would take a quarter of a gigabyte, and seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from json.encoder import encode_basestring
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 14  # entries that are strings at a time


class Merges(Sequence[list[str]]):
    """Pairs of tokens, each the two parts of a text.

    Args:
        texts: of which they are parts.
        which: i32 `[merges]`, which of the texts.
        cuts: i32 `[merges]`, characters of the first part.
        gap: characters between the two.
    """

    def __init__(self, texts: Sequence[str], which: NDArray[np.int32], cuts: NDArray[np.int32], gap: int = 0) -> None:
        self.texts, self.which, self.cuts, self.gap = texts, which, cuts, gap

    def __len__(self) -> int:
        return len(self.which)

    @overload
    def __getitem__(self, index: int) -> list[str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[str]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        text, cut = self.texts[self.which[index]], int(self.cuts[index])
        return [text[:cut], text[cut + self.gap :]]

    def __iter__(self) -> Iterator[list[str]]:
        texts, gap = self.texts, self.gap
        for begin in range(0, len(self), PIECE):
            part = slice(begin, begin + PIECE)
            for which, cut in zip(self.which[part].tolist(), self.cuts[part].tolist(), strict=True):
                text = texts[which]
                yield [text[:cut], text[cut + gap :]]


def vocabulary_json(content: Mapping[str, Any]) -> str:
    """`json.dumps(content, ensure_ascii=False)` of a `tokenizer.json` whose last entry is `model`, of which the last
    two are `vocab` and `merges`."""
    model = content["model"]
    small = {**content, "model": {key: value for key, value in model.items() if key not in ("vocab", "merges")}}
    assert (*small,)[-1] == "model"
    assert (*model,)[-2:] == ("vocab", "merges")
    head = json.dumps(small, ensure_ascii=False)[:-2]
    vocab = (f"{encode_basestring(token)}: {index}" for token, index in model["vocab"].items())
    merges = (f"[{encode_basestring(left)}, {encode_basestring(right)}]" for left, right in model["merges"])
    return "".join([head, ', "vocab": {', _joined(vocab), '}, "merges": [', _joined(merges), "]}}"])


def _joined(items: Iterator[str]) -> str:
    """`", ".join(items)`, without all of them at once."""
    pieces = []
    while piece := ", ".join(islice(items, PIECE)):
        pieces.append(piece)
    return ", ".join(pieces)
