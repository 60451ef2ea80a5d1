"""Our own flow: the best model of a given size."""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy_peers.job import Job, run
from benchmarks.accuracy_peers.reference import MORE_TOKENS
from benchmarks.accuracy_peers.setting import bits_of


def quantize(job: Job) -> None:
    """Writes a checkpoint in our format. The setting is the size, `3.2 bits` read per weight.

    All sizes of a model share one search, so that the seconds of a row are those that it adds.
    """
    import tmac

    package: Any = tmac
    ids = without_bos(job.tokens())
    package.auto_quantize(
        job.model,
        job.out / "model",
        bits=bits_of(job.setting),
        calibration=ids,
        calibration_tokens=len(ids),
        text=job.more_text,
        evaluation_tokens=MORE_TOKENS,
        search_folder=job.windows.with_name("tmac-search"),
    )


def without_bos(windows: list[list[int]]) -> list[int]:
    """The tokens of all windows in a row, without the token that each begins with where it is the same."""
    begins = len(windows) > 1 and len({window[0] for window in windows}) == 1
    return [token for window in windows for token in window[begins:]]


if __name__ == "__main__":
    run(quantize, ["torch"])
