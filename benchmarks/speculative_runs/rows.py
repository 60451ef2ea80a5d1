"""One line of the tables, what it was asked to reach, and the file of a run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import run_file

VERIFY, AGREEMENT, MEMORY, STREAMED = TABLES = ("verify", "agreement", "memory", "streamed")
PLAIN, MMAP = "plain", "llama.cpp mmap"
MOST_COST = {("W8", 4): 1.1, ("W8", 8): 1.4, ("W4", 4): 1.2, ("W4", 8): 1.9}  # of a pass, in passes of one token
LEAST_FACTOR = {
    (MEMORY, "W8", "planes:4", "prose"): 1.4,
    (MEMORY, "W8", "planes:4", "code"): 1.5,
    (MEMORY, "W4", "ngram", "prose"): 1.0,
    (MEMORY, "W4", "ngram", "code"): 1.3,
    (MEMORY, "W4", "ngram", "copy"): 2.0,
    (STREAMED, "W8", "planes:4", "prose"): 3.0,
    (STREAMED, "W8", "planes:4", "code"): 3.0,
}
LEAST_OVER_MMAP = 6.0
EXACT = 1e-9


@dataclass(frozen=True)
class Row:
    """Args:
    table: which one.
    weights: "W8" or "W4".
    draft: as `Engine.from_pretrained` takes it, "plain", or a peer; in the table of passes the layout's draft.
    case: the text, or the number of rows of a pass.
    disk: "" for weights in memory, else "as it is" or "500M".
    factor: how many times as fast as plain decoding; the cost of a pass in passes of one token; the share of tokens.
    low, high: of the factor in single runs.
    ms: per token or pass, the median.
    base_ms: of plain decoding or of a pass of one token, the median of the same run.
    more: whatever else there is to know: samples, guesses, bytes.
    """

    table: str
    weights: str
    draft: str
    case: str
    disk: str
    factor: float
    low: float
    high: float
    ms: float | None = None
    base_ms: float | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from the others."""
        return (self.table, self.weights, self.draft, self.case, self.disk)

    @property
    def asked(self) -> float | None:
        """The bound for the factor: the most of a pass's cost, else the least. None: it is only reported."""
        if self.table == VERIFY:
            return MOST_COST.get((self.weights, int(self.case))) if self.draft == PLAIN else None
        return LEAST_FACTOR.get((self.table, self.weights, self.draft, self.case))

    @property
    def over_mmap(self) -> float | None:
        """How many times as fast as the peer; None where it was not measured."""
        mmap = self.more.get("mmap_ms")
        return None if mmap is None or self.ms is None else mmap / self.ms

    @property
    def met(self) -> bool:
        """Whether everything that was asked of it is reached."""
        over, asked = self.over_mmap, self.asked
        if asked is None:
            return True
        if self.table == VERIFY:
            return self.factor <= asked + EXACT
        return self.factor >= asked - EXACT and (over is None or over >= LEAST_OVER_MMAP - EXACT)

    def __str__(self) -> str:
        asked = "" if self.asked is None else f" asked {self.asked:g}{'' if self.met else ', MISSED'}"
        over = "" if self.over_mmap is None else f", {self.over_mmap:.2f} over mmap"
        times = "" if self.ms is None or self.base_ms is None else f"{self.ms:9.2f} ms, base {self.base_ms:9.2f} ms"
        where = f" disk {self.disk}" if self.disk else ""
        name = f"{self.table:9} {self.weights} {self.draft:16} {self.case:6}{where}"
        return f"{name} {self.factor:6.3f} ({self.low:.3f}..{self.high:.3f}){over}{asked} {times}"


class RunFile(run_file.RunFile[Row]):
    """Rows of this benchmark."""

    kind, keys, name = Row, ("table", "weights", "draft", "case", "disk"), "speculative"


def timed_row(
    key: Sequence[str], base: Sequence[float], own: Sequence[float], *, cost: bool = False, **more: Any
) -> Row:
    """A row from seconds that were measured in turn.

    Args:
        key: of the row.
        base: seconds of plain decoding, or of a pass of one token.
        own: of what the row is about. Where both have the same number they are pairs.
        cost: the factor is own over base, else base over own.
        more: of the row.
    """
    table, weights, draft, case, disk = key
    if len(base) != len(own):
        base = [statistics.median(base)] * len(own)
    factors = [mine / other if cost else other / mine for mine, other in zip(own, base, strict=True)]
    times = {"ms": 1000 * statistics.median(own), "base_ms": 1000 * statistics.median(base)}
    middle = statistics.median(factors)
    return Row(table, weights, draft, case, disk, middle, min(factors), max(factors), **times, more=more)


def read_rows(report: Mapping[str, Any]) -> list[Row]:
    """The rows of a JSON file."""
    return [Row(**row) for row in report["rows"]]
