"""What a tool is asked for, in the interpreter that has it: `python -m benchmarks.accuracy_peers.TOOL JOB.json`."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """Args:
    model: folder of a float32 Hugging Face model with its tokenizer; `model-f32.gguf` in it where there is one.
    windows: calibration tokens, a .npy file of int64 `[windows, tokens]`, special tokens included.
    text: the same tokens as text, without special tokens: UTF-8.
    more_text: what follows it in its source, for tools that compare models of their own: neither calibration nor the
        text that the table is about.
    setting: what to quantize with, in the tool's own terms.
    out: folder for the result, which is there and empty.
    """

    model: Path
    windows: Path
    text: Path
    more_text: Path
    setting: str
    out: Path

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({key: str(value) for key, value in asdict(self).items()}))

    @classmethod
    def read(cls, path: Path) -> Job:
        given: dict[str, str] = json.loads(path.read_text())
        setting = given.pop("setting")
        return cls(setting=setting, **{key: Path(value) for key, value in given.items()})

    def tokens(self) -> list[list[int]]:
        windows: list[list[int]] = np.load(self.windows).tolist()
        return windows


ABOUT = "about.json"  # in `out`: what the run says of itself


def run(quantize: Callable[[Job], None], packages: Sequence[str]) -> None:
    """The main program of a tool's file: does the job named on the command line, and notes seconds and versions."""
    job = Job.read(Path(sys.argv[1]))
    begin = time.perf_counter()
    quantize(job)
    seconds = time.perf_counter() - begin
    versions = {name: importlib.metadata.version(name) for name in packages}
    about: dict[str, Any] = {"seconds": round(seconds, 1), "versions": versions}
    (job.out / ABOUT).write_text(json.dumps(about))
