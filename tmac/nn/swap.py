"""Finding the linear layers of a model and putting others in their place."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

_HOOKS = ("_forward_", "_backward_")


@dataclass
class LinearSite:
    """One `nn.Linear` instance and every place where it stands."""

    module: nn.Linear
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


def find_linears(model: nn.Module) -> list[LinearSite]:
    """Every `nn.Linear` below `model`, at any depth, in the order of the model; an instance that is shared comes once.

    Layers whose owner reads their weight itself (the output projection of `nn.MultiheadAttention`) are left out.
    """
    sites: dict[int, LinearSite] = {}
    for parent_name, parent in model.named_modules():
        for attribute, child in parent._modules.items():
            if isinstance(child, nn.Linear) and not isinstance(child, NonDynamicallyQuantizableLinear):
                site = sites.setdefault(id(child), LinearSite(child))
                site.places.append((parent, attribute))
                site.names.append(f"{parent_name}.{attribute}" if parent_name else attribute)
    return list(sites.values())
