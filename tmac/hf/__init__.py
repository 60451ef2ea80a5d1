"""Hugging Face models: loading them, and running them with low-bit weights."""

from tmac.hf.load import load_gguf

__all__ = ["load_gguf"]
