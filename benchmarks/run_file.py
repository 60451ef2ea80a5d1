"""The file that keeps the rows of a run, so that a run that was ended goes on where it stopped."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from benchmarks.report import report_text

MOST_LETTERS = 1000  # of a reason: the end of what a tool said
PATH = re.compile(r"(?<![\w.])(?:/[\w.-]+)*/([\w.-]+)")  # an absolute path, whose last part is kept


class Keyed(Protocol):
    """A row that can be told from the others."""

    @property
    def key(self) -> tuple[str, ...]: ...


RowT = TypeVar("RowT", bound=Keyed)
RunT = TypeVar("RunT", bound="RunFile[Any]")


@dataclass
class RunFile(Generic[RowT]):
    """A run's JSON file, written anew after every row. A subclass says of which rows.

    Args:
        path: of the file; None keeps the rows in memory only.
        head: machine, command, versions, models: whatever else the file says.
        rows: that were measured.
        not_run: of the others, the fields of their key and `why`.
    """

    kind: ClassVar[Any]
    keys: ClassVar[tuple[str, ...]]
    name: ClassVar[str]

    path: Path | None
    head: dict[str, Any]
    rows: list[RowT] = field(default_factory=list)
    not_run: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def open(cls: type[RunT], path: Path | None, head: dict[str, Any], *, add: bool) -> RunT:
        """`add` keeps what the file has. Raises ValueError where it is from another CPU."""
        if path is None or not add or not path.exists():
            return cls(path, {"versions": {}, "models": {}, **head})
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["machine"]["cpu"] != head["machine"]["cpu"]:
            raise ValueError(
                f"[{cls.name}] {path.name} is from {old['machine']['cpu']}, this is {head['machine']['cpu']}"
            )
        rows, not_run = [cls.kind(**row) for row in old.pop("rows")], old.pop("not_run")
        return cls(path, {**old, **head}, rows, not_run)

    def has(self, key: tuple[str, ...]) -> bool:
        """Whether the row was measured."""
        return any(row.key == key for row in self.rows)

    def add(self, row: RowT) -> None:
        """Takes a row in, in the place of an older one."""
        self.rows = [old for old in self.rows if old.key != row.key] + [row]
        self.not_run = [line for line in self.not_run if tuple(line[key] for key in self.keys) != row.key]
        self.save()

    def refuse(self, key: tuple[str, ...], why: str) -> None:
        """Notes why there is no such row."""
        line = dict(zip(self.keys, key, strict=True))
        why = PATH.sub(r"\1", why[-MOST_LETTERS:])
        self.not_run = [old for old in self.not_run if {name: old[name] for name in self.keys} != line]
        self.not_run.append({**line, "why": why})
        self.save()

    def save(self) -> None:
        """Writes the file, if there is one."""
        if self.path is not None:
            new = self.path.with_name(f"{self.path.name}.new")
            new.write_text(report_text({**self.head, "not_run": self.not_run}, self.rows), encoding="utf-8")
            new.replace(self.path)
