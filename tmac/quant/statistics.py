"""What calibration text has shown of one linear layer: the only thing that a recipe knows beside the weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Second moments of the inputs of a linear layer.

    Args:
        tokens: how many inputs were seen.
        hessian: `X^T X / tokens`, f32 `[in_features, in_features]`, symmetric; X are the inputs as the layer will get
            them, from layers before it that are quantized already where there are any.
        channel_max: the largest |x| of every input channel, f32 `[in_features]`.
        cross: `(X_float - X)^T X / tokens`, f32 `[in_features, in_features]`, where X_float are the inputs that the
            float model has for the same tokens (GPTAQ, arXiv 2504.02692); None where X are the float inputs.
        row_weight: the mean square of the gradient of the loss, in nats per token, with respect to each output, f32
            `[out_features]`: half the sum over rows of `row_weight * (dW hessian dW^T)` predicts what an error dW of
            the weight costs. None: not measured.

    Raises:
        ValueError: the shapes do not fit together.
    """

    tokens: int
    hessian: Tensor
    channel_max: Tensor
    cross: Tensor | None = None
    row_weight: Tensor | None = None

    def __post_init__(self) -> None:
        columns = self.channel_max.shape[0] if self.channel_max.dim() == 1 else -1
        for name in ("hessian", "cross"):
            matrix = getattr(self, name)
            if matrix is not None and tuple(matrix.shape) != (columns, columns):
                raise ValueError(
                    f"[LayerStatistics] {name} must be [{columns}, {columns}] for {columns} channels, "
                    f"got {list(matrix.shape)}"
                )

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return int(self.channel_max.shape[0])

    @property
    def importance(self) -> Tensor:
        """The mean square of every input channel, f32 `[in_features]`."""
        return torch.diagonal(self.hessian).clamp_min(0.0)

    def output_error(self, difference: Tensor) -> Tensor:
        """The mean square error of every output, f32 `[out_features]`, for a weight that is `difference` off."""
        return ((difference @ self.hessian) * difference).sum(1).clamp_min(0.0)
