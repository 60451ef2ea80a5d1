"""`QuantEmbedding`, the table of rows that stands where `torch.nn.Embedding` stood."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.compiler import is_compiling

from tmac.codes import Codes
from tmac.nn.linear import observed, round_weight
from tmac.nn.packed import PackedModule
from tmac.nn.row_ops import run_embedding, traced_embedding
from tmac.spec import QuantSpec


class QuantEmbedding(PackedModule):
    """`dequantize()[ids]` over a low-bit table; a look-up reads the bytes of its rows and no others.

    ids are integers of any shape below `num_embeddings`; the result is `[..., embedding_dim]`. The table has no
    gradient. State dicts, copies and pickles hold the canonical tensors, as those of `QuantLinear` do.

    Args:
        num_embeddings: rows of the table.
        embedding_dim: columns of the table.
        spec: what the codes mean.
        padding_idx: kept for whoever asks for it; its row is one like the others.
        scale: what every row is multiplied with after it was rounded to `dtype`, as Gemma and BART do; None is 1.
        dtype: of the result, f32, f16 or bf16; it follows `module.to(dtype)`.

    Example:
        >>> table = QuantEmbedding.from_embedding(torch.nn.Embedding(100, 64), tmac.QuantSpec(bits=4, group_size=32))
        >>> table(torch.tensor([[3, 7]])).shape
        torch.Size([1, 2, 64])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        spec: QuantSpec | None = None,
        padding_idx: int | None = None,
        scale: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(embedding_dim, num_embeddings, spec)
        self.padding_idx = padding_idx
        self.scale = scale
        # Without elements: casts reach it as any other parameter, and who asks a model for its dtype finds it first.
        self.anchor = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the result."""
        return self.anchor.dtype

    @property
    def num_embeddings(self) -> int:
        """Rows of the table."""
        return self.out_features

    @property
    def embedding_dim(self) -> int:
        """Columns of the table."""
        return self.in_features

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, spec: QuantSpec) -> QuantEmbedding:
        """Rounds the table of `embedding` to the nearest codes.

        Raises:
            ValueError: the table holds NaN or Inf, or has no data, or its rows are looked up in another way.
            UnsupportedSpecError: no kernel serves the spec.
        """
        return cls.from_weight(embedding.weight, spec, embedding)

    @classmethod
    def from_weight(cls, weight: Tensor, spec: QuantSpec, like: nn.Embedding) -> QuantEmbedding:
        """Rounds a float table that stands in for the one of `like`; raises like `from_embedding`."""
        return cls.from_codes(round_weight(weight, spec, cls.__name__), like)

    @classmethod
    def from_codes(cls, codes: Codes, like: nn.Embedding | None = None) -> QuantEmbedding:
        """Packs `codes` for this CPU; padding, scale and dtype are those of `like`, whose table may be on meta."""
        table = cls(codes.out_features, codes.in_features) if like is None else cls.like(like, codes.spec)
        table.spec = codes.spec
        table._adopt(codes.pack())
        return table

    @classmethod
    def like(cls, embedding: nn.Embedding, spec: QuantSpec) -> QuantEmbedding:
        """An empty table with the shape, padding, scale and dtype of `embedding`."""
        return cls(embedding.num_embeddings, embedding.embedding_dim, spec, **_options(embedding))

    def forward(self, ids: Tensor) -> Tensor:
        watched = is_compiling() or peek_interpreter_stack() is not None or observed(ids, None)
        rows = (traced_embedding if watched else run_embedding)(ids, self.weight, self.in_features, self.dtype)
        if self.scale is None:
            return rows
        return rows * torch.tensor(self.scale, dtype=self.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}, scale={self.scale}, "
            f"dtype={self.dtype}, spec={self.spec}, kernel={self.kernel!r}"
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(f"{prefix}anchor", None)


def is_plain_embedding(module: nn.Module) -> bool:
    """Whether `QuantEmbedding` can stand for the module: a table that is looked up, and multiplied with a constant."""
    if not isinstance(module, nn.Embedding) or module.max_norm is not None:
        return False
    return type(module).forward is nn.Embedding.forward or _scale_of(module) is not None


def _scale_of(module: nn.Module) -> float | None:
    scale: Any = getattr(module, "scalar_embed_scale", None)
    if scale is None:
        scale = getattr(module, "embed_scale", None)
    if scale is None or (isinstance(scale, Tensor) and scale.is_meta):
        return None
    return float(scale)


def _options(module: nn.Embedding) -> dict[str, Any]:
    if not is_plain_embedding(module):
        raise ValueError(f"[QuantEmbedding] the rows of {type(module).__name__} are not looked up as they are")
    return {"padding_idx": module.padding_idx, "scale": _scale_of(module), "dtype": module.weight.dtype}
