"""Timing that every benchmark here shares. Needs nothing but Python, so that it also runs where a peer is installed.

A run is a number of calls that takes a few milliseconds; a time is a run's time divided by its calls. What is to be
compared runs in turn, so that a machine that is busy for a while slows all of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

STREAMED_BYTES = 512 << 20
RUN_SECONDS = 2e-3
LEAST_RUNS = 7


@dataclass(frozen=True)
class Times:
    """Microseconds per call."""

    median_us: float
    min_us: float
    max_us: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        return cls(*(round(1e6 * value, 2) for value in (statistics.median(seconds), min(seconds), max(seconds))))

    def __str__(self) -> str:
        return f"{self.median_us:9.1f} {f'{self.min_us:.1f}..{self.max_us:.1f}':>19}"


def timed(call: Callable[[int], object], first: int, calls: int) -> float:
    """Seconds per call of call(first), call(first + 1), ..."""
    begin = time.perf_counter()
    for index in range(first, first + calls):
        call(index)
    return (time.perf_counter() - begin) / calls


@dataclass
class Timed:
    """Something to be timed: `call(index)`, whose index says which of many buffers to take."""

    call: Callable[[int], object]
    calls: int = 0
    seconds: list[float] = field(default_factory=list)

    def calibrate(self, run_seconds: float = RUN_SECONDS) -> None:
        """Chooses how many calls make a run."""
        self.calls = max(1, min(200, int(run_seconds / timed(self.call, 0, 3))))

    def run(self, first: int) -> int:
        """One run from the buffer `first` on; returns the buffer after its last."""
        self.seconds.append(timed(self.call, first, self.calls))
        return first + self.calls


def parse_shape(text: str) -> tuple[int, int]:
    n, k = text.lower().split("x")
    return int(n), int(k)
