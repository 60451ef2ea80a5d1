"""Arguments of a call, checked one at a time: every error names the argument and what was found."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, get_args

from tmac.spec import Activation

CACHE_TYPES = ("f32", "f16", "int8")
CHOICES = {"activation": get_args(Activation), "cache_type": CACHE_TYPES}
RANGES: dict[str, tuple[int, int | None]] = {
    "context_length": (1, None),
    "head_bits": (1, 8),
    "embedding_bits": (1, 8),
    "num_threads": (1, None),
    "max_positions": (1, None),
    "chunk_size": (1, None),
    "max_batch": (1, None),
    "max_queue": (0, None),
    "kept_positions": (0, None),
}


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An integer of any kind (NumPy's too, bool not) in [low, high].

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of range.
    """
    wanted = f"at least {low}" if high is None else f"from {low} to {high}"
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer {wanted}, found {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer {wanted}, found {shown(value)}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name}: expected an integer {wanted}, found {number}")
    return number


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> float:
    """A finite number in [low, high], or in (low, high] where `above`.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of range, infinite or NaN.
    """
    if isinstance(value, (bool, str, bytes)):
        raise TypeError(f"{name}: expected a number, found {shown(value)}")
    try:
        real = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, found {shown(value)}") from None
    if not math.isfinite(real) or real > high or (real <= low if above else real < low):
        range_ = _range(low, high, above)
        raise ValueError(f"{name}: expected a finite number{range_}, found {real}")
    return real


def flag(name: str, value: Any) -> bool:
    """True or False. Raises TypeError for anything else."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, found {shown(value)}")
    return value


def choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Raises ValueError for what is not one of `known`."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, found {shown(value)}")


def check_loading(**given: Any) -> None:
    """Looks at the arguments of `Engine.from_pretrained` before anything is read, which may take long.

    Raises:
        TypeError, ValueError: one is wrong; the message names it.
    """
    for name, value in given.items():
        if value is None:
            continue
        if name in CHOICES:
            choice(name, value, CHOICES[name])
        else:
            integer(name, value, *RANGES[name])


def strings(name: str, value: Any) -> tuple[str, ...]:
    """A string, or several, none of them empty.

    Raises:
        TypeError: something else.
        ValueError: one is empty.
    """
    if value is None:
        return ()
    items = (value,) if isinstance(value, str) else value
    try:
        items = tuple(items)
    except TypeError:
        raise TypeError(f"{name}: expected a string or a list of strings, found {shown(value)}") from None
    for item in items:
        if not isinstance(item, str):
            raise TypeError(f"{name}: expected a string or a list of strings, found {shown(item)} in it")
        if not item:
            raise ValueError(f"{name}: expected strings that are not empty, found ''")
    return items


def shown(value: Any) -> str:
    """What an error says was found: a short value itself, of a long one the type."""
    text = repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:80]}..."


def _range(low: float, high: float, above: bool) -> str:
    parts = []
    if low > -math.inf:
        parts.append(f"{'above' if above else 'of at least'} {low:g}")
    if high < math.inf:
        parts.append(f"{'and ' if parts else ''}at most {high:g}")
    return " " + " ".join(parts) if parts else ""
