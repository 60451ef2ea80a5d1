"""What several commands take: the types of their options."""

from __future__ import annotations

import argparse

TERNARY = "ternary"
# As in tmac.runtime.arguments, which needs the native core, and `--help` does not.
CACHE_TYPES = ("f32", "f16", "int8")
ACTIVATIONS = ("group", "token", "float")


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


def counts(text: str) -> list[int]:
    """Whole numbers, separated by commas: "128,512"."""
    words = text.split(",")
    if all(word.strip().isdecimal() for word in words):
        return [int(word) for word in words]
    raise argparse.ArgumentTypeError(f"expected numbers separated by commas, found {text!r}")


def natural(text: str) -> int:
    """A whole number from zero on."""
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a number from 0 on, found {text!r}")


def types(text: str) -> tuple[str, ...] | str:
    """Names of GGUF types, separated by commas, or "all"."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("expected names of types, IQ4_XS for instance, or all")
    return "all" if names == ("all",) else names
