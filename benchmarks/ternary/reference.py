"""The native decoder of a BitNet in numpy: docs/numerics.md operation by operation, ternary layers as int32 sums.

Nothing of tmac computes here. Every result is rounded as the decoder rounds it, so logits have to have the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
LANES, SUMS = 16, 4
SPAN = 256  # positions that attention takes at once
HALFWAY, BELOW_F32 = 1 << 28, (1 << 29) - 1  # of the bits of an f64 that an f32 has not
EXP = tuple(map(float.fromhex, ("0x1.6a23ccp-9", "0x1.123a2p-6", "0x1.5558f2p-4", "0x1.555492p-2", "0x1.fffffcp-1")))


@dataclass(frozen=True)
class Ternary:
    """A layer: values -1, 0, 1 as i32 `[n, k]`, and what one stands for."""

    values: NDArray[np.int32]
    scale: np.float32


class Reference:
    """The decoder with a cache of f32.

    Args:
        config: `config.json` of a BitNet.
        vectors: f32 tensors of the file by name.
        layers: ternary layers by name.
    """

    def __init__(self, config: Mapping[str, Any], vectors: Mapping[str, Floats], layers: Mapping[str, Ternary]) -> None:
        self._vectors, self._layers = vectors, layers
        head = int(config["hidden_size"]) // int(config["num_attention_heads"])
        self._inv_freq = frequencies(float(config["rope_parameters"]["rope_theta"]), head)
        self._count = int(config["num_hidden_layers"])
        self._heads, self._key_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
        self._eps = np.float32(config["rms_norm_eps"])

    def logits(self, ids: NDArray[np.int64]) -> Floats:
        """f32 `[tokens, vocabulary]` of at most 256 tokens."""
        if len(ids) > SPAN:
            raise ValueError(f"[reference] expected at most {SPAN} tokens, found {len(ids)}")
        hidden = self._vectors["model.embed_tokens.weight"][ids]
        for index in range(self._count):
            name = f"model.layers.{index}"
            hidden = hidden + self._attention(f"{name}.self_attn", self._norm(f"{name}.input_layernorm", hidden))
            hidden = hidden + self._mlp(f"{name}.mlp", self._norm(f"{name}.post_attention_layernorm", hidden))
        return float_rows(self._vectors["model.embed_tokens.weight"], self._norm("model.norm", hidden))

    def _attention(self, name: str, x: Floats) -> Floats:
        query, key, value = (self._linear(f"{name}.{part}_proj", x) for part in "qkv")
        heads = [each.reshape(len(x), -1, len(self._inv_freq) * 2).swapaxes(0, 1) for each in (query, key, value)]
        query, key = (rotate(each, self._inv_freq) for each in heads[:2])
        shared = self._heads // self._key_heads
        mixed = attend(query, key.repeat(shared, 0), heads[2].repeat(shared, 0))
        rows = mixed.swapaxes(0, 1).reshape(len(x), -1)
        return self._linear(f"{name}.o_proj", self._norm(f"{name}.attn_sub_norm", rows))

    def _mlp(self, name: str, x: Floats) -> Floats:
        positive = np.maximum(self._linear(f"{name}.gate_proj", x), np.float32(0))
        gated = positive * positive * self._linear(f"{name}.up_proj", x)
        return self._linear(f"{name}.down_proj", self._norm(f"{name}.ffn_sub_norm", gated))

    def _norm(self, name: str, x: Floats) -> Floats:
        return rms_norm(x, self._vectors[f"{name}.weight"], self._eps)

    def _linear(self, name: str, x: Floats) -> Floats:
        return linear(self._layers[name], x)


def round_to_int8(x: Floats) -> tuple[NDArray[np.int32], Floats]:
    """Integers i32 `[tokens, k]`, and what one of them stands for, f32 `[tokens, 1]`."""
    largest = np.abs(x).max(axis=1, keepdims=True).clip(np.float32(1e-5))
    return np.rint(x * (np.float32(127) / largest)).astype(np.int32), largest / np.float32(127)


def linear(layer: Ternary, x: Floats) -> Floats:
    """An int32 sum for each output, and two products with its scales."""
    integers, unit = round_to_int8(x)
    outputs: Floats = int32_sums(layer.values, integers).astype(np.float32) * (layer.scale * unit)
    return outputs


def int32_sums(values: NDArray[np.int32], integers: NDArray[np.int32]) -> NDArray[np.int32]:
    """`[tokens, n]`, multiplied and added up as int32."""
    sums: NDArray[np.int32] = integers @ values.T
    return sums


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c, rounded once. The product is exact in f64.

    The sum is rounded to f64 and again to f32, which is wrong only where the first lands in the middle of two f32
    numbers. It then goes one step to the side on which the exact sum lies.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = np.asarray(product + addend)
    middle = (total.view(np.int64) & BELOW_F32) == HALFWAY
    if middle.any():
        product, addend, near = (np.broadcast_to(each, total.shape)[middle] for each in (product, addend, total))
        back = near - product
        lost = (product - (near - back)) + (addend - back)
        total[middle] = np.where(lost == 0, near, np.nextafter(near, np.copysign(np.inf, lost)))
    return total.astype(np.float32)


def fold(lanes: Floats) -> Floats:
    """The sum of sixteen lanes, the last axis: halves are added until one number is left."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def rms_norm(x: Floats, weight: Floats, eps: np.float32) -> Floats:
    step = LANES * SUMS
    padded = np.pad(x, ((0, 0), (0, -x.shape[1] % step))).reshape(len(x), -1, SUMS, LANES)
    sums = np.zeros((len(x), SUMS, LANES), np.float32)
    for index in range(padded.shape[1]):
        sums = fma(padded[:, index], padded[:, index], sums)
    total = fold((sums[:, 0] + sums[:, 2]) + (sums[:, 1] + sums[:, 3]))
    factor = np.float32(1) / np.sqrt(total / np.float32(x.shape[1]) + eps)
    normed: Floats = x * factor[:, None] * weight
    return normed


