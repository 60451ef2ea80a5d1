"""The picture of a report: loss against size, and the bits of every matrix."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmac.quant.codes_cache import write_atomically
from tmac.quant.report import PLOT_NAME, comparable, layer_kind, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"single": "#5b7c99", "sequential": "#d9622b"}
LABELS = {"single": "each matrix for itself", "sequential": "block by block"}
GREY = "#9aa5b1"
MOST_LABELS = 12


def write_plot(report: Mapping[str, Any], folder: Path) -> Path | None:
    """Writes report.png; None where matplotlib is not installed. Raises OSError."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    kinds = list(dict.fromkeys(layer_kind(name) for name in report["layers"]))
    figure = Figure(figsize=(11, 4.2 + 0.28 * len(kinds)), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=[4, 0.6 + 0.3 * len(kinds)])
    _draw_trials(above, report)
    _draw_layers(below, report["layers"], kinds)
    figure.suptitle(str(report.get("model", "")), x=0.01, ha="left", fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    path = folder / PLOT_NAME
    write_atomically(path, content.getvalue())
    return path


def _draw_trials(axes: Axes, report: Mapping[str, Any]) -> None:
    trials = comparable(report["trials"])
    for mode, color in COLORS.items():
        group = [trial for trial in trials if trial["mode"] == mode]
        if not group:
            continue
        losses = [100 * trial["measured"]["loss"] for trial in group]
        upper = [max(100 * trial["measured"]["upper"] - loss, 0.0) for trial, loss in zip(group, losses, strict=True)]
        bits = [trial["bits"] for trial in group]
        errors = [[0.0] * len(group), upper]
        axes.errorbar(bits, losses, yerr=errors, fmt="o", ms=5, lw=1, capsize=3, color=color, label=LABELS[mode])
    front = pareto_front(trials)
    axes.plot(
        [trial["bits"] for trial in front],
        [100 * trial["measured"]["loss"] for trial in front],
        color=GREY,
        lw=1,
        zorder=0,
        label="Pareto front",
    )
    chosen = (report["bits_per_weight"], 100 * report["loss"])
    axes.plot(*chosen, "o", ms=13, mfc="none", mec="black", label="chosen")
    if report["goal"]["max_loss"] is not None:
        axes.axhline(100 * report["goal"]["max_loss"], color="black", lw=0.8, ls="--", label="bound")
    else:
        axes.axvline(report["goal"]["bits"], color="black", lw=0.8, ls="--", label="budget")
    axes.set_xlabel("bits per weight, all matrices")
    axes.set_ylabel("loss, % (bars: to the 95 % bound)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _draw_layers(axes: Axes, layers: Mapping[str, Mapping[str, Any]], kinds: Sequence[str]) -> None:
    """Rows are kinds of matrices, columns blocks; what stands in no block fills its row."""
    import numpy as np

    blocks = 1 + max((layer["block"] for name, layer in layers.items() if layer_kind(name) != name), default=0)
    bits = np.full((len(kinds), blocks), np.nan)
    for name, layer in layers.items():
        row = kinds.index(layer_kind(name))
        column = layer["block"] if layer_kind(name) != name else slice(None)
        bits[row, column] = layer["bits_per_weight"]
    image = axes.imshow(bits, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(kinds)), kinds, fontsize=8)
    axes.set_xlabel("block")
    axes.set_title("bits per weight", fontsize=9, loc="left")
    axes.figure.colorbar(image, ax=axes, pad=0.01)
    if blocks <= MOST_LABELS:
        axes.set_xticks(range(blocks))
