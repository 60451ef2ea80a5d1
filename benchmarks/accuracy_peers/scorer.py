"""One scorer for what every tool made: float32 arithmetic in PyTorch, whatever the tool's own kernels do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Losses = NDArray[np.float64]
BATCH = 4  # windows that pass the layers together
HEAD_ROWS = 256  # tokens whose logits are there at a time
CONFIDENCE = 1.96  # standard errors of a 95 % interval


def with_weights(folder: Path, weights: Mapping[str, Tensor]) -> Any:
    """The float model of a folder, with these weights in place of its own.

    A head among them that the model ties to its embedding is untied.

    Raises ValueError where a name or a shape is not the model's.
    """
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    head = model.get_output_embeddings()
    if "lm_head.weight" in weights and head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
    own = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in weights.items():
            if name not in own or own[name].shape != value.shape:
                found = "no such weight" if name not in own else list(own[name].shape)
                raise ValueError(f"[accuracy] expected {list(value.shape)} for {name}, found {found}")
            own[name].copy_(value)
    return model.eval()


@torch.inference_mode()
def token_losses(model: Any, windows: NDArray[np.int64], progress: Callable[[int], None] | None = None) -> Losses:
    """Negative log-likelihoods, in nats, of every token but the first of each window: f64 `[windows, tokens - 1]`.

    Args:
        model: a float32 causal model of transformers.
        windows: token ids `[windows, tokens]`; each window starts afresh.
        progress: called with the number of windows done.
    """
    head, cap = model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)
    found = []
    for begin in range(0, len(windows), BATCH):
        ids = torch.from_numpy(windows[begin : begin + BATCH])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        rows, wanted = hidden.reshape(-1, hidden.shape[-1]), ids[:, 1:].reshape(-1)
        losses = []
        for at in range(0, len(rows), HEAD_ROWS):
            logits = head(rows[at : at + HEAD_ROWS])
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            losses.append(F.cross_entropy(logits, wanted[at : at + HEAD_ROWS], reduction="none"))
        found.append(torch.cat(losses).reshape(len(ids), -1).double().numpy())
        if progress:
            progress(begin + len(ids))
    return np.concatenate(found)


def perplexity(losses: Losses) -> float:
    return math.exp(float(losses.mean()))


def loss_of(reference: Losses, losses: Losses) -> tuple[float, float, float]:
    """How much larger the perplexity is, 0.01 for 1 %, and the ends of its 95 % interval.

    Windows are the sample and compared in pairs: the tokens of one window are not independent.
    """
    difference = (losses - reference).mean(axis=1)
    middle = float(difference.mean())
    error = float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    low, high = (math.expm1(middle + sign * CONFIDENCE * error) for sign in (-1, 1))
    return math.expm1(middle), low, high
