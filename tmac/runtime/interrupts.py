"""Ctrl-C at the right moments: a pass may be interrupted, the bookkeeping around it may not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class _Deferral:
    """The handler of SIGINT while bookkeeping goes on: it remembers, or passes on what may be passed on."""

    def __init__(self, previous: Any) -> None:
        self.previous = previous
        self.allowed = False
        self.pending: tuple[int, FrameType | None] | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.allowed:
            self.previous(number, frame)
        else:
            self.pending = (number, frame)

    def pass_on(self) -> None:
        """Calls the handler that was there before, if a signal has come."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            self.previous(*pending)


_current: _Deferral | None = None  # of the main thread, the only one that signals reach


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """In the main thread, SIGINT waits until the end of the block, but for blocks of `allowed_interrupts` in it.

    Handlers that were not set from Python stay as they are.
    """
    global _current  # noqa: PLW0603
    previous = signal.getsignal(signal.SIGINT) if _in_main_thread() else None
    if not callable(previous) or isinstance(previous, _Deferral):
        yield
        return
    deferral = _Deferral(previous)
    try:
        signal.signal(signal.SIGINT, deferral)
    except ValueError:  # a main thread of another interpreter
        yield
        return
    _current = deferral
    try:
        yield
    finally:
        _current = None
        signal.signal(signal.SIGINT, previous)
        deferral.pass_on()


@contextmanager
def allowed_interrupts() -> Iterator[None]:
    """In `deferred_interrupts`: SIGINT is answered at once in this block, and one that waits at its beginning."""
    deferral = _current if _in_main_thread() else None
    if deferral is None:
        yield
        return
    deferral.allowed = True
    try:
        deferral.pass_on()
        yield
    finally:
        deferral.allowed = False
