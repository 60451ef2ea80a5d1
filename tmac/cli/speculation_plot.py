"""The picture of speculation: how many guesses each pass verified, and how many of them were right by depth."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tmac.runtime.speculation.stats import SpeculationStats


def draw(stats: Mapping[str, SpeculationStats]) -> bytes:
    """A PNG.

    Args:
        stats: by the names that the legend shows; none gives an empty picture that says so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    _draw_budgets(left, stats)
    _draw_acceptance(right, stats)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()


def _draw_budgets(axes: Axes, stats: Mapping[str, SpeculationStats]) -> None:
    for name, each in stats.items():
        label = f"{name}, {each.tokens_per_pass:.2f} tokens per pass"
        axes.step(range(len(each.budgets)), each.budgets, where="mid", lw=1, label=label)
    axes.set_xlabel("pass")
    axes.set_ylabel("guesses that it verified")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if stats:
        axes.legend(frameon=False, fontsize=8)
    else:
        axes.text(0.5, 0.5, "no draft guessed", ha="center", transform=axes.transAxes)


def _draw_acceptance(axes: Axes, stats: Mapping[str, SpeculationStats]) -> None:
    from matplotlib.ticker import MaxNLocator

    for each in stats.values():
        shares = [100 * share for share in each.acceptance_by_depth()]
        axes.plot(range(1, len(shares) + 1), shares, "o-", ms=4, lw=1)
    axes.set_xlabel("depth of a guess")
    axes.set_ylabel("accepted, %")
    axes.set_ylim(0, 105)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
