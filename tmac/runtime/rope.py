"""Rotary frequencies from a Hugging Face configuration, in transformers' arithmetic (`modeling_rope_utils.py`).

Powers are taken in f64 and rounded to f32 once, what follows is f32 as there: the numbers differ by a unit in the last
place at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac.runtime.settings import Settings

Floats = NDArray[np.float32]
WITH_ORIGINAL = ("llama3", "yarn", "longrope")


def rope(
    config: Settings,
    head_dim: int,
    context: int,
    *,
    theta: float = 10000.0,
    theta_key: str = "rope_theta",
    partial_key: str | None = None,
    partial: float = 1.0,
    original: int | None = None,
) -> dict[str, Any]:
    """One entry of the runtime's `rope`: {"inv_freq": [floats], "scale": float, "dynamic": {...} or None}.

    Args:
        config: with `rope_parameters` (transformers 5), or `rope_scaling` and the keys below (4).
        head_dim: of the queries and keys.
        context: `max_position_embeddings`.
        theta: where the configuration says none under `theta_key`.
        theta_key: the name outside of `rope_parameters`.
        partial_key: the name of the share of a head that is rotated, None for families that rotate all of it.
        partial: where the configuration does not say that share.
        original: `original_max_position_embeddings` of families that have it outside of `rope_parameters`.

    Raises:
        ValueError: an unknown type, or a number that cannot be.
    """
    parameters = config.part("rope_scaling" if config.values.get("rope_scaling") else "rope_parameters")
    if any(isinstance(value, Mapping) for value in parameters.values.values()):
        raise config.error("rope_parameters", "expected the same for all layers")
    outer = Settings({"rope_theta": config.positive(theta_key, theta)})
    if partial_key is None:
        for place in (config, parameters):
            place.refuse("partial_rotary_factor", 1.0, "models of this family rotate whole heads")
    else:
        partial = config.positive(partial_key, partial)
    share = parameters.positive("partial_rotary_factor", partial)
    if share > 1:
        raise parameters.error("partial_rotary_factor", "expected at most 1")
    outside = config.size("original_max_position_embeddings", original or context)
    given = config.has("original_max_position_embeddings") or original is not None
    values = {**outer.values, **{key: value for key, value in parameters.values.items() if value is not None}}
    if given or "original_max_position_embeddings" not in values:
        values["original_max_position_embeddings"] = outside
    return rope_entry(Settings(values), int(head_dim * share), context)


def rope_entry(parameters: Settings, dim: int, context: int) -> dict[str, Any]:
    """The entry for complete `rope_parameters`.

    Args:
        parameters: "rope_type" ("type" in older files), "rope_theta", and what the type needs.
        dim: how many numbers of a head are rotated.
        context: `max_position_embeddings`.

    Raises:
        ValueError: as `rope`.
    """
    kind = parameters.values.get("rope_type") or parameters.values.get("type") or "default"
    if not isinstance(kind, str) or kind not in TYPES:
        key = "rope_type" if parameters.has("rope_type") or not parameters.has("type") else "type"
        raise parameters.error(key, f"expected one of {', '.join(TYPES)}")
    if dim < 2:
        raise parameters.error("partial_rotary_factor", "expected at least one pair of numbers to rotate")
    inv_freq, scale, dynamic = TYPES[kind](parameters, dim, context)
    if not np.isfinite(inv_freq).all():
        raise parameters.error("rope_theta", "expected parameters of finite frequencies")
    return {"inv_freq": inv_freq.tolist(), "scale": scale, "dynamic": dynamic}


Entry = tuple[Floats, float, "dict[str, Any] | None"]


def _theta(parameters: Settings) -> float:
    return parameters.positive("rope_theta", 10000.0)


def _periods(theta: float, dim: int) -> Floats:
    """theta ** (2 i / dim)"""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    with np.errstate(over="ignore"):
        periods: Floats = np.power(float(np.float32(theta)), exponents, dtype=np.float64).astype(np.float32)
    return periods


def _inverse(periods: Floats) -> Floats:
    inverse: Floats = np.float32(1) / periods
    return inverse


def _default(parameters: Settings, dim: int, context: int) -> Entry:
    return _inverse(_periods(_theta(parameters), dim)), 1.0, None


def _linear(parameters: Settings, dim: int, context: int) -> Entry:
    return _inverse(_periods(_theta(parameters), dim)) / np.float32(_factor(parameters)), 1.0, None


def _factor(parameters: Settings) -> float:
    if not parameters.has("factor"):
        raise parameters.error("factor", "expected a number above 0")
    return parameters.positive("factor", 1.0)


def _dynamic(parameters: Settings, dim: int, context: int) -> Entry:
    """NTK: beyond `context` the base grows with the length; the runtime computes it anew."""
    if dim < 4:
        raise parameters.error("rope_type", "expected more than one pair of numbers to rotate")
    theta, factor = _theta(parameters), _factor(parameters)
    dynamic = {"kind": "ntk", "base": theta, "factor": factor, "dim": dim, "original": context}
    return _inverse(_periods(theta, dim)), 1.0, dynamic


def _llama3(parameters: Settings, dim: int, context: int) -> Entry:
    """Long waves are stretched by the factor, short ones are not, those between partly."""
    inv_freq = _inverse(_periods(_theta(parameters), dim))
    factor = _factor(parameters)
    low, high = parameters.positive("low_freq_factor", 1.0), parameters.positive("high_freq_factor", 4.0)
    if high <= low:
        raise parameters.error("high_freq_factor", "expected more than low_freq_factor")
    original = parameters.size("original_max_position_embeddings")
    wave = np.float32(2 * math.pi) / inv_freq
    long, short = wave > np.float32(original / low), wave < np.float32(original / high)
    scaled = np.where(long, inv_freq / np.float32(factor), inv_freq)
    smooth = (np.float32(original) / wave - np.float32(low)) / np.float32(high - low)
    between = (1 - smooth) * scaled / np.float32(factor) + smooth * scaled
    return np.where(long | short, scaled, between).astype(np.float32), 1.0, None


def _yarn(parameters: Settings, dim: int, context: int) -> Entry:
    theta, original = _theta(parameters), parameters.size("original_max_position_embeddings")
    if theta == 1:
        raise parameters.error("rope_theta", "expected another number than 1")
    factor = parameters.positive("factor", context / original)

    def turns_to_dim(turns: float) -> float:
        return (dim * math.log(original / (turns * 2 * math.pi))) / (2 * math.log(theta))

    low = turns_to_dim(parameters.positive("beta_fast", 32.0))
    high = turns_to_dim(parameters.positive("beta_slow", 1.0))
    if parameters.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    periods = _periods(theta, dim)
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = 1 - np.clip(ramp, 0, 1)
    stretched = _inverse(np.float32(factor) * periods)
    return stretched * (1 - kept) + _inverse(periods) * kept, _yarn_scale(parameters, factor), None


def _yarn_scale(parameters: Settings, factor: float) -> float:
    """What cos and sin are multiplied with."""

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if parameters.has("attention_factor"):
        return parameters.positive("attention_factor", 1.0)
    weights = [parameters.number(key, 0.0) for key in ("mscale", "mscale_all_dim")]
    return magnitude(weights[0]) / magnitude(weights[1]) if all(weights) else magnitude(1.0)


def _longrope(parameters: Settings, dim: int, context: int) -> Entry:
    """A factor for each frequency: short ones up to the original context, long ones for texts beyond it."""
    original = parameters.size("original_max_position_embeddings")
    periods = _periods(_theta(parameters), dim)
    factors = {}
    for key in ("short_factor", "long_factor"):
        factors[key] = np.asarray(parameters.numbers(key), np.float32)
        if len(factors[key]) != len(periods) or not (factors[key] > 0).all():
            raise parameters.error(key, f"expected {len(periods)} numbers above 0")
    factor = parameters.positive("factor", context / original)
    scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(max(original, 2)))
    scale = parameters.positive("attention_factor", scale)
    short, long = (_inverse(factors[key] * periods) for key in ("short_factor", "long_factor"))
    dynamic = {"kind": "longrope", "original": original, "long_inv_freq": long.tolist()}
    return short, scale, None if np.array_equal(short, long) else dynamic


TYPES: dict[str, Callable[[Settings, int, int], Entry]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
