"""One line of the table of perplexity against size, and the file that keeps the lines of a run that goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks import run_file

REFERENCE = "float"  # the tool of the row that the others are compared with


@dataclass(frozen=True)
class Row:
    """Args:
    model: whose weights.
    tool, setting: what quantized them, and how.
    bits_per_weight: of all matrices, embedding and head included.
    perplexity: of the weights alone, in float32 arithmetic.
    loss: perplexity over the float model's, minus 1.
    loss_low, loss_high: the ends of the loss's 95 % interval.
    as_it_runs: perplexity in our engine with its own activations, for our own rows.
    seconds: that the tool took; 0 where it shares another row's work.
    """

    model: str
    tool: str
    setting: str
    bits_per_weight: float
    perplexity: float
    loss: float
    loss_low: float
    loss_high: float
    as_it_runs: float | None = None
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.model, self.tool, self.setting)

    def __str__(self) -> str:
        runs = "" if self.as_it_runs is None else f"{self.as_it_runs:9.3f}"
        return (
            f"{self.model:24} {self.tool:12} {self.setting:34} {self.bits_per_weight:6.3f} {self.perplexity:10.3f} "
            f"{100 * self.loss:+9.2f} % {self.seconds:7.0f} s {runs}"
        )


class RunFile(run_file.RunFile[Row]):
    """Rows of this comparison."""

    kind, keys, name = Row, ("model", "tool", "setting"), "accuracy"


def read_rows(report: dict[str, Any]) -> list[Row]:
    return [Row(**row) for row in report["rows"]]


def front(rows: list[Row]) -> list[Row]:
    """The rows that no other row beats in both size and perplexity, from the smallest."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.bits_per_weight, row.perplexity)):
        if not best or row.perplexity < best[-1].perplexity:
            best.append(row)
    return best


def smallest_within(rows: list[Row], most_loss: float) -> Row | None:
    """The smallest row whose loss is at most `most_loss`."""
    found = [row for row in rows if row.loss <= most_loss]
    return min(found, key=lambda row: row.bits_per_weight, default=None)
