"""Sizes of memory: what a user writes, what the process has, what a running model takes beside its weights."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tmac.runtime.arguments import integer, shown

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
WRITTEN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)(?:i?B)?\s*", re.IGNORECASE)
LARGEST = 1 << 60

PAGE_POSITIONS = 64  # of the KV cache: csrc/core/cache_layout.h
KEY_GROUP = 16
ELEMENT_BYTES = {"f32": 4, "f16": 2, "int8": 1}
BLOCK_ROWS = 128  # that a product encodes at a time
TABLE_BYTES = 4  # of a column's share of a table
FLOAT = 4


def parse_memory(name: str, value: Any) -> int:
    """Bytes from a number or a text: 734003200, "700M", "1.5G", "512 MiB". All units are powers of 1024.

    Raises:
        TypeError: it is neither an integer nor a text.
        ValueError: it is no positive size.
    """
    if not isinstance(value, str):
        return integer(name, value, 1, LARGEST)
    match = WRITTEN.fullmatch(value)
    if match is None:
        raise ValueError(f"{name}: expected a size like 700M or 1.5G, found {shown(value)}")
    size = float(match[1]) * UNITS[match[2].upper()]
    if size > LARGEST:
        raise ValueError(f"{name}: expected a size of at most {LARGEST >> 40}T, found {shown(value)}")
    return integer(name, int(size), 1, LARGEST)


def written(nbytes: int) -> str:
    """A size for a message, rounded up to a megabyte, as `parse_memory` reads it."""
    return f"{-(-nbytes >> 20)}M"


def resident_bytes() -> int:
    """What this process has in memory now; where the system does not say, the most that it had."""
    try:
        fields = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in fields if line.startswith("VmRSS:"))
    except (OSError, StopIteration):
        return peak_bytes()


def peak_bytes() -> int:
    """The most that this process had in memory; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def cache_bytes(config: Mapping[str, Any], cache_type: str, positions: int) -> int:
    """Keys and values of so many positions, in whole pages.

    Args:
        config: what `_core.ModelBuilder` is made with.
        cache_type: "f32", "f16" or "int8".
        positions: of all texts together.
    """
    head, heads, layers = config["head_dim"], config["num_kv_heads"], config["num_layers"]
    keys = -(-head // 4) * 4 if cache_type == "int8" else head
    values = -(-head // KEY_GROUP) * KEY_GROUP
    scales = 2 * FLOAT if cache_type == "int8" else 0
    position = heads * ((keys + values) * ELEMENT_BYTES[cache_type] + scales)
    pages = -(-positions // PAGE_POSITIONS) + 1
    return int(layers * position * pages * PAGE_POSITIONS)


def workspace_bytes(config: Mapping[str, Any], rows: int, logits: int) -> int:
    """Buffers of passes: of the layers, of the products, and of logits.

    Args:
        config: what `_core.ModelBuilder` is made with.
        rows: in a pass.
        logits: rows of them whose logits are asked for.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = (config["num_heads"] + 2 * config["num_kv_heads"]) * config["head_dim"]
    experts = config["experts_per_token"] * (2 * config["moe_intermediate_size"] + hidden)
    shared = 2 * config["shared_intermediate_size"] + hidden if config["num_experts"] else 0
    row = FLOAT * (4 * hidden + heads + 2 * inner + config["num_experts"] + experts + shared)
    widest = max(hidden, inner, heads)
    products = min(rows, BLOCK_ROWS) * (2 * TABLE_BYTES * widest + FLOAT * (2 * inner + 2 * hidden))
    return int(rows * row + products + 2 * FLOAT * logits * config["vocab_size"])
