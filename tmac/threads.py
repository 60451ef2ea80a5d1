"""How many threads an operation uses."""

from __future__ import annotations

import sys

from tmac import _core

_requested = 0


def set_num_threads(num_threads: int) -> None:
    """Sets the number of threads of every tmac operation in this process.

    Args:
        num_threads: at least 1, or 0 to go back to the default: torch's setting where torch is loaded, else the CPUs
            that this process may use.

    Raises:
        ValueError: the number is negative, or more than 1 in a forked child that can have only one.
    """
    global _requested  # noqa: PLW0603
    _core.set_num_threads(num_threads)
    _requested = num_threads


def get_num_threads() -> int:
    """The number of threads that the next operation uses."""
    if _requested:
        return _requested
    torch = sys.modules.get("torch")
    setting = getattr(torch, "get_num_threads", None)  # None while torch is being imported
    return int(setting()) if setting else _core.get_num_threads()
