"""Arrays in the metadata of a GGUF file, held in about the bytes that they have there.

A list of Python numbers or strings takes up to ten times as much: a vocabulary may, an unknown file must not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class NumberArray(Sequence[Any]):
    """Numbers or bools of one type; the elements are Python's."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        item = self.values[index]
        return item.tolist() if isinstance(index, slice) else item.item()

    def __repr__(self) -> str:
        return f"NumberArray({self.values.dtype}, {len(self)})"


class StringArray(Sequence[str]):
    """Strings as they lie in the file: a length of eight bytes, then UTF-8.

    Args:
        data: all of them.
        ends: i64, where each one ends in `data`.

    Raises:
        UnicodeDecodeError: one is no UTF-8.
    """

    def __init__(self, data: bytes | bytearray, ends: NDArray[np.int64]) -> None:
        self.data, self.ends = data, ends
        for _ in self:
            pass

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self._at(position) for position in range(*index.indices(len(self)))]
        return self._at(range(len(self))[index])

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in map(int, self.ends):
            yield self.data[start + 8 : end].decode("utf-8")
            start = end

    def __repr__(self) -> str:
        return f"StringArray({len(self)})"

    def _at(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return self.data[start + 8 : int(self.ends[index])].decode("utf-8")
