"""Writes safetensors files (https://github.com/huggingface/safetensors#format) tensor by tensor.

The safetensors package writes a whole file from memory. Here the data is appended as it comes and the header, for which
room was left, is filled in at the end. The format allows no gaps, so a tensor whose size is no multiple of 8 bytes has
to wait until the others are written: in order of falling powers of two, every one is aligned to its own element.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import numpy as np

from tmac.formats.checkpoint import Array
from tmac.formats.safetensors_file import INDEX_NAME

FILE_NAME = "model.safetensors"
ALIGNMENT = 8
PAGE = 4096
COPY_BYTES = 8 << 20
SPOOL_BYTES = 1 << 20  # of waiting tensors in memory, the rest on disk
METADATA = {"format": "pt"}  # transformers refuses a file without it
ENTRY_BYTES = len(json.dumps({"dtype": "F8_E4M3FNUZ", "shape": [], "data_offsets": [2**63, 2**63]})) + 8
DIGITS = len(str(2**63)) + 2


@dataclass(frozen=True)
class OutTensor:
    """A tensor to be written.

    Args:
        name: its name in the file.
        dtype: the name that safetensors uses; bf16 and one-byte floats are arrays of their bits.
        array: its values, in memory order.
    """

    name: str
    dtype: str
    array: Array


def header_bytes(names_and_dimensions: Iterable[tuple[str, int]]) -> int:
    """What the header of a file with tensors of these names and numbers of dimensions takes at most."""
    return len(json.dumps({"__metadata__": METADATA})) + sum(
        len(json.dumps(name)) + ENTRY_BYTES + dimensions * DIGITS for name, dimensions in names_and_dimensions
    )


class SafetensorsWriter:
    """Writes `model.safetensors` into a folder, or shards and their index where it would become too large.

    Args:
        folder: an existing folder.
        header_room: bytes kept for the header of every file, see `header_bytes`.
        max_shard_bytes: tensors in a file, unless a single call of `add` brings more.

    Raises:
        OSError: from every method, where the disk is full for instance.
    """

    def __init__(self, folder: Path, header_room: int, max_shard_bytes: int) -> None:
        self.folder, self.header_room, self.max_shard_bytes = folder, header_room, max_shard_bytes
        self.shards: list[_Shard] = []
        self.nbytes = 0

    def add(self, tensors: Sequence[OutTensor]) -> None:
        """Appends tensors that shall lie in the same file. A name must not come twice."""
        nbytes = sum(tensor.array.nbytes for tensor in tensors)
        if not self.shards or (self.shards[-1].nbytes and self.shards[-1].nbytes + nbytes > self.max_shard_bytes):
            self._finish_last()
            self.shards.append(_Shard(self.folder / f"{len(self.shards)}.part", self.header_room))
        self.nbytes += nbytes
        for tensor in tensors:
            self.shards[-1].add(tensor)

    def finish(self) -> None:
        """Completes and names the files; they are on the disk when it returns."""
        if not self.shards:
            self.add([])
        self._finish_last()
        if len(self.shards) == 1:
            self.shards[0].path.rename(self.folder / FILE_NAME)
            return
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(self.shards, 1):
            name = f"model-{number:05d}-of-{len(self.shards):05d}.safetensors"
            shard.path.rename(self.folder / name)
            weight_map |= dict.fromkeys(shard.entries, name)
        index = {"metadata": {"total_size": self.nbytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_file(self.folder / INDEX_NAME, json.dumps(index, indent=2).encode())

    def close(self) -> None:
        """Closes what an error has left open. Harmless after `finish`."""
        for shard in self.shards:
            shard.close()

    def _finish_last(self) -> None:
        if self.shards:
            self.shards[-1].finish()


class _Shard:
    def __init__(self, path: Path, header_room: int) -> None:
        self.path = path
        self.start = -(-(8 + header_room) // PAGE) * PAGE
        self.file = path.open("xb", buffering=0)
        self.waiting: IO[bytes] = SpooledTemporaryFile(SPOOL_BYTES, dir=str(path.parent))  # noqa: SIM115
        self.waiting_tensors: list[tuple[str, Mapping[str, Any], int, int]] = []
        self.entries: dict[str, dict[str, Any]] = {}
        self.nbytes = self.at = 0
        self.file.seek(self.start)

    def add(self, tensor: OutTensor) -> None:
        data = np.ascontiguousarray(tensor.array).reshape(-1).view(np.uint8).data
        about = {"dtype": tensor.dtype, "shape": list(tensor.array.shape)}
        self.nbytes += data.nbytes
        if data.nbytes % ALIGNMENT:
            self.waiting_tensors.append((tensor.name, about, self.waiting.tell(), data.nbytes))
            self.waiting.write(data)
            return
        self._place(tensor.name, about, data.nbytes)
        write_all(self.file, data)

    def finish(self) -> None:
        for name, about, begin, nbytes in sorted(self.waiting_tensors, key=lambda tensor: -(tensor[3] & -tensor[3])):
            self._place(name, about, nbytes)
            self.waiting.seek(begin)
            for first in range(0, nbytes, COPY_BYTES):
                write_all(self.file, memoryview(self.waiting.read(min(COPY_BYTES, nbytes - first))))
        header = json.dumps({"__metadata__": METADATA, **self.entries}, separators=(",", ":")).encode()
        if len(header) > self.start - 8:
            raise RuntimeError(f"[SafetensorsWriter] a header of {len(header)} bytes has room for {self.start - 8}")
        self.file.seek(0)
        write_all(self.file, memoryview((self.start - 8).to_bytes(8, "little") + header.ljust(self.start - 8)))
        os.fsync(self.file.fileno())
        self.close()

    def close(self) -> None:
        self.file.close()
        self.waiting.close()

    def _place(self, name: str, about: Mapping[str, Any], nbytes: int) -> None:
        if name in self.entries:
            raise ValueError(f"[SafetensorsWriter] tensor {name!r} comes twice")
        self.entries[name] = {**about, "data_offsets": [self.at, self.at + nbytes]}
        self.at += nbytes


def write_all(file: Any, data: memoryview) -> None:
    """Writes all of `data` to an unbuffered file, which may take less than it is given."""
    at = 0
    while at < len(data):
        at += file.write(data[at:])


def write_file(path: Path, content: bytes) -> None:
    """A new file that is on the disk when this returns."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
