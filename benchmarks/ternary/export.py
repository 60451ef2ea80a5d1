"""A trained model as a folder of transformers' BitNet format (`linear_class="bitlinear"`, packed)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ternary.data import END
from benchmarks.ternary.model import linears, ternary
from tmac.formats.new_folder import new_folder

PER_BYTE = 4
QUANTIZATION = {
    "quant_method": "bitnet",
    "linear_class": "bitlinear",
    "quantization_mode": "offline",
    "modules_to_not_convert": ["lm_head"],
}


def export(model: nn.Module, tokenizer: Any, folder: Path, *, replace: bool = False) -> None:
    """Writes config.json, model.safetensors and the tokenizer: all of it, or nothing where it is interrupted.

    Args:
        model: from `build`, trained.
        tokenizer: of `tokenizers`.
        folder: to be made.
        replace: take the place of a folder that exists.

    Raises:
        OSError: `folder` exists and `replace` is False, or the disk is full.
    """
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast

    with new_folder(folder, replace=replace) as unfinished:
        save_file(packed_state(model), unfinished / "model.safetensors", metadata={"format": "pt"})
        settings: Any = model.config
        text = json.dumps({**settings.to_dict(), **_ARCHITECTURE}, indent=2, sort_keys=True)
        (unfinished / "config.json").write_text(text + "\n", encoding="utf-8")
        make: Any = PreTrainedTokenizerFast
        fast = make(tokenizer_object=tokenizer, bos_token=END, eos_token=END)
        fast.save_pretrained(unfinished)
        for path in unfinished.iterdir():
            _bring_to_disk(path)


_ARCHITECTURE = {"architectures": ["BitNetForCausalLM"], "dtype": "float32", "quantization_config": QUANTIZATION}


def packed_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the file: of every ternary layer `weight` u8 `[n / 4, k]` and `weight_scale` f32 `[1]`; f32 else.

    The head is the embedding and has no tensor. `weight_scale` is the inverse of what a value stands for.
    """
    layers = linears(model)
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    state.pop("lm_head.weight")
    for name, layer in layers.items():
        values, _, inverse = ternary(layer.weight.detach())
        state[f"{name}.weight"] = pack(values)
        state[f"{name}.weight_scale"] = inverse.reshape(1).clone()
    return state


def pack(values: Tensor) -> Tensor:
    """-1, 0, 1 `[n, k]`, n a multiple of 4 -> u8 `[n / 4, k]`: row r of quarter s as value + 1 in bits 2 s, 2 s + 1."""
    first, second, third, fourth = (values + 1).to(torch.uint8).chunk(PER_BYTE)
    return first | second << 2 | third << 4 | fourth << 6


def _bring_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
