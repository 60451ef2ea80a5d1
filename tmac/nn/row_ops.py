"""The torch operators that choose rows: `tmac::embedding` looks rows up, `tmac::grouped_linear` deals rows out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tmac import _core
from tmac.nn.ops import FLOAT_TYPES, run_linear
from tmac.threads import get_num_threads

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def run_embedding(ids: Tensor, weight: Tensor, embedding_dim: int, dtype: torch.dtype) -> Tensor:
    """`dequantize(weight)[ids]`, called straight into the core.

    Args:
        ids: integers of any shape, on the CPU.
        weight: u8, the bytes of a `PackedWeight`.
        embedding_dim: what the caller expects of the weight.
        dtype: f32, f16 or bf16.

    Returns:
        `[..., embedding_dim]` of `dtype`.

    Raises:
        ValueError: an id is outside the table, a dtype or device is another one, or `weight` is not a packed weight of
            this CPU.
    """
    if ids.dtype not in _INTEGERS or dtype not in FLOAT_TYPES or not ids.is_cpu or not weight.is_cpu:
        raise _refusal(ids, weight, dtype)
    numbers = ids.to(torch.int64).contiguous()
    rows = torch.empty((*ids.shape, embedding_dim), dtype=dtype)
    _core.embedding_pointers(
        numbers.data_ptr(),
        numbers.numel(),
        weight.data_ptr(),
        weight.numel(),
        rows.data_ptr(),
        FLOAT_TYPES[dtype],
        embedding_dim,
        embedding_dim,
        get_num_threads(),
    )
    return rows


def _refusal(ids: Tensor, weight: Tensor, dtype: torch.dtype) -> ValueError:
    if ids.dtype not in _INTEGERS:
        return ValueError(f"[embedding] ids have dtype {ids.dtype}, but integers are needed")
    if dtype not in FLOAT_TYPES:
        return ValueError(f"[embedding] rows of {dtype} were asked for, but float32, float16 or bfloat16 is needed")
    return ValueError(f"[embedding] ids are on {ids.device} and the table on {weight.device}, but tmac runs on the CPU")


def _embedding_shape(ids: Tensor, weight: Tensor, embedding_dim: int, dtype: torch.dtype) -> Tensor:
    if ids.dtype not in _INTEGERS or dtype not in FLOAT_TYPES or ids.device != weight.device:
        raise _refusal(ids, weight, dtype)
    return weight.new_empty((*ids.shape, embedding_dim), dtype=dtype)


def _embedding_batched(
    info: Any, in_dims: tuple[int | None, ...], ids: Tensor, weight: Tensor, embedding_dim: int, dtype: torch.dtype
) -> tuple[Tensor, int]:
    if in_dims[1] is not None or in_dims[0] is None:
        raise ValueError("[embedding] a packed weight cannot be batched by vmap")
    return traced_embedding(ids.movedim(in_dims[0], 0), weight, embedding_dim, dtype), 0


def run_grouped_linear(x: Tensor, counts: Tensor, weights: Sequence[Tensor], out_features: int) -> Tensor:
    """The first `counts[0]` rows of x times the first weight, the next `counts[1]` times the second, and so on.

    Args:
        x: f32, f16 or bf16 `[rows, in_features]`.
        counts: i64 `[len(weights)]`, with a sum of at most rows.
        weights: u8, the bytes of `PackedWeight`s of one shape.
        out_features: what the caller expects of the weights.

    Returns:
        `[rows, out_features]` in the dtype of x; rows beyond the sum of `counts` are zeros.

    Raises:
        ValueError: as `run_linear`, and for counts that do not fit.
    """
    parts = counts.tolist()
    if len(parts) != len(weights) or sum(parts) > len(x) or min(parts, default=0) < 0:
        raise ValueError(f"[grouped_linear] counts {parts} do not fit {len(weights)} weights and {len(x)} rows")
    y = x.new_empty(len(x), out_features)
    begin = 0
    for count, weight in zip(parts, weights, strict=True):
        if count:
            y[begin : begin + count] = run_linear(x[begin : begin + count], weight, None, out_features)
            begin += count
    y[begin:] = 0
    return y


def _grouped_shape(x: Tensor, counts: Tensor, weights: Sequence[Tensor], out_features: int) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


def _grouped_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, counts, weights, ctx.out_features = inputs
    ctx.in_features = x.shape[-1]
    ctx.save_for_backward(counts, *weights)


def _grouped_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    counts, *weights = ctx.saved_tensors
    return traced_grouped_gradient(grad, counts, weights, ctx.in_features), None, [None] * len(weights), None


def _run_grouped_gradient(grad: Tensor, counts: Tensor, weights: Sequence[Tensor], in_features: int) -> Tensor:
    out = grad.new_zeros(len(grad), in_features)
    begin = 0
    for count, weight in zip(counts.tolist(), weights, strict=True):
        if count:
            dense = torch.from_numpy(_core.dequantize(weight.numpy(), get_num_threads()))
            out[begin : begin + count] = (grad[begin : begin + count].float() @ dense).to(grad.dtype)
            begin += count
    return out


def _define() -> Any:
    library: Any = torch.library.Library("tmac", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("embedding(Tensor ids, Tensor weight, int embedding_dim, ScalarType dtype) -> Tensor")
    library.impl("embedding", run_embedding, "CPU")
    torch.library.register_fake("tmac::embedding", _embedding_shape, lib=library)
    torch.library.register_vmap("tmac::embedding", _embedding_batched, lib=library)
    arguments = "Tensor counts, Tensor[] weights"
    library.define(f"grouped_linear(Tensor x, {arguments}, int out_features) -> Tensor")
    library.impl("grouped_linear", run_grouped_linear, "CPU")
    torch.library.register_fake("tmac::grouped_linear", _grouped_shape, lib=library)
    torch.library.register_autograd("tmac::grouped_linear", _grouped_backward, setup_context=_grouped_save, lib=library)
    library.define(f"grouped_gradient(Tensor grad, {arguments}, int in_features) -> Tensor")
    library.impl("grouped_gradient", _run_grouped_gradient, "CPU")
    torch.library.register_fake("tmac::grouped_gradient", _grouped_shape, lib=library)
    return library


if not hasattr(torch.ops.tmac, "embedding"):  # a module may be imported twice, an operator is defined once
    _LIBRARY = _define()

traced_embedding: Callable[[Tensor, Tensor, int, torch.dtype], Tensor] = torch.ops.tmac.embedding.default
"""`run_embedding` as an operator, visible to torch.compile and torch.export."""

traced_grouped_linear: Callable[[Tensor, Tensor, Sequence[Tensor], int], Tensor] = torch.ops.tmac.grouped_linear.default
"""`run_grouped_linear` as an operator: differentiable with respect to x, visible to torch.compile and torch.export."""

traced_grouped_gradient: Callable[[Tensor, Tensor, Sequence[Tensor], int], Tensor] = (
    torch.ops.tmac.grouped_gradient.default
)
