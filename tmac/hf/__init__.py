"""Hugging Face models: loading them, and running them with low-bit weights."""

try:
    from tmac.hf.load import load_gguf
except ModuleNotFoundError as error:
    if error.name not in ("torch", "transformers", "tokenizers"):
        raise
    raise ImportError(f"tmac.hf needs {error.name}: pip install 'tmac-cpu[hf]'") from error

__all__ = ["load_gguf"]
