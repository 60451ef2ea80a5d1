"""Files of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("PATH, line N", object) of every line that is not empty.

    Raises:
        ValueError: a line is no JSON object, which the message names, or no UTF-8; or there is no line.
        OSError: the file cannot be read.
    """
    found = False
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            place = f"{path}, line {number}"
            if not raw.strip():
                continue
            found = True
            try:
                value = json.loads(raw)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"[jsonl] {place}: expected a JSON object ({error})") from error
            if not isinstance(value, dict):
                raise ValueError(f"[jsonl] {place}: expected a JSON object, found {type(value).__name__}")
            yield place, value
    if not found:
        raise ValueError(f"[jsonl] {path}: expected a JSON object a line, found none")


def text_field(place: str, value: dict[str, Any], name: str) -> str:
    """A field that holds a text. Raises ValueError that names the line and the field."""
    if not isinstance(value.get(name), str):
        found = type(value[name]).__name__ if name in value else f"only {', '.join(map(repr, value)) or 'nothing'}"
        raise ValueError(f"[jsonl] {place}: expected a text in {name!r}, found {found}")
    text: str = value[name]
    return text
