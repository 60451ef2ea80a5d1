"""The tensors of a GGUF file, or of all files of a model that was split (`name-00001-of-00003.gguf`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tmac.formats.errors import format_error
from tmac.formats.gguf import GgufFile
from tmac.formats.gguf_header import TensorInfo

SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
MAX_SHARDS = 1000


@dataclass(frozen=True)
class Tensors:
    """Tensors by name, with the file that each lies in."""

    path: Path
    entries: dict[str, tuple[GgufFile, TensorInfo]]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def find(self, name: str) -> tuple[GgufFile, TensorInfo]:
        """The file and place of a tensor; raises FormatError where there is none of that name."""
        if name not in self.entries:
            raise format_error(self.path, f"expected this tensor, but it is not one of the {len(self.entries)}", name)
        return self.entries[name]


def open_tensors(file: GgufFile) -> tuple[GgufFile, Tensors]:
    """The file with the metadata, and all tensors of the model that `file` belongs to.

    Raises:
        FormatError: a shard is missing, damaged, or of another model.
    """
    count = file.get("split.count", int, 1)
    files = [file] if count == 1 else _shards(file, count)
    entries: dict[str, tuple[GgufFile, TensorInfo]] = {}
    for shard in files:
        for name, info in shard.tensors.items():
            if name in entries:
                raise format_error(
                    shard.path, f"expected one tensor of this name, but {entries[name][0].path} has it", name
                )
            entries[name] = shard, info
    expected = files[0].get("split.tensors.count", int, len(entries))
    if expected != len(entries):
        message = f"expected {expected} tensors in {len(files)} files, found {len(entries)}"
        raise format_error(file.path, message, "split.tensors.count")
    return files[0], Tensors(file.path, entries)


def _shards(file: GgufFile, count: int) -> list[GgufFile]:
    match = SHARD.fullmatch(file.path.name)
    if match is None or int(match["count"]) != count or not 0 < count <= MAX_SHARDS:
        message = f"expected a name like model-00001-of-{count:05}.gguf, because the model has {count} files"
        raise format_error(file.path, message, "split.count")
    shards = []
    for number in range(count):
        path = file.path.with_name(f"{match['stem']}-{number + 1:05}-of-{count:05}.gguf")
        if not path.exists():
            raise format_error(file.path, f"expected {path.name} beside it, because the model has {count} files")
        shard = file if path == file.path else GgufFile(path)
        if shard.get("split.no", int) != number or shard.get("split.count", int) != count:
            raise format_error(path, f"expected the number {number} of {count}", "split.no")
        shards.append(shard)
    return shards
