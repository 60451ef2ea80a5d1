"""The JSON file of a run: what it was measured on and with which command, then one line per row."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

DIGITS = 8  # of a float: more than any measured figure has


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def command(module: str, arguments: list[str] | None) -> list[str]:
    """The command as it was given, without the folders of the machine."""
    words = sys.argv[1:] if arguments is None else arguments
    return ["python", "-m", module, *(Path(word).name if Path(word).is_absolute() else word for word in words)]


def report_text(head: dict[str, Any], rows: Iterable[Any]) -> str:
    lines = ",\n".join("  " + json.dumps(rounded(asdict(row))) for row in rows)
    return f'{json.dumps(rounded(head), indent=1)[:-2]},\n "rows": [\n{lines}\n ]\n}}\n'
