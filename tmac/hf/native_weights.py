"""The weights of a Hugging Face model as the native runtime takes them: the same memory, under other names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tmac import _core
from tmac.hf.native_modules import check_matrix, check_norm, embedding_scale, find_modules, refusal
from tmac.nn import PackedModule
from tmac.runtime.description import ModelDescription, Weight
from tmac.runtime.families import FAMILIES, describe

DTYPES: dict[torch.dtype, Literal["F32", "F16", "BF16"]] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


@dataclass(frozen=True)
class Matrix:
    """A weight `[out_features, in_features]` in the memory of the model, and a copy of its bias.

    Args:
        weight: the bytes of a packed weight, or the floats.
        packed: which of the two.
        version: torch's count of changes in place, when this was made.
        bias: f32 `[out_features]`, or None.
    """

    weight: Tensor
    packed: bool
    version: int
    bias: Tensor | None

    def same_as(self, other: Matrix) -> bool:
        """Whether it is the same memory, not written to in between, with an equal bias."""
        mine, its = self.weight, other.weight
        if (mine.data_ptr(), mine.shape, mine.dtype) != (its.data_ptr(), its.shape, its.dtype):
            return False
        if self.version != other.version or (self.bias is None) != (other.bias is None):
            return False
        return self.bias is None or other.bias is None or torch.equal(self.bias, other.bias)


@dataclass(frozen=True)
class NativeWeights:
    """What a `_core.Model` is made of.

    Args:
        config: of `_core.ModelBuilder`.
        matrices: by the runtime's names, in the memory of the model.
        vectors: norms and their biases, f32 copies.
        exact: no activation is rounded: every packed weight says activation="float".
    """

    config: Mapping[str, Any]
    matrices: Mapping[str, Matrix]
    vectors: Mapping[str, Tensor]
    exact: bool

    def build(self) -> _core.Model:
        """The model over the same memory, which it keeps alive. Raises ValueError naming what does not fit."""
        builder = _core.ModelBuilder(dict(self.config))
        for name, matrix in self.matrices.items():
            bias = None if matrix.bias is None else matrix.bias.numpy()
            if matrix.packed:
                builder.add_packed(name, matrix.weight.numpy(), bias)
            else:
                builder.add_floats(name, _array(matrix.weight), DTYPES[matrix.weight.dtype], bias)
        for name, vector in self.vectors.items():
            builder.add_floats(name, vector.numpy(), "F32")
        return builder.build()

    def same_as(self, other: NativeWeights) -> bool:
        """Whether a model made of one computes what a model made of the other does."""
        if self.config != other.config or self.exact != other.exact:
            return False
        if self.matrices.keys() != other.matrices.keys() or self.vectors.keys() != other.vectors.keys():
            return False
        return all(matrix.same_as(other.matrices[name]) for name, matrix in self.matrices.items()) and all(
            torch.equal(vector, other.vectors[name]) for name, vector in self.vectors.items()
        )


def read_weights(model: Any) -> NativeWeights:
    """The weights of a causal language model of transformers.

    Raises:
        ValueError: the runtime does not know the family, or the model computes something else than its class says.
    """
    description = _describe(model)
    modules = find_modules(model)
    config, exact = dict(description.config), True
    matrices: dict[str, Matrix] = {}
    vectors: dict[str, Tensor] = {}
    for weight in description.weights:
        if len(weight.shape) == 1:
            vectors[weight.name] = _vector(modules, weight, config["norm_eps"])
            continue
        source, module, tensor = _find(modules, weight)
        if weight.name == "embedding":
            scale = embedding_scale(module)
            config["embedding_scale"] = config["embedding_scale"] if scale is None else scale
        bias = None if tensor is not None else getattr(module, "bias", None)
        packed = isinstance(module, PackedModule)
        floats = module.weight if tensor is None else tensor
        matrix = Matrix(_memory(floats, source, packed), packed, _version(floats), _copy(bias, f"{source}.bias"))
        if weight.name == "head" and "embedding" in matrices and matrix.same_as(matrices["embedding"]):
            continue  # the runtime takes the embedding where there is no head
        exact = exact and (not packed or module.spec.activation == "float")
        matrices[weight.name] = matrix
    return NativeWeights(config, matrices, vectors, exact)


def _describe(model: Any) -> ModelDescription:
    kind = type(model)
    if not isinstance(model, nn.Module) or not kind.__module__.startswith("transformers.models."):
        raise refusal(
            "",
            f"expected a model of transformers, got {kind.__module__}.{kind.__name__}; of a model in a wrapper, such "
            "as PEFT's, give what it wraps",
        )
    config: Any = model.config
    if config.model_type not in FAMILIES:
        raise refusal(
            "",
            f"the native runtime does not know the family {config.model_type!r} ({kind.__name__}); it knows "
            f"{', '.join(FAMILIES)}",
        )
    if model.get_output_embeddings() is None or not model.can_generate():  # type: ignore[operator]
        raise refusal("", f"{kind.__name__} has no output head to generate tokens with")
    try:
        return describe(config.to_dict())
    except ValueError as error:
        raise refusal("", f"the native runtime cannot follow the configuration ({error})") from error


def _find(modules: Mapping[str, Any], weight: Weight) -> tuple[str, Any, Tensor | None]:
    """Name and module of a weight, and the part of a tensor that it is, where one holds those of all experts."""
    for source in weight.sources:
        if source in modules:
            check_matrix(modules[source], source)
            return source, modules[source], None
    for name in weight.stack.tensors if weight.stack else ():
        owner, _, attribute = name.rpartition(".")
        whole = getattr(modules.get(owner), attribute, None)
        if weight.stack and isinstance(whole, Tensor):
            if tuple(whole.shape) != weight.stack.shape:
                raise refusal(name, f"expected the shape {list(weight.stack.shape)}, found {list(whole.shape)}")
            first = weight.stack.first_row
            return name, modules[owner], whole[weight.stack.index, first : first + weight.shape[0]]
    raise refusal(weight.sources[0], "the model has no such module, but its configuration says that it has")


def _vector(modules: Mapping[str, Any], weight: Weight, eps: float) -> Tensor:
    source = next((name for name in weight.sources if name in modules), weight.sources[0])
    tensor = getattr(modules.get(source), weight.part, None)
    if tensor is None:
        raise refusal(source, f"the model has no such {weight.part}, but its configuration says that it has")
    check_norm(modules[source], source, eps)
    values: Tensor = _copy(tensor, f"{source}.{weight.part}")
    return values if weight.shift == 0 else values + weight.shift


def _memory(tensor: Tensor, source: str, packed: bool) -> Tensor:
    _check(tensor, source)
    if not packed and tensor.dtype not in DTYPES:
        raise refusal(source, f"is {tensor.dtype}, but float32, float16 or bfloat16 is needed")
    if not tensor.is_contiguous():
        raise refusal(
            source, f"is not contiguous (strides {tensor.stride()}), and the native runtime copies no weights"
        )
    return tensor.detach()


def _copy(tensor: Tensor | None, source: str) -> Any:
    if tensor is None:
        return None
    _check(tensor, source)
    return tensor.detach().to(torch.float32, copy=True).contiguous()


def _check(tensor: Tensor, source: str) -> None:
    if tensor.device.type != "cpu":
        where = "has no data" if tensor.is_meta else "tmac runs on the CPU"
        raise refusal(source, f"is on the device {tensor.device}: {where}")
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided or tensor.is_neg():
        raise refusal(source, f"is a {type(tensor).__name__} with the layout {tensor.layout}, not plain memory")
    if tensor.numel() == 0:
        raise refusal(source, "is empty")


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The memory of the tensor; bf16 as u16, for NumPy has none."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
