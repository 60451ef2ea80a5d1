"""What the names of modules say, where only tensors are known."""

from __future__ import annotations

from collections.abc import Sequence

from tmac.formats.name_pattern import NamePattern

HEADS = ("lm_head", "embed_out", "score", "classifier")
LOOK_UPS = ("wte", "wpe", "embed", "shared", "relative_attention_bias")


def is_head(name: str) -> bool:
    """Whether a module of this name gives logits."""
    return name.rpartition(".")[2] in HEADS


def is_embedding(name: str) -> bool:
    """Whether a module of this name looks rows up."""
    last = name.rpartition(".")[2]
    return not is_head(name) and (last in LOOK_UPS or "embed_" in last or last.endswith(("_embed", "embeddings")))


def is_listed(name: str, patterns: Sequence[str]) -> bool:
    """Whether `modules_to_not_convert` has a module: by the beginning of its name up to a dot, or by its end.

    Entries are regular expressions, as in transformers (`should_convert_module`). Raises ValueError like `NamePattern`.
    """
    parts = [at + 1 for at, char in enumerate(name) if char == "."]
    return any(
        name.endswith(entry)
        or NamePattern(rf"(?:{entry})(?:\.|$)").starts(name)
        or any(NamePattern(f"(?:{entry})$").starts(name[:part]) for part in parts)
        for entry in patterns
    )
