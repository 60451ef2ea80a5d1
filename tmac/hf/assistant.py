"""`assistant`: a model that drafts for another one from the leading planes of its weights."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from tmac.nn import PackedModule, QuantExperts, QuantLinear
from tmac.nn.prefix import PrefixLinear


def assistant(model: Any, planes: int = 4) -> Any:
    """A model of the same class that computes with the leading planes of the model's `QuantLinear` layers.

    It has the memory of the model: weights, norms, embeddings and experts are those of the model. Layers of no more
    planes, ternary ones and such with a norm of their own compute with all of theirs. For Hugging Face's own assisted
    generation, which takes a model as the draft; `tmac.attach(model, draft="planes:4")` does the same in the native
    decoder, and faster.

    Args:
        model: of transformers, with `QuantLinear` layers.
        planes: how many leading ones; of a layer whose order has none of so many, the next number that it has. A layer
            with an order without such planes is repacked, to the same results.

    Returns:
        a model for `assistant_model=`. It has no gradients and cannot be saved.

    Raises:
        ValueError: no layer has more planes, or the planes of one cannot be read alone.

    Example:
        >>> model.generate(ids, assistant_model=tmac.assistant(model, planes=4))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"[assistant] expected a model, found {type(model).__name__}")
    if isinstance(planes, bool) or not isinstance(planes, int) or not 1 <= planes <= 7:
        raise ValueError(f"[assistant] planes: expected 1 to 7, found {planes!r}")
    whole = [module for module in model.modules() if isinstance(module, (PackedModule, QuantExperts))]
    of_experts = {id(part) for experts in whole if isinstance(experts, QuantExperts) for part in experts.modules()}
    copies: dict[int, Any] = {id(each): each for each in (*model.parameters(), *model.buffers(), *whole)}
    drafting = 0
    for name, module in model.named_modules():
        has_more = type(module) is QuantLinear and module.spec.bits > planes and module.spec.codebook == "uniform"
        if has_more and id(module) not in of_experts:
            copies[id(module)] = _prefix(module, planes, name)
            drafting += 1
    if not drafting:
        raise ValueError(f"[assistant] expected layers of more than {planes} planes, found none")
    return copy.deepcopy(model, copies)


def _prefix(layer: QuantLinear, planes: int, name: str) -> PrefixLinear:
    try:
        return PrefixLinear(layer, planes)
    except ValueError as error:
        raise ValueError(f"[assistant] {name}: {error}") from error
