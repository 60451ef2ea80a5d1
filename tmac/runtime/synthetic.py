"""Models of known shapes with random packed weights: what speed is measured on without a checkpoint."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac import _core
from tmac.runtime.description import ModelDescription, Weight
from tmac.runtime.families import describe
from tmac.spec import QuantSpec
from tmac.threads import get_num_threads
from tmac.tuner import tuned_kernels

POOL_ROWS = 64  # random rows that are repeated: what is computed does not depend on the values
ALIGNMENT = 4096

# name -> the keys of its `config.json` that matter here
SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama-2-7b": {
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
        "llama-3-8b": {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
        "bitnet-2b-4t": {
            "model_type": "bitnet",
            "vocab_size": 128256,
            "hidden_size": 2560,
            "intermediate_size": 6912,
            "num_hidden_layers": 30,
            "num_attention_heads": 20,
            "num_key_value_heads": 5,
            "max_position_embeddings": 4096,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
        "smollm2-135m": {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rope_theta": 100000.0,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
        "qwen2.5-1.5b": {
            "model_type": "qwen2",
            "vocab_size": 151936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
        "qwen3-0.6b": {
            "model_type": "qwen3",
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
        },
    }
)


def synthetic_model(
    description: ModelDescription, spec: QuantSpec, head_spec: QuantSpec, plane_layout: bool = False
) -> _core.Model:
    """A model with random weights, in the memory that they take packed (and one more of the largest).

    Args:
        description: of the model, `shape_description(name)`.
        spec: of the layers' matrices.
        head_spec: of the head and the embedding, one matrix if the model ties them.
        plane_layout: as of `Codes.pack`.

    Raises:
        UnsupportedSpecError: no kernel here serves a spec.

    Example:
        >>> model = synthetic_model(shape_description("smollm2-135m"), QuantSpec(4, 128), QuantSpec(8, 32))
    """
    rng = np.random.default_rng(0)
    builder = _core.ModelBuilder(description.config)
    alike: dict[tuple[QuantSpec, tuple[int, ...]], list[Weight]] = defaultdict(list)
    for weight in description.weights:
        if len(weight.shape) == 1:
            value = 0.0 if weight.part == "bias" else 1.0
            builder.add_floats(weight.name, np.full(weight.shape, value, np.float32), "F32")
        elif weight.exact:
            matrix = rng.standard_normal(weight.shape, np.float32) / np.float32(weight.shape[1] ** 0.5)
            builder.add_floats(weight.name, matrix, "F32", bias=_bias(weight))
        elif weight.name != "head" or not description.tied:
            alike[head_spec if weight.name in ("embedding", "head") else spec, weight.shape].append(weight)
    for (each, (n, k)), weights in alike.items():
        for weight, buffer in zip(weights, _copies(packed(rng, each, n, k, plane_layout), len(weights)), strict=True):
            builder.add_packed(weight.name, buffer, bias=_bias(weight))
    return builder.build()


def shape_description(name: str) -> ModelDescription:
    """What the runtime knows of a shape. Raises ValueError, with the names of all, for an unknown one."""
    if name not in SHAPES:
        raise ValueError(f"unknown shape {name!r}; known are {', '.join(SHAPES)}")
    return describe(SHAPES[name])


def packed(rng: np.random.Generator, spec: QuantSpec, n: int, k: int, plane_layout: bool = False) -> NDArray[np.uint8]:
    """The bytes of a random weight `[n, k]` whose products are about as large as its inputs."""
    levels = 3 if spec.codebook == "ternary" else 2**spec.bits
    codes = rng.integers(0, levels, (min(n, POOL_ROWS), k), dtype=np.uint8)
    rows = _core.codes_to_planes(codes, spec.bits)
    planes = np.take(rows, np.arange(n) % POOL_ROWS, axis=1)
    spread = ((levels**2 - 1) / 12) ** 0.5
    groups = (n, spec.num_groups(k))
    scales = (rng.uniform(0.75, 1.25, groups) / (spread * k**0.5)).astype(np.float16)
    zeros: NDArray[Any] | None = None
    if spec.zero_point == "offset":
        zeros = (-(levels - 1) / 2 * scales.astype(np.float32)).astype(np.float16)
    elif spec.zero_point != "fixed":
        zeros = np.full(groups, levels // 2, np.uint8 if spec.zero_point == "integer" else np.float16)
    kernel = tuned_kernels(spec, n, k)
    threads = get_num_threads()
    return _core.pack(
        spec, planes, k, scales, zeros, kernel=kernel, num_threads=threads, plane_layout=plane_layout
    ).buffer()


def _copies(buffer: NDArray[np.uint8], count: int) -> list[NDArray[np.uint8]]:
    """So many of it, at addresses of their own: no layer finds another one's bytes in the cache."""
    stride = -(-buffer.size // ALIGNMENT) * ALIGNMENT
    memory = np.empty(stride * count, np.uint8)
    parts = [memory[at * stride : at * stride + buffer.size] for at in range(count)]
    for part in parts:
        part[:] = buffer
    return parts


def _bias(weight: Weight) -> NDArray[np.float32] | None:
    return np.zeros(weight.shape[0], np.float32) if weight.bias else None
