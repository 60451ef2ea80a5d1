"""The fields of a JSON object, read one at a time: every error names the field and what was found."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tmac.serve.errors import invalid, unsupported

NAMES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "an integer", float: "a number"}


def shown(value: Any) -> str:
    """What an error says was found: a short number or word, of anything else the type."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value) if isinstance(value, (int, float, str)) else ""
    return text if 0 < len(text) <= 40 else NAMES.get(type(value), type(value).__name__)


class Fields:
    """The fields of a JSON object. `null` is as good as absent. What is read is struck off, see `finish`.

    Args:
        values: the parsed object.
        path: its name in errors, empty for the request itself.

    Raises:
        ApiError: it is no object.
    """

    def __init__(self, values: Any, path: str = "") -> None:
        if not isinstance(values, dict):
            raise invalid(path or None, f"expected an object, found {shown(values)}", "invalid_type")
        self._values, self._path, self._known = dict(values), path, set[str]()

    def name(self, key: str) -> str:
        """What errors call a field."""
        return f"{self._path}.{key}" if self._path else key

    def take(self, key: str) -> Any:
        """The value, or None."""
        self._known.add(key)
        return self._values.pop(key, None)

    def string(self, key: str, default: str | None = None, choices: Iterable[str] = ()) -> str | None:
        """A string, one of `choices` if there are any."""
        value = self.take(key)
        if value is None:
            return default
        text = checked_string(self.name(key), value)
        allowed = list(choices)
        if allowed and text not in allowed:
            raise invalid(self.name(key), f"expected {' or '.join(map(repr, allowed))}, found {shown(text)}")
        return text

    def needed_string(self, key: str, choices: Iterable[str] = ()) -> str:
        """A string that must be there."""
        text = self.string(key, None, choices)
        if text is None:
            raise invalid(self.name(key), "expected a string, found nothing", "missing_required_parameter")
        return text

    def integer(self, key: str, low: int, high: int | None = None, default: int | None = None) -> int | None:
        """An integer in [low, high]."""
        value = self.take(key)
        return default if value is None else checked_integer(self.name(key), value, low, high)

    def number(self, key: str, low: float, high: float, default: float, *, above: bool = False) -> float:
        """A number in [low, high], or in (low, high] where `above`."""
        value = self.take(key)
        return default if value is None else checked_number(self.name(key), value, low, high, above=above)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.take(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise invalid(self.name(key), f"expected true or false, found {shown(value)}", "invalid_type")
        return value

    def list(self, key: str) -> list[Any]:
        """A list, empty where there is none."""
        value = self.take(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise invalid(self.name(key), f"expected a list, found {shown(value)}", "invalid_type")
        return value

    def ignore(self, keys: Iterable[str]) -> None:
        """Fields that change no text."""
        for key in keys:
            self.take(key)

    def refuse(self, reasons: Mapping[str, str], neutral: Mapping[str, Any]) -> None:
        """Fields that would change the answer and are not served, unless they hold what they mean anyway."""
        for key, reason in reasons.items():
            value = self.take(key)
            if value is not None and (key not in neutral or value != neutral[key]):
                raise unsupported(self.name(key), reason)

    def finish(self) -> None:
        """Refuses what has not been read."""
        left = sorted(key for key, value in self._values.items() if value is not None)
        if left:
            known = ", ".join(sorted(self._known))
            raise invalid(self.name(left[0])[:80], f"unknown field; known are {known}", "unknown_parameter")


def checked_string(name: str, value: Any) -> str:
    """A string that UTF-8 can hold: JSON's escapes can also make halves of surrogate pairs."""
    if not isinstance(value, str):
        raise invalid(name, f"expected a string, found {shown(value)}", "invalid_type")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise invalid(name, "expected Unicode text, found half of a surrogate pair") from None
    return value


def checked_integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An integer in [low, high]; 3.0 is one too, as JSON does not tell them apart."""
    wanted = f"at least {low}" if high is None else f"from {low} to {high}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(name, f"expected an integer {wanted}, found {shown(value)}", "invalid_type")
    if value < low or (high is not None and value > high):
        raise invalid(name, f"expected an integer {wanted}, found {shown(value)}")
    return value


def checked_number(name: str, value: Any, low: float, high: float, *, above: bool = False) -> float:
    """A number in [low, high], or in (low, high] where `above`."""
    wanted = f"a number {'above' if above else 'from'} {low:g} {'up ' if above else ''}to {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise invalid(name, f"expected {wanted}, found {shown(value)}", "invalid_type")
    if not (low < value <= high if above else low <= value <= high) or math.isnan(value):
        raise invalid(name, f"expected {wanted}, found {shown(value)}")
    return float(value)
