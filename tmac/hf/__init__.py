"""Hugging Face models: loading them, and running them with low-bit weights.

Names are imported when they are first used: transformers imports parts of this package while it is itself imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ModuleNotFoundError as error:
    if error.name not in ("torch", "transformers"):
        raise
    raise ImportError(f"tmac.hf needs {error.name}: pip install 'tmac-cpu[hf]'", name=error.name) from error

if TYPE_CHECKING:
    from tmac.hf.blocks import open_blocks
    from tmac.hf.config import TMACConfig
    from tmac.hf.load import load_gguf
    from tmac.hf.native_cache import NativeCache
    from tmac.hf.pretrained import from_pretrained, load_tokenizer
    from tmac.hf.quantizer import TMACQuantizer

_LAZY = {
    "NativeCache": "tmac.hf.native_cache",
    "TMACConfig": "tmac.hf.config",
    "TMACQuantizer": "tmac.hf.quantizer",
    "from_pretrained": "tmac.hf.pretrained",
    "load_gguf": "tmac.hf.load",
    "load_tokenizer": "tmac.hf.pretrained",
    "open_blocks": "tmac.hf.blocks",
}

__all__ = [
    "NativeCache",
    "TMACConfig",
    "TMACQuantizer",
    "from_pretrained",
    "load_gguf",
    "load_tokenizer",
    "open_blocks",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tmac.hf' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers", "tokenizers"):
            raise
        raise ImportError(f"tmac.hf needs {error.name}: pip install 'tmac-cpu[hf]'", name=error.name) from error
    globals()[name] = value
    return value
