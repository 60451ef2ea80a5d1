"""Which class of transformers a checkpoint belongs to, and its configuration."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from tmac.formats.checkpoint import Checkpoint
from tmac.formats.errors import format_error


def model_config(checkpoint: Checkpoint) -> Any:
    """The configuration of a checkpoint, of transformers' class for it. Raises FormatError."""
    if checkpoint.config is None:
        raise format_error(checkpoint.path, "expected a config.json that names the model, found none")
    values = dict(checkpoint.config)
    if not isinstance(values.get("model_type"), str):
        raise format_error(checkpoint.path, f"expected a name, found {values.get('model_type')!r}", "model_type")
    values.pop("quantization_config", None)
    with tempfile.TemporaryDirectory() as folder:  # AutoConfig finds a class, and old keys' new names, from a file
        (Path(folder) / "config.json").write_text(json.dumps(values, default=str), encoding="utf-8")
        try:
            return AutoConfig.from_pretrained(folder)
        except (ValueError, TypeError, KeyError) as error:
            raise format_error(checkpoint.path, f"transformers refuses the configuration ({error})") from error


def class_of(checkpoint: Checkpoint, config: Any) -> Any:
    """The class of models that the configuration names, or else an auto class. Raises FormatError."""
    names = config.architectures or []
    if names:
        found = getattr(transformers, names[0], None)
        if found is None:
            raise format_error(
                checkpoint.path, f"expected an architecture of transformers, found {names[0]!r}", "architectures"
            )
        return found
    causal = type(config) in AutoModelForCausalLM._model_mapping
    return AutoModelForCausalLM if causal else AutoModel


def concrete_class(model_class: Any, checkpoint: Checkpoint, config: Any) -> Any:
    """The class of models that an auto class makes of the configuration. Raises FormatError."""
    mapping = getattr(model_class, "_model_mapping", None)
    if mapping is None:
        return model_class
    if type(config) not in mapping:
        message = f"{model_class.__name__} has no class for {type(config).__name__}"
        raise format_error(checkpoint.path, message, "model_type")
    found = mapping[type(config)]
    if isinstance(found, tuple):
        named = [each for each in found if each.__name__ in (config.architectures or [])]
        found = (named or found)[0]
    return found
