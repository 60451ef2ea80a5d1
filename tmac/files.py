"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` to write to; what is there at the end of the block takes the place of `path`.

    It is on the disk by then. Where the block fails, `path` stays as it was; an OSError about the other name is told
    as one about `path`.

    Example:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Removes what processes that were killed inside of `replacing`, or of safetensors, left anywhere below a folder.

    No process may be writing there.
    """
    for path in folder.rglob(".*"):
        if path.name.endswith(".tmp") or path.name.startswith(".tmp"):
            with suppress(OSError):
                path.unlink()
