"""The header of a GGUF file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), read with every length checked
against the size of the file before anything is allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from tmac.codes import FormatError
from tmac.formats.errors import format_error

MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 65535
MAX_NESTED_ARRAYS = 4
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
        nbytes: size of the data; None for a type whose block size is unknown.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    nbytes: int | None

    @property
    def type_name(self) -> str:
        """ggml's name of the type, or `type 36` for one that the gguf package does not know."""
        kind = quant_type(self.type_id)
        return kind.name if kind is not None else f"type {self.type_id}"


@dataclass(frozen=True)
class Header:
    """Everything that comes before the data of a GGUF file."""

    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def quant_type(type_id: int) -> GGMLQuantizationType | None:
    """The gguf package's type, or None where it does not know the number."""
    try:
        return GGMLQuantizationType(type_id)
    except ValueError:
        return None


def read_header(path: str | Path) -> Header:
    """Reads metadata and the list of tensors; the data of every tensor is known to lie inside the file.

    Raises:
        FormatError: not a GGUF file of version 2 or 3, or a damaged one.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
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
    num_tensors = cursor.count(SMALLEST_TENSOR_INFO, "tensors")
    metadata = _metadata(cursor, cursor.count(SMALLEST_KEY_VALUE, "metadata keys"))
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
    kind = quant_type(type_id)
    nbytes = None
    if kind is not None:
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise format_error(
                cursor.path, f"expected rows of a multiple of {block} for {kind.name}, found {shape}", name
            )
        nbytes = math.prod(shape) // block * block_bytes
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

    def take(self, nbytes: int) -> bytes:
        if nbytes > self.size - self.position:
            raise self.error(f"expected {nbytes} more bytes, but the file ends after {self.size - self.position}")
        data = self.file.read(nbytes)
        if len(data) != nbytes:
            raise self.error("the file became shorter while it was read")
        self.position += nbytes
        return data

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def count(self, smallest: int, what: str) -> int:
        """A number of things that need at least `smallest` bytes each."""
        count = self.u64()
        if count > (self.size - self.position) // smallest:
            raise self.error(f"{count} {what} do not fit into a file of {self.size} bytes")
        return count

    def text(self, limit: int | None = None) -> str:
        length = self.u64()
        if limit is not None and length > limit:
            raise self.error(f"expected a name of at most {limit} bytes, found {length}")
        return self.take(length).decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._array(depth + 1)
        dtype = self._dtype(kind)
        return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()

    def _array(self, depth: int) -> list[Any]:
        if depth > MAX_NESTED_ARRAYS:
            raise self.error(f"expected at most {MAX_NESTED_ARRAYS} nested arrays")
        kind = self.u32()
        if kind in (STRING, ARRAY):
            read: Callable[[], Any] = self.text if kind == STRING else lambda: self._array(depth + 1)
            return [read() for _ in range(self.count(8 if kind == STRING else 12, "array elements"))]
        dtype = self._dtype(kind)
        count = self.count(dtype.itemsize, "array elements")
        values: list[Any] = np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
        return values

    def _dtype(self, kind: int) -> np.dtype[Any]:
        if kind not in SCALARS:
            raise self.error(f"expected a value type of 0 to 12, found {kind}")
        return np.dtype(SCALARS[kind])