def frequencies(theta: float, head_dim: int) -> Floats:
    """Rotary frequencies of half a head: powers in f64, rounded to f32, and their inverses."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    inverses: Floats = np.float32(1) / np.power(theta, exponents.astype(np.float64)).astype(np.float32)
    return inverses


def rotate(heads: Floats, inv_freq: Floats) -> Floats:
    """Rotary positions of `[heads, tokens, head_dim]`."""
    angles = (np.arange(heads.shape[1], dtype=np.float32)[:, None] * inv_freq).astype(np.float64)
    cosine, sine = (np.vectorize(function)(angles).astype(np.float32) for function in (math.cos, math.sin))
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate([fma(first, cosine, -(second * sine)), fma(second, cosine, first * sine)], axis=-1)


def attend(query: Floats, key: Floats, value: Floats) -> Floats:
    """Causal attention of `[heads, tokens, head_dim]`, in one span."""
    heads, tokens, dim = query.shape
    scores = np.zeros((heads, tokens, tokens), np.float32)
    for d in range(dim):
        scores = fma(query[:, :, d, None], key[:, None, :, d], scores)
    scores *= np.float32(1 / math.sqrt(dim))
    hidden = np.triu(np.ones((tokens, tokens), bool), 1)
    scores[:, hidden] = -np.inf
    weights = exponential(scores - scores.max(axis=2, keepdims=True))
    lanes = np.zeros((heads, tokens, LANES), np.float32)
    for begin in range(0, tokens, LANES):
        part = weights[:, :, begin : begin + LANES]
        lanes[:, :, : part.shape[2]] += part
    mixed = np.zeros_like(query)
    for position in range(tokens):
        mixed = fma(weights[:, :, position, None], value[:, None, position], mixed)
    return mixed / fold(lanes)[:, :, None]


def exponential(x: Floats) -> Floats:
    """exp of numbers up to 0; 0 below -86.5."""
    bounded = np.maximum(x, np.float32(-87))
    magic = np.float32(1.5 * 2**23)

    def constant(number: float) -> Floats:
        return np.asarray(np.float32(number))

    shifted = fma(bounded, constant(float.fromhex("0x1.715476p+0")), magic)
    n = shifted - magic
    rest = fma(n, constant(-float.fromhex("0x1.62e43p-1")), bounded)
    rest = fma(n, constant(float.fromhex("0x1.05c61p-29")), rest)
    polynomial = np.full_like(rest, EXP[0])
    for coefficient in (*EXP[1:], 2.0, 2.0):
        polynomial = fma(polynomial, rest, constant(coefficient))
    power = np.exp2(n.astype(np.float64) - 1).astype(np.float32)
    found: Floats = np.where(x < np.float32(-86.5), np.float32(0), polynomial * power)
    return found


def float_rows(weight: Floats, x: Floats, rows: int = 128) -> Floats:
    """Float weights `[n, k]`: sixteen lanes over k, k a multiple of 16."""
    found = np.empty((len(x), len(weight)), np.float32)
    pieces = x.reshape(len(x), 1, -1, LANES)
    for begin in range(0, len(weight), rows):
        part = weight[begin : begin + rows].reshape(1, -1, pieces.shape[2], LANES)
        lanes = np.zeros((len(x), part.shape[1], LANES), np.float32)
        for index in range(pieces.shape[2]):
            lanes = fma(part[:, :, index], pieces[:, :, index], lanes)
        found[:, begin : begin + rows] = fold(lanes)
    return found
