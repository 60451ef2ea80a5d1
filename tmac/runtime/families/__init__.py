"""The families of models that the runtime decodes: one file each, from `config.json` to a `ModelDescription`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tmac.runtime.description import ModelDescription
from tmac.runtime.families.bitnet import bitnet
from tmac.runtime.families.gemma import gemma
from tmac.runtime.families.gemma2 import gemma2
from tmac.runtime.families.gemma3 import gemma3, gemma3_text
from tmac.runtime.families.gpt_neox import gpt_neox
from tmac.runtime.families.llama import granite, llama, mistral, smollm3
from tmac.runtime.families.mixtral import mixtral
from tmac.runtime.families.phi3 import phi3
from tmac.runtime.families.qwen2 import qwen2
from tmac.runtime.families.qwen2_moe import qwen2_moe
from tmac.runtime.families.qwen3 import qwen3
from tmac.runtime.families.qwen3_moe import qwen3_moe
from tmac.runtime.settings import Settings

# `model_type` of config.json -> what describes it
FAMILIES: Mapping[str, Callable[[Settings], ModelDescription]] = {
    "llama": llama,
    "mistral": mistral,
    "smollm3": smollm3,
    "granite": granite,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3_text,
    "gemma3": gemma3,
    "phi3": phi3,
    "gpt_neox": gpt_neox,
    "bitnet": bitnet,
    "mixtral": mixtral,
    "qwen2_moe": qwen2_moe,
    "qwen3_moe": qwen3_moe,
}


def describe(config: Mapping[str, Any]) -> ModelDescription:
    """The description of a model.

    Args:
        config: `config.json`, as transformers 4 or 5 writes it.

    Raises:
        ValueError: the family is unknown, or a key has a value that the runtime cannot follow; the message names it.

    Example:
        >>> describe({"model_type": "llama", "num_hidden_layers": 2}).config["num_layers"]
        2
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"model_type: the engine decodes {', '.join(FAMILIES)}, found {str(name)[:80]!r}; "
            "tmac.from_pretrained loads other models for transformers' own code"
        )
    return FAMILIES[name](Settings(config))
