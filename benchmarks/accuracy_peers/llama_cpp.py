"""llama.cpp's types with an importance matrix: `llama-imatrix` and `llama-quantize` of a folder of executables."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks.accuracy_peers.job import Job
from benchmarks.accuracy_peers.reference import GGUF, WINDOW

IMATRIX = "imatrix.gguf"
THREADS = "2"
VERSION_MARKS = ("version: ", "build = ")  # of newer and older programs


def importance(folder: Path, job: Job) -> Path:
    """The importance matrix of the calibration tokens, made once beside them. Raises RuntimeError as `call`."""
    path = job.windows.with_name(IMATRIX)
    if not path.exists():
        made = path.with_name("unfinished-" + path.name)
        files = ["-m", str(job.model / GGUF), "-f", str(job.text), "-o", str(made)]
        call(folder / "llama-imatrix", *files, "-c", str(WINDOW), "-t", THREADS, "--no-ppl")
        made.rename(path)
    return path


def quantize(folder: Path, job: Job) -> str:
    """Writes `model.gguf` and returns the version of llama.cpp.

    Args:
        folder: of the executables.
        job: its setting is a type, and behind it options of llama-quantize: `Q4_K_M --token-embedding-type q4_0`.

    Raises:
        RuntimeError: a program failed; the message is the end of what it said.
    """
    kind, *options = job.setting.split()
    files = [str(job.model / GGUF), str(job.out / "model.gguf"), kind, THREADS]
    said = call(folder / "llama-quantize", "--imatrix", str(importance(folder, job)), *options, *files)
    return version_in(said)


def version_in(said: str) -> str:
    """What llama-quantize says of itself: "0.5.0-dev (build 9, commit abc)"."""
    lines = [line.partition(mark)[2] for line in said.splitlines() for mark in VERSION_MARKS if mark in line]
    return lines[0] if lines else "of unknown version"


def call(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, errors="replace", check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f"{Path(words[0]).name}: status {done.returncode}: {said[-600:]}")
    return said
