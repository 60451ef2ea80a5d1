"""The tables of `benchmarks.end_to_end` in docs/benchmarks.md, from a run's JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.marks import Marks
from benchmarks.peers.readme import table
from benchmarks.peers.worker import ROOT

Report = dict[str, Any]
Row = dict[str, Any]
OURS = "tmac"
PAGE = "docs/benchmarks.md"
MARKS = Marks("end to end")


def columns_of(rows: list[Row], generated: bool) -> list[tuple[str, int]]:
    """(test, threads), in the order of the run."""
    found = [(row["test"], row["n_threads"]) for row in rows if bool(row["n_gen"]) == generated]
    return list(dict.fromkeys(found))


def title(column: tuple[str, int]) -> str:
    test, threads = column
    return f"{test}, {threads} thread{'' if threads == 1 else 's'}"


def speed(row: Row) -> str:
    return f"{row['median_ts']:.1f} ({row['min_ts']:.1f}..{row['max_ts']:.1f})"


def factor(row: Row, rows: list[Row]) -> str:
    """How many times as fast as the best peer in the same test; what we lose is bold."""
    same = [each for each in rows if all(each[key] == row[key] for key in ("block", "test", "n_threads"))]
    theirs = [each["median_ts"] for each in same if each["engine"] != OURS]
    if row["engine"] != OURS or not theirs:
        return ""
    times = f"{row['median_ts'] / max(theirs):.2f}"
    return f", **{times}x**" if float(times) < 1 else f", {times}x"


def speeds(report: Report, generated: bool) -> str:
    """One line per block and engine, one column per test and number of threads."""
    rows = report["rows"]
    columns = columns_of(rows, generated)
    lines = []
    for block, engine, weights in dict.fromkeys((row["block"], row["engine"], row["weights"]) for row in rows):
        mine = [row for row in rows if (row["block"], row["engine"], row["weights"]) == (block, engine, weights)]
        cells = {(row["test"], row["n_threads"]): row for row in mine}
        line = [block.partition("/")[0], f"{engine} {weights}"]
        if generated:
            sizes = [row["bytes_per_token"] for row in mine if row["n_gen"]]
            line.append(f"{sizes[0] / 1e6:.0f}" if sizes else "-")
        for column in columns:
            row = cells.get(column)
            if row is None:
                line += ["-", "-"] if generated else ["-"]
                continue
            line.append(speed(row) + factor(row, rows))
            if generated:
                line.append(f"{row['share_of_limit']:.3f}")
        lines.append(line)
    head = ["shape", "engine and weights", *(["MB/token"] if generated else [])]
    for column in columns:
        head += [title(column), "share"] if generated else [title(column)]
    return table(head, lines)


def contexts(report: Report) -> str:
    lines = [
        [
            row["block"].partition("/")[0],
            row["test"],
            row["cache_type"],
            str(row["n_threads"]),
            f"{row['cache_bytes_per_token'] / 1e6:.0f}",
            f"{row['cache_gb_per_s']:.1f}",
            f"{row['read_gb_per_s']:.1f}",
            f"{row['cache_share_of_read']:.3f}",
        ]
        for row in report["contexts"]
    ]
    return table(["shape", "test", "cache", "threads", "MB/token", "cache GB/s", "read GB/s", "share"], lines)


def profiles(report: Report) -> str:
    """Where a generated token's time goes, in percent of it."""
    stages = [name for name in report["profiles"][0]["seconds_per_pass"] if name != "total"]
    stages = [name for name in stages if any(each["seconds_per_pass"][name] for each in report["profiles"])]
    lines = []
    for profile in report["profiles"]:
        seconds = profile["seconds_per_pass"]
        shares = [f"{100 * seconds[stage] / seconds['total']:.1f}" for stage in stages]
        lines.append([profile["block"], str(profile["n_threads"]), f"{1e6 * seconds['total']:.0f}", *shares])
    return table(["block", "threads", "us", *(stage.replace("_", " ") for stage in stages)], lines)


def check_text(check: Row) -> str:
    return f"logits of ours and {check['engine']} correlate with {check['correlation']:.4f}"


def page(report: Report) -> str:
    about = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in sorted(report["versions"].items())) or "no peers"
    parts = [
        f"{about['cpu']}, {about['cpus']} CPUs; {versions}; medians of {report['runs']} runs in turn.\n",
        "Generated tokens per second (least..most), how many times as fast as the best peer, share of the limit:\n",
        speeds(report, generated=True),
        "Prompts, tokens per second:\n",
        speeds(report, generated=False),
    ]
    parts += [f"- {each['block']}, {each['file']}: {check_text(each)}\n" for each in report["checks"]]
    if report["contexts"]:
        parts += ["Keys and values at the end of a context of 4096:\n", contexts(report)]
    if report["profiles"]:
        parts += ["Percent of a generated token's time by stage:\n", profiles(report)]
    if report["not_run"]:
        parts += ["Not run:\n", "".join(f"- {line}\n" for line in report["not_run"])]
    return "\n".join(parts)


def write_page(source: Path, root: Path = ROOT) -> None:
    report = json.loads(source.read_text(encoding="utf-8"))
    path = source.resolve().relative_to(root).as_posix()
    document = root / PAGE
    document.write_text(MARKS.replaced(document.read_text(encoding="utf-8"), path, page(report)), encoding="utf-8")
