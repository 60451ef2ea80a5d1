"""The header of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), read with every length checked
against the size of the file before anything is allocated."""

from __future__ import annotations

import math
import os
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tmac.codes import FormatError
from tmac.formats.errors import format_error
from tmac.formats.gguf_arrays import NumberArray, StringArray
from tmac.formats.gguf_types import TYPES, GgmlType
from tmac.formats.regular_file import open_regular

MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 65535
MAX_TEXT_BYTES = 1 << 24  # of one value: Python may need four bytes for each
MAX_NESTED_ARRAYS = 4
MAX_NESTED_ITEMS = 1 << 16  # arrays inside of an array
MAX_ENTRIES = 1 << 16  # tensors, or metadata keys: a Python object each. The largest models have some thousands
STRING, ARRAY = 8, 9
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
PIECE_BYTES = 1 << 20
LENGTH = struct.Struct("<Q")
SMALLEST_TENSOR_INFO = 8 + 4 + 4 + 8
SMALLEST_KEY_VALUE = 8 + 4 + 1


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    Args:
        name: its name in the file.
        shape: rows first, as numpy and torch write it (the file has the innermost dimension first).
        type_id: ggml's number of the type.
        offset: bytes from the start of the file.
        nbytes: size of the data; None for a type that is not in our table.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    nbytes: int | None

    @property
    def num_elements(self) -> int:
        """Numbers in the tensor."""
        return math.prod(self.shape)

    @property
    def type(self) -> GgmlType | None:
        """The type, or None for one that is not in our table."""
        return TYPES.get(self.type_id)

    @property
    def type_name(self) -> str:
        """ggml's name of the type, or `type 38` for one that is not in our table."""
        return self.type.name if self.type is not None else f"type {self.type_id}"


@dataclass(frozen=True)
class Header:
    """Everything that comes before the data of a GGUF file."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(path: str | Path) -> Header:
    """Reads metadata and the list of tensors; the data of every tensor is known to lie inside the file.

    Raises:
        FormatError: not a GGUF file of version 2 or 3, or a damaged one.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with open_regular(path) as file:
        cursor = _Cursor(file, path)
        try:
            return _read(cursor)
        except UnicodeDecodeError as error:
            raise cursor.error(f"expected UTF-8 text ({error.reason})") from error


