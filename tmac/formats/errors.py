"""How a reader says what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

from tmac.codes import FormatError

LONGEST_NAME, LONGEST_MESSAGE = 300, 600


def format_error(path: str | Path, message: str, name: str | None = None) -> FormatError:
    """A `FormatError` that names the file and, where there is one, the tensor or metadata key.

    Names and values out of the file are shortened: they may be as long as the file.
    """
    where = f"{path}: {_shortened(name, LONGEST_NAME)}" if name else str(path)
    return FormatError(f"{where}: {_shortened(message, LONGEST_MESSAGE)}")


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
