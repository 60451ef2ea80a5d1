"""What a peer is, and the two ways to run one: alone, or as a worker whose runs alternate with our kernels'.

A peer's file runs in whatever interpreter has the peer; it needs numpy and the peer, not tmac. `python -m
benchmarks.peers.NAME` prints the peer's own table; `python -m benchmarks.peers` starts every peer that it was given an
interpreter for with `--worker`, which reads one JSON request a line and answers with one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.timing import LEAST_RUNS, STREAMED_BYTES, Times, parse_shape, timed

RUN_SECONDS = 20e-3
LONG_SECONDS = 0.2
MOST_DECODED_TOKENS = 16
MOST_COPIES = 600  # a graph of more nodes takes minutes to load; reached by matrices under a megabyte only


class NotTimedError(Exception):
    """Why there is no row: no such kernel for this shape, or a wrong answer."""


@dataclass(frozen=True)
class Kernel:
    """A kernel of a peer."""

    name: str
    ours: dict[str, Any]  # what our kernel beside it multiplies: keyword arguments of tmac.QuantSpec
    largest_error: float  # relative L2 error that its rounding of activations explains


@dataclass(frozen=True)
class Job:
    """One row: a shape, a number of tokens, threads, and whether one weight is used again and again."""

    n: int
    k: int
    m: int
    threads: int
    cached: bool

    def __str__(self) -> str:
        return f"{self.n}x{self.k} m={self.m} threads={self.threads}"

    @property
    def streamed_bytes(self) -> int:
        """What the weights that are cycled exceed: a sixteenth for prompts, where reading takes a small part."""
        if self.cached:
            return 0
        return STREAMED_BYTES if self.m <= MOST_DECODED_TOKENS else STREAMED_BYTES // 16

    def copies(self, nbytes: int) -> int:
        return 1 if self.cached else min(self.streamed_bytes // nbytes + 2, MOST_COPIES)

    def input(self) -> NDArray[np.float32]:
        x: NDArray[np.float32] = np.random.default_rng(self.m).standard_normal((self.m, self.k), dtype=np.float32)
        return x


@dataclass
class Loaded:
    """A kernel with its weights, ready to run."""

    multiply_all: Callable[[], object]  # multiplies the input with every copy of the weight once
    copies: int
    bytes: int  # of one copy: codes, scales, zeros
    result: NDArray[Any]  # [m, n], of the first copy
    weight: NDArray[Any]  # [n, k], what the kernel's own codes mean
    x: NDArray[Any]  # [m, k], as the kernel got it
    read_all: Callable[[], object] | None = None  # only reads every copy once
    extra: dict[str, Any] = field(default_factory=dict)

    def relative_error(self) -> float:
        """Against the float product of the peer's own dequantized weight."""
        want = self.x.astype(np.float64) @ self.weight.astype(np.float64, copy=False).T
        return float(np.linalg.norm(self.result - want) / np.linalg.norm(want))

    def run(self) -> dict[str, float]:
        """Seconds per weight of one run. Each begins with a round that is not timed, because something else, or
        nothing, ran before; where a round is so long that its beginning does not matter, it is the run."""
        answer = {"seconds": one_run(self.multiply_all) / self.copies}
        if self.read_all is not None:
            answer["read_seconds"] = one_run(self.read_all) / self.copies
        return answer


def one_run(call: Callable[[], object]) -> float:
    first = timed(lambda _: call(), 0, 1)
    if first > LONG_SECONDS:
        return first
    return timed(lambda _: call(), 0, max(1, int(RUN_SECONDS / first)))


