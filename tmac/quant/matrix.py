"""A weight of a model that is to be quantized."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Matrix:
    """A weight that the search decides about.

    Args:
        name: of the module that owns it, "model.layers.0.mlp.up_proj".
        out_features, in_features: rows and columns.
        kind: "embedding" where rows are looked up (a head that shares it, too), "head", or "linear".
        block: the index of its block; None of an embedding that no block uses.
        tied: names of modules that share the weight.
    """

    name: str
    out_features: int
    in_features: int
    kind: Literal["linear", "head", "embedding"] = "linear"
    block: int | None = None
    tied: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """How many numbers it has."""
        return self.out_features * self.in_features

    @property
    def read_whole(self) -> bool:
        """Whether all of it is read for every token, not one row only."""
        return self.kind != "embedding" or bool(self.tied)


def bits_per_weight(matrices: Iterable[Matrix], sizes: Iterable[int]) -> float:
    """Bits over all weights, those of shared matrices counted once."""
    return sum(sizes) / sum(matrix.weights for matrix in matrices)


def bytes_per_token(matrices: Iterable[Matrix], sizes: Iterable[int]) -> int:
    """Bytes that one generated token reads: every matrix, but of an embedding that is only looked up a single row."""
    return sum(
        -(-size // 8) if matrix.read_whole else -(-size // (8 * matrix.out_features))
        for matrix, size in zip(matrices, sizes, strict=True)
    )