def _read(cursor: _Cursor) -> Header:
    if cursor.take(4) != b"GGUF":
        raise format_error(cursor.path, "expected the magic bytes GGUF: this is not a GGUF file")
    version = cursor.u32()
    if version not in (2, 3):
        raise format_error(cursor.path, f"expected GGUF version 2 or 3 in little-endian order, found {version}")
    num_tensors = cursor.count(SMALLEST_TENSOR_INFO, "tensors", MAX_ENTRIES)
    metadata = _metadata(cursor, cursor.count(SMALLEST_KEY_VALUE, "metadata keys", MAX_ENTRIES))
    raw = [_tensor_info(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise format_error(cursor.path, f"expected a power of two, found {alignment!r}", "general.alignment")
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, type_id, offset in raw:
        if name in tensors:
            raise format_error(cursor.path, "expected one tensor of this name, found two", name)
        tensors[name] = _placed(cursor, name, shape, type_id, start + offset)
    return Header(version, metadata, tensors)


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text(MAX_NAME_BYTES)
        if key in metadata:
            raise format_error(cursor.path, "expected this key once, found it twice", key)
        cursor.what = key
        metadata[key] = cursor.value(cursor.u32())
        cursor.what = None
    return metadata


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text(MAX_NAME_BYTES)
    cursor.what = name
    dimensions = cursor.u32()
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.error(f"expected 1 to {MAX_DIMENSIONS} dimensions, found {dimensions}")
    shape = tuple(cursor.u64() for _ in range(dimensions))[::-1]
    if 0 in shape:
        raise cursor.error(f"expected a shape without zeros, found {shape}")
    type_id, offset = cursor.u32(), cursor.u64()
    cursor.what = None
    return name, shape, type_id, offset


def _placed(cursor: _Cursor, name: str, shape: tuple[int, ...], type_id: int, offset: int) -> TensorInfo:
    """Checks that the data lies in the file. Of an unknown type only the start is known."""
    kind = TYPES.get(type_id)
    nbytes = None
    if kind is not None:
        row = math.prod(shape) if kind.flat else shape[-1]
        if row % kind.block:
            raise format_error(
                cursor.path, f"expected rows of a multiple of {kind.block} for {kind.name}, found {shape}", name
            )
        nbytes = kind.nbytes(shape)
    if offset + (nbytes or 0) > cursor.size:
        message = f"expected data in bytes {offset} to {offset + (nbytes or 0)}, but the file has {cursor.size}"
        raise format_error(cursor.path, message, name)
    return TensorInfo(name, shape, type_id, offset, nbytes)


class _Cursor:
    """Reads forward through a file and never past its end."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.size = os.fstat(file.fileno()).st_size
        self.position = 0
        self.what: str | None = None

    def error(self, message: str) -> FormatError:
        return format_error(self.path, f"{message}, at byte {self.position}", self.what)

    def ends_early(self, nbytes: int) -> FormatError:
        return self.error(f"expected {nbytes} more bytes, but the file ends after {self.size - self.position}")

    def take(self, nbytes: int) -> bytes:
        if nbytes > self.size - self.position:
            raise self.ends_early(nbytes)
        data = self.file.read(nbytes)
        if len(data) != nbytes:
            raise self.error("the file became shorter while it was read")
        self.position += nbytes
        return data

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def count(self, smallest: int, what: str, limit: int | None = None) -> int:
        """A number of things that need at least `smallest` bytes each."""
        count = self.u64()
        if count > (self.size - self.position) // smallest:
            raise self.error(f"{count} {what} do not fit into a file of {self.size} bytes")
        if limit is not None and count > limit:
            raise self.error(f"expected at most {limit} {what}, found {count}")
        return count

    def text(self, limit: int = MAX_TEXT_BYTES) -> str:
        return self.take(self.text_length(limit)).decode("utf-8")

    def text_length(self, limit: int) -> int:
        length = self.u64()
        if length > limit:
            raise self.error(f"expected a text of at most {limit} bytes, found {length}")
        if length > self.size - self.position:
            raise self.ends_early(length)
        return length

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._array(depth + 1)
        dtype = self._dtype(kind)
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def _array(self, depth: int) -> StringArray | NumberArray | list[Any]:
        if depth > MAX_NESTED_ARRAYS:
            raise self.error(f"expected at most {MAX_NESTED_ARRAYS} nested arrays")
        kind = self.u32()
        if kind == ARRAY:
            return [self._array(depth + 1) for _ in range(self.count(12, "array elements", MAX_NESTED_ITEMS))]
        if kind == STRING:
            return self._strings(self.count(8, "array elements"))
        dtype = self._dtype(kind)
        count = self.count(dtype.itemsize, "array elements")
        return NumberArray(np.frombuffer(self.take(count * dtype.itemsize), dtype))

    def _strings(self, count: int) -> StringArray:
        start, rest = self.position, self.size - self.position
        data, ends, end = bytearray(), array("q"), 0
        for _ in range(count):
            self._fill(data, end + 8)
            length: int = LENGTH.unpack_from(data, end)[0]
            if length > MAX_TEXT_BYTES or end + 8 + length > rest:
                self.position = start + end
                self.file.seek(self.position)
                self.text_length(MAX_TEXT_BYTES)
            end += 8 + length
            ends.append(end)
        self._fill(data, end)
        self.position = start + end
        self.file.seek(self.position)
        del data[end:]
        return StringArray(data, np.frombuffer(ends, np.int64))

    def _fill(self, data: bytearray, length: int) -> None:
        """Appends what follows in the file until there are `length` bytes."""
        while len(data) < length:
            piece = self.file.read(PIECE_BYTES)
            data += piece
            if not piece:
                raise self.ends_early(length)

    def _dtype(self, kind: int) -> np.dtype[Any]:
        if kind not in SCALARS:
            raise self.error(f"expected a value type of 0 to 12, found {kind}")
        return np.dtype(SCALARS[kind])
