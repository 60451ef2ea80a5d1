"""JSON from files that may be hostile."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

from tmac.formats.errors import format_error

MAX_BYTES = 64 << 20
MAX_ITEMS = 1 << 20  # Python makes some fifty bytes of every comma


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        FormatError: it is no JSON object, too large, or has a key twice.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_BYTES:
            raise format_error(path, f"expected a regular file of at most {MAX_BYTES >> 20} MiB")
        return parse_json(file.read(MAX_BYTES + 1), path)


def parse_json(raw: bytes, path: Path) -> dict[str, Any]:
    """The object that `raw`, bytes of `path`, is. Raises FormatError like `read_json`."""
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
    return value
