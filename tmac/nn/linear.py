"""`QuantLinear`, the layer that stands where `torch.nn.Linear` stood."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._C import _get_tracing_state, _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from tmac import _core
from tmac._core import UnsupportedSpecError
from tmac.codes import Codes, buffer_to_tensors, pack_tensors, repack, round_to_nearest, tensor_shapes
from tmac.nn.ops import run_linear, traced_linear, transformed_linear
from tmac.spec import QuantSpec
from tmac.threads import get_num_threads


class QuantLinear(nn.Module):
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

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, spec: QuantSpec | None = None) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"[QuantLinear] features must be positive, got in={in_features}, out={out_features}")
        self.in_features = in_features
        self.out_features = out_features
        self.spec = QuantSpec() if spec is None else spec
        self.register_buffer("weight", torch.empty(0, dtype=torch.uint8), persistent=False)
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, spec: QuantSpec) -> QuantLinear:
        """Rounds the weight of `linear` to the nearest codes.

        Raises:
            ValueError: the weight holds NaN or Inf, or has no data.
            UnsupportedSpecError: no kernel serves the spec.
        """
        if linear.weight.is_meta:
            raise ValueError("[QuantLinear] the weight is on the meta device: it has no data to quantize")
        weight = linear.weight.detach().to("cpu", torch.float32).contiguous()
        return cls.from_codes(round_to_nearest(weight.numpy(), spec), linear.bias)

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

    @property
    def kernel(self) -> str:
        """Name of the kernel that the weight is packed for; "" while the module is empty."""
        return self._kernels().partition(",")[0]

    @property
    def prompt_kernel(self) -> str:
        """Name of the kernel for more than 16 tokens; "" while the module is empty."""
        return self._kernels().partition(",")[2]

    def _kernels(self) -> str:
        if not self.weight.is_cpu or self.weight.numel() == 0:
            return ""
        about = _core.describe(self.weight.numpy())
        return f"{about['kernel']},{about['prompt_kernel']}"

    def repack_(self, kernel: str = "") -> bool:
        """Moves the weight into the memory order of `kernel`, "decode" or "decode,prompt"; "" is what packing chooses.

        The weight stays the same number for number; what computes with it may be of another numerics class. A module
        without a weight on the CPU stays as it is.

        Returns:
            whether another kernel serves the module now.

        Raises:
            UnsupportedSpecError: the kernel does not serve the spec.
            ValueError: there is no kernel of this name.
        """
        before = self._kernels()
        if not before or kernel == before:
            return False
        self._adopt(repack(self._bytes(), kernel))
        return self._kernels() != before

    def dequantize(self) -> Tensor:
        """The weight, f32 `[out_features, in_features]`, in the checkpoint's column order."""
        return torch.from_numpy(_core.dequantize(self._bytes(), get_num_threads()))

    def forward(self, x: Tensor) -> Tensor:
        bias = self._parameters["bias"]
        weight = cast(Tensor, self._buffers["weight"])
        if is_compiling():
            return traced_linear(x, weight, bias, self.out_features)
        if peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
            return transformed_linear(x, weight, bias, self.out_features)
        if _observed(x, bias) and x.layout is torch.strided:
            return traced_linear(x, weight, bias, self.out_features)
        return run_linear(x, weight, bias, self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"spec={self.spec}, kernel={self.kernel!r}"
        )

    def _adopt(self, packed: _core.PackedWeight) -> None:
        if (packed.out_features, packed.in_features) != (self.out_features, self.in_features):
            raise ValueError(
                f"[QuantLinear] the weight is [{packed.out_features}, {packed.in_features}], but the module is "
                f"[{self.out_features}, {self.in_features}]"
            )
        self._buffers["weight"] = torch.from_numpy(packed.buffer())

    def _set_bias(self, bias: Tensor) -> None:
        requires_grad = self.bias is not None and self.bias.requires_grad
        data = bias.detach().to("cpu", torch.float32, copy=True).contiguous()
        if self.bias is not None and not self.bias.is_meta:
            self.bias.data = data
        else:
            self.bias = nn.Parameter(data, requires_grad=requires_grad)

    def _bytes(self) -> Any:
        if self.weight.numel() == 0 or not self.weight.is_cpu:
            raise ValueError(f"[QuantLinear] the module has no weight on the CPU (it is on {self.weight.device})")
        return self.weight.numpy()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        weight, bias = self.weight, None if self.bias is None else self.bias.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.dtype != torch.uint8:  # a cast moves the module, but changes neither the bytes nor the bias
            self._buffers["weight"] = weight.to(self.weight.device)
        if self.bias is not None and bias is not None and self.bias.dtype != torch.float32:
            self.bias.data = bias.to(self.bias.device)
        return self

    def _canonical(self, prefix: str = "") -> dict[str, Tensor]:
        if self.weight.is_cpu and self.weight.numel():
            return {name: torch.from_numpy(array) for name, array in buffer_to_tensors(self._bytes(), prefix).items()}
        scale_type = {"f16": torch.float16, "f32": torch.float32, "two_level": torch.int8}[self.spec.scale_format]
        zeros_type = torch.uint8 if self.spec.zero_point == "integer" else scale_type
        types = {"planes": torch.uint8, "trits": torch.uint8, "zeros": zeros_type}
        types |= {"super_scales": torch.float16, "super_offsets": torch.float16}
        return {
            prefix + name: torch.empty(shape, dtype=types.get(name, scale_type), device="meta")
            for name, shape in tensor_shapes(self.spec, self.out_features, self.in_features).items()
        }

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update(self._canonical(prefix))

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for hook in self._load_state_dict_pre_hooks.values():
            hook(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        shapes = tensor_shapes(self.spec, self.out_features, self.in_features, self.bias is not None)
        known = {prefix + name for name in shapes} | {prefix + "perm"}
        found = {name: state_dict[prefix + name] for name in [*shapes, "perm"] if prefix + name in state_dict}
        missing = [prefix + name for name in shapes if name not in found]
        missing_keys.extend(missing)
        if strict:
            unexpected_keys.extend(key for key in state_dict if key.startswith(prefix) and key not in known)
        wrong = [name for name, shape in shapes.items() if name in found and tuple(found[name].shape) != shape]
        error_msgs.extend(
            f"size mismatch for {prefix}{name}: copying a param with shape {list(found[name].shape)} from checkpoint, "
            f"the shape in current model is {list(shapes[name])}."
            for name in wrong
        )
        if not wrong and not missing:
            self._load(found, prefix, error_msgs)

    def _load(self, found: dict[str, Tensor], prefix: str, error_msgs: list[str]) -> None:
        bias = found.pop("bias", None)
        try:
            arrays = {name: _to_array(name, tensor) for name, tensor in found.items()}
            self._adopt(pack_tensors(arrays, self.spec, self.in_features))
        except (ValueError, UnsupportedSpecError) as error:
            error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__} cannot be packed: {error}")
            return
        if bias is not None:
            self._set_bias(bias)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_buffers"] = {name: value for name, value in self._buffers.items() if name != "weight"}
        has_data = self.weight.is_cpu and self.weight.numel() > 0
        state["_canonical_tensors"] = self._canonical() if has_data else None
        return state

    def __setstate__(self, state: dict[str, Any], kernel: str = "") -> None:
        tensors = state.pop("_canonical_tensors")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._buffers["weight"] = torch.empty(0, dtype=torch.uint8)
        if tensors is not None:
            arrays = {name: _to_array(name, tensor) for name, tensor in tensors.items()}
            self._adopt(pack_tensors(arrays, self.spec, self.in_features, kernel=kernel))

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantLinear:
        layer = type(self).__new__(type(self))
        memo[id(self)] = layer
        layer.__setstate__(copy.deepcopy(self.__getstate__(), memo), self._kernels())
        return layer


def _to_array(name: str, tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.is_meta or tensor.dtype == torch.bfloat16:
        raise ValueError(f"{name} is a {tensor.dtype} tensor on {tensor.device}")
    return tensor.detach().cpu().numpy()


def _observed(x: Tensor, bias: Tensor | None) -> bool:
    """Whether autograd, a tracer or a dispatch mode wants to see the operation on x."""
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return True
    if type(x) not in _PLAIN or x.is_meta:
        return True
    return _len_torch_dispatch_stack() > 0 or _get_tracing_state() is not None


_PLAIN = (Tensor, nn.Parameter)
