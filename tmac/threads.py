"""How many threads an operation uses."""

from __future__ import annotations

import os
import sys

from tmac import _core

_requested = 0
_forked = False


def _note_fork() -> None:
    global _forked  # noqa: PLW0603
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


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
    if _forked and _core.get_num_threads() == 1:  # the core knows whether threads were used before the fork
        return 1
    if _requested:
        return _requested
    torch = sys.modules.get("torch")
    setting = getattr(torch, "get_num_threads", None)  # None while torch is being imported
    return int(setting()) if setting else _core.get_num_threads()
