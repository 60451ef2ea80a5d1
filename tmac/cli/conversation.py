"""The messages of a conversation, in memory and in a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmac.cli.errors import CommandError

Message = dict[str, str]
MAX_FILE_BYTES = 64 << 20


@dataclass
class Conversation:
    """What was said.

    Args:
        system: what the model is told first, or None.
        turns: questions and their answers.
    """

    system: str | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)

    def with_user(self, message: str) -> list[Message]:
        """The messages that a chat template takes, the new one last."""
        return [*self.messages(), {"role": "user", "content": message}]

    def messages(self) -> list[Message]:
        """The messages so far."""
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        for question, answer in self.turns:
            found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return found

    def add(self, question: str, answer: str) -> None:
        """A turn that was had."""
        self.turns.append((question, answer))

    def reset(self) -> None:
        """Forgets all turns."""
        self.turns.clear()

    def undo(self) -> None:
        """Forgets the last turn. Raises CommandError where there is none."""
        if not self.turns:
            raise CommandError("/undo: there is nothing to forget")
        self.turns.pop()

    def save(self, path: Path) -> None:
        """Writes the messages as JSON. Raises CommandError where the file cannot be written."""
        text = json.dumps({"messages": self.messages()}, indent=1, ensure_ascii=False)
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """The inverse of `save`. Raises CommandError, which names the file, for anything else."""
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise CommandError(f"{path}: expected a conversation, found {path.stat().st_size} bytes")
            messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CommandError(f"{path}: expected a conversation that /save wrote") from error
        return cls._of(messages, path)

    @classmethod
    def _of(cls, messages: Any, path: Path) -> Conversation:
        expected = CommandError(f"{path}: expected a system message, then questions and answers in turn")
        if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
            raise expected
        roles = [each.get("role") for each in messages]
        texts = [each.get("content") for each in messages]
        system = roles[:1] == ["system"]
        if roles[system:] != ["user", "assistant"] * (len(roles[system:]) // 2):
            raise expected
        if not all(isinstance(text, str) for text in texts):
            raise expected
        turns = texts[system:]
        return cls(texts[0] if system else None, list(zip(turns[::2], turns[1::2], strict=True)))
