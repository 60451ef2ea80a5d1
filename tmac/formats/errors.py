"""How a reader says what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

from tmac.codes import FormatError


def format_error(path: str | Path, message: str, name: str | None = None) -> FormatError:
    """A `FormatError` that names the file and, where there is one, the tensor or metadata key."""
    where = f"{path}: {name}" if name else str(path)
    return FormatError(f"{where}: {message}")
