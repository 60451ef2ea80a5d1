"""What a search has measured, one JSON object a line, so that it can go on where it was interrupted.

The first line says what the measurements depend on. A search that starts again repeats its decisions, which follow
from the measurements alone, and takes these from the log as far as they are there. Decisions that follow from the
clock are in the log themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERSION = 1


class TrialLog:
    """An open log. As a context manager it is closed at the end.

    Args:
        path: of the file; its folder is made.
        subject: what the measurements depend on, plain JSON values: model, texts, options.
        fresh: begin anew.

    Raises:
        ValueError: the log is of another subject; the message names what differs.
        OSError: the file cannot be written, or another search is using it.
    """

    def __init__(self, path: Path, subject: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            _lock(self._file, path)
            if fresh:
                self._file.truncate(0)
            self.entries = self._read()
            header = {"kind": "subject", "version": VERSION, "subject": json.loads(json.dumps(dict(subject)))}
            if not self.entries:
                self._append(header)
            self._check(self.entries[0], header)
        except BaseException:
            self._file.close()
            raise

    def find(self, kind: str, key: str) -> dict[str, Any] | None:
        """The entry of a kind with a key, or None."""
        found = [entry for entry in self.entries if entry["kind"] == kind and entry.get("key") == key]
        return found[0] if found else None

    def all(self, kind: str) -> list[dict[str, Any]]:
        """The entries of a kind, in the order in which they came."""
        return [entry for entry in self.entries if entry["kind"] == kind]

    def add(self, kind: str, key: str, **values: Any) -> dict[str, Any]:
        """Appends an entry; it is on the disk when this returns.

        Raises:
            OSError: the disk is full. What was there before stays readable.
        """
        return self._append({"kind": kind, "key": key, **values})

    @property
    def seconds(self) -> float:
        """What all searches with this log have taken so far, as far as their entries say."""
        return max((float(entry.get("elapsed", 0.0)) for entry in self.entries), default=0.0)

    def close(self) -> None:
        """Lets another search use the log."""
        self._file.close()

    def __enter__(self) -> TrialLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            self._cut(end)
            raise
        self.entries.append(json.loads(line))
        return self.entries[-1]

    def _cut(self, end: int) -> None:
        """Takes back what a failed write has left in the buffer and in the file."""
        descriptor = os.dup(self._file.fileno())
        with contextlib.suppress(OSError):  # the rest of the buffer does not fit either
            self._file.close()
        os.ftruncate(descriptor, end)
        self._file = os.fdopen(descriptor, "a+b")

    def _read(self) -> list[dict[str, Any]]:
        """The complete lines; an incomplete last one, from a kill while it was written, is removed."""
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        entries = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                if not isinstance(entry["kind"], str):
                    raise TypeError
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"[TrialLog] {self.path}: line {number} is damaged; --fresh begins anew") from None
            entries.append(entry)
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        return entries

    def _check(self, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        if found.get("version") != VERSION or not isinstance(found.get("subject"), dict):
            raise ValueError(f"[TrialLog] {self.path}: expected a log of version {VERSION}; --fresh begins anew")
        old, new = found["subject"], expected["subject"]
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if changed:
            about = ", ".join(f"{key} (was {_short(old.get(key))}, is {_short(new.get(key))})" for key in changed)
            raise ValueError(
                f"[TrialLog] {self.path} belongs to another search; changed: {about}. Take it up with what it was "
                "begun with, name another folder, or discard it with --fresh"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lock(file: Any, path: Path) -> None:
    """Raises BlockingIOError where another process holds the lock, which ends with the process."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"[TrialLog] {path} is in use by another search") from None
