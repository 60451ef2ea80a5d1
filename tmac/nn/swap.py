"""Finding the layers of a model that low-bit ones can stand for, and putting those in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_HOOKS = ("_forward_", "_backward_")


@dataclass
class Site:
    """One module and every place where it stands."""

    module: Any
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The first dotted name that leads to the module."""
        return self.names[0]

    def replace(self, layer: nn.Module) -> None:
        """Puts `layer` in all the places; it takes over the mode and the hooks of the old module."""
        layer.train(self.module.training)
        layer.__dict__.update({key: value for key, value in self.module.__dict__.items() if key.startswith(_HOOKS)})
        for parent, attribute in self.places:
            setattr(parent, attribute, layer)


def find_modules(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> list[Site]:
    """Every module below `model` that is `wanted`, in the order of the model; one that is shared comes once."""
    sites: dict[int, Site] = {}
    for parent_name, parent in model.named_modules():
        for attribute, child in parent._modules.items():
            if child is not None and wanted(child):
                site = sites.setdefault(id(child), Site(child))
                site.places.append((parent, attribute))
                site.names.append(f"{parent_name}.{attribute}" if parent_name else attribute)
    return list(sites.values())


def find_linears(model: nn.Module) -> list[Site]:
    """Every `nn.Linear` below `model`, at any depth, in the order of the model; an instance that is shared comes once.

    Layers whose owner reads their weight itself (the output projection of `nn.MultiheadAttention`) are left out.
    """
    return find_modules(
        model, lambda child: isinstance(child, nn.Linear) and not isinstance(child, NonDynamicallyQuantizableLinear)
    )


def find_experts(model: nn.Module) -> list[Site]:
    """Every module that `QuantExperts` can stand for: `gate_up_proj` `[experts, 2 * width, hidden]`, gates first,
    `down_proj` `[experts, hidden, width]`, an activation `act_fn`, and no other parameter, as in Mixtral and Qwen-MoE.
    """
    return find_modules(model, _are_plain_experts)


def _are_plain_experts(module: Any) -> bool:
    if dict(module.named_parameters()).keys() != {"gate_up_proj", "down_proj"} or list(module.buffers()):
        return False
    if not callable(getattr(module, "act_fn", None)) or module.gate_up_proj.dim() != 3:
        return False
    # What transformers says of a class of experts; the gate of some is another one.
    layout: tuple[Any, ...] = tuple(getattr(module, key, value) for key, value in _LAYOUT.items())
    gate = getattr(module, "_apply_gate", None)
    if layout != tuple(_LAYOUT.values()) or (gate is not None and gate.__name__ != "_default_apply_gate"):
        return False
    (experts, rows, hidden), down = module.gate_up_proj.shape, tuple(module.down_proj.shape)
    return down == (experts, hidden, rows // 2) and rows % 2 == 0


_LAYOUT = {
    "has_gate": True,
    "has_bias": False,
    "has_post_expert_norm": False,
    "is_transposed": False,
    "is_concatenated": True,
}
