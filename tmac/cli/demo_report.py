"""What the demo shows: a table, notes, a plot, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

MB = 1e6
COLORS = {"float32": "#9aa5b1", "bfloat16": "#5b7c99", "tmac": "#d9622b"}


def label(report: dict[str, Any], name: str) -> str:
    """Column title: `tmac W4 g32` for the low-bit model."""
    if name != "tmac":
        return f"torch {name}"
    config = report["config"]
    width = "ternary" if config["codebook"] == "ternary" else f"W{config['bits']}"
    return f"tmac {width} g{config['group_size']}" + (" sym" if config["sym"] else "")


def table(report: dict[str, Any]) -> Table:
    """One row per measured quantity, one column per model."""
    from rich.table import Table

    models = report["models"]
    result = Table(title=f"{report['model']}, {report['threads']} threads of {report['cpu']}", title_justify="left")
    result.add_column("")
    for name in models:
        result.add_column(label(report, name), justify="right", style="bold" if name == "tmac" else "")
    for title, key, form in (
        ("prefill, tokens/s", "prefill", "{:.0f}"),
        ("decoding, tokens/s", "decode", "{:.1f}"),
        ("weights in memory, MB", "weights_bytes", "{:.0f}"),
        ("perplexity", "perplexity", "{:.3f}"),
        ("next token as float32, %", "agreement", "{:.1f}"),
    ):
        scale = {"weights_bytes": 1 / MB, "agreement": 100}.get(key, 1)
        result.add_row(title, *(form.format(row[key] * scale) for row in models.values()))
    return result


def notes(report: dict[str, Any]) -> Iterator[str]:
    """What the table does not say: how it was measured, and what ran."""
    models, seconds, config = report["models"], report["seconds"], report["config"]
    ours, half, full = models["tmac"], models["bfloat16"], models["float32"]
    change = 100 * (ours["perplexity"] / full["perplexity"] - 1)
    yield f"decoding: {ours['decode'] / half['decode']:.2f} times bfloat16; perplexity: {change:+.2f} % of float32"
    yield "kernels: " + ", ".join(f"{name} (x{count})" for name, count in report["kernels"].items())
    yield f"output head: {config['head_bits']} bits; the input embedding stays float32"
    yield f"text: the first {report['tokens']} tokens of the {report['text']}, in windows of 512"
    if report["resident_bytes"]:
        yield f"process: {report['resident_bytes'] / MB:.0f} MB resident, all three models and torch together"
    yield f"load {seconds['load']:.1f} s, quantize {seconds['quantize']:.1f} s, in all {seconds['total']:.0f} s"


def as_json(report: dict[str, Any]) -> str:
    """The report as one JSON object."""
    return json.dumps(report, indent=2)


def plot(report: dict[str, Any], path: Path) -> None:
    """Draws speed, memory and perplexity side by side, as PNG or whatever the name's ending says."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("Decoding, tokens/s", "decode", 1.0, "{:.1f}"),
        ("Prefill, tokens/s", "prefill", 1.0, "{:.0f}"),
        ("Weights in memory, MB", "weights_bytes", 1 / MB, "{:.0f}"),
        ("Perplexity (lower is better)", "perplexity", 1.0, "{:.2f}"),
    )
    for axes, (title, key, scale, form) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        _bars(axes, report, title, {name: row[key] * scale for name, row in report["models"].items()}, form)
    figure.suptitle(f"{report['model']} on {report['threads']} threads of {report['cpu']}", fontsize=11)
    figure.savefig(path, dpi=150)


def _bars(axes: Axes, report: dict[str, Any], title: str, values: dict[str, float], form: str) -> None:
    labels = [label(report, name).replace(" ", "\n", 1) for name in values]
    bars = axes.bar(labels, list(values.values()), color=[COLORS[name] for name in values], width=0.65)
    axes.bar_label(bars, [form.format(value) for value in values.values()], padding=2, fontsize=9)
    axes.set_title(title, fontsize=10)
    axes.set_ylim(0, 1.15 * max(values.values()))
    axes.tick_params(axis="x", length=0, labelsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
