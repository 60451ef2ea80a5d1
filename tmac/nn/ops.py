"""The torch operators `tmac::linear` and `tmac::dequantize`, and the direct call that eager code takes instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from tmac import _core
from tmac.threads import get_num_threads

FLOAT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
WHOLE = (0, 1.0, 0.0)


def run_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out_features: int,
    prefix: tuple[int, float, float] = WHOLE,
) -> Tensor:
    """`x @ dequantize(weight).T + bias`, called straight into the core: nothing is recorded for autograd or a tracer.

    Args:
        x: f32, f16 or bf16 `[..., in_features]` with any strides, on the CPU.
        weight: u8, the bytes of a `PackedWeight`.
        bias: f32 `[out_features]`, or None.
        out_features: what the caller expects of the weight.
        prefix: planes, code_scale and code_base of `_core.linear_pointers`: a part of the weight.

    Returns:
        `[..., out_features]` in the dtype of x.

    Raises:
        ValueError: a dtype, shape or device is another one, or `weight` is not a packed weight of this CPU.
    """
    type_id = FLOAT_TYPES.get(x.dtype)
    shape = x.shape
    if type_id is None or not shape or not x.is_cpu or not weight.is_cpu or x.layout is not torch.strided:
        raise _refusal(x, weight)
    if x.is_neg():  # the direct call passes by the dispatcher, which would do both
        x = x.resolve_neg()
    elif x._is_zerotensor():
        x = x.clone()
    in_features = shape[-1]
    if x.is_contiguous():
        stride = in_features
    elif len(shape) == 2 and x.stride(1) == 1:
        stride = x.stride(0)
    else:
        x = x.contiguous()
        stride = in_features
    y = x.new_empty(*shape[:-1], out_features)
    bias_address = 0
    if bias is not None:
        if (
            bias.dtype is not torch.float32
            or bias.shape != (out_features,)
            or not bias.is_contiguous()
            or not bias.is_cpu
        ):
            raise _bias_refusal(bias, out_features)
        if bias.is_neg():
            bias = bias.resolve_neg()
        bias_address = bias.data_ptr()
    _core.linear_pointers(
        x.data_ptr(),
        type_id,
        stride,
        x.numel() // in_features if in_features else 0,
        weight.data_ptr(),
        weight.numel(),
        bias_address,
        y.data_ptr(),
        type_id,
        out_features,
        in_features,
        out_features,
        get_num_threads(),
        *prefix,
    )
    return y


def _bias_refusal(bias: Tensor, out_features: int) -> ValueError:
    return ValueError(
        f"[linear] bias must be a contiguous float32 [{out_features}] on the CPU, got {bias.dtype} "
        f"{list(bias.shape)} on {bias.device}"
    )


def _refusal(x: Tensor, weight: Tensor) -> ValueError:
    if x.dtype not in FLOAT_TYPES:
        return ValueError(f"[linear] x has dtype {x.dtype}, but float32, float16 or bfloat16 is needed")
    if x.dim() == 0:
        return ValueError("[linear] x has no dimension, but at least one is needed")
    if x.layout is not torch.strided:
        return ValueError(f"[linear] x has layout {x.layout}, but torch.strided is needed: convert it with to_dense()")
    return ValueError(f"[linear] x is on {x.device} and the weight on {weight.device}, but tmac runs on the CPU")


def _linear_shape(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    if x.dtype not in FLOAT_TYPES or x.dim() == 0 or x.layout is not torch.strided or x.device != weight.device:
        raise _refusal(x, weight)
    return x.new_empty((*x.shape[:-1], out_features))


def _dequantize(weight: Tensor, out_features: int, in_features: int) -> Tensor:
    dense = torch.from_numpy(_core.dequantize(weight.numpy(), get_num_threads()))
    if dense.shape != (out_features, in_features):
        raise ValueError(
            f"[dequantize] the weight was packed as {list(dense.shape)}, not as [{out_features}, {in_features}]"
        )
    return dense


def _dequantize_shape(weight: Tensor, out_features: int, in_features: int) -> Tensor:
    return weight.new_empty((out_features, in_features), dtype=torch.float32)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.out_features = inputs
    ctx.in_features = x.shape[-1]
    ctx.has_bias = bias is not None
    ctx.save_for_backward(weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x = grad_bias = None
    wide = grad.float()
    if ctx.needs_input_grad[0]:
        dense = torch.ops.tmac.dequantize.default(ctx.saved_tensors[0], ctx.out_features, ctx.in_features)
        grad_x = (wide @ dense).to(grad.dtype)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        grad_bias = wide.reshape(-1, ctx.out_features).sum(0)
    return grad_x, None, grad_bias, None


def _batched(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int
) -> tuple[Tensor, int]:
    x_dim, weight_dim, bias_dim, _ = in_dims
    if weight_dim is not None:
        raise ValueError("[linear] a packed weight cannot be batched by vmap")
    rows = x if x_dim is None else x.movedim(x_dim, 0)  # an x that all share is multiplied once
    if bias is None or bias_dim is None:
        return torch.ops.tmac.linear.default(rows, weight, bias, out_features), 0
    y = torch.ops.tmac.linear.default(rows, weight, None, out_features)
    own_dims = y.dim() - (2 if x_dim is not None else 1)
    bias = bias.movedim(bias_dim, 0).reshape(info.batch_size, *[1] * own_dims, out_features)
    return (y.float() + bias).to(y.dtype), 0


def _define() -> Any:
    library: Any = torch.library.Library("tmac", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("linear(Tensor x, Tensor weight, Tensor? bias, int out_features) -> Tensor")
    library.impl("linear", run_linear, "CPU")
    torch.library.register_fake("tmac::linear", _linear_shape, lib=library)
    torch.library.register_autograd("tmac::linear", _backward, setup_context=_save_for_backward, lib=library)
    torch.library.register_vmap("tmac::linear", _batched, lib=library)
    library.define("dequantize(Tensor weight, int out_features, int in_features) -> Tensor")
    library.impl("dequantize", _dequantize, "CPU")
    torch.library.register_fake("tmac::dequantize", _dequantize_shape, lib=library)
    return library


if not hasattr(torch.ops.tmac, "linear"):  # a module may be imported twice, an operator is defined once
    _LIBRARY = _define()

traced_linear: Callable[[Tensor, Tensor, Tensor | None, int], Tensor] = torch.ops.tmac.linear.default
"""`run_linear` as an operator: differentiable with respect to x and bias, visible to torch.compile and torch.export."""


class _Transformed(torch.autograd.Function):
    """The operator under torch.func, whose transforms do not take the formula that is registered for autograd."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_for_backward(ctx, inputs, output)
        ctx.save_for_forward(inputs[1])
        ctx.y_shape, ctx.y_dtype = output.shape, output.dtype

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, weight: None, bias: Tensor | None, out_features: None) -> Tensor | None:
        y = None if x is None else transformed_linear(x, ctx.saved_tensors[0], None, ctx.out_features)
        if bias is None:
            return y
        if y is None:
            return bias.expand(ctx.y_shape).to(ctx.y_dtype)
        return (y.float() + bias).to(y.dtype)

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
        return traced_linear(x, weight, bias, out_features)

    backward = staticmethod(_backward)


def transformed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """`run_linear` under forward-mode derivatives and torch.func.grad, vjp, jvp, jacrev and vmap."""
    return cast(Tensor, _Transformed.apply(x, weight, bias, out_features))  # type: ignore[no-untyped-call]
