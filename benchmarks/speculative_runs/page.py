"""The tables of a run's JSON file, and where they stand in the documentation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.marks import Marks
from benchmarks.peers.readme import table
from benchmarks.peers.worker import ROOT
from benchmarks.speculative_runs.rows import (
    AGREEMENT,
    LEAST_OVER_MMAP,
    MEMORY,
    STREAMED,
    VERIFY,
    Row,
    read_rows,
)

Report = dict[str, Any]
PAGE = "docs/speculation_figures.md"
MARKS = Marks("speculative")
TITLES = {
    VERIFY: "Passes over several tokens",
    AGREEMENT: "How often the draft is right",
    MEMORY: "Weights in memory",
    STREAMED: "Larger than memory",
}


def page(report: Report) -> str:
    """All tables, and what did not run."""
    rows = read_rows(report)
    parts = [conditions(report)]
    for name, render in RENDERED.items():
        of_table = sorted((row for row in rows if row.table == name), key=order)
        if of_table:
            parts += [f"### {TITLES[name]}\n", render(of_table)]
    if report["not_run"]:
        parts += ["Not run:\n", "".join(f"- {refusal(line)}\n" for line in report["not_run"])]
    return "\n".join(parts)


def order(row: Row) -> tuple[Any, ...]:
    """W8 before W4; drafts and texts by name."""
    case = (int(row.case), "") if row.case.isdigit() else (0, row.case)
    return (row.disk, row.weights != "W8", row.weights, row.draft, case)


def conditions(report: Report) -> str:
    about, models = report["machine"], report["models"]
    versions = "".join(f"; {name} {number}" for name, number in sorted(report["versions"].items()))
    files = ", ".join(f"{name}: {text}" for name, text in models.items())
    return (
        f"{about['cpu']}, {about['cpus']} CPUs, {report['threads']} threads{versions}; {files}. Medians of "
        f"{report['runs']} runs in turn, the least and the most in parentheses; bold: less than was aimed at. "
        f"Limits: {report['limits']}.\n"
    )


def verify(rows: Sequence[Row]) -> str:
    """A line for each layout, a column for each number of tokens."""
    counts = sorted({int(row.case) for row in rows})
    lines = []
    for weights, draft in dict.fromkeys((row.weights, row.draft) for row in rows):
        mine = {int(row.case): row for row in rows if (row.weights, row.draft) == (weights, draft)}
        first = next(iter(mine.values())).base_ms
        cells = [factor(mine[count]) if count in mine else "-" for count in counts]
        lines.append([weights, draft, milliseconds(first), *cells])
    return table(["weights", "layout for", "1 token, ms", *(f"{count} tokens" for count in counts)], lines)


def agreement(rows: Sequence[Row]) -> str:
    texts = list(dict.fromkeys(row.case for row in rows))
    lines = []
    for weights, draft in dict.fromkeys((row.weights, row.draft) for row in rows):
        mine = {row.case: row for row in rows if (row.weights, row.draft) == (weights, draft)}
        lines.append([weights, draft, *(f"{mine[text].factor:.2f}" if text in mine else "-" for text in texts)])
    return table(["weights", "draft", *texts], lines)


def memory(rows: Sequence[Row]) -> str:
    lines = [
        [
            row.weights,
            row.draft,
            row.case,
            rate(row.base_ms),
            rate(row.ms),
            factor(row),
            f"{row.more['tokens_per_pass']:.2f}",
            accepted(row),
        ]
        for row in rows
    ]
    head = ["weights", "draft", "text", "plain, tokens/s", "drafted", "times as fast", "tokens/pass", "right guesses"]
    return table(head, lines)


def streamed(rows: Sequence[Row]) -> str:
    lines = [
        [
            row.disk + (f" ({row.more['throttle']})" if row.more["throttle"] else ""),
            row.weights,
            row.draft,
            row.case,
            f"{row.more['limit_bytes'] / 1e6:.0f}",
            f"{row.more['base_pass_bytes'] / 1e6:.0f}",
            f"{row.more['pass_bytes'] / 1e6:.0f}",
            milliseconds(row.base_ms),
            milliseconds(row.ms),
            factor(row),
            over_mmap(row),
            f"{row.more['tokens_per_pass']:.2f}",
            accepted(row),
        ]
        for row in rows
    ]
    head = ["disk", "weights", "draft", "text", "limit, MB", "plain reads, MB/pass", "drafted reads", "plain, ms/token"]
    head += ["drafted", "times as fast", "than llama.cpp mmap", "tokens/pass", "right guesses"]
    return table(head, lines)


RENDERED = {VERIFY: verify, AGREEMENT: agreement, MEMORY: memory, STREAMED: streamed}


def factor(row: Row) -> str:
    """The median with the least and the most; bold where more was asked for."""
    asked = row.asked
    missed = asked is not None and (row.factor > asked if row.table == VERIFY else row.factor < asked)
    text = f"{row.factor:.2f}"
    return f"{f'**{text}**' if missed else text} ({row.low:.2f}..{row.high:.2f})"


def over_mmap(row: Row) -> str:
    found = row.over_mmap
    if found is None:
        return "-"
    text = f"{found:.1f}"
    return f"**{text}**" if row.asked is not None and found < LEAST_OVER_MMAP else text


def accepted(row: Row) -> str:
    drafted = row.more["drafted"]
    return f"{row.more['accepted'] / drafted:.2f} of {drafted}" if drafted else "-"


def milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def rate(ms: float | None) -> str:
    return "-" if ms is None else f"{1000 / ms:.1f}"


def refusal(line: dict[str, str]) -> str:
    """The row that is not there, and the last line of why."""
    words = " ".join(line[name] for name in ("table", "weights", "draft", "case", "disk") if line[name])
    why = [part for part in line["why"].splitlines() if part.strip()] or ["no reason was given"]
    return f"{words}: {why[-1].strip()}"


def write_page(source: Path, root: Path = ROOT) -> None:
    """Writes the tables between the marks of the page."""
    report = json.loads(source.read_text(encoding="utf-8"))
    path = source.resolve().relative_to(root).as_posix()
    document = root / PAGE
    document.write_text(MARKS.replaced(document.read_text(encoding="utf-8"), path, page(report)), encoding="utf-8")
