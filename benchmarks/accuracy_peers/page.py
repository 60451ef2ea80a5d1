"""The tables and pictures of a run's JSON file, and where they stand in the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.accuracy_peers.plan import OURS
from benchmarks.accuracy_peers.rows import REFERENCE, Row, front, read_rows, smallest_within
from benchmarks.marks import Marks
from benchmarks.peers.readme import table
from benchmarks.peers.worker import ROOT

Report = dict[str, Any]
MARKS = Marks("accuracy")
BOUNDS = (0.01, 0.05)  # losses that the smallest model is named for
SHOWN = (2.0, 6.6)  # bits per weight of the picture
MOST_SHOWN_LOSS = 10.0  # of the picture, 1000 %
STYLES = {OURS: ("o", "#c1272d"), "llama.cpp": ("s", "#1f6fb4"), "gptqmodel": ("^", "#3a8a3a")}
STYLES |= {"auto-round": ("D", "#8a5fb0"), "hqq": ("v", "#b8860b")}


def of_model(report: Report, model: str) -> list[Row]:
    """A model's rows without the float model's, the smallest first."""
    rows = [row for row in read_rows(report) if row.model == model and row.tool != REFERENCE]
    return sorted(rows, key=lambda row: (row.bits_per_weight, row.perplexity))


def percent(loss: float) -> str:
    return f"{100 * loss:+.2f} %" if abs(loss) < 1 else f"{100 * loss:+.0f} %"


def number(value: float) -> str:
    return f"{value:.3f}" if value < 1e4 else f"{value:.1e}"


def lines_of(rows: Iterable[Row], best: list[Row]) -> list[list[str]]:
    """Cells of a table; a row that no other beats in size and perplexity is bold."""
    lines = []
    for row in rows:
        name = f"{row.tool} {row.setting}"
        interval = f"{percent(row.loss_low)} .. {percent(row.loss_high)}"
        lines.append(
            [
                f"**{name}**" if row in best else name,
                f"{row.bits_per_weight:.2f}",
                number(row.perplexity),
                percent(row.loss),
                interval,
                "" if row.as_it_runs is None else number(row.as_it_runs),
                f"{row.seconds:.0f}",
            ]
        )
    return lines


HEADING = ["tool and setting", "bits", "perplexity", "loss", "95 %", "as it runs", "seconds"]


def everything(report: Report) -> str:
    """One table a model with all rows, the picture, and what did not run."""
    parts = []
    for model in report["models"]:
        rows = of_model(report, model)
        reference = next(row for row in read_rows(report) if row.model == model and row.tool == REFERENCE)
        parts.append(f"### {model}\n{conditions(report, model, reference)}\n")
        if rows:
            parts.append(f"![Perplexity against size, {model}](images/{picture_name(model)})\n\n")
        parts.append(table(HEADING, lines_of(rows, front(rows))) + "\n")
        parts.append(bounds_table(rows) + "\n")
    if report["not_run"]:
        parts.append("Not run:\n" + "".join(f"- {refusal(line)}\n" for line in report["not_run"]))
    return "".join(parts).rstrip("\n") + "\n"


def refusal(line: dict[str, str]) -> str:
    """The row that is not there, and the last line of why."""
    why = [part for part in line["why"].splitlines() if part.strip()] or ["no reason was given"]
    return f"{line['model']}, {line['tool']} {line['setting']}: {why[-1].strip()}"


def conditions(report: Report, model: str, reference: Row) -> str:
    about, machine = report["models"][model], report["machine"]
    versions = sorted({f"{name} {text}" for each in report["versions"].values() for name, text in each.items()})
    return (
        f"Weights of `{about['source']}`, {about['weights'] / 1e6:.0f} M in matrices; float32 perplexity "
        f"{reference.perplexity:.3f} over {about['tokens']} tokens in windows of {about['window']}; "
        f"{about['calibration_tokens']} calibration tokens. {machine['cpu']}, {machine['cpus']} CPUs; "
        f"{', '.join(versions)}.\n"
    )


def bounds_table(rows: list[Row]) -> str:
    """Each tool's smallest model within a loss."""
    lines = []
    for tool in dict.fromkeys(row.tool for row in rows):
        cells = [tool]
        for bound in BOUNDS:
            found = smallest_within([row for row in rows if row.tool == tool], bound)
            cells.append("-" if found is None else f"{found.bits_per_weight:.2f} ({found.setting})")
        lines.append(cells)
    return table(["smallest model of", *(f"loss at most {100 * bound:.0f} %" for bound in BOUNDS)], lines)


def summary(report: Report) -> str:
    """For the first page: the rows that no other beats, and each tool's smallest model within a loss."""
    parts = []
    for model in report["models"]:
        rows = of_model(report, model)
        if not rows:
            continue
        parts.append(f"{model}, bits per weight of the smallest model within a loss of perplexity:\n\n")
        parts.append(bounds_table(rows) + "\n")
    return "".join(parts).rstrip("\n") + "\n"


def picture_name(model: str) -> str:
    return "accuracy-" + "".join(letter.lower() if letter.isalnum() else "-" for letter in model) + ".png"


def draw(report: Report, model: str, path: Path) -> None:
    """Loss against bits per weight, a colour a tool, with the front of our rows and of the others' as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    rows = [row for row in of_model(report, model) if SHOWN[0] <= row.bits_per_weight <= SHOWN[1]]
    figure = Figure(figsize=(8, 5), dpi=110)
    axes = figure.add_subplot()
    for tool in dict.fromkeys(row.tool for row in rows):
        marker, colour = STYLES.get(tool, ("x", "black"))
        points = [(row.bits_per_weight, row.loss) for row in rows if row.tool == tool]
        axes.scatter(*zip(*points, strict=True), marker=marker, color=colour, label=tool, zorder=3)
    for mine, colour in ((True, STYLES[OURS][1]), (False, "#999999")):
        best = front([row for row in rows if (row.tool == OURS) == mine])
        axes.plot([row.bits_per_weight for row in best], [row.loss for row in best], color=colour, linewidth=1)
    for bound in BOUNDS:
        axes.axhline(bound, color="#cccccc", linewidth=1, linestyle=":")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(bottom=min([-0.002, *(row.loss for row in rows)]), top=MOST_SHOWN_LOSS)
    ticks = (0.0, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0)
    axes.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
    axes.set_xlabel("bits per weight, embedding and head included")
    axes.set_ylabel("loss of perplexity")
    axes.set_title(model)
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


PLACES = {"README.md": summary, "docs/accuracy.md": everything}


def write_page(source: Path, root: Path = ROOT) -> None:
    """Writes the tables between the marks of every document that has them, and the pictures."""
    report = json.loads(source.read_text(encoding="utf-8"))
    path = source.resolve().relative_to(root).as_posix()
    for name, render in PLACES.items():
        document = root / name
        text = document.read_text(encoding="utf-8")
        if f"<!-- {MARKS.name}: " in text:
            document.write_text(MARKS.replaced(text, path, render(report)), encoding="utf-8")
    for model in report["models"]:
        if of_model(report, model):
            draw(report, model, root / "docs" / "images" / picture_name(model))
