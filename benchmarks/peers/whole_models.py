"""Whole models in other engines, each as something that `tmac.runtime.speed.measure` times."""

from __future__ import annotations

import json
import resource
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.worker import Worker
from tmac.formats.gguf_header import read_header
from tmac.runtime.speed import Case, cache_bytes

PAUSE_SECONDS = 0.03  # until threads of whatever ran before have stopped waiting for more work
POSITIONS = 1024  # of a context; more than any test of a peer takes


class PeerError(Exception):
    """Why a peer has no row."""


def gguf_bytes_per_token(path: Path) -> int:
    """Bytes of a file's tensors that a generated token reads: all, but for an embedding beside a head of its own.

    Types that this package does not know are counted too: a tensor ends where the next one begins.
    """
    tensors = sorted(read_header(path).tensors.values(), key=lambda info: info.offset)
    ends = [info.offset for info in tensors[1:]] + [path.stat().st_size]
    sizes = {info.name: end - info.offset for info, end in zip(tensors, ends, strict=True)}
    return sum(sizes.values()) - ("output.weight" in sizes and sizes["token_embd.weight"])


class GgufPeer:
    """An engine with a GGUF file.

    Args:
        engine: its name.
        weights: the types of the file, in words.
        path: the file.
        config: the runtime's configuration of the same model.
    """

    def __init__(self, engine: str, weights: str, path: Path, config: Mapping[str, Any]) -> None:
        self.engine, self.weights, self.path, self.config = engine, weights, path, config
        self.weight_bytes = gguf_bytes_per_token(path)
        self.busy = 0.0
        self.versions: dict[str, str] = {}

    def bytes_per_token(self, test: Case) -> int:
        """As our own: keys and values are f16."""
        positions = range(test.depth, test.depth + test.generated)
        cached = sum(cache_bytes(self.config, "f16", position) for position in positions)
        return self.weight_bytes + cached // max(1, test.generated)

    def core_seconds(self) -> float:
        return self.busy

    def run(self, test: Case, threads: int) -> float:
        raise NotImplementedError

    def close(self) -> None:
        """Ends what was started."""


class LlamaCppPython(GgufPeer):
    """llama.cpp as llama-cpp-python builds it, in a process of its own (benchmarks/peers/llama_decode.py)."""

    def __init__(self, python: str, weights: str, path: Path, config: Mapping[str, Any]) -> None:
        super().__init__("llama-cpp-python", weights, path, config)
        self.worker = Worker(self.engine, python, "llama_decode")
        self.versions = self.worker.ask(do="hello")["versions"]
        self.worker.ask(do="load", path=str(path), positions=POSITIONS)

    def run(self, test: Case, threads: int) -> float:
        time.sleep(PAUSE_SECONDS)
        what = {"prompt": test.prompt, "generated": test.generated, "depth": test.depth}
        answer = self.worker.ask(do="run", **what, threads=threads)
        self.busy += answer["core_seconds"]
        return float(answer["seconds"])

    def logits(self, ids: list[int], threads: int) -> list[float]:
        """Of the token after `ids`."""
        found: list[float] = self.worker.ask(do="logits", ids=ids, threads=threads)["logits"]
        return found

    def close(self) -> None:
        self.worker.close()


class LlamaBench(GgufPeer):
    """A `llama-bench`, started for each run; it loads the file and warms up before it measures."""

    def __init__(
        self,
        engine: str,
        executable: str,
        weights: str,
        path: Path,
        config: Mapping[str, Any],
        options: tuple[str, ...] = (),
    ) -> None:
        super().__init__(engine, weights, path, config)
        self.executable, self.options = executable, options

    def command(self, test: Case, threads: int) -> list[str]:
        depth = ["-d", str(test.depth)] if test.depth else []
        sizes = ["-p", str(test.prompt), "-n", str(test.generated), *depth, "-t", str(threads)]
        return [self.executable, "-m", str(self.path), *sizes, "-r", "1", "-o", "json", *self.options]

    def run(self, test: Case, threads: int) -> float:
        time.sleep(PAUSE_SECONDS)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            done = subprocess.run(self.command(test, threads), capture_output=True, text=True, check=False)
        except OSError as error:
            raise PeerError(f"{self.engine}: {error.strerror}") from error
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.busy += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # loading included
        return test.tokens / self._rate(done, test)

    def _rate(self, done: subprocess.CompletedProcess[str], test: Case) -> float:
        try:
            rows = json.loads(done.stdout)
            row = next(row for row in rows if (row["n_prompt"], row["n_gen"]) == (test.prompt, test.generated))
            rate = float(row["avg_ts"])
            self.versions = {self.engine: str(row.get("build_commit", "unknown"))}
        except (ValueError, KeyError, StopIteration, TypeError) as error:
            last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise PeerError(f"{self.engine} ended with status {done.returncode} and said {last[:200]}") from error
        if not rate > 0:
            raise PeerError(f"{self.engine} reported {rate} tokens per second")
        return rate
