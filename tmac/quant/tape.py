"""What a walk forward and backward through a model keeps on its way: in memory, or in files that outlive it."""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor

from tmac.quant.statistics_cache import StatisticsCache

_BACKWARD = "backward"
_SUM = "sum."


class Tape:
    """Inputs of blocks, and how far the gradient has come back.

    Args:
        store: where files go; None keeps everything in memory.
    """

    def __init__(self, store: StatisticsCache | None) -> None:
        self._store = store
        self._inputs: dict[int, Tensor] = {}

    def put(self, index: int, hidden: Tensor) -> None:
        """Keeps the input of a block, f32 `[windows, tokens, hidden]`. Raises OSError where the disk is full."""
        if self._store is None:
            self._inputs[index] = hidden
        else:
            self._store.write(_name(index), {"hidden": hidden}, {})

    def last(self, blocks: int) -> tuple[int, Tensor] | None:
        """The last block whose input is there, and the input, if those of all before it are there as well."""
        if self._store is None:
            return None
        found = None
        for index in range(blocks):
            if not self._store.is_whole(_name(index)):
                break
            found = index
        tensors = None if found is None else self._store.read(_name(found))
        return None if found is None or tensors is None else (found, tensors["hidden"])

    def input(self, index: int) -> Tensor:
        """The input of a block that `put` has kept; in memory it is given away.

        Raises:
            ValueError: the file is damaged or gone.
        """
        if self._store is None:
            return self._inputs.pop(index)
        tensors = self._store.read(_name(index))
        if tensors is None:
            path = self._store.path(_name(index))
            raise ValueError(f"[fisher] {path} is damaged or gone since it was written: call fisher again")
        return tensors["hidden"]

    def keep_backward(self, index: int, gradient: Tensor, sums: dict[str, Tensor], widths: dict[str, int]) -> None:
        """Keeps the gradient at the input of block `index`, and the sums of squares of the blocks from there on."""
        if self._store is not None:
            tensors = {"gradient": gradient, **{f"{_SUM}{name}": value for name, value in sums.items()}}
            self._store.write(_BACKWARD, tensors, {"index": index, "widths": widths})

    def backward(self) -> tuple[int, Tensor, dict[str, Tensor], dict[str, int]] | None:
        """What `keep_backward` kept last, if the inputs of all blocks before that one are there."""
        about = None if self._store is None else self._store.about(_BACKWARD)
        if self._store is None or about is None:
            return None
        tensors, index = self._store.read(_BACKWARD), int(about["index"])
        if tensors is None or not all(self._store.is_whole(_name(block)) for block in range(index)):
            return None
        sums = {name.removeprefix(_SUM): value for name, value in tensors.items() if name.startswith(_SUM)}
        return index, tensors["gradient"], sums, dict(about["widths"])

    def clear(self) -> None:
        """Removes the files."""
        if self._store is None:
            return
        folder = self._store.folder
        for path in (self._store.path(_BACKWARD), *folder.glob(f"{_INPUT}*"), *folder.glob(f".{_INPUT}*")):
            with suppress(OSError):
                path.unlink()


_INPUT = "input-"


def _name(index: int) -> str:
    return f"{_INPUT}{index:05d}"
