"""What `save_pretrained` writes of a low-bit model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tmac.formats.tmac_config import LayerEntry, quantization_config
from tmac.hf.config import TMACConfig
from tmac.hf.modules import packed_modules
from tmac.nn import NormedQuantLinear, PackedModule, QuantEmbedding


def describe(model: nn.Module, requested: TMACConfig) -> TMACConfig:
    """The `quantization_config` of the model as it is; `requested` where it has no low-bit layer."""
    entries, tied = {}, {}
    modules = packed_modules(model)
    names = {id(module): name for name, module in modules.items()}
    for name, module in modules.items():
        owner = module.shared_with
        if owner is not None and id(owner) in names:
            tied[name] = names[id(owner)]
        else:
            kind: Any = "embedding" if isinstance(module, QuantEmbedding) else "linear"
            eps = module.rms_norm.eps if isinstance(module, NormedQuantLinear) else None
            entries[name] = LayerEntry(module.spec, module.in_features, kind, eps)
    if not entries:
        return requested
    floats = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return TMACConfig(**quantization_config(entries, floats, tied))


def state_to_save(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without second copies: those of modules that share a weight, or stand in two places.

    Raises:
        RuntimeError: a low-bit weight would be missing from the file.
    """
    state: dict[str, Tensor] = model.state_dict()
    seen: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, PackedModule):
            continue
        first = seen.setdefault(id(module), name)
        if first != name or module.shared_with is not None:
            for part in list(module._canonical()) + ["bias"] * (first != name):
                state.pop(f"{name}.{part}", None)
    for name, module in packed_modules(model).items():
        if module.shared_with is None and not any(f"{name}.{part}" in state for part in ("planes", "trits")):
            raise RuntimeError(f"[save_pretrained] the weight of {name} is not in the state dict")
    return state
