"""What every layer over a packed weight has: its bytes, state dicts, copies and pickles of the canonical tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tmac import _core
from tmac._core import UnsupportedSpecError
from tmac.codes import buffer_to_tensors, pack_tensors, repack, tensor_shapes
from tmac.spec import QuantSpec
from tmac.threads import get_num_threads

Layer = TypeVar("Layer", bound="PackedModule")


class PackedModule(nn.Module):
    """A weight `[out_features, in_features]` in the memory order of this CPU, as the buffer `weight`.

    A module made by the constructor is empty until a state dict is loaded. State dicts, copies and pickles hold the
    canonical tensors (`tmac.codes.tensor_shapes`), never this CPU's memory order.
    """

    weight: Tensor

    def __init__(self, in_features: int, out_features: int, spec: QuantSpec | None = None) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"[{self._name}] features must be positive, got in={in_features}, out={out_features}")
        self.in_features = in_features
        self.out_features = out_features
        self.spec = QuantSpec() if spec is None else spec
        self._sharers: list[PackedModule] = []
        self.register_buffer("weight", torch.empty(0, dtype=torch.uint8), persistent=False)

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _bias(self) -> Tensor | None:
        return self._parameters.get("bias")

    def _set_bias(self, bias: Tensor) -> None:
        raise NotImplementedError

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

    def repack_in_planes_(self) -> bool:
        """Moves the weight, if need be, into an order of the same kernels whose leading planes can be read alone.

        Results keep their bits. A module without a weight on the CPU stays as it is.

        Returns:
            whether it has moved.
        """
        kernels = self._kernels()
        if not kernels:
            return False
        packed = repack(self._bytes(), kernels, plane_layout=True)
        if _core.describe(packed.buffer())["layout"] == _core.describe(self._bytes())["layout"]:
            return False
        self._adopt(packed)
        return True

    def dequantize(self) -> Tensor:
        """The weight, f32 `[out_features, in_features]`, in the checkpoint's column order."""
        return torch.from_numpy(_core.dequantize(self._bytes(), get_num_threads()))

    def share_(self, owner: PackedModule) -> None:
        """Takes the weight of `owner`: both hold one copy of the bytes, also after `repack_`, copies and pickles.

        Raises:
            ValueError: the modules have other shapes.
        """
        if (owner.out_features, owner.in_features) != (self.out_features, self.in_features):
            raise ValueError(
                f"[{self._name}] a weight of [{owner.out_features}, {owner.in_features}] cannot be shared with a "
                f"module of [{self.out_features}, {self.in_features}]"
            )
        self.spec = owner.spec
        owner._sharers = owner._sharers or [owner]
        owner._sharers.append(self)
        self._sharers = owner._sharers
        self._buffers["weight"] = owner.weight

    @property
    def shared_with(self) -> PackedModule | None:
        """The module whose weight this one has taken by `share_`; None for the owner of a weight."""
        owner = self._sharers[0] if self._sharers else self
        return None if owner is self or owner.weight is not self.weight else owner

    def _adopt(self, packed: _core.PackedWeight) -> None:
        if (packed.out_features, packed.in_features) != (self.out_features, self.in_features):
            raise ValueError(
                f"[{self._name}] the weight is [{packed.out_features}, {packed.in_features}], but the module is "
                f"[{self.out_features}, {self.in_features}]"
            )
        before, weight = self.weight, torch.from_numpy(packed.buffer())
        self._buffers["weight"] = weight
        for module in self._sharers:
            if module.weight is before:
                module._buffers["weight"] = weight

    def _bytes(self) -> Any:
        if self.weight.numel() == 0 or not self.weight.is_cpu:
            raise ValueError(f"[{self._name}] the module has no weight on the CPU (it is on {self.weight.device})")
        return self.weight.numpy()

    def _apply(self: Layer, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Layer:
        weight, bias = self.weight, None if self._bias is None else self._bias.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.dtype != torch.uint8:  # a cast moves the module, but changes neither the bytes nor the bias
            self._buffers["weight"] = weight.to(self.weight.device)
        if self._bias is not None and bias is not None and self._bias.dtype != torch.float32:
            self._bias.data = bias.to(self._bias.device)
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
        shapes = tensor_shapes(self.spec, self.out_features, self.in_features, self._bias is not None)
        known = {prefix + name for name in shapes} | {prefix + "perm"}
        found = {name: state_dict[prefix + name] for name in [*shapes, "perm"] if prefix + name in state_dict}
        missing = [prefix + name for name in shapes if name not in found]
        missing_keys.extend(missing)
        if strict:
            unexpected_keys.extend(
                key
                for key in state_dict
                if key.startswith(prefix)
                and key not in known
                and key[len(prefix) :].partition(".")[0] not in self._modules
            )
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
            error_msgs.append(f"{prefix.rstrip('.') or self._name} cannot be packed: {error}")
            return
        if bias is not None:
            self._set_bias(bias)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_buffers"] = {name: value for name, value in self._buffers.items() if name != "weight"}
        has_data = self.weight.is_cpu and self.weight.numel() > 0 and self.shared_with is None
        state["_canonical_tensors"] = self._canonical() if has_data else None
        return state

    def __setstate__(self, state: dict[str, Any], kernel: str = "") -> None:
        tensors = state.pop("_canonical_tensors")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        weight = torch.empty(0, dtype=torch.uint8)
        if tensors is None and self._sharers:  # they come in any order: the owner may have nothing yet
            weight = self._sharers[0].__dict__.get("_buffers", {}).get("weight", weight)
        self._buffers["weight"] = weight
        if tensors is not None:
            arrays = {name: _to_array(name, tensor) for name, tensor in tensors.items()}
            self._adopt(pack_tensors(arrays, self.spec, self.in_features, kernel=kernel))
            for module in self._sharers:
                module._buffers["weight"] = self.weight

    def __deepcopy__(self: Layer, memo: dict[int, Any]) -> Layer:
        layer = type(self).__new__(type(self))
        memo[id(self)] = layer
        layer.__setstate__(copy.deepcopy(self.__getstate__(), memo), self._kernels())
        return layer


def _to_array(name: str, tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.is_meta or tensor.dtype == torch.bfloat16:
        raise ValueError(f"{name} is a {tensor.dtype} tensor on {tensor.device}")
    return tensor.detach().cpu().numpy()
