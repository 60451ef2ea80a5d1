"""What `draft=` may be: names of drafts."""

from __future__ import annotations

from dataclasses import dataclass

from tmac.runtime.arguments import shown

KNOWN = "'ngram', 'planes:K', 'model:PATH', 'ngram+planes:K', 'ngram+model:PATH', 'auto' or 'none'"
MOST_PLANES = 7


@dataclass(frozen=True)
class DraftName:
    """Which drafts are wanted.

    Args:
        ngram: from the text itself.
        planes: of the target's planes so many; 0: none.
        model: the path or Hub id of another model; empty: none.
        auto: whichever are measured to be worth it.
    """

    ngram: bool = False
    planes: int = 0
    model: str = ""
    auto: bool = False

    @property
    def empty(self) -> bool:
        """No draft."""
        return self == DraftName()


def parse_draft(value: object) -> DraftName:
    """The drafts that a string names; None and "none" are none.

    Raises:
        TypeError: it is no string.
        ValueError: the string is no draft's name.
    """
    if value is None:
        return DraftName()
    if not isinstance(value, str):
        raise TypeError(f"draft: expected {KNOWN}, found {shown(value)}")
    if value in ("none", "auto"):
        return DraftName(auto=value == "auto")
    head, plus, rest = value.partition("+")
    if head == "ngram":
        return _with_passes(value, rest, ngram=True) if plus else DraftName(ngram=True)
    return _with_passes(value, value, ngram=False)


def _with_passes(value: str, text: str, *, ngram: bool) -> DraftName:
    kind, _, argument = text.partition(":")
    if kind == "model" and argument:
        return DraftName(ngram=ngram, model=argument)
    if kind == "planes" and argument.isascii() and argument.isdigit() and 1 <= int(argument) <= MOST_PLANES:
        return DraftName(ngram=ngram, planes=int(argument))
    if kind == "planes":
        raise ValueError(f"draft: expected a number of planes from 1 to {MOST_PLANES}, found {value!r}")
    raise ValueError(f"draft: expected {KNOWN}, found {value!r}")
