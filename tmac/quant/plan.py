"""Which modules of a model `quantize_` replaces, and by what."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from tmac.nn import QuantEmbedding, QuantExperts, QuantLinear
from tmac.nn.embedding import is_plain_embedding
from tmac.nn.swap import Site, find_experts, find_linears, find_modules
from tmac.quant.config import QuantConfig
from tmac.quant.methods.grids import LARGEST, SMALLEST
from tmac.quant.methods.rtn import rtn
from tmac.spec import QuantSpec

Filter = Callable[[nn.Module, str], bool]
_ROUTERS = ("gate", "router", "shared_expert_gate")


@dataclass
class Job:
    """One module to replace.

    Args:
        site: the module and where it stands.
        spec: what its codes mean.
        kind: what stands there afterwards: a `QuantLinear`, `QuantEmbedding` or `QuantExperts`.
        sharing: modules with the same weight, which share its bytes.
    """

    site: Site
    spec: QuantSpec
    kind: Literal["linear", "embedding", "experts"] = "linear"
    sharing: list[Site] = field(default_factory=list)

    def weights(self) -> dict[str, Tensor]:
        """Attribute -> float weight."""
        names = ("gate_up_proj", "down_proj") if self.kind == "experts" else ("weight",)
        return {name: getattr(self.site.module, name) for name in names}

    def build(self, weights: dict[str, Tensor]) -> nn.Module:
        """The low-bit module for these weights, without a bias where that of the module has no data yet."""
        if self.kind == "experts":
            return QuantExperts.from_fused(**weights, spec=self.spec, act_fn=self.site.module.act_fn)
        if self.kind == "embedding":
            return QuantEmbedding.from_weight(weights["weight"], self.spec, self.site.module)
        return rtn(self.site.module, self.spec, weights["weight"])

    def put(self, layer: nn.Module) -> None:
        """Puts the built module, and those that share its weight, in their places."""
        bias = getattr(self.site.module, "bias", None)
        if isinstance(layer, QuantLinear) and layer.bias is None and bias is not None:
            layer._set_bias(bias)
        self.site.replace(layer)
        for site in self.sharing:
            site.replace(share(site.module, layer))
        self.sharing = []


def share(module: Any, owner: Any) -> nn.Module:
    """The low-bit module for an `nn.Linear` or `nn.Embedding` that shares the weight of `owner`, a packed module."""
    rows, columns = module.weight.shape
    twin: QuantEmbedding | QuantLinear
    if isinstance(module, nn.Embedding):
        twin = QuantEmbedding.like(module, owner.spec)
    else:
        twin = QuantLinear(columns, rows, module.bias is not None, owner.spec)
        if module.bias is not None and not module.bias.is_meta:
            twin._set_bias(module.bias)
    twin.share_(owner)
    return twin


def make_plan(model: nn.Module, config: QuantConfig, filter_fn: Filter | None = None) -> list[Job]:
    """The jobs, in the order of the model; embeddings and what shares their weight come last.

    Raises:
        ValueError: `config.embedding_bits` is given, and the rows of the input embedding are not looked up as they are.
    """
    heads, kept = output_heads(model), _kept_in_float(model)

    def wanted(site: Site) -> bool:
        names = site.names
        return (
            all(config.converts(name) and kept.isdisjoint(name.split(".")) for name in names)
            and not _chooses_experts(site)
            and (filter_fn is None or filter_fn(site.module, site.name))
        )  # fmt: skip

    linears = [site for site in find_linears(model) if wanted(site)]
    tables = _embedding_jobs(model, config, [site for site in linears if id(site.module) in heads], wanted)
    taken = {id(site.module) for job in tables for site in job.sharing}
    jobs = [Job(site, config.spec(), "experts") for site in find_experts(model) if wanted(site)]
    for site in linears:
        spec = config.head_spec() if id(site.module) in heads else config.spec()
        if spec is not None and id(site.module) not in taken:
            jobs.append(Job(site, spec))
    return jobs + tables


def _chooses_experts(site: Site) -> bool:
    """Whether the layer weighs the experts beside it: its choices must not change, and it has a few rows."""
    return any(attribute in _ROUTERS and hasattr(parent, "experts") for parent, attribute in site.places)


def _embedding_jobs(
    model: nn.Module, config: QuantConfig, heads: list[Site], wanted: Callable[[Site], bool]
) -> list[Job]:
    spec = config.embedding_spec()
    if spec is None:
        return []
    inputs = {id(table) for table in _input_embeddings(model)}
    jobs: dict[int, Job] = {}
    for site in find_modules(model, lambda module: id(module) in inputs):
        if isinstance(site.module, QuantEmbedding) or not wanted(site):
            continue
        if not is_plain_embedding(site.module):
            raise ValueError(
                f"[quantize_] embedding_bits is {config.embedding_bits}, but the rows of {site.name} "
                f"({type(site.module).__name__}) are not looked up as they are"
            )
        job = jobs.setdefault(id(site.module.weight), Job(site, spec, "embedding"))
        if job.site is not site:
            job.sharing.append(site)
    if config.head_spec() in (None, spec):
        for site in heads:
            if id(site.module.weight) in jobs:
                jobs[id(site.module.weight)].sharing.append(site)
    return list(jobs.values())


def _input_embeddings(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        get = getattr(module, "get_input_embeddings", None)
        try:
            table = get() if callable(get) else None
        except (NotImplementedError, AttributeError):  # transformers' answer of models without one
            continue
        if isinstance(table, nn.Module):
            yield table


def output_heads(model: nn.Module) -> dict[int, list[nn.Module]]:
    """id of each output head -> the modules that name it as theirs."""
    heads: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        get = getattr(module, "get_output_embeddings", None)
        head = get() if callable(get) else None
        if isinstance(head, nn.Module):
            heads.setdefault(id(head), []).append(module)
    return heads


def _kept_in_float(model: nn.Module) -> set[str]:
    """Names that a Hugging Face model keeps in f32 for its own reasons: T5's `wo` asks for the dtype of its weight."""
    names: set[str] = set()
    for module in model.modules():
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            kept: Any = module.__dict__.get(attribute, getattr(type(module), attribute, None))
            names.update(kept or ())
    return names


def check_weight(weight: Tensor, name: str) -> None:
    """Raises ValueError for a float weight that has no data, or numbers that f16 scales cannot stand for."""
    weight = weight.detach()
    if weight.is_meta or weight.numel() == 0:
        raise ValueError(f"[quantize_] {name}: the weight {list(weight.shape)} on {weight.device} has no data")
    smallest, largest = (float(value) for value in weight.aminmax())
    if not math.isfinite(largest - smallest):
        raise ValueError(f"[quantize_] {name}: the weight holds NaN or Inf")
    if 0 < max(-smallest, largest) < SMALLEST:
        raise ValueError(
            f"[quantize_] {name}: the largest weight, {max(-smallest, largest):g}, is below what f16 scales resolve"
        )
    if max(-smallest, largest) > LARGEST:
        raise ValueError(
            f"[quantize_] {name}: the weight goes from {smallest:g} to {largest:g}, but f16 scales end at {LARGEST:g}"
        )