class Peer:
    """A package that multiplies with quantized weights. Subclasses import it inside their methods."""

    name: str
    module: str  # what `import` finds when the package is there
    install: str  # the command that installs it
    kept: tuple[Any, list[Any]] | None = None

    def versions(self) -> dict[str, str]:
        raise NotImplementedError

    def kernels(self) -> list[Kernel]:
        raise NotImplementedError

    def kernel(self, name: str) -> Kernel:
        return next(kernel for kernel in self.kernels() if kernel.name == name)

    def load(self, kernel: Kernel, job: Job) -> Loaded:
        """Throws NotTimedError where the kernel cannot take the shape."""
        raise NotImplementedError

    def copies_of(self, weight: Any, make: Callable[[], Any], count: int) -> list[Any]:
        """`count` results of make(), which are kept for the next job with the same `weight`."""
        if self.kept is None or self.kept[0] != weight:
            self.kept = None  # before the next ones are made
            self.kept = (weight, [])
        made = self.kept[1]
        made += [make() for _ in range(count - len(made))]
        return made[:count]

    def checked(self, kernel: Kernel, job: Job) -> Loaded:
        """load(), and the answer compared. Throws NotTimedError."""
        try:
            loaded = self.load(kernel, job)
        except RuntimeError as why:  # how torch and onnxruntime refuse a shape
            raise NotTimedError(str(why).partition("\n")[0]) from why
        error = loaded.extra["relative_l2_error"] = loaded.relative_error()
        if not error <= kernel.largest_error:
            raise NotTimedError(f"relative error {error:.3g} is no rounding")
        loaded.result = loaded.weight = np.empty(0)
        return loaded


HEADING = (
    f"{'peer and kernel':40} {'n x k':>11} {'m':>3} {'thr':>3} {'rel. L2':>8} {'us':>9} {'min..max':>19} {'GB/s':>6}"
)


def answers(peer: Peer, requests: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The worker: `hello`, then any number of `load` and `run`."""
    loaded: Loaded | None = None
    for request in requests:
        if request["do"] == "hello":
            yield {"versions": peer.versions(), "kernels": [asdict(kernel) for kernel in peer.kernels()]}
        elif request["do"] == "load":
            loaded = None  # before the next one is made
            try:
                loaded = peer.checked(peer.kernel(request["kernel"]), Job(**request["job"]))
            except NotTimedError as why:
                yield {"not_timed": str(why)}
            else:
                yield {"bytes": loaded.bytes, "copies": loaded.copies, **loaded.extra}
        elif loaded is not None:
            yield dict(loaded.run())


def serve(peer: Peer) -> None:
    # What libraries print must not come between the answers.
    answer_file = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for answer in answers(peer, map(json.loads, sys.stdin)):
        print(json.dumps(answer), file=answer_file, flush=True)


def run_alone(peer: Peer, options: argparse.Namespace) -> None:
    print(f"{peer.name}: {peer.versions()}; medians of {options.runs} runs")
    print(HEADING)
    for n, k in options.shapes or [(4096, 4096)]:
        for m in options.m or [1]:
            for threads in options.threads or [1]:
                for kernel in peer.kernels():
                    job = Job(n, k, m, threads, options.cached)
                    try:
                        loaded = peer.checked(kernel, job)
                    except NotTimedError as why:
                        print(f"{peer.name + ' ' + kernel.name:40} {f'{n}x{k}':>11} {m:3} {threads:3} {why}")
                        continue
                    times = Times.of([loaded.run()["seconds"] for _ in range(options.runs)])
                    print(
                        f"{peer.name + ' ' + kernel.name:40} {f'{n}x{k}':>11} {m:3} {threads:3} "
                        f"{loaded.extra['relative_l2_error']:8.1e} {times} {loaded.bytes / times.median_us / 1e3:6.1f}",
                        flush=True,
                    )


def add_job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", nargs="+", type=parse_shape, metavar="NxK")
    parser.add_argument("--m", nargs="+", type=int, help="tokens per call")
    parser.add_argument("--threads", nargs="+", type=int)
    parser.add_argument("--runs", type=int, default=LEAST_RUNS, help=f"at least {LEAST_RUNS}")
    parser.add_argument("--cached", action="store_true", help="the same weight again and again")


def check_job_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.runs < LEAST_RUNS or min(*(options.m or [1]), *(options.threads or [1])) < 1:
        parser.error(f"--runs must be at least {LEAST_RUNS}, --m and --threads at least 1")


def main(peer: Peer, arguments: list[str] | None = None) -> int:
    """The command line of a peer's file."""
    parser = argparse.ArgumentParser(description=f"{peer.name}'s own kernels, without ours beside them")
    add_job_options(parser)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    check_job_options(parser, options)
    if importlib.util.find_spec(peer.module) is None:
        print(f"{peer.name} is not installed in {sys.executable}: {peer.install}", file=sys.stderr)
        return 3
    if options.worker:
        serve(peer)
    else:
        run_alone(peer, options)
    return 0
