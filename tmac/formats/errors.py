"""What goes wrong with a checkpoint file."""

from __future__ import annotations

from pathlib import Path


class FormatError(ValueError):
    """A checkpoint is damaged, foreign, or uses something that is not supported.

    Args:
        path: the file.
        message: what was found, and what was expected.
        tensor: the tensor or the metadata key that is wrong, where there is one.
    """

    def __init__(self, path: str | Path, message: str, tensor: str | None = None) -> None:
        self.path, self.tensor, self.message = Path(path), tensor, message
        super().__init__(str(path), message, tensor)

    def __str__(self) -> str:
        where = f"{self.path}: {self.tensor}" if self.tensor else str(self.path)
        return f"{where}: {self.message}"
