"""Memory and disk of a process within limits: control groups of Linux, both versions, or what there is without them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

GROUPS, PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
ENTER = 'for file in $TMAC_GROUPS; do echo $$ > "$file" || exit 97; done; unset TMAC_GROUPS; exec "$@"'
ROOM = 256 << 20  # of address space that a process may map without ever touching it
DATA = 'ulimit -d "$TMAC_DATA" || exit 97; unset TMAC_DATA; exec "$@"'


@dataclass(frozen=True)
class Limits:
    """What this machine allows.

    Args:
        memory: the folder in which a group with a limit of memory can be made; None: there is none.
        disk: the same for the rate of a disk.
        unified: version 2, where both are one folder.
    """

    memory: Path | None
    disk: Path | None
    unified: bool

    def __str__(self) -> str:
        version = "v2" if self.unified else "v1"
        memory = f"cgroup {version}" if self.memory else "RLIMIT_DATA"
        disk = f"block layer (cgroup {version})" if self.disk else "the reader's own throttle"
        return f"memory: {memory}; disk: {disk}"


def find_limits(groups: Path = GROUPS, process: Path = PROCESS) -> Limits:
    """Below this process's own groups, so that what holds for it goes on holding; of version 2 beside them.

    Args:
        groups: where the groups are mounted.
        process: which groups this process is in.
    """
    own = dict(_own(process))
    if "" in own and (groups / "cgroup.controllers").exists():
        inside = groups / own[""].lstrip("/")
        # A group of version 2 with processes has no groups with limits below it: those are its neighbours.
        for parent in (inside, *inside.parents):
            controllers = _read(parent / "cgroup.subtree_control").split()
            if "memory" in controllers and os.access(parent, os.W_OK):
                return Limits(parent, parent if "io" in controllers else None, unified=True)
            if parent == groups:
                break
    found = {name: _below(groups / name, own.get(name, "/"), needed) for name, needed in CONTROLLERS.items()}
    return Limits(found["memory"], found["blkio"], unified=False)


CONTROLLERS = {"memory": "memory.limit_in_bytes", "blkio": "blkio.throttle.read_bps_device"}


def _own(process: Path) -> list[tuple[str, str]]:
    """(controller, group) of this process; the controller of version 2 is empty."""
    found = []
    for line in _read(process).splitlines():
        _, names, path = line.split(":", 2)
        found += [(name, path) for name in names.split(",")]
    return found


def _below(controller: Path, path: str, needed: str) -> Path | None:
    for folder in (controller / path.lstrip("/"), controller):
        if os.access(folder, os.W_OK) and (controller / "cgroup.procs").exists():
            return folder if (folder / needed).exists() or folder == controller else None
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


@dataclass
class Group:
    """Limits of one process and of what it starts. As a context manager it is gone at the end.

    Args:
        limits: of this machine.
        name: of the group.
        memory: bytes; 0: no limit.
    """

    limits: Limits
    name: str
    memory: int = 0
    folders: list[Path] = field(default_factory=list)

    def __enter__(self) -> Group:
        parents = dict.fromkeys(each for each in (self.limits.memory, self.limits.disk) if each is not None)
        for parent in parents:
            folder = parent / self.name
            folder.mkdir(exist_ok=True)
            self.folders.append(folder)
        if self.memory and self.limits.memory is not None:
            self._limit_memory(self.limits.memory / self.name)
        return self

    def __exit__(self, *_: object) -> None:
        for folder in self.folders:
            with suppress(OSError):
                folder.rmdir()
        self.folders.clear()

    def _limit_memory(self, folder: Path) -> None:
        names = ("memory.max", "memory.swap.max") if self.limits.unified else V1_MEMORY
        (folder / names[0]).write_text(str(self.memory), encoding="ascii")
        with suppress(OSError):  # a system that does not count swap has no such file
            (folder / names[1]).write_text("0" if self.limits.unified else str(self.memory), encoding="ascii")

    def slow_down(self, path: Path, bytes_per_second: int) -> bool:
        """Reads of the disk that holds `path` are no faster from now on; 0: as fast as it goes.

        Returns:
            Whether the block layer does so; where it does not, the reader has to do it itself.
        """
        device = disk_of(path) if self.limits.disk is not None else None
        if self.limits.disk is None or device is None:
            return False
        folder = self.limits.disk / self.name
        try:
            if self.limits.unified:
                (folder / "io.max").write_text(f"{device} rbps={bytes_per_second or 'max'}", encoding="ascii")
            else:
                file = folder / "blkio.throttle.read_bps_device"
                file.write_text(f"{device} {bytes_per_second}", encoding="ascii")
        except OSError:
            return False
        return True

    def peak(self) -> int | None:
        """The most memory that was counted, page cache included; None without a group."""
        if self.limits.memory is None:
            return None
        name = "memory.peak" if self.limits.unified else "memory.max_usage_in_bytes"
        text = _read(self.limits.memory / self.name / name).strip()
        return int(text) if text.isdigit() else None

    def command(self, words: Sequence[str]) -> list[str]:
        """What starts a program within the limits, with `environment`."""
        if self.folders:
            return ["sh", "-c", ENTER, "sh", *words]
        if self.memory and sys.platform != "win32":
            return ["sh", "-c", DATA, "sh", *words]
        return list(words)

    def environment(self) -> Mapping[str, str]:
        """What `command` needs beside the usual variables."""
        if self.folders:
            return {"TMAC_GROUPS": " ".join(str(folder / "cgroup.procs") for folder in self.folders)}
        return {"TMAC_DATA": str((self.memory + ROOM) >> 10)} if self.memory else {}


V1_MEMORY = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")


def disk_of(path: Path, devices: Path = Path("/sys/dev/block")) -> str | None:
    """ "major:minor" of the whole disk that a file is on; None where there is none that can be named."""
    number = path.stat().st_dev
    place = devices / f"{os.major(number)}:{os.minor(number)}"
    if not place.exists():
        return None
    place = place.resolve()
    if (place / "partition").exists():
        place = place.parent
    text = _read(place / "dev").strip()
    return text if re.fullmatch(r"\d+:\d+", text) else None


def drop_cache(path: Path) -> None:
    """Takes a file's pages out of the page cache."""
    if not hasattr(os, "posix_fadvise"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # what has not been written yet stays
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
