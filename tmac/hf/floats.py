"""The float tensors of a checkpoint as transformers reads them: one at a time, when it wants them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tmac.formats.checkpoint import Checkpoint
from tmac.hf.modules import as_tensor


class LazyTensor:
    """What transformers asks of a tensor in a safetensors file: its dtype, its shape, and `[...]` to read it."""

    def __init__(self, read: Callable[[], Tensor], shape: tuple[int, ...], dtype: str) -> None:
        self._read, self._shape, self._dtype = read, shape, dtype

    def get_dtype(self) -> str:
        return self._dtype

    def get_shape(self) -> list[int]:
        return list(self._shape)

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self._shape)

    def __getitem__(self, key: Any) -> Tensor:
        return self._read()[key]


def lazy_floats(checkpoint: Checkpoint) -> dict[str, LazyTensor]:
    """Every tensor that the checkpoint did not quantize."""

    def one(stored: Any) -> LazyTensor:
        return LazyTensor(lambda: as_tensor(stored.read(), stored.dtype), stored.shape, stored.dtype)

    return {name: one(stored) for name, stored in checkpoint.tensors.items()}
