"""`QuantExperts`, the mixture of experts that stands where a module with fused 3-D weights stood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tmac.codes import Codes
from tmac.nn.linear import QuantLinear
from tmac.nn.row_ops import traced_grouped_linear
from tmac.spec import QuantSpec

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


class QuantExpert(nn.Module):
    """The weights of one expert: `gate_proj` and `up_proj` `[width, hidden]`, `down_proj` `[hidden, width]`."""

    gate_proj: QuantLinear
    up_proj: QuantLinear
    down_proj: QuantLinear

    def __init__(self, gate_proj: QuantLinear, up_proj: QuantLinear, down_proj: QuantLinear) -> None:
        super().__init__()
        self.gate_proj = gate_proj
        self.up_proj = up_proj
        self.down_proj = down_proj


class QuantExperts(nn.Module):
    """`sum over the chosen experts of weight * down(act(gate(x)) * up(x))`, each expert with packed weights of its own.

    Experts are the children "0", "1", ..., so that a state dict holds one matrix per expert and projection
    (`3.up_proj.planes`). A batch is sorted by expert, and each expert multiplies its rows at once.

    Args:
        experts: `QuantExpert` modules of equal shapes and without biases.
        act_fn: the activation.

    Raises:
        ValueError: there is no expert, or one has another shape or a bias.
    """

    def __init__(self, experts: Sequence[QuantExpert], act_fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        if not experts:
            raise ValueError("[QuantExperts] at least one expert is needed")
        width, hidden = experts[0].up_proj.out_features, experts[0].up_proj.in_features
        shapes = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
        for index, expert in enumerate(experts):
            for name, shape in shapes.items():
                layer = getattr(expert, name)
                if (layer.out_features, layer.in_features) != shape or layer.bias is not None:
                    raise ValueError(
                        f"[QuantExperts] {index}.{name} must be {list(shape)} without a bias, got "
                        f"[{layer.out_features}, {layer.in_features}], bias={layer.bias is not None}"
                    )
            self.add_module(str(index), expert)
        self.num_experts = len(experts)
        self.hidden_dim, self.intermediate_dim = hidden, width
        self.act_fn = act_fn

    @classmethod
    def from_fused(cls, gate_up_proj: Tensor, down_proj: Tensor, spec: QuantSpec, act_fn: nn.Module) -> QuantExperts:
        """Rounds `gate_up_proj` `[experts, 2 * width, hidden]`, gates first, and `down_proj`
        `[experts, hidden, width]`."""
        experts = []
        for gate_up, down in zip(gate_up_proj, down_proj, strict=True):
            gate, up = gate_up.chunk(2)
            experts.append(QuantExpert(*(QuantLinear.from_weight(part, spec) for part in (gate, up, down))))
        return cls(experts, act_fn)

    @classmethod
    def from_codes(cls, codes: Sequence[tuple[Codes, Codes, Codes]], act_fn: nn.Module) -> QuantExperts:
        """Packs the codes of (gate, up, down) of every expert."""
        experts = []
        for gate, up, down in codes:
            experts.append(QuantExpert(*(QuantLinear.from_codes(part) for part in (gate, up, down))))
        return cls(experts, act_fn)

    def dequantize(self) -> tuple[Tensor, Tensor]:
        """The fused weights, f32 `[experts, 2 * width, hidden]` and `[experts, hidden, width]`."""
        experts: list[Any] = [self.get_submodule(str(index)) for index in range(self.num_experts)]
        gate_up = [torch.cat([expert.gate_proj.dequantize(), expert.up_proj.dequantize()]) for expert in experts]
        return torch.stack(gate_up), torch.stack([expert.down_proj.dequantize() for expert in experts])

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states `[tokens, hidden]`; top_k_index and top_k_weights `[tokens, k]` -> `[tokens, hidden]`.

        An index of `num_experts` or more names no expert and adds nothing.
        """
        tokens, k = top_k_index.shape
        chosen, order = torch.sort(top_k_index.reshape(-1), stable=True)
        experts = torch.arange(self.num_experts, device=chosen.device)
        counts = (chosen[None] == experts[:, None]).sum(1)
        rows = hidden_states[order // k]
        hidden = self.act_fn(self._project("gate_proj", rows, counts)) * self._project("up_proj", rows, counts)
        out = self._project("down_proj", hidden, counts) * top_k_weights.reshape(-1)[order, None]
        back = torch.empty_like(order).scatter_(0, order, torch.arange(tokens * k, device=order.device))
        return out[back].reshape(tokens, k, -1).sum(1).to(hidden_states.dtype)

    def _project(self, name: str, rows: Tensor, counts: Tensor) -> Tensor:
        layers = [getattr(self._modules[str(index)], name) for index in range(self.num_experts)]
        return traced_grouped_linear(rows, counts, [layer.weight for layer in layers], layers[0].out_features)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, hidden_dim={self.hidden_dim}, intermediate_dim={self.intermediate_dim}"
