"""Strings that end a text, wherever they are cut into pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes a text on as far as it cannot be part of a stop string.

    The text ends before the stop string that is complete first; of two that are complete at the same character, before
    the longer one. So it does not matter how the text is cut into pieces.

    Args:
        stops: strings that are not empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.found: str | None = None
        self._held = ""

    def feed(self, text: str) -> str:
        """The part of the text so far that can be shown and has not been. Once one is found, nothing more comes."""
        if self.found is not None:
            return ""
        if not self.stops:
            return text
        text = self._held + text
        matches = [(at + len(stop), at, stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if matches:
            _, at, self.found = min(matches)
            self._held = ""
            return text[:at]
        held = max(_overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back: there is no more text that could complete it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How long the longest end of `text` is that `stop` begins with, but for `stop` itself."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
