"""safetensors files (https://github.com/huggingface/safetensors#format): one file, or shards with an index.

The header is read here because the numpy loader of the safetensors package cannot read bf16.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac.formats.checkpoint import Array, StoredTensor, to_float32
from tmac.formats.errors import format_error
from tmac.formats.json_file import parse_json, read_json
from tmac.formats.regular_file import open_regular
from tmac.formats.scratch import scratch_array

MAX_HEADER_BYTES = 100_000_000  # what the safetensors package allows
INDEX_NAME = "model.safetensors.index.json"
DTYPES = {
    "BOOL": "?",
    "U8": "<u1",
    "I8": "<i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "BF16": "<u2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}
ONE_BYTE_FLOATS = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: bytes [begin, end) of a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorStore:
    """The tensors of a folder or file by name.

    Args:
        path: the file or folder, for messages.
        entries: where each tensor lies.
        metadata: the free-form strings of the header (of the first file).
    """

    def __init__(self, path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.entries = entries
        self.metadata: Mapping[str, str] = metadata or {}

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def entry(self, name: str) -> Entry:
        """Raises FormatError where there is no such tensor."""
        if name not in self.entries:
            raise format_error(self.path, "expected this tensor, but it is missing", name)
        return self.entries[name]

    def read(self, name: str) -> Array:
        """The array; bf16 and one-byte floats come as their bits.

        Raises:
            FormatError: there is no such tensor, or the file is shorter than when it was opened.
        """
        entry = self.entry(name)
        dtype = np.dtype(DTYPES.get(entry.dtype, "<u1"))
        array: Array = np.empty(entry.shape, dtype)
        with open_regular(entry.file) as file:
            file.seek(entry.begin)
            if array.nbytes and file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                raise format_error(entry.file, "the file became shorter while it was read", name)
        return array

    def read_rows(self, name: str, begin: int, end: int, scratch: bool = False) -> Array:
        """Rows [begin, end) of a matrix, or of each matrix of a stack; in a `scratch_array` where it is wanted. Raises
        as `read`."""
        entry = self.entry(name)
        dtype = np.dtype(DTYPES.get(entry.dtype, "<u1"))
        *stack, rows, columns = entry.shape
        shape = (*stack, end - begin, columns)
        array: Array = scratch_array(shape, dtype) if scratch else np.empty(shape, dtype)
        row_bytes = columns * dtype.itemsize
        with open_regular(entry.file) as file:
            for index, part in enumerate(array.reshape(-1, (end - begin) * columns).view(np.uint8)):
                file.seek(entry.begin + (index * rows + begin) * row_bytes)
                if file.readinto(part.data) != part.nbytes:
                    raise format_error(entry.file, "the file became shorter while it was read", name)
        return array

    def read_float32(self, name: str) -> NDArray[np.float32]:
        """A float tensor of any type, widened to f32. Raises FormatError."""
        entry = self.entry(name)
        if entry.dtype not in ("F32", "F16", "BF16", "F64"):
            raise format_error(entry.file, f"expected a float tensor, found {entry.dtype}", name)
        return to_float32(self.read(name), entry.dtype)

    def expect(self, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]) -> Entry:
        """The entry of a tensor that must have one of the types and this shape (None: any size). Raises FormatError."""
        entry = self.entry(name)
        if entry.dtype not in dtypes:
            raise format_error(entry.file, f"expected {' or '.join(dtypes)}, found {entry.dtype}", name)
        fits = len(entry.shape) == len(shape) and all(
            want in (None, got) for want, got in zip(shape, entry.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("?" if size is None else str(size) for size in shape)
            raise format_error(entry.file, f"expected shape [{wanted}], found {list(entry.shape)}", name)
        return entry

    def tensor(self, name: str, as_name: str | None = None) -> StoredTensor:
        """The tensor as a checkpoint's, under its own name or another."""
        entry = self.entry(name)
        return StoredTensor(as_name or name, entry.dtype, entry.shape, entry.end - entry.begin, lambda: self.read(name))


