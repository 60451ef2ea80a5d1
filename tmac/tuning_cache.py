"""The file of tuned choices, one per CPU, thread count and version, in the user's cache folder.

Nothing that stands in it, and nothing that keeps it from being read or written, raises: it is then as if nobody had
tuned, and one warning says so.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tmac import _core
from tmac.files import replacing

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FORMAT = 1
LARGEST_BYTES = 1 << 24
POLL_SECONDS = 0.05


def cache_folder() -> Path:
    """Where this user's files that can be fetched or made again are kept: `TMAC_CACHE_DIR`, or the system's place."""
    override = os.environ.get("TMAC_CACHE_DIR")
    if override:
        return Path(override)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tmac"


@dataclass(frozen=True)
class PairTimes:
    """What one choice of kernels takes: tokens -> seconds of a call."""

    decode: str
    prompt: str
    seconds: Mapping[int, float]


@dataclass(frozen=True)
class Choice:
    """The kernels for a shape, and the times from which they were chosen."""

    decode: str
    prompt: str
    times: tuple[PairTimes, ...] = ()

    @property
    def names(self) -> str:
        """Both names with a comma between, as `Codes.pack` takes them."""
        return f"{self.decode},{self.prompt}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Choice:
        """The inverse of `to_dict`, also after JSON has made text of the numbers of tokens.

        Raises:
            ValueError: the values are of other types.
        """
        times = tuple(
            PairTimes(_text(row, "decode"), _text(row, "prompt"), _seconds(_item(row, "seconds", dict)))
            for row in _item(values, "times", list)
        )
        return cls(_text(values, "decode"), _text(values, "prompt"), times)


def _item(values: Any, name: str, kind: type) -> Any:
    if not isinstance(values, dict) or not isinstance(values.get(name), kind):
        raise ValueError(f"an entry has no {kind.__name__} {name!r}")
    return values[name]


def _text(values: Any, name: str) -> str:
    return str(_item(values, name, str))


def _seconds(values: Mapping[str, Any]) -> dict[int, float]:
    if not all(isinstance(value, float) and math.isfinite(value) and value > 0 for value in values.values()):
        raise ValueError("an entry has a time that is not a positive number")
    return {int(tokens): value for tokens, value in values.items()}


@dataclass(frozen=True)
class Machine:
    """What a measured time depends on besides the weight."""

    cpu: str
    features: tuple[str, ...]
    threads: int
    version: str

    @classmethod
    def here(cls, threads: int) -> Machine:
        """This CPU, with the features that TMAC_CPU_FEATURES leaves, and this version of tmac."""
        present = tuple(name for name, has in _core.cpu_features().items() if has)
        return cls(_core.cpu_model(), present, threads, _core.__version__)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "features": list(self.features)}


class TuningCache:
    """The tuned choices of one machine, by the key of `tmac.tuner.shape_key`."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        self.machine = machine
        digest = hashlib.sha256(json.dumps(machine.to_dict()).encode()).hexdigest()[:16]
        self.path = folder / f"tuning-{digest}.json"
        self._choices: dict[str, Choice] | None = None
        self._unwritten: dict[str, Choice] = {}
        self._warned = False

    def get(self, key: str) -> Choice | None:
        """The choice for a shape; the file is read at the first call."""
        choices = self._choices  # once: another thread may reload
        if choices is None:
            self._choices = choices = {**self._read(), **self._unwritten}
        return choices.get(key)

    def reload(self) -> None:
        """Forgets what was read: another process may have tuned since."""
        self._choices = None

    def put(self, key: str, choice: Choice) -> None:
        """Adds a choice to those in the file, or to what this process knows. To be called under `lock`."""
        choices = {**self._read(), **self._unwritten, key: choice}
        entries = {name: each.to_dict() for name, each in sorted(choices.items())}
        content = json.dumps({"format": FORMAT, "machine": self.machine.to_dict(), "entries": entries}, indent=1)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                temporary.write_bytes(content.encode())
            self._unwritten = {}
        except OSError as error:
            self._unwritten = {**self._unwritten, key: choice}
            self._warn(f"cannot be written ({error.strerror})")
        self._choices = choices

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time; without a lock where the folder does not allow one."""
        descriptor = self._open_lock()
        if descriptor is None:
            yield
            return
        try:
            while not _try_lock(descriptor):
                time.sleep(POLL_SECONDS)
            yield
        finally:
            _unlock(descriptor)  # a child that was forked meanwhile still has it open
            os.close(descriptor)

    def _open_lock(self) -> int | None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            self._warn(f"cannot be written ({error.strerror})")
            return None

    def _read(self) -> dict[str, Choice]:
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise ValueError("is not a file")
            with self.path.open("rb") as file:
                content = file.read(LARGEST_BYTES + 1)
            return self._parse(content)
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._warn(f"cannot be read ({error.strerror})")
        except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
            self._warn(f"is damaged ({error})")
        return {}

    def _parse(self, content: bytes) -> dict[str, Choice]:
        if len(content) > LARGEST_BYTES:
            raise ValueError(f"is larger than {LARGEST_BYTES} bytes")
        values = json.loads(content)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"is not of format {FORMAT}")
        if values.get("machine") != self.machine.to_dict():
            raise ValueError("is of another machine")
        return {key: Choice.from_dict(value) for key, value in _item(values, "entries", dict).items()}

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(f"the tuning cache {self.path} {reason}: it is ignored", RuntimeWarning, stacklevel=2)


if sys.platform == "win32":

    def _try_lock(descriptor: int) -> bool:
        """Whether there is nothing to wait for: the lock is ours, or this file system has none."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            return error.errno not in (errno.EACCES, errno.EDEADLK)
        return True

    def _unlock(descriptor: int) -> None:
        with suppress(OSError):
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:

    def _try_lock(descriptor: int) -> bool:
        """Whether there is nothing to wait for: the lock is ours, or this file system has none."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def _unlock(descriptor: int) -> None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
