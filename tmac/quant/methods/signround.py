"""Rounding learned by signed gradients, after AutoRound (arXiv 2309.05516), from codes that GPTQ has found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tmac.codes import Codes
from tmac.quant.methods.gptq import gptq
from tmac.quant.methods.grids import checked
from tmac.quant.methods.learned_rounding import LearnedRounding
from tmac.quant.statistics import LayerStatistics
from tmac.spec import QuantSpec

Module = TypeVar("Module", bound=nn.Module)
_RATE = 0.3  # what all steps together could move an offset by is half of it
_CLIP_RATE = 0.05  # of the rate of the offsets


def signround(
    weight: Tensor,
    spec: QuantSpec,
    statistics: LayerStatistics | None = None,
    steps: int = 100,
    start: Codes | None = None,
) -> Codes:
    """Codes whose rounding was learned for the layer's own output error, `sum (Q - W) H (Q - W)^T`.

    Measured, it gains little on GPTQ, its start, where `signround_block` does. The best of all steps is kept, the start
    included.

    Args:
        weight: f32 `[out_features, in_features]`.
        spec: any; scales of two levels stay those of the start.
        statistics: of the inputs of the layer.
        steps: of gradient descent; 0 gives the start.
        start: where to begin; None: GPTQ.

    Raises:
        ValueError: as `gptq`; `start` does not fit, or `steps` is negative.
    """
    if steps < 0:
        raise ValueError(f"[signround] steps must not be negative, got {steps}")
    weight = checked(weight, spec, statistics, "signround")
    if statistics is None:
        raise ValueError("[signround] needs the statistics of the layer's inputs")
    start = gptq(weight, spec, statistics) if start is None else start
    learned = LearnedRounding(weight, start)
    target, hessian = weight, statistics.hessian
    best, least = start, float(statistics.output_error(torch.from_numpy(start.dequantize()) - target).sum())
    for step in range(steps + 1):
        with torch.enable_grad():
            values = learned.values()
        difference = values.detach() - target
        product = difference @ hessian
        found = float((product * difference).sum())
        if found < least:
            candidate = learned.codes()
            found = float(statistics.output_error(torch.from_numpy(candidate.dequantize()) - target).sum())
            if found < least:
                best, least = candidate, found
        if step < steps:
            torch.autograd.backward(values, product)
            rate = _rate(step, steps)
            learned.step(rate, _CLIP_RATE * rate)
    return best


def signround_block(
    module: Module,
    layers: Mapping[str, tuple[QuantSpec, Codes]],
    inputs: Tensor,
    targets: Tensor,
    run: Callable[[Module, Tensor], Tensor],
    steps: int = 100,
    *,
    linears: Mapping[str, nn.Linear] | None = None,
    batch: int = 4,
    seed: int = 0,
    keep_better: bool = True,
) -> dict[str, Codes]:
    """Codes of all layers of a block, whose rounding was learned together for the block's mean square output error.

    The module has its float weights again afterwards, whatever happens.

    Args:
        module: the block, f32.
        layers: name -> spec and codes to begin with; layers of the block without a name here stay as they are.
        inputs: of the block, as it will get them, f32 `[batch, tokens, hidden]`.
        targets: outputs that the float model has for the same tokens, f32.
        run: `run(module, inputs)` -> outputs; gradients must pass.
        steps: of gradient descent, each on `batch` sequences; 0 gives the start.
        linears: name -> layer of `module`; None: the names are those of its submodules.
        batch: sequences of a step.
        seed: of the choice of sequences.
        keep_better: whether to return the start where nothing was gained on all `inputs`.

    Raises:
        ValueError: a name is not that of a linear layer, shapes do not fit, or numbers are not finite.
    """
    if steps < 0 or batch < 1:
        raise ValueError(f"[signround] steps >= 0 and batch >= 1 were expected, found {steps} and {batch}")
    if inputs.shape[0] != targets.shape[0] or len(inputs) == 0:
        raise ValueError(f"[signround] {inputs.shape[0]} inputs do not fit {targets.shape[0]} targets")
    if not bool(torch.isfinite(inputs).all() and torch.isfinite(targets).all()):
        raise ValueError("[signround] the inputs or targets of the block hold NaN or Inf")
    found = {name: _linear(module, name, linears) for name in layers}
    learned = {name: LearnedRounding(found[name].weight, codes) for name, (_, codes) in layers.items()}
    start = {name: codes for name, (_, codes) in layers.items()}
    if steps == 0:
        return start
    generator = torch.Generator().manual_seed(seed)
    with _Weights(module, found) as weights:
        before = _error(weights, start, module, inputs, targets, run, batch)
        for step in range(steps):
            chosen = torch.randperm(len(inputs), generator=generator)[:batch]
            with torch.enable_grad():
                weights.put({name: rounding.values() for name, rounding in learned.items()})
                F.mse_loss(run(module, inputs[chosen]), targets[chosen]).backward()  # type: ignore[no-untyped-call]
            for rounding in learned.values():
                rate = _rate(step, steps)
                rounding.step(rate, _CLIP_RATE * rate)
        result = {name: rounding.codes() for name, rounding in learned.items()}
        after = _error(weights, result, module, inputs, targets, run, batch)
    return start if keep_better and not after < before else result


def _rate(step: int, steps: int) -> float:
    """Falls linearly to nothing."""
    return _RATE * (1.0 - step / steps) / steps


def _linear(module: nn.Module, name: str, linears: Mapping[str, nn.Linear] | None) -> nn.Linear:
    layer = dict(module.named_modules()).get(name) if linears is None else linears.get(name)
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"[signround] {name} was expected to be a linear layer of the block, found {type(layer)}")
    return layer


@torch.no_grad()
def _error(
    weights: _Weights,
    codes: Mapping[str, Codes],
    module: Module,
    inputs: Tensor,
    targets: Tensor,
    run: Callable[[Module, Tensor], Tensor],
    batch: int,
) -> float:
    weights.put({name: torch.from_numpy(each.dequantize()) for name, each in codes.items()})
    parts = zip(torch.split(inputs, batch), torch.split(targets, batch), strict=True)
    return sum(float((run(module, part) - target).square().double().sum()) for part, target in parts)


class _Weights:
    """Tensors in the places of the layers' weights for a while, in which no other parameter gets gradients."""

    def __init__(self, module: nn.Module, linears: Mapping[str, nn.Linear]) -> None:
        self._linears = linears
        self._parameters: dict[str, Any] = {}
        self._learning = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def __enter__(self) -> _Weights:
        for parameter in self._learning:
            parameter.requires_grad_(False)
        for name, layer in self._linears.items():
            self._parameters[name] = layer.weight
            del layer.weight
        return self

    def __exit__(self, *_: object) -> None:
        for name, layer in self._linears.items():
            layer.__dict__.pop("weight", None)
            layer.weight = self._parameters[name]
        for parameter in self._learning:
            parameter.requires_grad_(True)

    def put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._linears[name].__dict__["weight"] = value
