"""What the C library keeps of memory that was released."""

from __future__ import annotations

import ctypes
import os


def give_back_memory() -> None:
    """Returns free memory to the system, where the C library (glibc) can.

    Parsing the tokenizer of a large vocabulary takes hundreds of megabytes for a moment; without this they would stay
    with the process, and the weights would come on top.
    """
    if os.name != "posix":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
