"""The packed cache file's header and index: docs/packed_file.md.

Nothing in them is trusted: what could make the core read a byte outside of the file is a ValueError here, and the core
checks it once more.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tmac import _core

MAGIC = b"TMACPKF1"
BLOCK = 4096  # sections begin and end at multiples of it
ALIGNMENT = 64  # of parts within a section
TOP = -1  # the layer of what is outside of the layers
NO_CODES = -1  # the plane of a section without planes
HEADER = struct.Struct("<8sQQQQ")  # magic, index: offset, bytes, checksum; bytes of the file
MOST_INDEX_BYTES = 1 << 28
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Section:
    """Bytes `[begin, end)` of the file that are read together.

    Args:
        begin, end: multiples of BLOCK.
        checksum: `_core.ContentHash` of all of them.
        plane: the first plane of the regions of codes in it; NO_CODES for group values, float matrices and what lies
            outside of the layers.
    """

    begin: int
    end: int
    checksum: int
    plane: int = NO_CODES

    @property
    def nbytes(self) -> int:
        """Length."""
        return self.end - self.begin


@dataclass(frozen=True)
class Head:
    """What all packed weights of one shape, spec and choice of kernels have in common.

    Args:
        content: the header of a packed weight.
        spec: as `_core.describe` says it.
        out_features, in_features: of the weight.
        kernels: "decode,prompt".
    """

    content: bytes
    spec: Mapping[str, Any]
    out_features: int
    in_features: int
    kernels: str


@dataclass(frozen=True)
class PlacedMatrix:
    """A matrix of the model in the file.

    Args:
        name: the runtime's.
        layer: number, or TOP.
        offset: in the file: of the header and group values of a packed weight, or of a float matrix.
        head: number of its `Head`, -1 for floats.
        regions: offsets of a packed weight's regions of codes.
        dtype: of floats, "F32", "F16" or "BF16".
        shape: of floats.
    """

    name: str
    layer: int
    offset: int
    head: int = -1
    regions: tuple[int, ...] = ()
    dtype: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class PackedIndex:
    """What the file holds.

    Args:
        identity: what it was made from and for; another one makes it foreign.
        heads: of the packed weights.
        top: sections of embedding and head.
        layers: sections of each layer, which follow each other, the leading planes first.
        matrices: all of them.
        vectors: the section of norms and biases, f32.
        vector_places: name -> (offset, elements); a matrix's bias is `<name>.bias`.
    """

    identity: Mapping[str, Any]
    heads: tuple[Head, ...]
    top: tuple[Section, ...]
    layers: tuple[tuple[Section, ...], ...]
    matrices: tuple[PlacedMatrix, ...]
    vectors: Section
    vector_places: Mapping[str, tuple[int, int]]

    def to_json(self) -> bytes:
        """The index as the file has it."""
        values = {
            "identity": self.identity,
            "heads": [[h.content.hex(), dict(h.spec), h.out_features, h.in_features, h.kernels] for h in self.heads],
            "top": [_listed(each) for each in self.top],
            "layers": [[_listed(each) for each in layer] for layer in self.layers],
            "matrices": [[m.name, m.layer, m.offset, m.head, m.regions, m.dtype, m.shape] for m in self.matrices],
            "vectors": _listed(self.vectors),
            "vector_places": self.vector_places,
        }
        return json.dumps(values, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes, file_bytes: int) -> PackedIndex:
        """The inverse.

        Raises:
            ValueError: it is damaged, or speaks of bytes that the file has not.
        """
        try:
            values = json.loads(content)
            index = cls(
                identity=dict(values["identity"]),
                heads=tuple(Head(bytes.fromhex(h[0]), dict(h[1]), h[2], h[3], str(h[4])) for h in values["heads"]),
                top=tuple(Section(*each) for each in values["top"]),
                layers=tuple(tuple(Section(*each) for each in layer) for layer in values["layers"]),
                matrices=tuple(
                    PlacedMatrix(m[0], m[1], m[2], m[3], tuple(m[4]), m[5], tuple(m[6])) for m in values["matrices"]
                ),
                vectors=Section(*values["vectors"]),
                vector_places={name: (place[0], place[1]) for name, place in values["vector_places"].items()},
            )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise ValueError(f"the index is damaged ({error!r})") from error
        index._check(file_bytes)
        return index

    def _check(self, file_bytes: int) -> None:
        for section in (*self.top, *(each for layer in self.layers for each in layer), self.vectors):
            numbers = (section.begin, section.end, section.checksum, section.plane)
            _require(all(type(number) is int for number in numbers), "a section has no numbers")
            _require(BLOCK <= section.begin <= section.end <= file_bytes, "a section is outside of the file")
            _require(section.begin % BLOCK == section.end % BLOCK == 0, "a section is not aligned")
            _require(0 <= section.checksum < 1 << 64 and section.plane in range(-1, 8), "a section is of no kind")
        for layer in self.layers:
            for one, other in pairwise(layer):
                _require(one.end == other.begin and one.plane < other.plane, "sections of a layer are out of order")
        for each in self.matrices:
            places = (each.layer, each.offset, each.head, *each.regions, *each.shape)
            _require(all(type(number) is int for number in places), "a matrix has no numbers")
            _require(type(each.name) is str and type(each.dtype) is str, "a matrix has no name")
            _require(TOP <= each.layer < len(self.layers), "a matrix is in no layer")
            _require(-1 <= each.head < len(self.heads), "a matrix has no head")
            _require(each.head >= 0 or (each.dtype in ITEM_BYTES and len(each.shape) == 2), "a matrix has no type")
        for begin, count in self.vector_places.values():
            _require(type(begin) is int and type(count) is int and count >= 0, "a vector has no numbers")
            _require(
                self.vectors.begin <= begin and begin + 4 * count <= self.vectors.end and begin % 4 == 0,
                "a vector is outside of its section",
            )


def write_index(file: BinaryIO, index: PackedIndex) -> None:
    """Puts the index at the end of the file, which is at a multiple of BLOCK, and the header at its start."""
    content = index.to_json()
    offset = file.tell()
    file.write(content)
    end = offset + -(-len(content) // BLOCK) * BLOCK
    file.write(bytes(end - offset - len(content)))
    file.seek(0)
    file.write(HEADER.pack(MAGIC, offset, len(content), checksum_of(content), end))


def read_index(file: BinaryIO, file_bytes: int) -> PackedIndex:
    """The index of a file that was written as a whole.

    Raises:
        ValueError: it was not.
        OSError: it cannot be read.
    """
    header = file.read(HEADER.size)
    _require(len(header) == HEADER.size and header.startswith(MAGIC), f"expected it to begin with {MAGIC.decode()}")
    _, offset, size, checksum, expected = HEADER.unpack(header)
    _require(expected == file_bytes, f"expected {expected} bytes, found {file_bytes}")
    _require(size <= MOST_INDEX_BYTES and offset + size <= file_bytes, "the index is outside of the file")
    file.seek(offset)
    content = file.read(size)
    _require(len(content) == size and checksum_of(content) == checksum, "the index is damaged")
    return PackedIndex.from_json(content, file_bytes)


def read_vectors(file: BinaryIO, index: PackedIndex) -> dict[str, NDArray[np.float32]]:
    """Norms and biases.

    Raises:
        ValueError: they are damaged.
        OSError: they cannot be read.
    """
    section = index.vectors
    file.seek(section.begin)
    content = file.read(section.nbytes)
    _require(len(content) == section.nbytes and checksum_of(content) == section.checksum, "its vectors are damaged")
    return {
        name: np.frombuffer(content, np.float32, count, offset - section.begin)
        for name, (offset, count) in index.vector_places.items()
    }


def checksum_of(content: bytes) -> int:
    """`_core.ContentHash` of bytes."""
    hashed = _core.ContentHash()
    hashed.update(content)
    return hashed.digest()


def _listed(section: Section) -> list[int]:
    return [section.begin, section.end, section.checksum, section.plane]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
