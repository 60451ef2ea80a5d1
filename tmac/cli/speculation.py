"""What speculation and streaming did for the texts of a command: printed, and written as JSON and as a picture."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmac.cli.errors import CommandError

if TYPE_CHECKING:
    from tmac.runtime.speculation.stats import SpeculationStats

READ = ("bytes_read", "seconds_reading", "seconds_waiting")  # of streaming, counted since the engine was made
MB = 1e6


def add_stats_options(parser: argparse.ArgumentParser) -> None:
    """What is told of speculation and of weights that stream from a disk."""
    group = parser.add_argument_group("statistics")
    group.add_argument("--stats", action="store_true", help="print what the draft and the disk did to standard error")
    group.add_argument("--stats-json", type=Path, metavar="FILE", help="write it as JSON")
    add_plot_option(group)


def add_plot_option(group: Any) -> None:
    """`--stats-plot`."""
    group.add_argument("--stats-plot", type=Path, metavar="FILE.png", help="draw guesses over time, and how many fit")


def check_stats_options(args: argparse.Namespace) -> None:
    """Raises CommandError, before a model is loaded, where a file cannot be written at the end."""
    for name in ("stats_json", "stats_plot"):
        path: Path | None = getattr(args, name, None)
        if path is not None and not path.absolute().parent.is_dir():
            raise CommandError(f"--{name.replace('_', '-')} {path}: there is no such folder")
    if args.stats_plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise CommandError("--stats-plot needs matplotlib: pip install matplotlib")


class StatsReport:
    """Collects the statistics of a command's texts.

    Args:
        engine: that writes them.
        args: with the options of `add_stats_options`.
    """

    def __init__(self, engine: Any, args: argparse.Namespace) -> None:
        self._engine, self._shown = engine, bool(args.stats)
        self._json: Path | None = args.stats_json
        self._plot: Path | None = args.stats_plot
        self._texts: list[SpeculationStats | None] = []
        self._read = streaming(engine) or {}

    def add(self, speculation: SpeculationStats | None) -> None:
        """A text has ended."""
        self._texts.append(speculation)
        if not self._shown:
            return
        now = streaming(self._engine)
        lines = [*stats_lines(speculation), *streaming_lines(now, self._read)]
        print(*(lines or ["no draft guessed, and nothing was read from a disk"]), sep="\n", file=sys.stderr)
        self._read = now or {}

    def finish(self) -> None:
        """Writes the files. Raises CommandError where one cannot be written."""
        guessed = [each for each in self._texts if each is not None]
        total = merged(guessed) if guessed else None
        if self._json is not None:
            content = {
                "total": total and total.to_dict(),
                "texts": [each and each.to_dict() for each in self._texts],
                "streaming": streaming(self._engine),
            }
            write(self._json, (json.dumps(content, indent=2) + "\n").encode())
        if self._plot is not None:
            save_plot(self._plot, {total.draft: total} if total is not None else {})


def streaming(engine: Any) -> dict[str, Any] | None:
    """What the engine has read from a disk since it was made; None: all weights are in memory."""
    streamed = getattr(engine, "streamed", None)
    return None if streamed is None else streamed.statistics()


def stats_lines(stats: SpeculationStats | None) -> Iterator[str]:
    """Statistics in words."""
    if stats is None:
        return
    yield (
        f"draft {stats.draft}: {stats.tokens_per_pass:.2f} tokens per pass ({stats.tokens} in {stats.passes}), "
        f"{stats.draft_passes} passes of the draft"
    )
    shares = zip(stats.acceptance_by_depth(), stats.drafted, strict=True)
    accepted = ", ".join(f"{100 * share:.0f} % of {tried}" for share, tried in shares)
    yield f"accepted by depth: {accepted or 'nothing was guessed'}"
    budgets = ", ".join(f"{budget} in {count}" for budget, count in sorted(Counter(stats.budgets).items()))
    yield f"guesses per pass: {budgets or 'there was no pass'}"
    waited = f", of it {stats.io_seconds:.2f} s for the disk" if stats.bytes_read else ""
    yield (
        f"draft {stats.draft_seconds:.2f} s, verification {stats.verify_seconds:.2f} s, "
        f"plain passes {stats.plain_seconds:.2f} s{waited}"
    )
    if stats.error is not None:
        yield f"the draft failed, and the text went on without it: {stats.error}"


def streaming_lines(now: Mapping[str, Any] | None, before: Mapping[str, Any]) -> Iterator[str]:
    """What was read since an earlier `streaming`, in words."""
    if now is not None:
        count, reading, waiting = (now[name] - before.get(name, 0) for name in READ)
        yield f"disk: {count / MB:.1f} MB read in {reading:.2f} s, for which passes waited {waiting:.2f} s"


def merged(stats: Sequence[SpeculationStats]) -> SpeculationStats:
    """Several texts together; at least one. The budgets follow one another."""
    from tmac.runtime.speculation.stats import SpeculationStats

    errors = [each.error for each in stats if each.error is not None]
    return SpeculationStats(
        draft=stats[-1].draft,
        passes=sum(each.passes for each in stats),
        tokens=sum(each.tokens for each in stats),
        draft_passes=sum(each.draft_passes for each in stats),
        drafted=_by_depth([each.drafted for each in stats]),
        accepted=_by_depth([each.accepted for each in stats]),
        budgets=[budget for each in stats for budget in each.budgets],
        draft_seconds=sum(each.draft_seconds for each in stats),
        verify_seconds=sum(each.verify_seconds for each in stats),
        plain_seconds=sum(each.plain_seconds for each in stats),
        io_seconds=sum(each.io_seconds for each in stats),
        bytes_read=sum(each.bytes_read for each in stats),
        error=errors[-1] if errors else None,
        ahead_passes=sum(each.ahead_passes for each in stats),
        ahead_kept=sum(each.ahead_kept for each in stats),
        ahead_seconds=sum(each.ahead_seconds for each in stats),
    )


def _by_depth(counts: Sequence[Sequence[int]]) -> list[int]:
    return [sum(depth) for depth in zip_longest(*counts, fillvalue=0)]


def save_plot(path: Path, stats: Mapping[str, SpeculationStats]) -> None:
    """Draws the statistics by their names. Raises CommandError where the file cannot be written."""
    from tmac.cli.speculation_plot import draw

    write(path, draw(stats))


def write(path: Path, content: bytes) -> None:
    """Replaces a file. Raises CommandError that names it where that cannot be."""
    from tmac.files import replacing

    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
