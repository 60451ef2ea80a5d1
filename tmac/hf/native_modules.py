"""Which modules of a Hugging Face model the native runtime may stand for, and why not the others.

The runtime computes what the classes of transformers, torch and tmac compute from their weights. What somebody has put
on top of that, in Python, it would pass by in silence: so it is refused here, by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from tmac.nn import QuantEmbedding, QuantLinear
from tmac.nn.embedding import is_plain_embedding

_CLASSES = ("torch.nn.modules.", "transformers.models.", "transformers.activations", "tmac.nn.")
# transformers' recorders of hidden states stay on a model that was asked for them once, and change nothing
_HOOKS = ("transformers.utils.output_capturing",)
_RANDOM = ("attention_dropout", "jitter_noise")


def find_modules(model: Any) -> dict[str, Any]:
    """Every module by its name; of one with an adapter of PEFT that adds nothing now, the module below it.

    Raises:
        ValueError: a module computes something else than its class says, or is of a class from elsewhere.
    """
    for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):
        if hooks:
            raise refusal("", "torch has a hook on the forward pass of every module, which would not be called")
    found: dict[str, Any] = {}
    _walk(model, "", found)
    return found


def refusal(name: str, message: str) -> ValueError:
    """The error for the module of this name."""
    return ValueError(f"[attach] {name}: {message}" if name else f"[attach] {message}")


def _walk(module: Any, name: str, found: dict[str, Any]) -> None:
    if hasattr(module, "base_layer") and hasattr(module, "disable_adapters"):
        _check_adapter(module, name)
        module = module.base_layer
    _check(module, name)
    found[name] = module
    for child_name, child in module._modules.items():
        if child is not None:
            _walk(child, f"{name}.{child_name}" if name else child_name, found)


def _check_adapter(module: Any, name: str) -> None:
    """A layer of PEFT gives what its base layer gives where its adapters are off, or merged into the weight."""
    if bool(module.disable_adapters) == bool(module.merged):
        what = "is merged and disabled at once" if module.merged else "is active"
        raise refusal(
            name,
            f"an adapter of PEFT {what}, and the native runtime has the base weights alone: merge it into float "
            "weights (merge_and_unload), generate within disable_adapter(), or generate without custom_generate",
        )


def _check(module: Any, name: str) -> None:
    kind = type(module)
    if not f"{kind.__module__}.".startswith(_CLASSES):
        raise refusal(name, f"{kind.__module__}.{kind.__name__} is no class that the native runtime knows")
    if "forward" in module.__dict__:
        raise refusal(name, "its forward() was replaced, and the native runtime would not call it")
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for hook in hooks.values():
            if getattr(hook, "__module__", None) not in _HOOKS:
                raise refusal(name, f"has the forward hook {hook!r}, which the native runtime would not call")
    if module.training:
        odds = [getattr(module, key, None) for key in _RANDOM]
        odds.append(module.p if isinstance(module, nn.Dropout) else None)
        if any(isinstance(each, (int, float)) and each > 0 for each in odds):
            raise refusal(name, "drops values at random in training mode: call model.eval()")


def check_matrix(module: Any, name: str) -> None:
    """Raises ValueError for a module that is not a product with its weight, a look-up in it, or a router."""
    if type(module) in (nn.Linear, QuantLinear, QuantEmbedding) or is_plain_embedding(module):
        return
    if type(module).__module__.startswith("transformers.models.") and dict(module.named_parameters()).keys() == {
        "weight"
    }:
        return  # the routers of transformers 5
    raise refusal(name, f"a {type(module).__name__} is not supported here")


def check_norm(module: Any, name: str, eps: float) -> None:
    """Raises ValueError for a norm with another epsilon than the configuration says."""
    own = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if own is not None and float(own) != eps:
        raise refusal(name, f"its epsilon is {own}, but the configuration says {eps}")


def embedding_scale(module: Any) -> float | None:
    """What the module multiplies its rows with, rounded as it rounds it; None where it has no factor."""
    if isinstance(module, QuantEmbedding):
        return None if module.scale is None else float(torch.tensor(module.scale, dtype=module.dtype))
    scale = getattr(module, "embed_scale", None)
    if scale is None:
        return None
    return float(torch.as_tensor(scale).to(module.weight.dtype))
