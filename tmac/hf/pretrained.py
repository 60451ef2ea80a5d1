"""`from_pretrained`: any supported checkpoint as a Hugging Face model with low-bit layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from tmac.formats import open_checkpoint
from tmac.formats.checkpoint import Checkpoint
from tmac.formats.errors import format_error
from tmac.hf.config import TMACConfig
from tmac.hf.floats import lazy_floats
from tmac.hf.model_class import class_of, concrete_class, model_config
from tmac.hf.quantizer import METHOD, Handover, handing
from tmac.quant.config import QuantConfig
from tmac.runtime.hub import local_path
from tmac.spec import Activation

_LOADING = ("attn_implementation", "experts_implementation", "generation_config")


def from_pretrained(
    path_or_id: str | Path,
    *,
    quantization_config: TMACConfig | QuantConfig | Mapping[str, Any] | None = None,
    activation: Activation | None = None,
    head_bits: int | None = None,
    embedding_bits: int | None = None,
    requantize: Sequence[str] | str = (),
    dtype: torch.dtype | str | None = None,
    auto_class: Any = None,
    revision: str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> Any:
    """A Hugging Face model from a checkpoint of any supported format, with low-bit layers in place of linear ones.

    The format is found from the files. The model is built without memory and every layer is packed as it is read: the
    most memory in use is the result and one more layer.

    Args:
        path_or_id: a folder, a file (safetensors or GGUF), or the id of a repository on the hub.
        quantization_config: how to quantize a float checkpoint; None leaves it float.
        activation: "group", "token" or "float" in place of what the checkpoint says; "float" is the exact mode.
        head_bits: quantizes an output head that the checkpoint has as floats.
        embedding_bits: the same for the input embedding.
        requantize: types of a GGUF file without an exact form that may be rounded to the nearest one, or "all".
        dtype: of the float parts; None or "auto" is the checkpoint's, but float32 where that is float16, which CPUs are
            slow at.
        auto_class: `AutoModelForSequenceClassification` and the like; None is the class that the checkpoint names.
        revision: of a repository on the hub.
        progress: True or False; None shows a bar on a terminal when it takes over two seconds.
        options: keys of the model's configuration ("num_labels"), and what transformers' `from_pretrained` takes
            ("attn_implementation").

    Returns:
        the model in evaluation mode; `save_pretrained` writes docs/format.md.

    Raises:
        FormatError: the files are damaged, of an unsupported format, or do not fit the model.
        ValueError: the arguments have no meaning together, or a layer cannot be quantized.
        OSError: a file cannot be opened, or the repository cannot be reached.

    Example:
        >>> model = tmac.from_pretrained("Qwen2.5-0.5B-Instruct-GPTQ-Int4")
    """
    if "output_loading_info" in options:
        raise ValueError("[from_pretrained] output_loading_info is not supported: what is missing raises FormatError")
    dtype = options.pop("torch_dtype", None) if dtype is None else dtype
    if isinstance(quantization_config, Mapping):
        quantization_config = TMACConfig(**quantization_config)
    path = local_path(path_or_id, revision)
    checkpoint = open_checkpoint(path, requantize=requantize)
    config = model_config(checkpoint)
    rest = _rest(checkpoint, quantization_config, activation, head_bits, embedding_bits)
    strict, model_class = (
        auto_class is None,
        concrete_class(auto_class or class_of(checkpoint, config), checkpoint, config),
    )
    for key in [key for key in options if hasattr(config, key) and key not in _LOADING]:
        setattr(config, key, options.pop(key))  # num_labels and the like, as transformers does
    options["dtype"] = _dtype(config, dtype)
    if checkpoint.layers:
        config.quantization_config = {"quant_method": METHOD}
    elif rest is not None:
        options["quantization_config"] = TMACConfig.of(rest)
    floats: dict[str, Any] = dict(lazy_floats(checkpoint))
    handover = Handover(checkpoint, floats, activation, rest if checkpoint.layers else None, progress)
    with handing(handover):
        model, report = model_class.from_pretrained(
            None, config=config, state_dict=floats, output_loading_info=True, **options
        )
    if strict and report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise format_error(checkpoint.path, f"expected {len(missing)} more tensors, the first for this", missing[0])
    _add_generation_config(model, checkpoint)
    model.config._name_or_path = model.name_or_path = str(path_or_id)
    return model


def load_tokenizer(path_or_id: str | Path, revision: str | None = None) -> Any:
    """The tokenizer beside a checkpoint, or the one in a GGUF file.

    Raises:
        FormatError: a GGUF file's metadata is inconsistent or its tokenizer of an unsupported kind.
        OSError: there is none.
    """
    path = local_path(path_or_id, revision)
    folder = path if path.is_dir() else path.parent
    if any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        return AutoTokenizer.from_pretrained(folder)
    files = [path] if path.suffix == ".gguf" else sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise FileNotFoundError(f"[load_tokenizer] there are no tokenizer files in {folder}")
    from tmac.formats.gguf import GgufFile
    from tmac.hf.load import load_tokenizer as from_gguf

    return from_gguf(GgufFile(files[0]))


def _rest(
    checkpoint: Checkpoint,
    requested: TMACConfig | QuantConfig | None,
    activation: Activation | None,
    head_bits: int | None,
    embedding_bits: int | None,
) -> QuantConfig | None:
    """What is to be made of the checkpoint's float layers."""
    config = requested.quant_config() if isinstance(requested, TMACConfig) else requested
    own: Mapping[str, Any] = {"head_bits": head_bits, "embedding_bits": embedding_bits, "activation": activation}
    own = {key: value for key, value in own.items() if value is not None}
    if config is not None:
        if checkpoint.layers:
            raise ValueError(
                f"[from_pretrained] {checkpoint.path} is quantized already ({checkpoint.format}): quantization_config "
                "is for float checkpoints"
            )
        return QuantConfig.from_dict({**config.to_dict(), **own})
    if head_bits is None and embedding_bits is None:
        return None
    return QuantConfig(**own)


def _dtype(config: Any, dtype: torch.dtype | str | None) -> torch.dtype | str:
    if dtype not in (None, "auto"):
        return dtype
    stored = getattr(config, "dtype", None)
    stored = getattr(torch, stored) if isinstance(stored, str) else stored
    return torch.bfloat16 if stored is torch.bfloat16 else torch.float32


def _add_generation_config(model: Any, checkpoint: Checkpoint) -> None:
    files = {file.name: file for file in checkpoint.files}
    if model.can_generate() and "generation_config.json" in files:
        model.generation_config = GenerationConfig.from_pretrained(files["generation_config.json"].parent)
