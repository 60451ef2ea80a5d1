"""`rope_parameters` of a Hugging Face configuration from the metadata and tensors of a GGUF file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac.formats.errors import format_error
from tmac.formats.gguf_family import Model

# Llama 3.1 to 3.3: what the converter makes rope_freqs.weight from and does not write down.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def rope_parameters(model: Model, theta: float = 10000.0) -> dict[str, Any]:
    """Unscaled, linear or YaRN frequencies, by the metadata.

    Args:
        model: the model.
        theta: the base where the file says none.

    Raises:
        FormatError: another kind of scaling, or numbers that are none.
    """
    base = {"rope_theta": model.number("rope.freq_base", theta)}
    kind = model.file.get(model.key("rope.scaling.type"), str, "none") or "none"
    factor = model.number("rope.scaling.factor", 1.0)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {"rope_type": "default", **base}
    if kind == "linear":
        return {"rope_type": "linear", **base, "factor": factor}
    if kind == "yarn":
        names = {"attention_factor": "yarn_attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
        extra = {
            name: model.number(f"rope.scaling.{key}") for name, key in names.items() if model.has(f"rope.scaling.{key}")
        }
        original = model.positive("rope.scaling.original_context_length")
        return {"rope_type": "yarn", **base, "factor": factor, "original_max_position_embeddings": original, **extra}
    raise model.error("rope.scaling.type", f"expected none, linear or yarn, found {kind!r}")


def llama_rope(model: Model) -> dict[str, Any]:
    """As `rope_parameters`; `rope_freqs.weight` becomes the numbers that it was made from where these are Llama 3's,
    else factors for each frequency ("longrope" whose short and long factors are the same)."""
    rope = rope_parameters(model)
    if "rope_freqs.weight" not in model.tensors:
        return rope
    factors = factors_of(model, "rope_freqs.weight", model.sizes["head"] // 2)
    scaled = {**rope, "rope_type": "llama3", "factor": float(factors.max()), **LLAMA3}
    if np.allclose(factors, _llama3_factors(scaled, model.sizes["head"]), rtol=1e-5):
        return scaled
    same = factors.tolist()
    length = model.positive("context_length")
    return {
        **rope,
        "rope_type": "longrope",
        "short_factor": same,
        "long_factor": same,
        "attention_factor": 1.0,
        "original_max_position_embeddings": length,
    }


def _llama3_factors(rope: dict[str, Any], head: int) -> NDArray[np.float64]:
    """What LlamaModel.generate_extra_tensors writes for these parameters."""
    wave = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head, 2) / head)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((rope["original_max_position_embeddings"] / wave - low) / (high - low), 0, 1)
    factors: NDArray[np.float64] = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors


def factors_of(model: Model, name: str, count: int) -> NDArray[np.float32]:
    """A tensor of factors, one for each rotary frequency; raises FormatError for anything else."""
    file, info = model.tensors.find(name)
    if info.shape != (count,) or info.type_name not in ("F32", "F16"):
        message = f"expected {count} factors in F32, found {info.shape} in {info.type_name}"
        raise format_error(file.path, message, name)
    values = file.read(name)
    if not (np.isfinite(values) & (values > 0)).all():
        raise format_error(file.path, "expected positive, finite factors", name)
    return values


def longrope(model: Model, rotary: int) -> dict[str, Any]:
    """Phi-3: `rope_factors_long.weight` and `rope_factors_short.weight` where the file has them."""
    partial = rotary / model.sizes["head"]
    base = {"rope_theta": model.number("rope.freq_base", 10000.0), "partial_rotary_factor": partial}
    if "rope_factors_long.weight" not in model.tensors:
        return {"rope_type": "default", **base}
    return {
        "rope_type": "longrope",
        **base,
        "short_factor": factors_of(model, "rope_factors_short.weight", rotary // 2).tolist(),
        "long_factor": factors_of(model, "rope_factors_long.weight", rotary // 2).tolist(),
        "original_max_position_embeddings": model.positive("rope.scaling.original_context_length"),
    }
