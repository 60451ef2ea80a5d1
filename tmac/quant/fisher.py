"""How much the loss depends on each output of each linear layer: the diagonal of the Fisher information.

The labels are drawn from the model's own distribution, so that the mean square of a gradient is the curvature of the
Kullback-Leibler divergence (Martens, arXiv 1412.1193, sections 5 and 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tmac.progress import with_progress
from tmac.quant.blocks import BlockSource
from tmac.quant.statistics_cache import StatisticsCache
from tmac.quant.tape import Tape
from tmac.quant.windows import batches, windows

_VERSION = 1
_LOGITS = 1 << 24  # numbers in memory at a time, four or five times over
_LEAST = 1e-20  # smaller probabilities are zero: products with them would be denormal, which takes 200 times as long


@dataclass(frozen=True, eq=False)
class Fisher:
    """Mean squares of gradients of the summed negative log-likelihood of next tokens, in nats.

    Args:
        row_weight: layer name -> with respect to each of its outputs, f32 `[out_features]`, the sum over the tokens
            that reached the layer divided by all tokens. `0.5 * sum_i row_weight[i] * (dW H dW^T)[i, i]`, with
            `LayerStatistics.hessian` as H, predicts by how many nats per token the loss grows with an error dW of the
            weight; errors of different layers add up.
        embedding: with respect to each channel of the input of the first block, f32 `[hidden]`.
        tokens: how many there were.
    """

    row_weight: dict[str, Tensor]
    embedding: Tensor
    tokens: int


def fisher(
    source: BlockSource,
    ids: Tensor,
    *,
    window: int = 256,
    batch_tokens: int = 2048,
    seed: int = 0,
    cache: str | Path | None = None,
    progress: bool | None = None,
) -> Fisher:
    """Runs the model forward and backward, one block in memory at a time.

    Every block runs twice: its input is kept (f32: 4 bytes x tokens x hidden size for each block; in files where there
    is a cache, else in memory), the rest is computed again when the gradient comes back. With a cache a call that was
    interrupted goes on with the block where it was.

    Args:
        source: the float model.
        ids: as of `gather`.
        window: as of `gather`.
        batch_tokens: as of `gather`.
        seed: of the labels.
        cache: a folder; where it has the result for this model, ids, window and seed, nothing is computed. What an
            interrupted call needs to go on lies there until the result does.
        progress: as of `gather`.

    Raises:
        ValueError: there are too few tokens, a gradient, whose layer is named, holds NaN or Inf, or another process
            has removed files of the cache.
        OSError: the cache cannot be written.
    """
    text = windows("fisher", ids, window)
    store = None
    if cache is not None:
        store = StatisticsCache(cache, source.fingerprint, text, {"fisher": _VERSION, "seed": seed})
        found = _read(store)
        if found is not None:
            Tape(store).clear()  # a kill may have come between
            return found
    tape = Tape(store)
    gradient, squares = _walk(source, text, batch_tokens, seed, tape, progress)
    result = Fisher(
        {name: squares.mean(name, text.numel()) for index in range(len(source)) for name in source.layers(index)},
        gradient.square().flatten(0, 1).mean(0),
        text.numel(),
    )
    if store is not None:
        _write(store, result)
        tape.clear()
    return result


def _walk(
    source: BlockSource, text: Tensor, batch_tokens: int, seed: int, tape: Tape, progress: bool | None
) -> tuple[Tensor, _Squares]:
    """Forward and backward; the gradient at the input of the first block, and the squares of all blocks."""
    head = len(source) - 1
    steps = iter(with_progress(range(2 * head + 1), "sensitivities", progress, 2 * head + 1))
    found = tape.backward()
    for _ in range(0 if found is None else 2 * head + 1 - found[0]):
        next(steps)
    if found is None:
        _forward(source, text, batch_tokens, tape, steps)
        squares = _Squares()
        next(steps)
        with source.block(head) as module:
            gradient = _head_gradient(source, module, tape.input(head), seed, squares)
        done = head
        tape.keep_backward(done, gradient, squares.sums, squares.widths)
    else:
        done, gradient, sums, widths = found
        squares = _Squares(sums, widths)
    for index in reversed(range(done)):
        next(steps)
        with source.block(index) as module:
            _through_block(source, index, module, tape.input(index), gradient, batch_tokens, squares)
        del module
        tape.keep_backward(index, gradient, squares.sums, squares.widths)
    next(steps, None)
    return gradient, squares


def _forward(source: BlockSource, text: Tensor, batch_tokens: int, tape: Tape, steps: Iterator[int]) -> None:
    """Puts the inputs of all blocks, the head among them, on the tape."""
    head = len(source) - 1
    first, hidden = tape.last(head + 1) or (0, source.begin(text))
    if first == 0:
        tape.put(0, hidden)
    for index in range(head):
        next(steps)
        if index < first:
            continue
        with source.block(index) as module, torch.no_grad():
            following = torch.empty_like(hidden)
            for rows in batches(text, batch_tokens):
                following[rows] = source.run(index, module, hidden[rows])
        del module
        hidden = following
        tape.put(index + 1, hidden)


class _Squares:
    """Sums over tokens of squared gradients."""

    def __init__(self, sums: dict[str, Tensor] | None = None, widths: dict[str, int] | None = None) -> None:
        self.sums: dict[str, Tensor] = {} if sums is None else sums
        self.widths: dict[str, int] = {} if widths is None else widths

    def add(self, name: str, squares: Tensor) -> None:
        if not bool(torch.isfinite(squares).all()):
            raise ValueError(f"[fisher] the gradient at the output of {name} holds NaN or Inf")
        if name in self.sums:
            self.sums[name] += squares
        else:
            self.sums[name] = squares

    def mean(self, name: str, tokens: int) -> Tensor:
        if name not in self.sums:
            return torch.zeros(self.widths[name])
        return self.sums[name] / tokens


def _head_gradient(source: BlockSource, module: nn.Module, hidden: Tensor, seed: int, squares: _Squares) -> Tensor:
    """The gradient with respect to the input of the head, for labels drawn from its distribution."""
    index = len(source) - 1
    flat = hidden.reshape(1, -1, hidden.shape[-1])
    draws = torch.rand(flat.shape[1], generator=torch.Generator().manual_seed(seed))
    gradient = torch.empty_like(flat)
    outputs: dict[str, Tensor] = {}
    layers = source.linears(index, module)
    squares.widths.update({name: layer.out_features for name, layer in layers.items()})
    handles = [layer.register_forward_hook(_keeping(outputs, name)) for name, layer in layers.items()]
    first, step = 0, 1
    while first < flat.shape[1]:
        part = slice(first, first + step)
        with torch.enable_grad():
            x = flat[:, part].detach().requires_grad_()
            logits = source.run(index, module, x)
        chances = torch.softmax(logits.detach()[0], -1)
        chances.masked_fill_(chances < _LEAST, 0.0)
        for name, output in outputs.items():
            squares.add(name, _expected_squares(chances, logits, output))
        labels = _drawn(chances, draws[part])
        chances[torch.arange(len(labels)), labels] -= 1
        (gradient[:, part],) = torch.autograd.grad(logits, x, chances[None])
        first, step = first + step, max(1, min(hidden.shape[1], _LOGITS // logits.shape[-1]))
    for handle in handles:
        handle.remove()
    return gradient.view(hidden.shape)


def _expected_squares(chances: Tensor, logits: Tensor, output: Tensor) -> Tensor:
    """Sum over tokens of the expected squared gradient at the output of the head, [vocab]: p (1 - p) for a logit.

    Between the output and the logits there may be functions of single numbers, a soft cap for instance.
    """
    expected = torch.addcmul(chances, chances, chances, value=-1)
    if logits is not output:
        (slope,) = torch.autograd.grad(logits, output, torch.ones_like(logits), retain_graph=True)
        expected *= slope.reshape(expected.shape).square_()
    return expected.sum(0)


def _drawn(chances: Tensor, draws: Tensor) -> Tensor:
    """One label per row, int64: where the distribution function passes the draw."""
    reached = chances.cumsum(-1)
    return torch.searchsorted(reached, draws[:, None] * reached[:, -1:], right=True)[:, 0].clamp_max(
        chances.shape[1] - 1
    )


def _through_block(
    source: BlockSource,
    index: int,
    module: nn.Module,
    inputs: Tensor,
    gradient: Tensor,
    batch_tokens: int,
    squares: _Squares,
) -> None:
    """Turns the gradient at the output of a block into that at its input, in place."""
    layers = source.linears(index, module)
    squares.widths.update({name: layer.out_features for name, layer in layers.items()})
    handles = [layer.register_forward_hook(_squaring(squares, name)) for name, layer in layers.items()]
    for rows in batches(inputs, batch_tokens):
        with torch.enable_grad():
            x = inputs[rows].detach().requires_grad_()
            output = source.run(index, module, x)
        (gradient[rows],) = torch.autograd.grad(output, x, gradient[rows])
    for handle in handles:
        handle.remove()


def _squaring(squares: _Squares, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def add(gradient: Tensor) -> None:
        flat = gradient.reshape(-1, gradient.shape[-1])
        squares.add(name, flat.square().sum(0))

    def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.register_hook(add)  # type: ignore[no-untyped-call]

    return after


def _keeping(outputs: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def after(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs[name] = output

    return after


def _read(store: StatisticsCache) -> Fisher | None:
    tensors, about = store.read("fisher"), store.about("fisher")
    if tensors is None or about is None:
        return None
    embedding = tensors.pop("embedding")
    return Fisher({name: tensors[f"row_weight.{name}"] for name in about["layers"]}, embedding, about["tokens"])


def _write(store: StatisticsCache, result: Fisher) -> None:
    tensors = {f"row_weight.{name}": value for name, value in result.row_weight.items()}
    about = {"tokens": result.tokens, "layers": list(result.row_weight)}
    store.write("fisher", {**tensors, "embedding": result.embedding}, about)
