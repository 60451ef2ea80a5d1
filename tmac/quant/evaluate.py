"""What quantization costs: perplexity and next-token agreement."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def perplexity(model: nn.Module, input_ids: Tensor, window: int = 512) -> float:
    """exp of the mean negative log-likelihood, in nats, of every token but the first of each window.

    The text is cut into windows of `window` tokens, nothing is put before them (no BOS), and each starts afresh; the
    last may be shorter. Logits are widened to f32.

    Args:
        model: `model(ids [1, tokens])` -> logits `[1, tokens, vocabulary]`, or an object that has them as `.logits`.
        input_ids: integers `[tokens]` or `[1, tokens]`, at least two.
        window: tokens per window, at least 2.

    Raises:
        ValueError: there are too few tokens, or the shape is another one.
    """
    total, count = 0.0, 0
    for ids, logits in _windows(model, input_ids, window):
        if len(ids) > 1:
            total += float(F.cross_entropy(logits[:-1].float(), ids[1:], reduction="sum"))
            count += len(ids) - 1
    return math.exp(total / count)


def next_token_agreement(model_a: nn.Module, model_b: nn.Module, input_ids: Tensor, window: int = 512) -> float:
    """Share of positions, 0 to 1, at which both models find the same next token the most likely.

    Arguments as for `perplexity`.
    """
    same = next_tokens(model_a, input_ids, window) == next_tokens(model_b, input_ids, window)
    return float(same.float().mean())


def next_tokens(model: nn.Module, input_ids: Tensor, window: int = 512) -> Tensor:
    """The most likely next token at every position, int64 `[tokens]`. Arguments as for `perplexity`."""
    return torch.cat([logits.argmax(-1) for _, logits in _windows(model, input_ids, window)])


def _windows(model: nn.Module, input_ids: Tensor, window: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(ids [tokens], logits [tokens, vocabulary]) of each window, in evaluation mode."""
    if input_ids.dim() == 2 and input_ids.shape[0] == 1:
        input_ids = input_ids[0]
    if input_ids.dim() != 1 or len(input_ids) < 2 or window < 2:
        raise ValueError(
            "[evaluate] input_ids must be [tokens] or [1, tokens] with at least two tokens, and window at least 2; "
            f"got {list(input_ids.shape)} and window={window}"
        )
    training = model.training
    model.eval()
    try:
        for ids in torch.split(input_ids.long(), window):
            with torch.no_grad():
                yield ids, _logits(model(ids[None]))[0]
    finally:
        model.train(training)


def _logits(output: Any) -> Tensor:
    return cast(Tensor, getattr(output, "logits", output))
