"""What a row quantizes with, as the text that stands in the table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

HEAD = " + head "
# text -> bits and zero point; groups of 32
HEADS: dict[str, tuple[int, Literal["fixed", "offset"]]] = {"6 bits": (6, "fixed"), "4 bits": (4, "offset")}


def split_head(setting: str) -> tuple[str, str | None]:
    """("W3 g64", "6 bits") of "W3 g64 + head 6 bits": what the tool does, and what is done to the head it left float.

    Raises ValueError where the head's part is not in HEADS.
    """
    own, mark, head = setting.partition(HEAD)
    if not mark:
        return setting, None
    if head not in HEADS:
        raise ValueError(f"[accuracy] expected a head of {' or '.join(HEADS)}, found {head!r} in {setting!r}")
    return own, head


@dataclass(frozen=True)
class Grid:
    """`W<bits> g<columns>`, with `asym` behind it where every group has a zero point of its own."""

    bits: int
    group: int
    symmetric: bool

    @classmethod
    def parse(cls, text: str) -> Grid:
        """Raises ValueError where the text has another form."""
        found = re.fullmatch(r"W([1-8]) g(\d+)( asym)?", text)
        if found is None:
            raise ValueError(f"[accuracy] expected a setting as `W4 g128` or `W4 g128 asym`, found {text!r}")
        return cls(int(found[1]), int(found[2]), found[3] is None)


def bits_of(text: str) -> float:
    """3.2 of `3.2 bits`. Raises ValueError where the text has another form."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) bits", text)
    if found is None:
        raise ValueError(f"[accuracy] expected a setting as `3.2 bits`, found {text!r}")
    return float(found[1])
