"""What an error of a matrix costs: the second-order prediction of the loss, in nats per token.

With `H` the second moments of the inputs and `r` the mean square of the gradients of the outputs (the diagonal of the
Fisher information), an error `dW` of a linear layer costs `1/2 sum_i r_i (dW H dW^T)_ii` to second order; a row `v` of
an embedding that is looked up with the frequency `p_v` costs `1/2 p_v sum_j G_j dE_vj^2`. Losses of matrices add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tmac.quant.matrix import Matrix
from tmac.quant.statistics import LayerStatistics

ROWS_AT_A_TIME = 8192


@dataclass(frozen=True, eq=False)
class Term:
    """`1/2 sum_i rows_i (dW moments dW^T)_ii`.

    Args:
        rows: f32 `[out_features]`.
        moments: f32 `[in_features, in_features]`, or `[in_features]` where it is diagonal.
    """

    rows: Tensor
    moments: Tensor

    def loss(self, difference: Tensor) -> float:
        """For an error f32 `[out_features, in_features]`, summed in f64."""
        parts = []
        for begin in range(0, difference.shape[0], ROWS_AT_A_TIME):
            part = difference[begin : begin + ROWS_AT_A_TIME]
            product = part * self.moments if self.moments.dim() == 1 else part @ self.moments
            error = (product * part).sum(1, dtype=torch.float64).clamp_min(0.0)
            parts.append(float((error * self.rows[begin : begin + ROWS_AT_A_TIME]).sum()))
        return 0.5 * math.fsum(parts)


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What a matrix' errors cost, and what a recipe is told about it.

    Args:
        terms: of its uses; one that is embedding and head at once has two.
        statistics: for recipes: of the inputs, or what stands for them; None where nothing ever reached the matrix.
    """

    terms: Sequence[Term]
    statistics: LayerStatistics | None

    @property
    def activated(self) -> bool:
        """Whether the calibration text reached the matrix."""
        return self.statistics is not None

    def loss(self, difference: Tensor) -> float:
        """Predicted nats per token for an error f32 `[out_features, in_features]`."""
        return math.fsum(term.loss(difference) for term in self.terms)

    def of_rows(self, rows: Tensor) -> Sensitivity:
        """The same for some of the rows."""
        statistics = self.statistics
        if statistics is not None and statistics.row_weight is not None:
            statistics = replace(statistics, row_weight=statistics.row_weight[rows])
        return Sensitivity([Term(term.rows[rows], term.moments) for term in self.terms], statistics)


def of_linear(statistics: LayerStatistics, row_weight: Tensor) -> Sensitivity:
    """Of a linear layer.

    Args:
        statistics: of its inputs.
        row_weight: as in `LayerStatistics`, f32 `[out_features]`.
    """
    if not bool((statistics.importance > 0).any()):
        return Sensitivity([Term(row_weight, torch.ones(statistics.in_features))], None)
    known = replace(statistics, row_weight=row_weight)
    return Sensitivity([Term(row_weight, statistics.hessian)], known)


def of_embedding(frequency: Tensor, gradient: Tensor, tokens: int) -> Sensitivity:
    """Of an input embedding.

    Args:
        frequency: of every token, f32 `[vocabulary]`, adding up to 1.
        gradient: the mean square of the gradient of the loss with respect to each channel, f32 `[in_features]`.
        tokens: how many the gradient is a mean of.
    """
    if not bool((gradient > 0).any()):
        return Sensitivity([Term(frequency, torch.ones_like(gradient))], None)
    statistics = LayerStatistics(tokens, torch.diag(gradient), gradient.sqrt(), row_weight=frequency)
    return Sensitivity([Term(frequency, gradient)], statistics)


def of_both(head: Sensitivity, embedding: Sensitivity) -> Sensitivity:
    """Of a matrix that is head and embedding at once.

    A recipe treats all rows alike: it is told the sum of both second moments, each with its mean weight of a row.
    """
    terms = [*head.terms, *embedding.terms]
    known = [part.statistics for part in (head, embedding) if part.statistics is not None]
    if len(known) < 2:
        return Sensitivity(terms, known[0] if known else None)
    weights = [float(term.rows.mean()) for term in terms]
    parts = [weight * each.hessian for weight, each in zip(weights, known, strict=True)]
    hessian = (parts[0] + parts[1]) / sum(weights)
    merged = replace(known[0], hessian=hessian, row_weight=terms[0].rows + terms[1].rows)
    return Sensitivity(terms, merged)


def token_frequency(ids: Tensor, vocabulary: int) -> Tensor:
    """How often each token occurs, f32 `[vocabulary]`, with half an occurrence added to every one (Jeffreys)."""
    counts = torch.bincount(ids.reshape(-1), minlength=vocabulary).double() + 0.5
    return (counts / counts.sum()).float()


class Sensitivities:
    """Gives the sensitivity of every matrix; what it is made of is read when it is asked for.

    Args:
        statistics: of layers, by name; those that nothing has reached are not among them.
        row_weights: mean squares of the gradients of outputs, by the name of the layer. Where a layer's are missing or
            all zero, as those of an expert that the shorter text did not reach, each of its rows counts as the mean row
            of the other layers of its kind, else of all.
        frequency: of tokens, f32 `[vocabulary]`.
        embedding_gradient: mean square of the gradient with respect to the output of the embedding, f32 `[hidden]`.
        tokens: of the calibration text.
    """

    def __init__(
        self,
        statistics: Mapping[str, LayerStatistics],
        row_weights: Mapping[str, Tensor],
        frequency: Tensor,
        embedding_gradient: Tensor,
        tokens: int,
    ) -> None:
        self._statistics, self._row_weights = statistics, row_weights
        self._frequency, self._embedding_gradient, self._tokens = frequency, embedding_gradient, tokens
        self._last: tuple[str, Sensitivity] | None = None
        self._means = _means_by_kind(row_weights)

    def __call__(self, matrix: Matrix) -> Sensitivity:
        if self._last is None or self._last[0] != matrix.name:
            self._last = matrix.name, self._of(matrix)
        return self._last[1]

    def _of(self, matrix: Matrix) -> Sensitivity:
        if matrix.kind != "embedding":
            return self._linear(matrix.name, matrix)
        parts = of_embedding(self._frequency, self._embedding_gradient, self._tokens)
        heads = [name for name in matrix.tied if name in self._statistics]
        return of_both(self._linear(heads[0], matrix), parts) if heads else parts

    def _linear(self, name: str, matrix: Matrix) -> Sensitivity:
        if name not in self._statistics:
            return Sensitivity([Term(torch.ones(matrix.out_features), torch.ones(matrix.in_features))], None)
        rows = self._row_weights.get(name)
        if rows is None or not bool((rows > 0).any()):
            rows = torch.full((matrix.out_features,), self._means.get(_kind(name), self._means[""]))
        return of_linear(self._statistics[name], rows)


def _kind(name: str) -> str:
    """The last part of a name: "down_proj"."""
    return name.rpartition(".")[2]


def _means_by_kind(row_weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Kind -> the mean over the layers of this kind that gradients reached; "" -> over all, 1 where there is none."""
    found: dict[str, list[float]] = {}
    for name, rows in row_weights.items():
        mean = float(rows.mean())
        if mean > 0:
            found.setdefault(_kind(name), []).append(mean)
            found.setdefault("", []).append(mean)
    return {"": 1.0} | {kind: math.fsum(means) / len(means) for kind, means in found.items()}