def open_file(path: Path) -> TensorStore:
    """One safetensors file, its header checked against the file's size.

    Raises:
        FormatError: it is damaged.
        OSError: it cannot be opened.
    """
    entries, metadata = _read_header(path)
    return TensorStore(path, entries, metadata)


def open_folder(folder: Path) -> TensorStore:
    """The safetensors files of a folder: those that `model.safetensors.index.json` names, else all there are.

    Raises:
        FormatError: a file is damaged or missing, two files have the same tensor, or there is none.
        OSError: a file cannot be opened.
    """
    index = folder / INDEX_NAME
    if os.path.lexists(index):
        return _open_index(folder, index)
    whole = folder / "model.safetensors"
    files = [whole] if os.path.lexists(whole) else sorted(folder.glob("*.safetensors"))
    if not files:
        raise format_error(folder, "expected safetensors files, found none")
    entries: dict[str, Entry] = {}
    metadata: Mapping[str, str] = {}
    for file in files:
        found, about = _read_header(file)
        metadata = metadata or about
        twice = entries.keys() & found.keys()
        if twice:
            raise format_error(file, "expected this tensor in one file, found it in two", min(twice))
        entries.update(found)
    return TensorStore(folder, entries, metadata)


def _open_index(folder: Path, index: Path) -> TensorStore:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise format_error(index, "expected a map from tensors to files", "weight_map")
    headers: dict[str, dict[str, Entry]] = {}
    entries: dict[str, Entry] = {}
    for name, file_name in weight_map.items():
        if not _is_shard_name(file_name):
            raise format_error(index, f"expected the name of a file in the same folder, found {file_name!r}", name)
        if file_name not in headers:
            if not (folder / file_name).exists():
                raise format_error(index, f"expected the file {file_name}, but it is missing", name)
            headers[file_name] = _read_header(folder / file_name)[0]
        if name not in headers[file_name]:
            raise format_error(folder / file_name, "expected this tensor, but it is missing", name)
        entries[name] = headers[file_name][name]
    return TensorStore(folder, entries)


def _is_shard_name(name: object) -> bool:
    """Whether it is the plain name of a file: with a part of a path the index could name any file of the machine."""
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name and "\\" not in name


def _read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise format_error(path, f"expected a header within {size} bytes: this is not a whole safetensors file")
        raw = file.read(length)
    if len(raw) != length:
        raise format_error(path, "the file became shorter while it was read")
    header = parse_json(raw, path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise format_error(path, "expected a map of strings", "__metadata__")
    entries = {name: _entry(path, name, fields, 8 + length, size) for name, fields in header.items()}
    _check_cover(path, entries, 8 + length, size)
    return entries, metadata


def _entry(path: Path, name: str, fields: Any, start: int, size: int) -> Entry:
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise format_error(path, "expected dtype, shape and data_offsets", name)
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in DTYPES and dtype not in ONE_BYTE_FLOATS):
        raise format_error(path, f"expected one of {', '.join(DTYPES)}, found {dtype!r}", name)
    if not _are_counts(shape) or len(shape) > 32 or math.prod(max(size, 1) for size in shape) >= 2**60:
        raise format_error(path, f"expected a shape of non-negative integers, found {_short(shape)}", name)
    if not _are_counts(offsets) or len(offsets) != 2:
        raise format_error(path, f"expected two data offsets, found {_short(offsets)}", name)
    begin, end = offsets
    nbytes = math.prod(shape) * np.dtype(DTYPES.get(dtype, "<u1")).itemsize
    if end - begin != nbytes or start + end > size:
        message = f"expected {nbytes} bytes for shape {_short(shape)} within a file of {size}"
        raise format_error(path, f"{message}, found bytes {begin} to {end} of the data", name)
    return Entry(path, dtype, tuple(shape), start + begin, start + end)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _check_cover(path: Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """Tensors follow each other without gaps or overlaps up to the end of the file."""
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            problem = "overlaps the one before it" if entry.begin < at else "comes after a gap"
            raise format_error(path, f"expected data at byte {at}, but it {problem}, at {entry.begin}", name)
        at = entry.end
    if at != size:
        raise format_error(path, f"expected the file to end after its tensors, at byte {at}, found {size} bytes")
