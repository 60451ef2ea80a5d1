"""Opens files that may be something else: a pipe that nobody writes to would be waited for."""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

from tmac.formats.errors import format_error


def open_regular(path: Path) -> BufferedReader:
    """A regular file, opened for reading.

    Raises:
        FormatError: it is a folder, a pipe, a device, ...
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise format_error(path, "expected a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
