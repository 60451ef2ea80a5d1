"""`quantize_`: a float model becomes a low-bit one in place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from tmac import _core
from tmac.nn.swap import LinearSite, find_linears
from tmac.progress import with_progress
from tmac.quant.config import QuantConfig
from tmac.quant.methods.rtn import rtn
from tmac.spec import QuantSpec

Model = TypeVar("Model", bound=nn.Module)
_SMALLEST = 2.0**-20  # sixteen of the smallest f16
_LARGEST = 2.0**15  # so that a scale, at most twice this, and an offset are finite in f16


def quantize_(
    model: Model,
    config: QuantConfig | None = None,
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    progress: bool | None = None,
) -> Model:
    """Replaces every `nn.Linear` below `model` by a `tmac.nn.QuantLinear`, in place.

    All weights are checked before the first layer is replaced, so that a refusal leaves the model as it was. Layers
    are then quantized one after the other and each float weight is let go at once: the most memory in use is the
    model and one more layer.

    The output head (`model.get_output_embeddings()`) stays as it is unless `config.head_bits` is given. A head that
    shares its weight with the input embedding is then untied, and the embedding stays float.

    Args:
        model: any module; `model` itself must not be the layer.
        config: what to make; None is `QuantConfig()`.
        filter_fn: `filter_fn(module, name)` -> whether to replace this one, asked besides `config`.
        progress: True or False; None shows a bar on a terminal when it takes over two seconds.

    Returns:
        `model`.

    Raises:
        ValueError: a weight holds NaN, Inf or numbers that f16 scales cannot reach, or is on the meta device; the
            message names the module.
        UnsupportedSpecError: no kernel serves the spec.
    """
    config = QuantConfig() if config is None else config
    if isinstance(model, nn.Linear):
        raise ValueError("[quantize_] the model is itself an nn.Linear: use tmac.nn.QuantLinear.from_linear")
    heads = _output_heads(model)
    sites = [site for site in find_linears(model) if _wanted(site, config, filter_fn)]
    jobs = [(site, config.head_spec() if id(site.module) in heads else config.spec()) for site in sites]
    chosen = [(site, spec) for site, spec in jobs if spec is not None]
    for spec in {spec for _, spec in chosen}:
        _core.select_kernel(spec)
    _check_weights(chosen)
    del sites, jobs
    for _ in with_progress(range(len(chosen)), "quantizing", progress):
        _replace(model, *chosen.pop(0), heads)
    return model


def _wanted(site: LinearSite, config: QuantConfig, filter_fn: Callable[[nn.Module, str], bool] | None) -> bool:
    return all(config.converts(name) for name in site.names) and (
        filter_fn is None or filter_fn(site.module, site.name)
    )


def _replace(model: nn.Module, site: LinearSite, spec: QuantSpec, heads: dict[int, list[nn.Module]]) -> None:
    try:
        layer = rtn(site.module, spec)
    except ValueError as error:
        raise ValueError(f"[quantize_] {site.name}: {error}") from error
    site.replace(layer)
    for owner in heads.get(id(site.module), []):
        _untie(owner, layer)


def _output_heads(model: nn.Module) -> dict[int, list[nn.Module]]:
    """id of each output head -> the modules that name it as theirs."""
    heads: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        get = getattr(module, "get_output_embeddings", None)
        head = get() if callable(get) else None
        if isinstance(head, nn.Module):
            heads.setdefault(id(head), []).append(module)
    return heads


def _untie(owner: nn.Module, head: nn.Module) -> None:
    """Tells a Hugging Face model that its head has a weight of its own, so that nothing ties it again."""
    config: Any = getattr(owner, "config", None)
    if getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False
    tied = getattr(owner, "all_tied_weights_keys", None)
    if isinstance(tied, dict):
        names = {f"{name}.weight" for name, module in owner.named_modules() if module is head}
        for name in names & tied.keys():
            del tied[name]


def _check_weights(jobs: list[tuple[LinearSite, QuantSpec]]) -> None:
    for site, _ in jobs:
        weight = site.module.weight.detach()
        if weight.is_meta or weight.numel() == 0:
            raise ValueError(f"[quantize_] {site.name}: the weight {list(weight.shape)} on {weight.device} has no data")
        smallest, largest = (float(value) for value in weight.aminmax())
        if not math.isfinite(largest - smallest):
            raise ValueError(f"[quantize_] {site.name}: the weight holds NaN or Inf")
        if 0 < max(-smallest, largest) < _SMALLEST:
            raise ValueError(
                f"[quantize_] {site.name}: the largest weight, {max(-smallest, largest):g}, is below what f16 scales "
                "resolve"
            )
        if max(-smallest, largest) > _LARGEST:
            raise ValueError(
                f"[quantize_] {site.name}: the weight goes from {smallest:g} to {largest:g}, but f16 scales end at "
                f"{_LARGEST:g}"
            )
