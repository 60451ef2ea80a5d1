"""Our kernels beside other packages' in one table: their processes run in turn, several rounds.

    python -m benchmarks.peers --python onnxruntime=PATH/bin/python --python torch=PATH/bin/python \\
        --shapes 4096x4096 --m 1 8 128 --threads 1 2 --json FILE --table FILE

Every kernel of a peer is compared with the kernel that we choose for as many bits per weight. A peer runs in the
interpreter that `--python` names for it: docs/benchmarks.md says how to make one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.peers.peer import Job, add_job_options, parse_jobs
from benchmarks.peers.table import HEADING, PeerRow, markdown
from benchmarks.timing import STREAMED_BYTES

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = {
    "torch": "torch_cpu",
    "onnxruntime": "onnxruntime_cpu",
    "auto-round-lib": "auto_round_lib",
    "llama-cpp-python": "llama_cpp_python",
}
PAUSE_SECONDS = 0.03  # until the threads of the process before have stopped waiting for more work


class WorkerError(Exception):
    """A worker ended before it answered."""


class Worker:
    """A peer, or our kernels, in a process of its own."""

    def __init__(self, name: str, python: str, module: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{module}", "--worker"],
            cwd=ROOT,
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


def compare(peer: Worker, ours: Worker, kernel: dict[str, Any], job: Job, runs: int) -> PeerRow | str:
    """One row, or why there is none."""
    theirs = peer.ask(do="load", kernel=kernel["name"], job=asdict(job))
    mine = ours.ask(do="load", kernel=json.dumps(kernel["ours"]), job=asdict(job))
    for side in (theirs, mine):
        if "not_timed" in side:
            return str(side["not_timed"])
    rounds = []
    for _ in range(runs):
        answers = []
        for worker in (peer, ours):
            time.sleep(PAUSE_SECONDS)
            answers.append(worker.ask(do="run"))
        rounds.append((answers[0]["seconds"], answers[1]["seconds"], answers[1]["read_seconds"]))
    return PeerRow.of(peer.name, kernel, job, theirs, mine, rounds)


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    for n, k in options.shapes:
        for m in options.m:
            for threads in options.threads:
                yield Job(n, k, m, threads, options.cached)


def run_peer(name: str, python: str, options: argparse.Namespace, report: dict[str, Any]) -> Iterator[PeerRow]:
    """Every kernel of a peer on every job. A worker that fails ends the peer's rows, not the run."""
    peer, ours = Worker(name, python, MODULES[name]), Worker("tmac", sys.executable, "tmac_kernels")
    try:
        hello = peer.ask(do="hello")
        report["versions"][name] = hello["versions"]
        for job in jobs(options):
            for kernel in hello["kernels"]:
                if options.kernels not in kernel["name"]:
                    continue
                row = compare(peer, ours, kernel, job, options.runs)
                if isinstance(row, PeerRow):
                    yield row
                else:
                    report["not_run"].append(f"{name} {kernel['name']} {job.n}x{job.k}: {row}")
    except WorkerError as why:
        report["not_run"].append(f"{name}: {why}")
    finally:
        peer.close()
        ours.close()


def interpreter(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if name not in MODULES or not path:
        raise argparse.ArgumentTypeError(f"NAME=INTERPRETER, where NAME is one of {', '.join(MODULES)}; got {text!r}")
    return name, path


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").split("\n")[0])
    add_job_options(parser)
    parser.add_argument("--python", action="append", type=interpreter, default=[], metavar="NAME=INTERPRETER")
    parser.add_argument("--kernels", default="", help="only kernels of the peers whose name contains this")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    parser.add_argument("--table", type=Path, help="write the table in Markdown to this file")
    options = parse_jobs(parser, arguments)
    if not options.python:
        parser.error(f"name at least one interpreter: --python NAME=INTERPRETER, NAME one of {', '.join(MODULES)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    about = machine()
    report: dict[str, Any] = {
        "machine": about,
        "command": ["python", "-m", "benchmarks.peers", *(arguments or sys.argv[1:])],
        "versions": {},
        "not_run": [f"{name}: no interpreter was named" for name in MODULES if name not in dict(options.python)],
    }
    where = "same weight again (cached)" if options.cached else f"weights cycled over {STREAMED_BYTES >> 20} MiB"
    print(f"{about['cpu']}, {about['cpus']} CPUs, {about['system']}; {where}; medians of {options.runs} rounds")
    print(HEADING)
    rows: list[PeerRow] = []
    for name, python in options.python:
        for row in run_peer(name, python, options, report):
            print(row, flush=True)
            rows.append(row)
    for line in report["not_run"]:
        print(f"not run: {line}")
    if options.json:
        options.json.write_text(json.dumps({**report, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if options.table:
        options.table.write_text(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
