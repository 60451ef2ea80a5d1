"""The queue of requests, and whose turn it is to run passes.

One thread runs passes at a time: the main thread while it waits for its own texts, so that Ctrl-C reaches the pass,
else a thread of the scheduler's own, which ends when it has been idle for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tmac.runtime.interrupts import deferred_interrupts
from tmac.runtime.passes import Passes
from tmac.runtime.request import WAIT_SECONDS
from tmac.runtime.task import Task

IDLE_SECONDS, LOOK_SECONDS = 5.0, 0.25


class QueueFullError(RuntimeError):
    """More requests wait than the engine was made for."""


class Scheduler:
    """Lets tasks go on from any thread.

    Args:
        passes: used by nobody else but in `exclusive`.
        max_queue: tasks in `submit` that may wait.
    """

    def __init__(self, passes: Passes, max_queue: int = 1024) -> None:
        self._passes, self._max_queue = passes, max_queue
        self._turn = threading.Lock()  # held by who uses the passes
        self._visitors = 0  # who wait for it in `exclusive`
        self._mutex = threading.Lock()
        self._work = threading.Condition(self._mutex)
        self._incoming: list[Task] = []
        self._tickets = 0  # given out
        self._thread: threading.Thread | None = None
        self._thread_runs = False  # it is the thread that runs passes now
        self._closed = False

    # What callers use, from any thread.

    def submit(self, tasks: Sequence[Task], *, background: bool) -> None:
        """Puts tasks at the end of the queue, in the order given; in the background, the own thread runs them.

        Raises:
            QueueFullError: the queue is full; only in the background.
            RuntimeError: the engine is closed.
        """
        with deferred_interrupts(), self._mutex:
            if self._closed:
                raise RuntimeError("[Engine] it is closed")
            unfinished = self._tickets - self._passes.ended
            if background and unfinished + len(tasks) > self._passes.max_batch + self._max_queue:
                raise QueueFullError(f"[Engine] {unfinished} requests run or wait: try again later")
            for task in tasks:
                task.ticket = self._tickets
                self._tickets += 1
            self._incoming += tasks
            if background:
                self._wake_thread()

    def advance(self) -> bool:
        """A round of passes in the main thread; elsewhere, and while the own thread runs, False."""
        if threading.current_thread() is threading.main_thread() and not self._thread_runs:
            with self._take_turn(visitor=False):
                self._round(in_thread=False)
            return True
        with deferred_interrupts(), self._mutex:
            if not self._thread_runs and self._tickets > self._passes.ended:
                self._wake_thread()
        return False

    def reap(self) -> None:
        """Ends what has been cancelled, unless passes run right now, which then do it."""
        with deferred_interrupts():
            if self._turn.acquire(blocking=False):
                try:
                    self._take_incoming()
                    self._passes.drop_cancelled()
                finally:
                    self._turn.release()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The decoder for other use, between two passes. Raises RuntimeError if the engine is closed."""
        with self._take_turn(visitor=True):
            if self._closed:
                raise RuntimeError("[Engine] it is closed")
            yield

    def close(self) -> None:
        """Cancels everything and releases every sequence."""
        with deferred_interrupts(), self._mutex:
            self._closed = True
            self._work.notify_all()
            thread = self._thread
        with self._take_turn(visitor=True):
            self._take_incoming()
            self._passes.clear()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def abandon(self) -> None:
        """Lets the own thread end soon. For a finalizer, which may run anywhere: it takes no lock."""
        self._closed = True

    # Taking turns.

    @contextmanager
    def _take_turn(self, *, visitor: bool) -> Iterator[None]:
        """The lock, with visitors first: locks are not fair, and who runs passes takes it again at once."""
        entered = False
        try:
            while True:
                if self._visitors and not visitor:
                    time.sleep(0.001)
                    continue
                with deferred_interrupts():
                    if visitor and not entered:
                        entered = self._count_visitor(1)
                    if self._turn.acquire(timeout=WAIT_SECONDS):
                        try:
                            if entered:
                                entered = self._count_visitor(-1)
                            yield
                            return
                        finally:
                            self._turn.release()
        finally:
            if entered:
                self._count_visitor(-1)

    def _count_visitor(self, step: int) -> bool:
        with self._mutex:
            self._visitors += step
        return step > 0

    def _wake_thread(self) -> None:
        self._thread_runs = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run_thread, name="tmac-engine", daemon=True)
            self._thread.start()
        self._work.notify_all()

    def _run_thread(self) -> None:
        while self._has_work():
            with self._take_turn(visitor=False):
                try:
                    self._round(in_thread=True)
                except Exception as error:  # noqa: BLE001 - whoever waits learns of it
                    self._passes.fail_all(error)

    def _has_work(self) -> bool:
        """Whether the own thread has something to do, perhaps after a while; if not, it is no longer the own thread."""
        idle_since = time.monotonic()
        with self._mutex:
            while not self._closed:
                if self._tickets > self._passes.ended:
                    if self._thread_runs:
                        return True
                else:
                    self._thread_runs = False
                if time.monotonic() - idle_since >= IDLE_SECONDS:
                    break
                self._work.wait(LOOK_SECONDS)
            self._thread, self._thread_runs = None, False
            return False

    def _round(self, *, in_thread: bool) -> None:
        if self._take_incoming(in_thread):
            self._passes.round()

    def _take_incoming(self, in_thread: bool | None = None) -> bool:
        """False, and nothing has happened, if it is for the other kind of thread to run passes."""
        with self._mutex:
            if in_thread is not None and self._thread_runs is not in_thread:
                return False
            self._passes.add(self._incoming)
            self._incoming = []
            return True
