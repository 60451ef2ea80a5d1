"""One line of the table of perplexity against size, and the file that keeps the lines of a run that goes on."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.report import report_text

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


@dataclass
class RunFile:
    """A run's JSON file, written anew after every row, so that a run that was ended goes on where it stopped.

    Args:
        path: of the file; None keeps the rows in memory only.
        head: machine, command, versions, models: whatever else the file says.
    """

    path: Path | None
    head: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    not_run: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | None, head: dict[str, Any], *, add: bool) -> RunFile:
        """`add` keeps what the file has. Raises ValueError where it is from another CPU."""
        if path is None or not add or not path.exists():
            return cls(path, {"versions": {}, "models": {}, **head})
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["machine"]["cpu"] != head["machine"]["cpu"]:
            raise ValueError(
                f"[accuracy] {path.name} is from {old['machine']['cpu']}, this is {head['machine']['cpu']}"
            )
        rows, not_run = [Row(**row) for row in old.pop("rows")], old.pop("not_run")
        return cls(path, {**old, **head}, rows, not_run)

    def has(self, key: tuple[str, str, str]) -> bool:
        return any(row.key == key for row in self.rows)

    def add(self, row: Row) -> None:
        self.rows = [old for old in self.rows if old.key != row.key] + [row]
        self.not_run = [line for line in self.not_run if tuple(line[key] for key in KEYS) != row.key]
        self.save()

    def refuse(self, key: tuple[str, str, str], why: str) -> None:
        """Notes why there is no such row."""
        line = dict(zip(KEYS, key, strict=True))
        why = PATH.sub(r"\1", why[-MOST_LETTERS:])
        self.not_run = [old for old in self.not_run if {name: old[name] for name in KEYS} != line]
        self.not_run.append({**line, "why": why})
        self.save()

    def save(self) -> None:
        if self.path is not None:
            new = self.path.with_name(f"{self.path.name}.new")
            new.write_text(report_text({**self.head, "not_run": self.not_run}, self.rows), encoding="utf-8")
            new.replace(self.path)


KEYS = ("model", "tool", "setting")
MOST_LETTERS = 1000  # of a reason: the end of what a tool said
PATH = re.compile(r"(?<![\w.])(?:/[\w.-]+)*/([\w.-]+)")  # an absolute path, whose last part is kept


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
