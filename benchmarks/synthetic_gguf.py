"""GGUF files of known shapes with random blocks: what peers measure their speed on, beside our synthetic models.

Only the numbers that scale a block are chosen; the rest is random. Files are kept in a folder and made once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac.runtime.description import ModelDescription, Weight
from tmac.runtime.synthetic import SHAPES, shape_description

POOL_BLOCKS = 4096  # random blocks that are repeated

# our families -> llama.cpp's name of the architecture
ARCHITECTURES = {"llama": "llama", "bitnet": "bitnet", "qwen3": "qwen3"}
LAYER = {
    "input_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "attention_sub_norm": "attn_sub_norm",
    "o": "attn_output",
    "pre_mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "mlp_sub_norm": "ffn_sub_norm",
    "down": "ffn_down",
}
TOP = {"embedding": "token_embd", "final_norm": "output_norm", "head": "output"}


@dataclass(frozen=True)
class BlockType:
    """A type of ggml's blocks (ggml-common.h).

    Args:
        columns: of a block.
        nbytes: of a block.
        halves: where its f16 numbers are, and what each is multiplied with to get weights of about 1.
        trits: bytes of codes before the scale: four codes of two bits, or base 3 digits.
    """

    columns: int
    nbytes: int
    halves: tuple[tuple[int, float], ...]
    trits: str = ""


TYPES: Mapping[str, BlockType] = {
    "Q4_0": BlockType(32, 18, ((0, 1 / 4.6),)),
    "Q8_0": BlockType(32, 34, ((0, 1 / 74),)),
    "Q2_K": BlockType(256, 84, ((80, 1 / 8.4), (82, 1 / 5))),
    "Q3_K": BlockType(256, 110, ((108, 1 / 40),)),
    "Q4_K": BlockType(256, 144, ((0, 1 / 150), (2, 1 / 20))),
    "Q6_K": BlockType(256, 210, ((208, 1 / 1400),)),
    "TQ1_0": BlockType(256, 54, ((52, 1 / 0.8),), "base 3"),
    "TQ2_0": BlockType(256, 66, ((64, 1 / 0.8),), "two bits"),
}
Mix = Mapping[str, str]

# What llama-quantize makes of a model: the type of every matrix that has none of its own, and of these.
MIXES: Mapping[str, Mix] = {
    "Q4_0": {"": "Q4_0", "head": "Q6_K"},
    "Q2_K": {"": "Q2_K", "v": "Q3_K", "o": "Q3_K", "down": "Q3_K", "head": "Q6_K"},
    "TQ2_0": {"": "TQ2_0", "head": "Q6_K", "embedding": "Q4_K"},
    "TQ1_0": {"": "TQ1_0", "head": "Q6_K", "embedding": "Q4_K"},
}
TIED_F16 = "-F16"  # a mix's name with it: a tied head in F16


def mix_of(name: str, description: ModelDescription) -> Mix:
    """Types by the last part of our names. A tied head is Q6_K, Q8_0 where its columns are no multiple of 256."""
    mix = dict(MIXES[name.removesuffix(TIED_F16)])
    if description.tied:
        blocks = description.config["hidden_size"] % TYPES["Q6_K"].columns == 0
        mix["embedding"] = "F16" if name.endswith(TIED_F16) else "Q6_K" if blocks else "Q8_0"
    return mix


def kind_of(weight: Weight, mix: Mix) -> str:
    return mix.get(weight.name.rpartition(".")[2], mix[""])


def matrix_bytes(kind: str, shape: tuple[int, ...]) -> int:
    if kind == "F16":
        return 2 * shape[0] * shape[1]
    block = TYPES[kind]
    if shape[1] % block.columns:
        raise ValueError(f"{kind} needs multiples of {block.columns} columns, not {shape[1]}")
    return shape[0] * shape[1] // block.columns * block.nbytes


def stored(description: ModelDescription) -> list[Weight]:
    """The weights that a file holds: a tied head is the embedding."""
    return [weight for weight in description.weights if weight.name != "head" or not description.tied]


def bytes_per_token(shape: str, mix_name: str) -> int:
    """Bytes of matrices that a generated token reads: all, but for an embedding that is not the head."""
    description = shape_description(shape)
    mix = mix_of(mix_name, description)
    read = [weight for weight in stored(description) if len(weight.shape) == 2]
    read = [weight for weight in read if weight.name != "embedding" or description.tied]
    return sum(matrix_bytes(kind_of(weight, mix), weight.shape) for weight in read)


def random_blocks(rng: np.random.Generator, kind: str, count: int, columns: int) -> NDArray[np.uint8]:
    """`[count, bytes]`; weights are about 1 / sqrt(columns) large."""
    block = TYPES[kind]
    data = rng.integers(0, 256, (count, block.nbytes), dtype=np.uint8)
    codes = data[:, : block.halves[0][0]]
    if block.trits == "two bits":
        trits = rng.integers(0, 3, (*codes.shape, 4), dtype=np.uint8)
        codes[:] = trits[..., 0] | trits[..., 1] << 2 | trits[..., 2] << 4 | trits[..., 3] << 6
    elif block.trits:
        codes[:] = ((rng.integers(0, 243, codes.shape) * 256 + 242) // 243).astype(np.uint8)
    for place, factor in block.halves:
        data[:, place : place + 2] = np.full((count, 1), factor / math.sqrt(columns), np.float16).view(np.uint8)
    return data


def random_matrix(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Rows of blocks, u8 `[rows, bytes]`, or f16 `[rows, columns]`."""
    rows, columns = shape
    if kind == "F16":
        halves = (rng.standard_normal(1 << 20, np.float32) / math.sqrt(columns)).astype(np.float16)
        return np.resize(halves, shape)
    blocks = random_blocks(rng, kind, POOL_BLOCKS, columns)
    return np.resize(blocks, (rows, matrix_bytes(kind, shape) // rows))


def gguf_file(folder: Path, shape: str, mix_name: str) -> Path:
    """The file of a shape and a mix, made if it is not there. It has no tokenizer."""
    path = folder / f"{shape}-{mix_name}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        write_gguf(part, shape_description(shape), mix_name, float(SHAPES[shape]["rope_theta"]))
        part.rename(path)
    return path


def write_gguf(path: Path, description: ModelDescription, mix_name: str, rope_base: float) -> None:
    import gguf

    config = description.config
    mix = mix_of(mix_name, description)
    writer = gguf.GGUFWriter(path, ARCHITECTURES[config["family"]])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["context_length"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_heads"])
    writer.add_head_count_kv(config["num_kv_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(rope_base)
    writer.add_layer_norm_rms_eps(config["norm_eps"])
    weights = stored(description)
    for weight in weights:
        if len(weight.shape) == 1:
            nbytes = 4 * weight.shape[0]
            writer.add_tensor_info(gguf_name(weight.name), weight.shape, np.dtype(np.float32), nbytes)
        elif kind_of(weight, mix) == "F16":
            nbytes = matrix_bytes("F16", weight.shape)
            writer.add_tensor_info(gguf_name(weight.name), weight.shape, np.dtype(np.float16), nbytes)
        else:
            kind = kind_of(weight, mix)
            nbytes = matrix_bytes(kind, weight.shape)
            raw = gguf.GGMLQuantizationType[kind]
            byte_shape = (weight.shape[0], nbytes // weight.shape[0])
            writer.add_tensor_info(gguf_name(weight.name), byte_shape, np.dtype(np.uint8), nbytes, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    made: dict[tuple[str, tuple[int, ...]], NDArray[Any]] = {}
    rng = np.random.default_rng(0)
    for weight in weights:
        if len(weight.shape) == 1:
            writer.write_tensor_data(np.ones(weight.shape, np.float32))
            continue
        what = (kind_of(weight, mix), weight.shape)
        if what not in made:
            made[what] = random_matrix(rng, *what)
        writer.write_tensor_data(made[what])
    writer.close()


def gguf_name(name: str) -> str:
    if name in TOP:
        return f"{TOP[name]}.weight"
    _, layer, part = name.split(".")
    return f"blk.{layer}.{LAYER[part]}.weight"
