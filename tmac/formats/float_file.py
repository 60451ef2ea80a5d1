"""Float models: safetensors files without a quantization config."""

from __future__ import annotations

from tmac.formats.checkpoint import Checkpoint
from tmac.formats.source import Source


def open_checkpoint(source: Source) -> Checkpoint:
    """All tensors as they are."""
    return source.checkpoint("float", {}, {name: source.store.tensor(name) for name in source.store.entries})
