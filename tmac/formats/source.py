"""A folder with a model in it, before its format is known."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmac.formats.checkpoint import Checkpoint, QuantizedLayer, StoredTensor
from tmac.formats.errors import format_error
from tmac.formats.json_file import read_json
from tmac.formats.safetensors_file import TensorStore, open_file, open_folder

# Where quantizers say what they did, if not in config.json: GPTQ's and AWQ's files of old, AutoRound's.
SIDE_CONFIGS = ("quantization_config.json", "quantize_config.json", "quant_config.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)


@dataclass(frozen=True)
class Source:
    """What the readers of safetensors formats are given.

    Args:
        path: the file or folder that the user named.
        config: `config.json` without `quantization_config`; None where there is no such file.
        config_path: the file that `quantization` comes from, for messages.
        quantization: `quantization_config`, empty where nothing says that the model is quantized.
        store: the tensors.
        files: the companions that are there (tokenizer, generation config, ...).
    """

    path: Path
    config: Mapping[str, Any] | None
    config_path: Path
    quantization: Mapping[str, Any]
    store: TensorStore
    files: tuple[Path, ...]

    def checkpoint(
        self, name: str, layers: Mapping[str, QuantizedLayer], tensors: Mapping[str, StoredTensor]
    ) -> Checkpoint:
        """A checkpoint of the format `name` with these weights."""
        return Checkpoint(name, self.path, self.config, layers, tensors, self.files)

    def setting(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A value of `quantization` of a type (a bool is no int); None in the file counts as absent.

        Raises:
            FormatError: it has another type, or is missing without a default.
        """
        value = self.quantization.get(key)
        if value is None:
            value = default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if value is None or type(value) not in kinds:
            names = " or ".join(item.__name__ for item in kinds)
            raise format_error(self.config_path, f"expected {names}, found {value!r}", key)
        return value


def open_source(path: Path) -> Source:
    """Opens a safetensors file or a folder of them; reads the headers and JSON files and nothing else.

    Raises:
        FormatError: a header or a JSON file is damaged, or there are only pickled weights.
        OSError: a file cannot be opened.
    """
    folder = path if path.is_dir() else path.parent
    refuse_pickles(path)
    store = open_folder(path) if path.is_dir() else open_file(path)
    config_path = folder / "config.json"
    config = read_json(config_path) if os.path.lexists(config_path) else None
    quantization: Any = None
    if config is not None:
        quantization = config.pop("quantization_config", None) or config.pop("compression_config", None)
    for name in SIDE_CONFIGS:
        if not quantization and os.path.lexists(folder / name):
            config_path = folder / name
            quantization = read_json(config_path)
    if quantization is not None and not isinstance(quantization, dict):
        raise format_error(config_path, "expected an object", "quantization_config")
    files = tuple(folder / name for name in COMPANIONS if os.path.lexists(folder / name))
    return Source(path, config, config_path, quantization or {}, store, files)


def refuse_pickles(path: Path) -> None:
    """Raises FormatError for pickled weights, and for a folder that has no others."""
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir())
        if any(name.endswith((".safetensors", ".safetensors.index.json", ".gguf")) for name in names):
            return
        pickles = [name for name in names if name.endswith(PICKLES)]
    else:
        pickles = [path.name] if path.name.endswith(PICKLES) else []
    if pickles:
        raise format_error(
            path,
            f"expected safetensors or GGUF, found {pickles[0]}: a pickle can run any code while it is read. Where it "
            "comes from, save the model as safetensors: model.save_pretrained(folder, safe_serialization=True)",
        )
