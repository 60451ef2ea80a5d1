"""Writes a packed cache file, one layer after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tmac import _core
from tmac.runtime.loading import Ready
from tmac.runtime.streaming.packed_index import (
    ALIGNMENT,
    BLOCK,
    NO_CODES,
    TOP,
    Head,
    PackedIndex,
    PlacedMatrix,
    Section,
    write_index,
)

Bytes = NDArray[np.uint8]


class PackedWriter:
    """Writes the sections of a file in the order in which they are given.

    Args:
        file: empty, open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(bytes(BLOCK))  # the header comes last
        self._heads: dict[bytes, tuple[int, Head]] = {}
        self._top: list[Section] = []
        self._layers: list[tuple[Section, ...]] = []
        self._matrices: list[PlacedMatrix] = []
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def top(self, weight: Ready) -> None:
        """A matrix or vector outside of the layers."""
        if weight.array.ndim == 1 and weight.dtype:
            self._vectors[weight.name] = weight.array
            return
        whole = _as_bytes(weight.array)
        parts = _Section(NO_CODES, self._file.tell())
        offset = parts.add(whole)
        regions = () if weight.dtype else tuple(offset + begin for begin, _, _ in _core.packed_regions(whole))
        self._place(weight, TOP, offset, regions)
        self._top.append(parts.write(self._file))

    def layer(self, weights: Iterable[Ready]) -> None:
        """Everything of the next layer: the group values of all its matrices, then region by region of the codes, the
        leading planes first, so that what is not resident of it lies in one piece."""
        number, matrices = len(self._layers), []
        for weight in weights:
            if weight.array.ndim == 1 and weight.dtype:
                self._vectors[weight.name] = weight.array
            else:
                matrices.append((weight, _as_bytes(weight.array), _regions(weight)))
        planes = sorted({plane for _, _, regions in matrices for _, _, plane in regions} | {NO_CODES})
        offsets: list[list[int]] = [[] for _ in matrices]
        sections = []
        for plane in planes:
            parts = _Section(plane, self._file.tell())
            for index, (_, whole, regions) in enumerate(matrices):
                for begin, end, first_plane in regions:
                    if first_plane == plane:
                        offsets[index].append(parts.add(whole[begin:end]))
            sections.append(parts.write(self._file))
        for (weight, _, _), found in zip(matrices, offsets, strict=True):
            self._place(weight, number, found[0], tuple(found[1:]))
        self._layers.append(tuple(sections))

    def finish(self, identity: Mapping[str, Any]) -> None:
        """Vectors, index and header; the file is complete then."""
        parts = _Section(NO_CODES, self._file.tell())
        places = {name: (parts.add(_as_bytes(vector)), vector.size) for name, vector in self._vectors.items()}
        vectors = parts.write(self._file)
        heads = tuple(head for _, head in self._heads.values())
        write_index(
            self._file,
            PackedIndex(identity, heads, tuple(self._top), tuple(self._layers), tuple(self._matrices), vectors, places),
        )

    def _place(self, weight: Ready, layer: int, offset: int, regions: tuple[int, ...]) -> None:
        if weight.bias is not None:
            self._vectors[f"{weight.name}.bias"] = np.ascontiguousarray(weight.bias, np.float32)
        if weight.dtype:
            shape = tuple(map(int, weight.array.shape))
            placed = PlacedMatrix(weight.name, layer, offset, dtype=weight.dtype, shape=shape)
        else:
            placed = PlacedMatrix(weight.name, layer, offset, self._head(weight.array), regions)
        self._matrices.append(placed)

    def _head(self, packed: Bytes) -> int:
        content = packed[: _core.PACKED_HEADER_BYTES].tobytes()
        if content not in self._heads:
            about = _core.describe(packed)
            kernels = f"{about['kernel']},{about['prompt_kernel']}"
            head = Head(content, about["spec"], about["out_features"], about["in_features"], kernels)
            self._heads[content] = len(self._heads), head
        return self._heads[content][0]


class _Section:
    """Parts that are written one after the other.

    Args:
        plane: of the section.
        begin: in the file.
    """

    def __init__(self, plane: int, begin: int) -> None:
        self.plane, self.begin, self._parts, self._end = plane, begin, list[Bytes](), begin

    def add(self, part: Bytes) -> int:
        """Where the part will be in the file."""
        offset = self._end
        self._end += -(-part.size // ALIGNMENT) * ALIGNMENT
        self._parts.append(part)
        return offset

    def write(self, file: BinaryIO) -> Section:
        """Writes what was added, and zeros up to the next block."""
        hashed = _core.ContentHash()
        for part in self._parts:
            _write(file, hashed, part.data)
            _write(file, hashed, bytes(-part.size % ALIGNMENT))
        _write(file, hashed, bytes(-(self._end - self.begin) % BLOCK))
        return Section(self.begin, file.tell(), hashed.digest(), self.plane)


def _write(file: BinaryIO, hashed: _core.ContentHash, content: bytes | memoryview) -> None:
    hashed.update(content)
    file.write(content)


def _as_bytes(array: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _regions(weight: Ready) -> list[tuple[int, int, int]]:
    """`[(begin, end, first plane)]` of everything, what is no code first."""
    if weight.dtype:
        return [(0, weight.array.nbytes, NO_CODES)]
    regions = _core.packed_regions(weight.array)
    return [(0, regions[0][0], NO_CODES), *regions]
