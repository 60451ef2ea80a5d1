"""The training loop: AdamW in two stages, until a time or a number of steps is over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.ternary.model import next_token_loss

SECOND_STAGE = 0.5  # of the run: lower rate, no weight decay
WARM_UP = 0.03
# Share of the peak at the end of the first stage and at the start of the second: 8e-4 and 5e-4 of 1.5e-3.
FIRST_END, SECOND_BEGIN = 0.53, 0.33
CURVE_POINTS = 200


@dataclass(frozen=True)
class Training:
    """How to train.

    Args:
        minutes: for how long; the schedule follows the clock, so that another run takes other steps.
        steps: in place of `minutes`: how many, and the same numbers with the same seed and number of threads.
        texts: samples of a step.
        peak: the highest learning rate.
        decay: weight decay of the first stage.
        seed: of the samples.
        low: gradients in bf16.
    """

    minutes: float = 30.0
    steps: int | None = None
    texts: int = 4
    peak: float = 3e-3
    decay: float = 0.1
    seed: int = 0
    low: bool = False


@dataclass(frozen=True)
class Point:
    """The mean loss in nats of the steps since the point before."""

    step: int
    tokens: int
    seconds: float
    rate: float
    loss: float


@dataclass(frozen=True)
class Curve:
    points: list[Point]
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def rate_and_decay(progress: float, training: Training) -> tuple[float, float]:
    """Learning rate and weight decay at a share of the run, 0 to 1.

    Two stages, as in "The Era of 1-bit LLMs: Training Tips, Code and FAQ": the rate falls linearly, jumps down in the
    middle and falls to zero; weight decay ends in the middle, since it would pull weights over the line at which their
    ternary value changes.
    """
    if progress < SECOND_STAGE:
        share = 1 - (1 - FIRST_END) * progress / SECOND_STAGE
        return training.peak * share * min(1.0, progress / WARM_UP), training.decay
    share = SECOND_BEGIN * (1 - progress) / (1 - SECOND_STAGE)
    return training.peak * max(share, 0.0), 0.0


def train(
    model: nn.Module, tokens: Tensor, window: int, training: Training, report: Callable[[Point, float], None]
) -> Curve:
    """Trains on random places of a text.

    Args:
        model: from `build`.
        tokens: i64 `[tokens]`, more than `window`.
        window: predicted tokens of a sample.
        training: how.
        report: called now and then with a point of the curve and the share of the run that is over.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(training.seed)
    optimizer = _optimizer(model, training)
    places = torch.arange(window + 1)
    points: list[Point] = []
    losses: list[float] = []
    begin, step, reported, progress = time.perf_counter(), 0, 0.0, 0.0
    model.train()
    while progress < 1:
        rate, decay = rate_and_decay(max(progress, WARM_UP / 10), training)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = rate, decay if group["decays"] else 0.0
        starts = torch.randint(len(tokens) - window, (training.texts, 1), generator=generator)
        losses.append(_step(model, tokens[starts + places], optimizer, training.low))
        step += 1
        seconds = time.perf_counter() - begin
        progress = step / training.steps if training.steps else seconds / (60 * training.minutes)
        if progress >= min(1.0, reported + 1 / CURVE_POINTS):
            points.append(Point(step, step * training.texts * window, seconds, rate, math.fsum(losses) / len(losses)))
            reported = progress
            losses.clear()
            report(points[-1], min(progress, 1.0))
    return Curve(points, step * training.texts * window, time.perf_counter() - begin)


def _optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "decays": True}, {"params": vectors, "decays": False}]
    return torch.optim.AdamW(groups, lr=training.peak, betas=(0.9, 0.95), fused=True)


def _step(model: nn.Module, ids: Tensor, optimizer: torch.optim.Optimizer, low: bool) -> float:
    loss = next_token_loss(model, ids, low)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(f"[train_ternary] the loss became {value}: try a lower --rate")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return value
