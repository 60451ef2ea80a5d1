"""Orders of rows in which llama.cpp's converter leaves weights (convert_hf_to_gguf.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.int64]


def rotary_pairs(num_heads: int, num_rows: int) -> Order:
    """Rotary pairs lie side by side in `llama` files and half a head apart in Hugging Face models
    (LlamaModel.permute). Row i of the Hugging Face weight is row `result[i]` of the file's."""
    rows = np.arange(num_rows).reshape(num_heads, num_rows // num_heads // 2, 2)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1)


def heads_of_three(num_heads: int, num_rows: int) -> Order:
    """GPT-NeoX: all queries, then all keys, then all values in the file; query, key and value of a head after each
    other in the Hugging Face model (GPTNeoXModel.modify_tensors)."""
    rows = np.arange(num_rows).reshape(3, num_heads, num_rows // num_heads // 3)
    return np.ascontiguousarray(rows.swapaxes(0, 1)).reshape(-1)


# `Part.rows` -> the order, from the sizes of the model and the number of rows
ORDERS: Mapping[str, Callable[[Mapping[str, int], int], Order]] = {
    "queries": lambda sizes, rows: rotary_pairs(sizes["heads"], rows),
    "keys": lambda sizes, rows: rotary_pairs(sizes["key_heads"], rows),
    "neox": lambda sizes, rows: heads_of_three(sizes["heads"], rows),
}
