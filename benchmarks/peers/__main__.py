"""Our kernels beside other packages' in one table: their processes run in turn, several rounds.

    python -m benchmarks.peers --environments FOLDER --json benchmarks/results/NAME.json --readme
    python -m benchmarks.peers --from benchmarks/results/NAME.json --readme      # only writes the tables again
    python -m benchmarks.peers --python torch=PATH/bin/python --shapes 4096x4096 --m 1 8 128 --threads 1 2

Every kernel of a peer is compared with the kernel that we choose for as many bits per weight. A peer runs in the
interpreter that `--python` names for it, or in FOLDER/peer-NAME: docs/benchmarks.md says how to make one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.peers.peer import Job, add_job_options, check_job_options
from benchmarks.peers.readme import write_tables
from benchmarks.peers.table import HEADING, PeerRow
from benchmarks.peers.worker import Worker, WorkerError
from benchmarks.report import command, report_text
from benchmarks.tables import SHAPES
from benchmarks.timing import STREAMED_BYTES

MODULES = {
    "torch": "torch_cpu",
    "onnxruntime": "onnxruntime_cpu",
    "auto-round-lib": "auto_round_lib",
    "llama-cpp-python": "llama_cpp_python",
}
FIXED_THREADS = ("auto-round-lib",)  # a process for each number of threads
PAUSE_SECONDS = 0.03  # until the threads of the process before have stopped waiting for more work


def compare(peer: Worker, ours: Worker, kernel: dict[str, Any], job: Job, runs: int) -> PeerRow | str:
    """One row, or why there is none."""
    theirs = peer.ask(do="load", kernel=kernel["name"], job=asdict(job))
    if "not_timed" in theirs:
        return str(theirs["not_timed"])
    mine = ours.ask(do="load", kernel=json.dumps(kernel["ours"]), job=asdict(job))
    if "not_timed" in mine:
        return str(mine["not_timed"])
    rounds = []
    for _ in range(runs):
        answers = []
        for worker in (peer, ours):
            time.sleep(PAUSE_SECONDS)
            answers.append(worker.ask(do="run"))
        rounds.append((answers[0]["seconds"], answers[1]["seconds"], answers[1]["read_seconds"]))
    return PeerRow.of(peer.name, kernel, job, theirs, mine, rounds)


def jobs(options: argparse.Namespace) -> list[Job]:
    """Without options: one shape, and of the others, where asked for, one token on one thread."""
    chosen = (options.shapes, options.m, options.threads)
    if any(chosen) or options.cached:
        shapes, tokens, threads = (given or [default] for given, default in zip(chosen, (SHAPES[0], 1, 1), strict=True))
        return [Job(n, k, m, t, options.cached) for n, k in shapes for m in tokens for t in threads]
    first = [Job(*SHAPES[0], m, threads, False) for m, threads in ((1, 1), (8, 1), (1, 2), (128, 1), (128, 2))]
    return first + [Job(n, k, 1, 1, False) for n, k in SHAPES[1:] if options.every_shape]


def run_peer(name: str, python: str, options: argparse.Namespace, report: dict[str, Any]) -> Iterator[PeerRow]:
    """Every kernel of a peer on every job."""
    everything = jobs(options)
    if name not in FIXED_THREADS:
        yield from run_jobs(Worker(name, python, MODULES[name]), everything, options, report)
        return
    for threads in dict.fromkeys(job.threads for job in everything):
        part = [job for job in everything if job.threads == threads]
        yield from run_jobs(Worker(name, python, MODULES[name], threads), part, options, report)


def run_jobs(peer: Worker, part: list[Job], options: argparse.Namespace, report: dict[str, Any]) -> Iterator[PeerRow]:
    """A worker that fails ends its rows, not the run."""
    name, ours = peer.name, Worker("tmac", sys.executable, "tmac_kernels")
    try:
        hello = peer.ask(do="hello")
        report["versions"][name] = hello["versions"]
        for kernel in hello["kernels"]:
            if options.kernels not in kernel["name"]:
                continue
            for job in part:
                row = compare(peer, ours, kernel, job, options.runs)
                if isinstance(row, PeerRow):
                    yield row
                else:
                    report["not_run"].append(f"{name} {kernel['name']} {job}: {row}")
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


def interpreters(options: argparse.Namespace) -> dict[str, str]:
    found = {}
    if options.environments:
        paths = {name: options.environments.resolve() / f"peer-{name}" / "bin" / "python" for name in MODULES}
        found = {name: str(path) for name, path in paths.items() if path.exists()}
    return found | dict(options.python)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").split("\n")[0])
    add_job_options(parser)
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="which has peer-NAME/bin/python")
    parser.add_argument("--python", action="append", type=interpreter, default=[], metavar="NAME=INTERPRETER")
    parser.add_argument("--every-shape", action="store_true", help="the six shapes of benchmarks.kernels")
    parser.add_argument("--kernels", default="", help="only kernels of the peers whose name contains this")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    parser.add_argument("--from", type=Path, dest="source", metavar="JSON", help="measure nothing, take this file")
    parser.add_argument("--readme", action="store_true", help="write the tables into README.md and docs/benchmarks.md")
    options = parser.parse_args(arguments)
    check_job_options(parser, options)
    if not options.source and not interpreters(options):
        parser.error(
            f"no interpreter: --environments FOLDER or --python NAME=INTERPRETER, NAME one of {', '.join(MODULES)}"
        )
    if options.readme and not (options.source or options.json):
        parser.error("--readme needs the run in a file: --json FILE or --from FILE")
    return options


def measure(options: argparse.Namespace, arguments: list[str] | None) -> None:
    about, pythons = machine(), interpreters(options)
    report: dict[str, Any] = {
        "machine": about,
        "command": command("benchmarks.peers", arguments),
        "versions": {},
        "not_run": [f"{name}: no interpreter was named" for name in MODULES if name not in pythons],
    }
    where = "same weight again (cached)" if options.cached else f"weights cycled over {STREAMED_BYTES >> 20} MiB"
    print(f"{about['cpu']}, {about['cpus']} CPUs, {about['system']}; {where}; medians of {options.runs} rounds")
    print(HEADING)
    rows: list[PeerRow] = []
    for name, python in pythons.items():
        for row in run_peer(name, python, options, report):
            print(row, flush=True)
            rows.append(row)
        if options.json:
            options.json.write_text(report_text(report, rows))
    for line in report["not_run"]:
        print(f"not run: {line}")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not options.source:
        measure(options, arguments)
    if options.readme:
        write_tables(options.source or options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
