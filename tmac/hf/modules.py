"""Low-bit modules of a Hugging Face model: what stands for them while weights are read, and how they are made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tmac.codes import Codes
from tmac.formats.checkpoint import Checkpoint, QuantizedLayer
from tmac.formats.errors import format_error
from tmac.nn import NormedQuantLinear, PackedModule, QuantEmbedding, QuantExperts, QuantLinear
from tmac.nn.embedding import is_plain_embedding
from tmac.nn.experts import PROJECTIONS
from tmac.nn.normed_linear import InputNorm
from tmac.nn.swap import Site, find_experts, find_modules
from tmac.spec import Activation

_EXPERT = re.compile(r"^(.*)\.(\d+)\.([^.]+)$")


class Pending(nn.Module):
    """Stands for a module of the model, without its weights, until they are read."""

    def __init__(self, original: Any, keep_bias: bool = False, norm_eps: float | None = None) -> None:
        super().__init__()
        bias = getattr(original, "bias", None) if keep_bias else None
        if bias is not None:
            self.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
        for parameter in original.parameters():
            parameter._is_hf_initialized = True  # models that initialize their children's weights leave these alone
        if norm_eps is not None:
            self.rms_norm = InputNorm(original.in_features, norm_eps)  # its weight is a tensor like others
        self.__dict__["original"] = original  # not a child: its parameters must not be seen

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "original" not in self.__dict__:
                raise
            return getattr(self.__dict__["original"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("[tmac] the weights of this module have not been read yet")


@dataclass
class Target:
    """One module of the model and what its weight is read from: one layer, or three of every expert."""

    name: str
    site: Site
    layers: dict[tuple[int, str], QuantizedLayer] = field(default_factory=dict)

    def build(self, activation: Activation | None) -> nn.Module:
        """Reads the weights. Raises FormatError."""
        original = self.site.module.original
        if (0, "weight") not in self.layers:
            experts = range(1 + max(index for index, _ in self.layers))
            return QuantExperts.from_codes(
                [tuple(_read(self.layers[index, part], activation) for part in PROJECTIONS) for index in experts],  # type: ignore[misc]
                original.act_fn,
            )
        codes = _read(self.layers[0, "weight"], activation)
        if isinstance(original, nn.Embedding):
            return QuantEmbedding.from_codes(codes, original)
        norm = self.site.module._modules.get("rms_norm")
        if norm is None:
            return QuantLinear.from_codes(_with_bias_of(original, codes))
        layer = NormedQuantLinear.from_codes(_with_bias_of(original, codes))
        layer.rms_norm = norm
        return layer

    @property
    def norm_eps(self) -> float | None:
        """The epsilon of the norm that the input passes first."""
        layer = self.layers.get((0, "weight"))
        return None if layer is None else layer.input_norm_eps


def _read(layer: QuantizedLayer, activation: Activation | None) -> Codes:
    codes = layer.read()
    if activation is None or codes.spec.activation == activation:
        return codes
    return replace(codes, spec=codes.spec.replace(activation=activation))


def _with_bias_of(original: Any, codes: Codes) -> Codes:
    """Without a bias of zeros, which some tools write for layers that have none."""
    drop = original.bias is None and codes.bias is not None and not codes.bias.any()
    return replace(codes, bias=None) if drop else codes


def find_targets(model: nn.Module, checkpoint: Checkpoint, places: Mapping[str, tuple[str, int, str]]) -> list[Target]:
    """The modules that the checkpoint's layers belong to.

    Args:
        model: on the meta device.
        checkpoint: whose `layers` are looked at.
        places: layer -> (module, expert, projection); the projection is "weight" for what is no expert.

    Raises:
        FormatError: a module cannot be replaced, has another shape, or lacks the weights of an expert.
    """
    sites = {name: site for site in find_modules(model, lambda module: True) for name in site.names}
    fused = {name for site in find_experts(model) for name in site.names}
    targets: dict[str, Target] = {}
    for name, (module, expert, part) in places.items():
        layer = checkpoint.layers[name]
        if module not in sites:
            raise format_error(checkpoint.path, f"expected a module {module!r} in {type(model).__name__}", name)
        target = targets.setdefault(sites[module].name, Target(module, sites[module]))
        if (part == "weight") == (module in fused) or (expert, part) in target.layers:
            raise format_error(checkpoint.path, f"expected another weight for {module!r}", name)
        _check(checkpoint.path, target.site.module, layer, part)
        target.layers[expert, part] = layer
    for target in targets.values():
        _check_experts(checkpoint.path, target)
    return list(targets.values())


def _check(path: Path, module: Any, layer: QuantizedLayer, part: str) -> None:
    found = (layer.out_features, layer.in_features)
    shape: tuple[int, ...]
    if part != "weight":
        rows, columns = module.gate_up_proj.shape[1] // 2, module.gate_up_proj.shape[2]
        shape = (columns, rows) if part == "down_proj" else (rows, columns)
        bias = False
    elif is_plain_embedding(module):
        shape, bias = tuple(module.weight.shape), False
    elif isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":  # GPT-2's transposed linear layer
        shape = tuple(module.weight.shape) if isinstance(module, nn.Linear) else tuple(module.weight.shape)[::-1]
        bias = module.bias is not None
    else:
        message = f"expected a linear layer or an embedding in the model, found {type(module).__name__}"
        raise format_error(path, message, layer.name)
    if found != shape:
        raise format_error(path, f"expected a weight of {list(shape)}, found {list(found)}", layer.name)
    if bias and not layer.bias:
        raise format_error(path, "expected a bias, found none", layer.name)
    if layer.input_norm_eps is not None and not isinstance(module, nn.Linear):
        raise format_error(path, "an RMSNorm is supported inside of a linear layer", layer.name)


def _check_experts(path: Path, target: Target) -> None:
    if (0, "weight") in target.layers:
        return
    for index in range(len(target.site.module.gate_up_proj)):
        for part in PROJECTIONS:
            if (index, part) not in target.layers:
                raise format_error(path, f"expected {part} of expert {index}, found none", target.name)


def own_place(name: str, modules: Mapping[str, object], fused: set[str]) -> tuple[str, int, str] | None:
    """The place of a layer whose name is one of the model's: a module, or `<experts>.<number>.<projection>`."""
    if name in modules:
        return name, 0, "weight"
    match = _EXPERT.match(name)
    if match and match[1] in fused and match[3] in PROJECTIONS:
        return match[1], int(match[2]), match[3]
    return None


def hold(targets: Iterable[Target]) -> None:
    """Puts a `Pending` in the place of every target."""
    for target in targets:
        with torch.device("meta"):
            pending = Pending(target.site.module, norm_eps=target.norm_eps)
        target.site.replace(pending)
        target.site.module = pending


def fill(targets: list[Target], activation: Activation | None) -> Iterator[str]:
    """Reads and packs one target after the other and puts it in its place; gives their names."""
    while targets:
        target = targets.pop(0)
        layer = target.build(activation)
        target.site.replace(layer)
        yield target.name


def packed_modules(model: nn.Module) -> dict[str, PackedModule]:
    """Every packed module below `model` by its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedModule)}


def as_tensor(array: Any, dtype: str) -> torch.Tensor:
    """The array of a `StoredTensor`, whose bf16 comes as uint16."""
    tensor = torch.from_numpy(array)
    one_byte = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
    return tensor.view(torch.bfloat16) if dtype == "BF16" else tensor.view(one_byte.get(dtype, tensor.dtype))
