"""A folder that is there as a whole or not at all, whenever the process that writes it is killed."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

UNFINISHED, REPLACED = ".tmac-new", ".tmac-old"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A hidden folder beside `out` to write into, which becomes `out` when the block ends without an exception.

    Whoever writes into it brings every file to the disk. Nothing is left after an exception; what a kill leaves is
    removed by the next call for the same `out`. Where `out` is replaced, both names are exchanged in one step on Linux;
    elsewhere `out` is missing for a moment, and a kill at that moment is put right by the next call.

    Args:
        out: the folder to make; its parent exists.
        replace: take the place of an `out` that exists.

    Raises:
        OSError: `out` exists and `replace` is False, or the disk is full, ...
    """
    out = out.resolve()
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent}")
    clear_stale(out)
    if os.path.lexists(out) and not replace:
        raise FileExistsError(f"{out} exists already")
    unfinished = _Unfinished(out)
    try:
        folder = unfinished.create()
        yield folder
        sync_folder(folder)
        if os.path.lexists(out):
            _replace(folder, out)
        else:
            folder.rename(out)
        sync_folder(out.parent)
    finally:
        unfinished.remove()


def clear_stale(out: Path) -> None:
    """Removes what killed processes have left of `out`, and puts an `out` back that was on its way to be replaced."""
    for folder in _leftovers(out, REPLACED):
        if os.path.lexists(out):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rename(out)
    for folder in _leftovers(out, UNFINISHED):
        with suppress(OSError):
            lock = _lock(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                _unlock(lock)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk; systems that cannot open folders do so by themselves."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _leftovers(out: Path, ending: str) -> list[Path]:
    start = f".{out.name}."
    return [child for child in out.parent.iterdir() if child.name.startswith(start) and child.name.endswith(ending)]


class _Unfinished:
    """A new folder beside `out` and the lock that says that its owner lives."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder: Path | None = None
        self.lock: int | None = None

    def create(self) -> Path:
        while True:
            self.folder = self.out.parent / f".{self.out.name}.{secrets.token_hex(4)}{UNFINISHED}"
            self.folder.mkdir()
            try:
                self.lock = _lock(self.folder)
            except (BlockingIOError, FileNotFoundError):
                continue  # another process takes it for a leftover: it came between the two lines
            if self.folder.exists():
                return self.folder
            _unlock(self.lock)
            self.lock = None

    def remove(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        _unlock(self.lock)


def _lock(folder: Path) -> int | None:
    """A lock on a folder, which ends with the process; None where folders cannot be locked.

    Raises:
        BlockingIOError: another process holds it.
        FileNotFoundError: there is no such folder any more.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unlock(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _replace(folder: Path, out: Path) -> None:
    """`folder` becomes `out`; what was `out` is removed."""
    if _exchange(folder, out):
        return  # `folder` is the old one now, which our caller removes
    old = folder.with_suffix(REPLACED)
    out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        with suppress(OSError):
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two names in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    swapped: bool = rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0
    return swapped
