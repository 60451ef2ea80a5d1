"""A peer, or our kernels, in a process of its own that answers one JSON line per request."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


class WorkerError(Exception):
    """A worker ended before it answered."""


class Worker:
    def __init__(self, name: str, python: str, module: str, threads: int = 0) -> None:
        """`threads`: what OpenMP starts with; 0 leaves the environment as it is."""
        self.name = name
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{module}", "--worker"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)} if threads else None,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name} ended with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
