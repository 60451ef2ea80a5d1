"""JSON from files that may be hostile."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from tmac.formats.errors import format_error
from tmac.formats.regular_file import open_regular

MAX_BYTES = 64 << 20
MAX_BYTES_OF_WIDE_TEXT = 4 << 20  # Python takes four bytes for every character of a text with one rare one
MAX_ITEMS = 400_000  # Python makes some hundred bytes of every comma and bracket
MAX_DEPTH = 64


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        FormatError: it is no JSON object, too large, nested too deeply, or has a key twice.
        OSError: it cannot be opened.
    """
    with open_regular(path) as file:
        raw = file.read(min(os.fstat(file.fileno()).st_size, MAX_BYTES) + 1)
    return parse_json(raw, path)


def parse_json(raw: bytes, path: Path) -> dict[str, Any]:
    """The object that `raw`, bytes of `path`, is. Raises FormatError like `read_json`."""
    wide = not raw.isascii() or b"\\u" in raw
    limit = MAX_BYTES_OF_WIDE_TEXT if wide else MAX_BYTES
    if len(raw) > limit:
        kind = " with letters beyond ASCII" if wide else ""
        raise format_error(path, f"expected at most {limit >> 20} MiB of JSON{kind}")
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > MAX_ITEMS:
        raise format_error(path, f"expected JSON of at most {MAX_ITEMS} values")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise format_error(path, "expected this key once, found it twice", twice)
        return values

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        raise format_error(path, f"expected UTF-8 text ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise format_error(path, f"expected JSON ({error.msg} at byte {error.pos})") from error
    except (RecursionError, ValueError) as error:
        if type(error) not in (RecursionError, ValueError):
            raise
        raise format_error(path, f"expected JSON ({error})") from error
    if not isinstance(value, dict):
        raise format_error(path, "expected a JSON object")
    _check_depth(value, path)
    if b"\\ud" in raw.lower():
        _check_text(value, path)
    return value


def _check_depth(value: Any, path: Path) -> None:
    """What is nested deeply can be read, and then not printed, copied or written."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise format_error(path, f"expected JSON of at most {MAX_DEPTH} levels")


def _check_text(value: Any, path: Path) -> None:
    """Half of a pair of surrogates is no text: it cannot be printed or written."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise format_error(path, f"expected text, found the half of a surrogate pair ({error.reason})") from error
