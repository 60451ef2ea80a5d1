"""Checkpoint formats: one file per format. Uses numpy, never torch or transformers."""

from __future__ import annotations

import importlib
from pathlib import Path

from tmac.codes import FormatError
from tmac.formats.checkpoint import Checkpoint, QuantizedLayer, Requantize, StoredTensor
from tmac.formats.errors import format_error
from tmac.formats.source import Source, open_source

# quant_method -> the module whose `open_checkpoint(Source)` reads it
READERS = {
    "gptq": "gptq",
    "awq": "awq",
    "auto-round": "autoround",
    "intel/auto-round": "autoround",
    "compressed-tensors": "compressed_tensors",
    "hqq": "hqq",
    "bitnet": "bitnet",
    "tmac": "tmac_file",
}

__all__ = ["Checkpoint", "FormatError", "QuantizedLayer", "StoredTensor", "open_checkpoint"]


def open_checkpoint(path: str | Path, *, requantize: Requantize = ()) -> Checkpoint:
    """Opens a model and finds its format: a folder, a safetensors file, or a GGUF file.

    Only headers and JSON files are read. Tensors are read one at a time when they are asked for, so that a converter's
    memory is its result and one tensor.

    Args:
        path: the folder or file; of a GGUF model that was split, the folder or any of its files.
        requantize: types of GGUF without an exact form that may be rounded, `("IQ4_XS",)` or "all". Their errors are in
            `Checkpoint.errors` once the layers have been read.

    Raises:
        FormatError: the files are damaged, pickled, or of a format that is not supported.
        ValueError: `requantize` names no such type, or the checkpoint is no GGUF file.
        OSError: a file cannot be opened.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"[open_checkpoint] there is no file or folder {path}")
    gguf = gguf_file(path)
    if gguf is not None:
        from tmac.formats.gguf_checkpoint import open_checkpoint as open_gguf

        return open_gguf(gguf, requantize)
    if requantize:
        raise ValueError(f"[open_checkpoint] requantize is for GGUF files, but {path} is none")
    source = open_source(path)
    checkpoint: Checkpoint = importlib.import_module(f"tmac.formats.{_reader(source)}").open_checkpoint(source)
    return checkpoint


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that `path` is, or the only one in a folder without safetensors; the first of a split model."""
    if not path.is_dir():
        return path if path.suffix == ".gguf" else None
    if any(path.glob("*.safetensors")) or any(path.glob("*.safetensors.index.json")):
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1 and not all(file.stem.endswith(f"-of-{len(files):05}") for file in files):
        names = ", ".join(file.name for file in files[:4])
        raise format_error(
            path, f"expected one GGUF file in the folder, found {len(files)} ({names}): name one of them"
        )
    return files[0] if files else None


def _reader(source: Source) -> str:
    """The module that reads these files."""
    method = source.quantization.get("quant_method")
    if not source.quantization:
        return "hqq" if any(name.endswith((".W_q", ".packing")) for name in source.store.entries) else "float_file"
    if method is None and "bits" in source.quantization:
        method = "gptq"  # files of AutoGPTQ, which had no such key
    elif method is None and "w_bit" in source.quantization:
        method = "awq"  # AutoAWQ's quant_config.json
    if not isinstance(method, str) or method.lower() not in READERS:
        known = ", ".join(sorted(READERS))
        raise format_error(source.config_path, f"expected one of {known}, found {method!r}", "quant_method")
    return READERS[method.lower()]
