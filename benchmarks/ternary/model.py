"""A BitNet b1.58 of transformers whose linear layers are trained through the rounding that they run with.

    s = 1 / (1 / mean |w|)              t = clamp(rint(w / mean |w|), -1, 1)        one scale for the matrix
    a = max |x| / 127, |x| of a token   q = rint(x * (127 / max |x|))               one scale for a token
    y = (sum of t q) * (s * a)

That is arXiv 2402.17764 (weights by their absolute mean) in the arithmetic of docs/numerics.md. The sum is exact: its
terms are integers, and f32 holds every partial sum below 2^24. The backward pass takes both roundings for the identity
(the straight-through estimator of arXiv 2310.11453).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 127  # of an int8 activation
SMALLEST_ACTIVATION, SMALLEST_MEAN = 1e-5, 1e-5
EXACT = 2**24  # integers up to here are f32 numbers
SPEEDUP = 1.1  # from which bf16 is worth its roundings


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; `vocabulary` counts the end-of-text token."""

    vocabulary: int = 2048
    hidden: int = 256
    ffn: int = 640
    layers: int = 4
    heads: int = 4
    key_heads: int = 2
    context: int = 256

    def __post_init__(self) -> None:
        small = [name for name, value in vars(self).items() if value < 1]
        if small:
            raise ValueError(
                f"[train_ternary] expected sizes of at least 1, found {small[0]}={getattr(self, small[0])}"
            )
        if self.hidden % self.heads or self.heads % self.key_heads or self.hidden // self.heads % 2:
            raise ValueError(
                "[train_ternary] expected heads that divide the hidden size into even parts, and key heads that divide "
                f"the heads, found hidden={self.hidden}, heads={self.heads}, key_heads={self.key_heads}"
            )
        rows = (self.hidden, self.ffn, self.hidden // self.heads * self.key_heads)
        if any(row % 4 for row in rows):
            raise ValueError(f"[train_ternary] four rows share a byte: expected multiples of 4, found {rows}")
        if LARGEST * max(self.hidden, self.ffn) > EXACT:
            raise ValueError(f"[train_ternary] sums of {max(self.hidden, self.ffn)} columns may not be exact in f32")


class Ternary(NamedTuple):
    """A weight: values -1, 0 and 1 as f32 `[n, k]`, and f32 scalars: what a value stands for, and its inverse."""

    values: Tensor
    scale: Tensor
    inverse: Tensor


class Rounded(NamedTuple):
    """Activations of tokens: integers as f32 `[tokens, k]`, and what one of them stands for, f32 `[tokens, 1]`."""

    integers: Tensor
    scale: Tensor


def ternary(weight: Tensor) -> Ternary:
    """Rounds a float weight `[n, k]` by its absolute mean."""
    inverse = 1.0 / weight.abs().mean().clamp(min=SMALLEST_MEAN)
    return Ternary((weight * inverse).round().clamp(-1, 1), 1.0 / inverse, inverse)


def rounded(x: Tensor) -> Rounded:
    """Rounds f32 activations `[tokens, k]` to int8, by the largest of each token."""
    largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_ACTIVATION)
    # torch takes a number over a tensor for its reciprocal times the number, which is rounded twice.
    return Rounded((x * (torch.full_like(largest, LARGEST) / largest)).round(), largest / LARGEST)


class _TernaryProduct(torch.autograd.Function):
    """`y` of a layer. bf16 holds the integers of both sides as they are: only gradients lose digits in it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, low: bool) -> Tensor:
        values, scale, _ = ternary(weight)
        integers, unit = rounded(x)
        kind = torch.bfloat16 if low else torch.float32
        ctx.save_for_backward(integers.to(kind), unit, values.to(kind), scale)
        return F.linear(integers, values) * (scale * unit)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        integers, unit, values, scale = ctx.saved_tensors
        (gradient,) = gradients
        of_input = (gradient * scale).to(values.dtype) @ values
        of_weight = (gradient * unit).to(values.dtype).t() @ integers
        return of_input.float(), of_weight.float(), None


class _HeadProduct(torch.autograd.Function):
    """A product of floats whose gradients are taken in bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x.bfloat16(), weight.bfloat16())
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].bfloat16()
        return (gradient @ weight).float(), (gradient.t() @ x).float()


class TernaryLinear(nn.Linear):
    """`y` of the file's head, without a bias.

    Args:
        in_features: columns, k.
        out_features: rows, n.
        low: matrix products of the backward pass in bf16.
    """

    def __init__(self, in_features: int, out_features: int, low: bool = False) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.low = low

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = _TernaryProduct.apply(x.flatten(0, -2), self.weight, self.low)  # type: ignore[no-untyped-call]
        return rows.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, ternary"


def build(shape: Shape, end: int, seed: int, low: bool = False) -> nn.Module:
    """A new `BitNetForCausalLM`: norms in front of o and down, the square of ReLU, the embedding as head.

    Args:
        shape: its sizes.
        end: the token that ends a text.
        seed: of the weights.
        low: as in `TernaryLinear`.
    """
    from transformers import BitNetConfig, BitNetForCausalLM

    torch.manual_seed(seed)
    config = BitNetConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=shape.context,
        hidden_act="relu2",
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=None,
        dtype="float32",
    )
    model: nn.Module = BitNetForCausalLM(config)
    for name, linear in [*model.named_modules()]:
        if isinstance(linear, nn.Linear) and name != "lm_head":
            model.set_submodule(name, TernaryLinear(linear.in_features, linear.out_features, low))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            # What comes in has a mean square of 1 behind a norm, and so has what goes out.
            nn.init.normal_(parameter, std=0.02 if "embed" in name else 1 / math.sqrt(parameter.shape[1]))
    return model


def next_token_loss(model: nn.Module, ids: Tensor, low: bool = False) -> Tensor:
    """Mean cross entropy in nats of tokens 1 and on of each text, given those before.

    Args:
        model: from `build`.
        ids: integers `[texts, tokens]`.
        low: gradients of the head in bf16.
    """
    parts: Any = model
    hidden = parts.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
    weight = parts.lm_head.weight
    logits = _HeadProduct.apply(hidden, weight) if low else F.linear(hidden, weight)  # type: ignore[no-untyped-call]
    return F.cross_entropy(logits, ids[:, 1:].flatten())


def linears(model: nn.Module) -> dict[str, TernaryLinear]:
    """The ternary layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TernaryLinear)}


def is_bf16_faster(shape: Shape, tokens: int) -> bool:
    """Measures the gradient of an up projection's weight in f32 and, with the casts, in bf16."""
    gradient, x = torch.randn(tokens, shape.ffn), torch.randn(tokens, shape.hidden)

    def seconds(kind: torch.dtype) -> float:
        found = []
        for _ in range(5):
            begin = time.perf_counter()
            (gradient.to(kind).t() @ x.to(kind)).float()
            found.append(time.perf_counter() - begin)
        return min(found)

    return seconds(torch.float32) > SPEEDUP * seconds(torch.bfloat16)
