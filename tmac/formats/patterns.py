"""Regular expressions for module names, from files that may be hostile."""

from __future__ import annotations

import re

MAX_NAME = 512
MAX_PATTERN = 4096
MAX_REPEATS = 8
_REPEAT = re.compile(r"(?<!\\)[*+{]")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern whose match against a name ends soon, whatever the name.

    A repeated group may need time that is exponential in the name's length, and so may many repeats after each other.

    Raises:
        ValueError: it is no regular expression, repeats a group or refers back to one, or repeats too often.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"expected a pattern of at most {MAX_PATTERN} characters, found {len(pattern)}")
    if re.search(r"\)[*+{]|\\[1-9]|\(\?P=", pattern):
        raise ValueError(f"expected a pattern without repeated groups or references to groups, found {pattern!r}")
    if len(_REPEAT.findall(pattern)) > MAX_REPEATS:
        raise ValueError(f"expected a pattern of at most {MAX_REPEATS} repeats, found {pattern!r}")
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"expected a regular expression, found {pattern!r} ({error})") from error


def matches(pattern: str, name: str) -> bool:
    """Whether a name begins with what the pattern describes. Raises ValueError like `compile_pattern`."""
    return len(name) <= MAX_NAME and compile_pattern(pattern).match(name) is not None
