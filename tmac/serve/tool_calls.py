"""Calls of tools in a model's text: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

Hermes and Qwen write them so. Texts of models with other formats are left as they are.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

BEGIN, END = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class ToolCall:
    """A call: the function's name and its arguments as JSON."""

    name: str
    arguments: str

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI writes it, with an id of its own."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def knows_format(template: str | None) -> bool:
    """Whether a chat template tells the model to write calls in this format."""
    return template is not None and BEGIN in template and END in template


class ToolCallParser:
    """Takes a text in pieces and gives out texts and calls as soon as they are certain.

    What stands between the marks and is no call stays text, marks and all. Blanks around calls are nothing.
    """

    def __init__(self) -> None:
        self._held = ""
        self._after_call = self._called = False

    def feed(self, piece: str) -> list[str | ToolCall]:
        """What the next piece makes certain."""
        self._held += piece
        found: list[str | ToolCall] = []
        while True:
            if self._after_call:
                self._held = self._held.lstrip()
            begin = self._held.find(BEGIN)
            end = self._held.find(END, begin) if begin >= 0 else -1
            if end < 0:
                certain = begin if begin >= 0 else len(self._held) - _overlap(self._held, BEGIN)
                self._give(found, len(self._held[:certain].rstrip()))
                return found
            call = _parse(self._held[begin + len(BEGIN) : end])
            if call is None:
                self._give(found, end + len(END))
                continue
            rest = self._held[end + len(END) :]
            self._give(found, len(self._held[:begin].rstrip()))
            self._held, self._after_call, self._called = rest, True, True
            found.append(call)

    def finish(self) -> list[str | ToolCall]:
        """What is left: a call that was cut off is text."""
        left, self._held = self._held, ""
        return [left] if left.strip() or (left and not self._called) else []

    def _give(self, found: list[str | ToolCall], length: int) -> None:
        text, self._held = self._held[:length], self._held[length:]
        if text:
            found.append(text)
            self._after_call = False


def _parse(text: str) -> ToolCall | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _overlap(text: str, mark: str) -> int:
    """How many of the last characters `mark` may begin with."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
