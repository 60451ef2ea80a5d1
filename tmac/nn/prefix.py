"""`PrefixLinear`: the leading planes of a `QuantLinear` as a layer of fewer bits, in the same memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tmac import _core
from tmac.nn.linear import QuantLinear
from tmac.nn.ops import run_linear
from tmac.threads import get_num_threads


class PrefixLinear(nn.Module):
    """`y = x @ w.T + bias`, where w is the weight of a layer with only the leading bits of every code.

    A code stands for `a * top + r`: top are its leading bits, a and r two numbers for the whole weight that are fitted
    by least squares. The layer keeps its weight and its bias; what becomes of them is seen here. There are no
    gradients, and state dicts hold nothing of it.

    Args:
        layer: whose weight it reads. It is repacked if no planes of its order can be read alone, to the same results.
        planes: how many leading ones; where the order of the weight has none of so many, the next number that it has.

    Raises:
        ValueError: the layer has no weight, or no such planes.
    """

    def __init__(self, layer: QuantLinear, planes: int) -> None:
        super().__init__()
        if not 1 <= planes < layer.spec.bits:
            raise ValueError(f"[PrefixLinear] expected 1 to {layer.spec.bits - 1} planes, found {planes}")
        self.__dict__["layer"] = layer  # no submodule: its weight is another module's
        self.in_features, self.out_features, self.wanted = layer.in_features, layer.out_features, planes
        self._weight: Tensor | None = None
        self._fit()

    @property
    def planes(self) -> int:
        """How many planes it reads."""
        return self._prefix[0]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("[PrefixLinear] there are no gradients here: call it within torch.no_grad()")
        layer: QuantLinear = self.__dict__["layer"]
        if layer.weight is not self._weight:
            self._fit()
        return run_linear(x, layer.weight, layer._parameters["bias"], self.out_features, self._prefix)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, planes={self.planes}"

    def _fit(self) -> None:
        layer: QuantLinear = self.__dict__["layer"]
        found = self._possible(layer)
        if not found and layer.repack_in_planes_():
            found = self._possible(layer)
        if not found:
            raise ValueError(
                f"[PrefixLinear] {self.wanted} planes of a weight of {layer.spec.bits} bits for {layer.kernel!r} "
                "cannot be read alone"
            )
        weight = layer._bytes()
        self._prefix = (found[0], *_core.prefix_fit(weight, found[0], get_num_threads()))
        self._weight = layer.weight

    def _possible(self, layer: QuantLinear) -> list[int]:
        return [planes for planes in _core.prefixes(layer._bytes()) if planes >= self.wanted]
