"""Statistics on the disk: safetensors files in a folder, one a block, whole or not there at all.

A file says what it is of and has a checksum of every tensor. One that does not fit, for whatever reason, is as if it
were not there. Tensors are read, not mapped: a mapped file that another process cuts off ends this one.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tmac.files import replacing

FORMAT = 1
_ENTRY = "tmac_statistics"


class StatisticsCache:
    """The files of one model, text and set of parameters.

    Args:
        folder: made where it is missing; every model, text and set of parameters gets a folder of its own in it.
        fingerprint: of the model.
        ids: token ids.
        parameters: whatever else the statistics depend on, plain JSON values; a version of the code among them.
    """

    def __init__(self, folder: str | Path, fingerprint: str, ids: Tensor, parameters: Mapping[str, Any]) -> None:
        text = hashlib.sha256(ids.contiguous().numpy().data).hexdigest()
        about = {"format": FORMAT, "model": fingerprint, "ids": text, "shape": list(ids.shape), **parameters}
        self.key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self.folder = Path(folder) / self.key[:32]

    def path(self, name: str) -> Path:
        """The file of this name."""
        return self.folder / f"{name}.safetensors"

    def about(self, name: str) -> dict[str, Any] | None:
        """What `write` was given beside the tensors; None where there is no file of this key. Reads no tensor."""
        found = self._open(name, ())
        return None if found is None else found[0]

    def is_whole(self, name: str) -> bool:
        """Whether there is a file of this key whose tensors all have their checksums."""
        about = self._open(name, ())
        return about is not None and all(self._open(name, (key,)) is not None for key in about[2])

    def read(self, name: str, tensors: Collection[str] | None = None) -> dict[str, Tensor] | None:
        """The tensors of a file, or those of them that are named; None where there is no such file or it is damaged."""
        found = self._open(name, tensors)
        return None if found is None else found[1]

    def write(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Puts a file of f32 tensors, which are not empty, in place; it is on the disk when this returns.

        Raises:
            OSError: the folder cannot be made or written.
        """
        contiguous = {key: value.float().contiguous() for key, value in tensors.items()}
        sums = {key: zlib.crc32(value.numpy().reshape(-1).view("u1").data) for key, value in contiguous.items()}
        entry = json.dumps({"key": self.key, "checksums": sums, "about": dict(about)})
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.path(name)) as temporary:
            save_tensors(contiguous, temporary, {_ENTRY: entry}, self.path(name))

    def _open(
        self, name: str, wanted: Collection[str] | None
    ) -> tuple[dict[str, Any], dict[str, Tensor], list[str]] | None:
        """(about, tensors that are wanted, names of all)."""
        try:
            with self.path(name).open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
                start = file.tell()
                entry = json.loads(header.pop("__metadata__")[_ENTRY])
                if entry["key"] != self.key or set(entry["checksums"]) != set(header):
                    return None
                found: dict[str, Tensor] = {}
                for key in header if wanted is None else wanted:
                    begin, end = header[key]["data_offsets"]
                    file.seek(start + begin)
                    content = bytearray(file.read(end - begin))
                    if zlib.crc32(content) != entry["checksums"][key]:
                        return None
                    found[key] = torch.frombuffer(content, dtype=torch.float32).reshape(header[key]["shape"])
                return dict(entry["about"]), found, list(header)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
            return None


def save_tensors(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, str], name: Path) -> None:
    """Writes a safetensors file; `name` is what messages call it.

    Raises:
        OSError: it cannot be written, because the disk is full for instance, which safetensors has an exception of its
            own for.
    """
    try:
        save_file(dict(tensors), path, dict(about))
    except SafetensorError as error:
        raise OSError(f"{name} cannot be written: {error}") from error
