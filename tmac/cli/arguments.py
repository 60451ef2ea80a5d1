"""What several commands take: the types of their options."""

from __future__ import annotations

import argparse

TERNARY = "ternary"


def bits(text: str) -> int | str:
    """1 to 8, or "ternary"."""
    if text == TERNARY:
        return TERNARY
    if text.isdecimal() and 1 <= int(text) <= 8:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected 1 to 8 or {TERNARY}, found {text!r}")


def positive(text: str) -> int:
    """A whole number above zero."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a positive number, found {text!r}")
