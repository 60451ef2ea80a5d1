"""What a tool wrote, as float weights and bytes: one form for one scorer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy_peers.setting import HEADS
from tmac.codes import Codes

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FLOAT_BYTES = 2  # of a weight that a tool leaves float: they are kept in 16 bits


@dataclass
class Result:
    """Args:
    weights: float32 matrices by their names in the Hugging Face model; the others stay as the model has them.
    sizes: bytes of each, scales and zero points included.
    """

    weights: dict[str, Tensor]
    sizes: dict[str, int]

    def bits_per_weight(self, shapes: dict[str, tuple[int, ...]]) -> float:
        """Bits of all matrices over the weights of the float model's.

        Args:
            shapes: of the float model's matrices, one that is tied once.
        """
        stored = {name: FLOAT_BYTES * rows * columns for name, (rows, columns) in shapes.items()} | self.sizes
        return 8 * sum(stored.values()) / sum(rows * columns for rows, columns in shapes.values())


def matrices(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the matrices in a folder's safetensors files; a head is there only where it is not tied."""
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
            found |= {name: shape for name, shape in shapes.items() if len(shape) == 2}
    return found


def read(folder: Path) -> Result:
    """The result in a folder, whatever its form. Raises ValueError where there is none."""
    if (folder / "model.gguf").exists():
        return of_gguf(folder / "model.gguf")
    if (folder / "dense.safetensors").exists():
        from safetensors.torch import load_file

        return Result(load_file(folder / "dense.safetensors"), json.loads((folder / "sizes.json").read_text()))
    return of_checkpoint(checkpoint_folder(folder))


def checkpoint_folder(folder: Path) -> Path:
    """Where the checkpoint is: in the folder, or in the one inside of it. Raises ValueError where there is none."""
    found = [path.parent for path in (*folder.glob("config.json"), *folder.glob("*/config.json"))]
    if not found:
        raise ValueError(f"[accuracy] expected a model.gguf, dense.safetensors or config.json in {folder}, found none")
    return found[0]


def of_gguf(path: Path) -> Result:
    """Every matrix of a GGUF file whose names gguf-py knows."""
    import gguf

    from tmac.formats.gguf import unpermute_rows

    reader = gguf.GGUFReader(path)
    kind = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    layers = reader.fields[f"{kind}.block_count"].contents()
    heads = {
        "attn_q": reader.fields[f"{kind}.attention.head_count"].contents(),
        "attn_k": reader.fields[f"{kind}.attention.head_count_kv"].contents(),
    }
    names = hugging_face_names(gguf.get_tensor_name_map(arch, layers), layers)
    result = Result({}, {})
    for tensor in reader.tensors:
        if len(tensor.shape) != 2:
            continue
        dense = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part = tensor.name.split(".")[-2]
        if kind == "llama" and part in heads:
            dense = unpermute_rows(dense, heads[part])
        result.weights[names[tensor.name]] = torch.from_numpy(dense.copy())
        result.sizes[names[tensor.name]] = int(tensor.n_bytes)
    return result


PARTS: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PARTS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def hugging_face_names(table: Any, layers: int) -> dict[str, str]:
    """GGUF's name of every matrix -> Hugging Face's. `table`: gguf-py's map the other way round."""
    modules = [EMBEDDING, HEAD, *(f"model.layers.{i}.{part}.weight" for i in range(layers) for part in PARTS)]
    return {table.get_name(name, try_suffixes=(".weight",)): name for name in modules}


def of_checkpoint(folder: Path) -> Result:
    """The quantized layers of a checkpoint of any format that we read, and its float matrices."""
    from tmac.formats import open_checkpoint

    checkpoint, result = open_checkpoint(folder), Result({}, {})
    for name, layer in checkpoint.layers.items():
        codes = layer.read()
        result.weights[f"{name}.weight"] = torch.from_numpy(codes.dequantize())
        result.sizes[f"{name}.weight"] = layer.nbytes if checkpoint.format == "tmac" else least_bytes(codes)
    for name, stored in checkpoint.tensors.items():
        if len(stored.shape) == 2:
            result.sizes[name] = FLOAT_BYTES * stored.shape[0] * stored.shape[1]
    for name, other in checkpoint.tied.items():
        result.sizes.pop(f"{name}.weight", None)
        if f"{name}.weight" in result.weights and f"{other}.weight" in result.weights:
            result.weights.pop(f"{name}.weight")
    return result


def least_bytes(codes: Codes) -> int:
    """Bytes of codes, scales and zero points: without the group numbers that some formats store beside them, and
    without zero points that are all the same.
    """
    bits = codes.spec.bits * codes.codes.size + 8 * codes.scales.nbytes
    if codes.zeros is not None and np.ptp(codes.zeros) > 0:
        bits += codes.zeros.size * (codes.spec.bits if codes.spec.zero_point == "integer" else 16)
    return -(-bits // 8)


def with_head(result: Result, head: str, float_head: Tensor) -> Result:
    """The result with its float embedding, which is also the head, rounded to the nearest on a grid of HEADS."""
    from tmac import QuantSpec
    from tmac.nn import QuantLinear

    bits, zero_point = HEADS[head]
    rounded = QuantLinear.from_weight(float_head, QuantSpec(bits, 32, zero_point=zero_point))
    numbers = float_head.numel()
    nbytes = numbers * bits // 8 + numbers // 32 * FLOAT_BYTES * (2 if zero_point == "offset" else 1)
    weights = {**result.weights, EMBEDDING: rounded.dequantize()}
    return Result(weights, {**result.sizes, EMBEDDING: nbytes})
