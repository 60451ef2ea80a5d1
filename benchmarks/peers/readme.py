"""The Markdown tables of a run's JSON file, and where they stand in the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.marks import Marks
from benchmarks.peers.table import PeerRow
from benchmarks.peers.worker import ROOT

Report = dict[str, Any]
MARKS = Marks("peers")


def table(head: list[str], lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *lines))


def rows_of(report: Report) -> list[PeerRow]:
    return [PeerRow.read(row) for row in report["rows"]]


def who(row: PeerRow) -> str:
    return f"{row.peer} {row.theirs.kernel}"


def column(row: PeerRow) -> str:
    return f"m={row.job.m}" + (f", {row.job.threads} threads" if row.job.threads > 1 else "")


def cell(row: PeerRow) -> str:
    """Theirs / ours and how many times as fast ours is; what we lose is bold."""
    factor = f"{row.times_as_fast:.2f}"
    times = f"{row.theirs.time.median_us:.0f} / {row.ours.time.median_us:.0f}"
    return f"{times} (**{factor}**)" if row.times_as_fast < 1 else f"{times} ({factor})"


def summary(report: Report) -> str:
    """The first shape of the run: one line per kernel of a peer, one column per number of tokens and threads."""
    rows = rows_of(report)
    first = rows[0].job
    rows = [row for row in rows if (row.job.n, row.job.k, row.job.cached) == (first.n, first.k, first.cached)]
    columns = list(dict.fromkeys(column(row) for row in sorted(rows, key=lambda row: (row.job.m, row.job.threads))))
    lines = []
    for name in dict.fromkeys(map(who, rows)):
        cells = {column(row): row for row in rows if who(row) == name}
        row = next(iter(cells.values()))
        lines.append(
            [
                name,
                f"{row.theirs.bits_per_weight:.2f}",
                f"{row.theirs.relative_l2_error:.1e}",
                row.ours.kernel.removeprefix("qgemm_"),
                f"{row.ours.bits_per_weight:.2f}",
                f"{row.ours.relative_l2_error:.1e}",
                *(cell(cells[each]) if each in cells else "-" for each in columns),
            ]
        )
    head = ["package and kernel", "bits", "error", "ours", "bits", "error", *columns]
    return table(head, lines) + "\n" + conditions(report, f"{first.n}x{first.k}")


def conditions(report: Report, shape: str) -> str:
    machine = report["machine"]
    versions = sorted({f"{name} {number}" for each in report["versions"].values() for name, number in each.items()})
    cached = report["rows"][0]["job"]["cached"]
    return (
        f"{shape}, weights {'cached' if cached else 'from memory'}, microseconds theirs / ours (how many times as fast "
        f"ours is; bold: slower), medians of runs in turn; `error` is relative L2 for one token. "
        f"{machine['cpu']}, {machine['cpus']} CPUs; {', '.join(versions)}.\n"
    )


def everything(report: Report) -> str:
    """One line per row of the run, in its order."""
    side = ["bits", "error", "us (min..max)"]
    head = ["n x k", "m", "threads", "package and kernel", *side, "ours", *side, "read us", "times as fast"]
    lines = []
    for row in rows_of(report):
        job = row.job
        sides = [
            [name, f"{side.bits_per_weight:.2f}", f"{side.relative_l2_error:.1e}", times_cell(side.time)]
            for name, side in ((who(row), row.theirs), (row.ours.kernel, row.ours))
        ]
        shape = [f"{job.n}x{job.k}", str(job.m), str(job.threads)]
        read_us = row.ours.time.median_us * row.ours.gb_per_s / row.read_gb_per_s
        lines.append([*shape, *sides[0], *sides[1], f"{read_us:.0f}", f"{row.times_as_fast:.2f}"])
    not_run = "".join(f"- {line}\n" for line in report["not_run"])
    return table(head, lines) + (f"\nNot run:\n{not_run}" if not_run else "")


def times_cell(time: Any) -> str:
    return f"{time.median_us:.0f} ({time.min_us:.0f}..{time.max_us:.0f})"


PLACES = {"README.md": summary, "docs/benchmarks.md": everything}


def write_tables(source: Path, root: Path = ROOT) -> None:
    report = json.loads(source.read_text())
    path = source.resolve().relative_to(root).as_posix()
    for name, render in PLACES.items():
        document = root / name
        text = MARKS.replaced(document.read_text(encoding="utf-8"), path, render(report))
        document.write_text(text, encoding="utf-8")
