"""`QuantLinear`, the layer that stands where `torch.nn.Linear` stood."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch._C import _get_tracing_state, _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from tmac.codes import Codes, round_to_nearest
from tmac.nn.ops import run_linear, traced_linear, transformed_linear
from tmac.nn.packed import PackedModule
from tmac.spec import QuantSpec


class QuantLinear(PackedModule):
    """`y = x @ dequantize().T + bias` over a low-bit weight.

    x is f32, f16 or bf16 `[..., in_features]` with any strides on the CPU; y has its dtype. The gradient reaches x and
    the bias, not the weight. A module made by the constructor is empty until a state dict is loaded. State dicts,
    copies and pickles hold the canonical tensors (`tmac.codes.tensor_shapes`), never this CPU's memory order.

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether there is a bias. It stays f32, whatever the module is cast to.
        spec: what the codes mean.

    Example:
        >>> layer = QuantLinear.from_linear(torch.nn.Linear(64, 32), tmac.QuantSpec(bits=4, group_size=32))
        >>> layer(torch.randn(2, 64)).shape
        torch.Size([2, 32])
    """

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, spec: QuantSpec | None = None) -> None:
        super().__init__(in_features, out_features, spec)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, spec: QuantSpec) -> QuantLinear:
        """Rounds the weight of `linear` to the nearest codes.

        Raises:
            ValueError: the weight holds NaN or Inf, or has no data.
            UnsupportedSpecError: no kernel serves the spec.
        """
        return cls.from_weight(linear.weight, spec, linear.bias)

    @classmethod
    def from_weight(cls, weight: Tensor, spec: QuantSpec, bias: Tensor | None = None) -> QuantLinear:
        """Rounds a float weight `[out_features, in_features]` to the nearest codes; raises like `from_linear`."""
        return cls.from_codes(round_weight(weight, spec, cls.__name__), bias)

    @classmethod
    def from_codes(cls, codes: Codes, bias: Tensor | None = None) -> QuantLinear:
        """Packs `codes` for this CPU. `bias` `[out_features]`, any float dtype, stands in for `codes.bias` if given."""
        if bias is None and codes.bias is not None:
            bias = torch.from_numpy(codes.bias)
        if bias is not None and tuple(bias.shape) != (codes.out_features,):
            raise ValueError(f"[QuantLinear] bias must have shape [{codes.out_features}], got {list(bias.shape)}")
        layer = cls(codes.in_features, codes.out_features, bias is not None, codes.spec)
        layer._adopt(codes.pack())
        if bias is not None:
            layer._set_bias(bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        bias = self._parameters["bias"]
        weight = cast(Tensor, self._buffers["weight"])
        if is_compiling():
            return traced_linear(x, weight, bias, self.out_features)
        if peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
            return transformed_linear(x, weight, bias, self.out_features)
        if observed(x, bias) and x.layout is torch.strided:
            return traced_linear(x, weight, bias, self.out_features)
        return run_linear(x, weight, bias, self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"spec={self.spec}, kernel={self.kernel!r}"
        )

    def _set_bias(self, bias: Tensor) -> None:
        requires_grad = self.bias is not None and self.bias.requires_grad
        data = bias.detach().to("cpu", torch.float32, copy=True).contiguous()
        if self.bias is not None and not self.bias.is_meta:
            self.bias.data = data
        else:
            self.bias = nn.Parameter(data, requires_grad=requires_grad)


def round_weight(weight: Tensor, spec: QuantSpec, where: str) -> Codes:
    """A float weight of any dtype rounded to the nearest codes; `where` names the caller in messages."""
    if weight.is_meta:
        raise ValueError(f"[{where}] the weight is on the meta device: it has no data to quantize")
    return round_to_nearest(weight.detach().to("cpu", torch.float32).contiguous().numpy(), spec)


def observed(x: Tensor, bias: Tensor | None) -> bool:
    """Whether autograd, a tracer or a dispatch mode wants to see the operation on x."""
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return True
    if type(x) not in _PLAIN or x.is_meta:
        return True
    return _len_torch_dispatch_stack() > 0 or _get_tracing_state() is not None


_PLAIN = (Tensor, nn.Parameter)
