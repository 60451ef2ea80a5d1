"""Watching what linear layers are given while a block runs, and the moments of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tmac.nn.normed_linear import NormedLinear, NormedQuantLinear
from tmac.quant.statistics import LayerStatistics

_PANEL = 384  # columns of X^T X at a time, so that pairs of panels are multiplied once


@contextmanager
def watching(layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While it lasts, `see(name, x)` is called with the input of each layer, `[..., in_features]`, before it runs."""

    def hook(name: str) -> Callable[[nn.Module, Any], None]:
        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            see(name, module.rms_norm(x) if isinstance(module, (NormedLinear, NormedQuantLinear)) else x)

        return before

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class LayerInputs:
    """The inputs of one run of a block: which layers read the same tensor."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], tuple[Tensor, str]] = {}
        self.names: set[str] = set()

    def leader(self, name: str, x: Tensor) -> str:
        """The first layer of this run that was given the tensor `x`, unchanged since."""
        self.names.add(name)
        return self._held.setdefault((id(x), x._version), (x, name))[1]


class InputMoments:
    """Sums over tokens, of the inputs of a block's layers, that `LayerStatistics` are made of.

    Attributes:
        leaders: layer -> the layer whose sums are its own too, because both read the same tensor.
    """

    def __init__(self) -> None:
        self.leaders: dict[str, str] = {}
        self._sums: dict[str, _Sums] = {}

    def add(self, name: str, leader: str, x: Tensor, x_float: Tensor | None = None) -> None:
        """Adds the tokens of one run.

        Args:
            name: of the layer.
            leader: what `LayerInputs.leader` gives for it.
            x: its input, f32 `[..., in_features]`.
            x_float: what the float model has in its place, of the same shape.

        Raises:
            ValueError: there are NaN or Inf.
        """
        if x.numel() == 0:
            return
        if self.leaders.setdefault(name, leader) != leader:
            raise RuntimeError(f"[gather] {name} and {self.leaders[name]} read the same tensor only at times")
        if leader != name:
            return
        sums = self._sums.setdefault(name, _Sums(x.shape[-1]))
        sums.add(name, x.reshape(-1, x.shape[-1]), None if x_float is None else x_float.reshape(-1, x.shape[-1]))

    def by_leader(self) -> dict[str, LayerStatistics]:
        """The statistics of every layer that has its own."""
        return {name: sums.statistics() for name, sums in self._sums.items()}


class _Sums:
    def __init__(self, columns: int) -> None:
        self.tokens = 0
        self.gram = torch.zeros(columns, columns)
        self.largest = torch.zeros(columns)
        self.cross: Tensor | None = None

    def add(self, name: str, x: Tensor, x_float: Tensor | None) -> None:
        self.largest = torch.maximum(self.largest, torch.maximum(x.amax(0), x.amin(0).neg()))
        if not bool(torch.isfinite(self.largest).all()):
            raise ValueError(f"[gather] the input of {name} holds NaN or Inf")
        self.tokens += len(x)
        for first in range(0, x.shape[1], _PANEL):
            panel = slice(first, first + _PANEL)
            self.gram[panel, first:].addmm_(x[:, panel].T, x[:, first:])
        if x_float is not None:
            if self.cross is None:
                self.cross = torch.zeros_like(self.gram)
            self.cross.addmm_((x_float - x).T, x)

    def statistics(self) -> LayerStatistics:
        upper = self.gram.triu_().div_(self.tokens)
        hessian = upper + upper.triu(1).T
        cross = None if self.cross is None else self.cross.div_(self.tokens)
        return LayerStatistics(self.tokens, hessian, self.largest, cross)
