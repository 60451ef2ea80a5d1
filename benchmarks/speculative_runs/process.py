"""The worker from outside: a process within limits, and llama.cpp within the same."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.peers.worker import ROOT
from benchmarks.speculative_runs.limits import Group

EVALUATED = re.compile(r"(?<!prompt )eval time =\s*([\d.]+) ms /\s*(\d+) runs")
PROGRAM = "llama-completion"
LEAST = re.compile(r"needs at least (\d+)M")


class NoRowError(Exception):
    """Why a row cannot be measured."""


class TooSmallError(NoRowError):
    """The limit of memory is too small.

    Args:
        message: what the engine said.
        least: bytes that would do.
    """

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least


class Measured:
    """A `benchmarks.speculative_runs.worker`, started within a group. As a context manager it has ended afterwards.

    Args:
        group: its limits; None: there are none.
        cache: the folder of packed files.
    """

    def __init__(self, group: Group | None, cache: Path) -> None:
        words = [sys.executable, "-m", "benchmarks.speculative_runs.worker"]
        environment = {**os.environ, "TMAC_CACHE_DIR": str(cache.resolve())}
        if group is not None:
            words, environment = group.command(words), {**environment, **group.environment()}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Measured:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            TooSmallError: the limit of memory is too small.
            NoRowError: the worker failed, or has ended, for want of memory perhaps.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": do, **request}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise NoRowError(f"the process ended with status {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            least = LEAST.search(found["error"])
            if least:
                raise TooSmallError(found["error"], int(least[1]) << 20)
            raise NoRowError(f"{found['kind']}: {found['error']}")
        return found


def llama_seconds(programs: Path, file: Path, prompt: str, tokens: int, threads: int, group: Group) -> float:
    """Seconds per generated token of llama.cpp, with the file mapped into memory.

    Args:
        programs: the folder with llama-completion.
        file: GGUF.
        prompt: a text to go on with.
        tokens: to generate.
        threads: of its passes.
        group: the limits.

    Raises:
        NoRowError: it ended without saying how long it took.
    """
    words = [str(programs / PROGRAM), "-m", str(file), "-p", prompt, "-n", str(tokens), "-t", str(threads)]
    words += ["-c", "1024", "-b", "64", "-ub", "64", "--temp", "0", "--ignore-eos", "-no-cnv", "--no-warmup"]
    words += ["--no-repack", "--no-display-prompt"]  # a repacked weight would be a copy outside of the map
    words += mapping(programs)
    environment = {**os.environ, **group.environment()}
    done = subprocess.run(
        group.command(words), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    return seconds_of(done)


@cache
def mapping(programs: Path) -> tuple[str, ...]:
    """Options that map the file; older versions do so without one."""
    done = subprocess.run([str(programs / PROGRAM), "--help"], capture_output=True, text=True, check=False)
    return ("--load-mode", "mmap") if "--load-mode" in done.stdout + done.stderr else ()


def seconds_of(done: subprocess.CompletedProcess[str]) -> float:
    """What it printed at the end. Raises NoRowError where that is not there."""
    found = EVALUATED.search(done.stderr + done.stdout)
    if done.returncode or found is None or not float(found[1]) or not int(found[2]):
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise NoRowError(f"llama.cpp ended with status {done.returncode} and said {last[:200]}")
    return float(found[1]) / 1000 / int(found[2])
