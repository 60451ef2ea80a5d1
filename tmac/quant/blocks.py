"""`BlockSource`: a float model as blocks that need not fit into memory together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn


class BlockSource(Protocol):
    """The decoder layers of a model in their order; the last block is the final norm with the output head.

    `tmac.hf.open_blocks` makes one. A block is in memory only inside of `with source.block(i) as module`.
    """

    @property
    def fingerprint(self) -> str:
        """Of the model's configuration and weights: two sources with the same one are the same model."""

    def __len__(self) -> int:
        """The number of blocks, the head among them."""

    def layers(self, index: int) -> Sequence[str]:
        """Full names of the linear layers of a block ("model.layers.0.mlp.up_proj"), in the order they are used."""

    def block(self, index: int) -> AbstractContextManager[nn.Module]:
        """The block with its weights, f32, in evaluation mode."""

    def linears(self, index: int, module: nn.Module) -> dict[str, nn.Linear]:
        """Full name -> layer, of the module that `block(index)` gave."""

    def begin(self, ids: Tensor) -> Tensor:
        """The input of the first block, f32 `[batch, tokens, hidden]`, for ids int64 `[batch, tokens]`."""

    def run(self, index: int, module: nn.Module, hidden: Tensor) -> Tensor:
        """The output of a block, f32 `[batch, tokens, hidden]`; of the last one logits `[batch, tokens, vocab]`."""
