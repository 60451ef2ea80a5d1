"""The regular expressions in which configurations name modules, matched in bounded time.

A configuration comes with the file and may be hostile, and Python's `re` takes exponential time on some patterns. Here
a step of the pattern maps the set of places in the name that have been reached, one bit each, to the next such set.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

MAX_LENGTH = 4096
MAX_DEPTH = 32
MAX_STEPS = 100_000
WORD = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_"
CLASSES = {"d": "0123456789", "w": WORD, "s": " \t\n\r\f\v"}
SPECIAL = "|)*+?{"


class Name:
    """A name, the sets of places where a character stands, and the steps that have been taken on it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.steps = 0
        self.sets: dict[CharSet, int] = {}

    def where(self, chars: CharSet) -> int:
        """The places of these characters."""
        if chars not in self.sets:
            self.sets[chars] = sum(1 << at for at, char in enumerate(self.text) if chars.holds(char))
        return self.sets[chars]

    def count(self) -> None:
        """Another step. Raises ValueError where a pattern takes too many."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ValueError(f"a pattern takes more than {MAX_STEPS} steps on {self.text[:80]!r}")


class CharSet:
    """The characters in `inside`, or all others."""

    def __init__(self, inside: str, negated: bool = False) -> None:
        self.inside = frozenset(inside)
        self.negated = negated

    def holds(self, char: str) -> bool:
        """Whether the character is one of the set."""
        return (char in self.inside) != self.negated

    def __call__(self, name: Name, places: int) -> int:
        """One character is matched: the places behind it."""
        return (places & name.where(self)) << 1


Step = Callable[[Name, int], int]


class NamePattern:
    """A pattern of characters, `.`, classes, groups, `|`, `* + ? {m,n}`, `^ $` and lookaheads.

    Args:
        text: the pattern.

    Raises:
        ValueError: it is no such pattern.
    """

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise ValueError(f"a pattern of more than {MAX_LENGTH} characters")
        self.text = text
        self._at = 0
        self._depth = 0
        self._match = self._alternatives()
        if self._at < len(text):
            raise ValueError(f"unexpected {text[self._at]!r} at {self._at} in {text!r}")

    def starts(self, name: str) -> bool:
        """Whether the name begins with a match, as `re.match` has it."""
        return self._matches(name, 1)

    def found_in(self, name: str) -> bool:
        """Whether there is a match anywhere in the name, as `re.search` has it."""
        return self._matches(name, (2 << len(name)) - 1)

    def _matches(self, text: str, places: int) -> bool:
        name = _name(text)
        name.steps = 0
        return bool(self._match(name, places))

    def _next(self, text: str) -> bool:
        """Whether `text` comes next; it is then passed."""
        found = self.text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found

    def _take(self) -> str:
        if self._at >= len(self.text):
            raise ValueError(f"{self.text!r} ends too early")
        self._at += 1
        return self.text[self._at - 1]

    def _alternatives(self) -> Step:
        choices = [self._sequence()]
        while self._next("|"):
            choices.append(self._sequence())
        return choices[0] if len(choices) == 1 else _any_of(choices)

    def _sequence(self) -> Step:
        steps: list[Step] = []
        while self._at < len(self.text) and self.text[self._at] not in "|)":
            steps.append(self._repeated(self._atom()))
        return _in_turn(steps)

    def _atom(self) -> Step:
        char = self._take()
        if char == "(":
            return self._group()
        if char == "[":
            return self._class()
        if char == ".":
            return CharSet("\n", negated=True)
        if char == "^":
            return lambda name, places: places & 1
        if char == "$":
            return lambda name, places: places & (1 << len(name.text))
        if char == "\\":
            return self._escape()
        if char in SPECIAL:
            raise ValueError(f"unexpected {char!r} at {self._at - 1} in {self.text!r}")
        return CharSet(char)

    def _escape(self) -> CharSet:
        char = self._take()
        if char.lower() in CLASSES:
            return CharSet(CLASSES[char.lower()], negated=char.isupper())
        if char.isalnum():
            raise ValueError(f"\\{char} is not known in {self.text!r}")
        return CharSet(char)

    def _group(self) -> Step:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"groups within more than {MAX_DEPTH} groups")
        ahead = next((kind for kind in ("?=", "?!") if self._next(kind)), "")
        if not ahead and not self._next("?:") and self._next("?"):
            raise ValueError(f"unknown kind of group at {self._at - 1} in {self.text!r}")
        inner = self._alternatives()
        if self._take() != ")":
            raise ValueError(f"expected ) at {self._at - 1} in {self.text!r}")
        self._depth -= 1
        return _ahead(inner, ahead == "?=") if ahead else inner

    def _class(self) -> CharSet:
        negated = self._next("^")
        chars = self._class_item()  # a ] in the first place stands for itself
        while not self._next("]"):
            chars += self._class_item()
        return CharSet(chars, negated)

    def _class_item(self) -> str:
        first = self._class_member()
        if self.text[self._at : self._at + 1] != "-" or self.text[self._at + 1 : self._at + 2] in ("]", ""):
            return first
        self._at += 1
        last = self._class_member()
        if len(first) != 1 or len(last) != 1 or not first <= last <= "\x7f":
            raise ValueError(f"expected a range before {self._at} in {self.text!r}")
        return "".join(map(chr, range(ord(first), ord(last) + 1)))

    def _class_member(self) -> str:
        char = self._take()
        if char != "\\":
            return char
        chars = self._escape()
        if chars.negated:
            raise ValueError(f"a negated class within a class in {self.text!r}")
        return "".join(chars.inside)

    def _repeated(self, step: Step) -> Step:
        least, most = self._counts()
        if (least, most) == (1, 1):
            return step
        self._next("?")  # lazy or not, the same names match
        if self._at < len(self.text) and self.text[self._at] in "*+?{":
            raise ValueError(f"nothing to repeat at {self._at} in {self.text!r}")
        return _repeat(step, least, most)

    def _counts(self) -> tuple[int, int | None]:
        for sign, counts in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._next(sign):
                return counts
        if not self._next("{"):
            return 1, 1
        end = self.text.find("}", self._at)
        numbers = self.text[self._at : end].split(",") if end > 0 else []
        if (
            len(numbers) not in (1, 2)
            or not all(not number or number.isdecimal() for number in numbers)
            or numbers == [""]
        ):
            raise ValueError(f"expected a count at {self._at} in {self.text!r}")
        self._at = end + 1
        least = min(int(numbers[0] or 0), MAX_STEPS)
        return least, (int(numbers[-1]) if numbers[-1] else None)


@lru_cache(maxsize=1)
def _name(text: str) -> Name:
    return Name(text)


def _in_turn(steps: list[Step]) -> Step:
    def run(name: Name, places: int) -> int:
        for step in steps:
            if not places:
                return 0
            name.count()
            places = step(name, places)
        return places

    return run


def _any_of(choices: list[Step]) -> Step:
    def run(name: Name, places: int) -> int:
        reached = 0
        for choice in choices:
            reached |= choice(name, places)
        return reached

    return run


def _ahead(step: Step, wanted: bool) -> Step:
    def run(name: Name, places: int) -> int:
        kept = 0
        for at in range(places.bit_length()):
            name.count()
            if places >> at & 1 and bool(step(name, 1 << at)) == wanted:
                kept |= 1 << at
        return kept

    return run


def _repeat(step: Step, least: int, most: int | None) -> Step:
    def run(name: Name, places: int) -> int:
        for _ in range(least):
            reached = step(name, places)
            name.count()
            if reached == places or not reached:
                places = reached
                break
            places = reached
        if isinstance(step, CharSet) and most is None:
            # A run of such characters behind a place: the sum carries through it.
            where = name.where(step)
            return places | ((places & where) + where) ^ where
        reached, turns = places, least
        while places and (most is None or turns < most):
            name.count()
            places = step(name, places) & ~reached
            reached |= places
            turns += 1
        return reached

    return run
