"""What the draft does while the target's pass runs: it guesses on (LLMCad, arXiv 2309.04255, section 4.3)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

Work = Callable[[Callable[[], bool]], None]
"""Goes on until its argument says that it is to stop."""


@dataclass
class Beside:
    """What became of some work.

    Args:
        seconds: that it took, in its own thread.
        error: that ended it.
    """

    seconds: float = 0.0
    error: Exception | None = None


class SecondThread:
    """One thread, which is there when it is needed. Work ends before the block beside which it runs does."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    @contextmanager
    def running(self, work: Work | None) -> Iterator[Beside]:
        """Does some work while the block runs, and waits for it at the end, however it ends; None: there is none."""
        found = Beside()
        if work is None:
            yield found
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="tmac-draft")
        stop = threading.Event()

        def run() -> None:
            begin = time.perf_counter()
            try:
                work(stop.is_set)
            except Exception as error:  # noqa: BLE001 - of a draft, which the text does without
                found.error = error
            found.seconds = time.perf_counter() - begin

        done = self._pool.submit(run)
        try:
            yield found
        finally:
            stop.set()
            done.result()

    def close(self) -> None:
        """Ends the thread. It is started again when it is needed again."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.shutdown()
