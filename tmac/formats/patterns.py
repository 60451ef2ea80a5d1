"""Regular expressions for module names, from files that may be hostile."""

from __future__ import annotations

import math
import re

MAX_PATTERN = 4096
MAX_STEPS = 2 * 10**7  # of the matcher: less than a second
_TOKENS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?|.", re.DOTALL)


def matches(pattern: str, name: str) -> bool:
    """Whether a name begins with what the pattern describes.

    Raises:
        ValueError: it is no regular expression, or the answer may take long: a repeated group needs time that is
            exponential in the name's length, many repeats after each other a high power of it.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"expected a pattern of at most {MAX_PATTERN} characters, found {len(pattern)}")
    if _steps(pattern, len(name)) > MAX_STEPS:
        raise ValueError(f"expected a pattern with fewer repeats and choices, found {pattern!r}")
    try:
        return re.match(pattern, name) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"expected a regular expression, found {pattern!r} ({error})") from error


def _steps(pattern: str, length: int) -> int:
    """A bound on the ways to lay a pattern over a name. Raises ValueError for repeated groups and references to groups.

    Each repeat ends somewhere after the one before it; each choice between m things is made anew for every such way.
    """
    repeats, ways, open_choices = 0, 1, [1]
    before = ""
    for token in _TOKENS.findall(pattern):
        if (before == ")" and token in "*+{") or re.fullmatch(r"\\[1-9]", token):
            raise ValueError(f"expected a pattern without repeated groups or references to groups, found {pattern!r}")
        if before == "(?" and token in "P(" and re.search(r"\(\?(P=|\()", pattern):
            raise ValueError(f"expected a pattern without references to groups, found {pattern!r}")
        if token in "*+{":
            repeats += 1
        elif token == "?" and before not in ("*", "+", "}"):
            ways *= 2
        elif token == "|":
            open_choices[-1] += 1
        elif token in ("(", "(?"):
            open_choices.append(1)
        elif token == ")" and len(open_choices) > 1:
            ways *= open_choices.pop()
        before = token
    return math.comb(length + repeats, repeats) * ways * math.prod(open_choices)
