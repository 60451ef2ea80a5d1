"""Our own flow: the best model of a given size."""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy_peers.job import Job, run
from benchmarks.accuracy_peers.reference import MORE_TOKENS
from benchmarks.accuracy_peers.setting import bits_of


def quantize(job: Job) -> None:
    """Writes a checkpoint in our format. The setting is the size, `3.2 bits` read per weight."""
    import tmac

    package: Any = tmac
    package.auto_quantize(
        job.model,
        job.out,
        bits=bits_of(job.setting),
        calibration=job.text,
        text=job.more_text,
        evaluation_tokens=MORE_TOKENS,
        force=True,
    )


if __name__ == "__main__":
    run(quantize, ["torch"])
