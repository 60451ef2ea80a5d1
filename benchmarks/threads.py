"""What threads cost: starting and joining them, next to torch's operators, and beside a process that takes a CPU.

    python -m benchmarks.threads --threads 2 --json FILE

Each part runs in processes of its own, because torch, once loaded, changes which threads are used (docs/threads.md):
- `barrier`: a region in which every thread waits until all have come, without torch and with it.
- `alternate`: a torch operator and a layer of ours in turn, against the sum of the two alone. What is over 1 on one
  thread too is the caches that they share; what several threads add to it is threads that hinder each other.
- `busy`: layers in a row while another process computes on the last CPU that this one may use, as a share of the
  throughput without it; without torch and with it.
Every figure is a median over runs; runs that are compared alternate.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from tmac import _core
from tmac.spec import QuantSpec

N = K = 4096
LAYERS = 16  # of 4 bits: 139 MB, more than most caches hold
BARRIERS_PER_RUN = 200
ALTERNATE_PASSES = 2  # over all layers, per run
BUSY_SECONDS = 0.25  # per run: many time slices of the system's scheduler
SETTLE_SECONDS = 0.03
BURN = "import os\nos.sched_setaffinity(0, {%d})\nprint(flush=True)\nwhile True: pass"

Summary = dict[str, Any]
Part = Callable[[argparse.Namespace], list[Summary]]


class Layers:
    """Weights of one token's products in a row, and one product after the other."""

    def __init__(self, threads: int) -> None:
        rng = np.random.default_rng(0)
        spec = QuantSpec(bits=4, group_size=128)
        planes = rng.integers(0, 256, (4, N, K // 8), dtype=np.uint8)
        scales = rng.uniform(0.005, 0.02, (N, K // 128)).astype(np.float16)
        self.packed = [_core.pack(spec, planes, K, scales) for _ in range(LAYERS)]
        self.places = [(buffer.ctypes.data, buffer.nbytes) for buffer in (packed.buffer() for packed in self.packed)]
        self.x = rng.standard_normal((1, K), dtype=np.float32)
        self.y = np.empty((1, N), np.float32)
        self.threads = threads
        buffer = self.packed[0].buffer()
        expected = _core.linear(self.x, buffer, None, 1)
        if not np.array_equal(_core.linear(self.x, buffer, None, threads), expected):
            raise SystemExit("the result depends on the threads: not timed")

    def multiply(self, index: int) -> None:
        at, size = self.places[index % LAYERS]
        x, y = self.x.ctypes.data, self.y.ctypes.data
        _core.linear_pointers(x, 0, K, 1, at, size, 0, y, 0, N, K, N, self.threads)


def seconds(*calls: Callable[[int], None], passes: int) -> float:
    """Seconds of one pass: every call for every layer."""
    begin = time.perf_counter()
    for index in range(passes * LAYERS):
        for call in calls:
            call(index)
    return (time.perf_counter() - begin) / passes


def summary(name: str, values: list[float], digits: int = 3) -> Summary:
    """Median, least and largest, rounded."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: {key: round(value, digits) for key, value in figures.items()}}


def barrier(options: argparse.Namespace) -> list[Summary]:
    _core.barrier_seconds(10 * BARRIERS_PER_RUN, options.threads)
    values = [1e6 * _core.barrier_seconds(BARRIERS_PER_RUN, options.threads) for _ in range(10 * options.runs)]
    return [{"what": "start and join"} | summary("us", values)]


def torch_operators() -> dict[str, Callable[[int], None]]:
    """Operators of torch that use its threads; operands and results come from memory, as ours do."""
    import torch

    values = [torch.rand(256, 4096) for _ in range(LAYERS)]
    outs = [torch.empty(256, 4096) for _ in range(LAYERS)]
    weights = [torch.rand(1024, 2048) for _ in range(LAYERS)]
    x, y = torch.rand(64, 1024), torch.empty(64, 2048)

    def silu(index: int) -> None:
        torch.ops.aten.silu.out(values[index % LAYERS], out=outs[index % LAYERS])

    def softmax(index: int) -> None:
        torch.softmax(values[index % LAYERS], -1, out=outs[index % LAYERS])

    def matmul(index: int) -> None:
        torch.mm(x, weights[index % LAYERS], out=y)

    return {"silu 256x4096": silu, "softmax 256x4096": softmax, "matmul 64x1024x2048": matmul}


def alternate(options: argparse.Namespace) -> list[Summary]:
    import torch

    rows = []
    for threads in sorted({1, options.threads}):
        torch.set_num_threads(threads)
        layers = Layers(threads)
        for name, operator in torch_operators().items():
            seconds(operator, layers.multiply, passes=2)
            theirs, ours, both = [], [], []
            for _ in range(options.runs):
                theirs.append(seconds(operator, passes=ALTERNATE_PASSES))
                ours.append(seconds(layers.multiply, passes=ALTERNATE_PASSES))
                both.append(seconds(operator, layers.multiply, passes=ALTERNATE_PASSES))
            shares = [b / (t + o) for t, o, b in zip(theirs, ours, both, strict=True)]
            row: Summary = {"what": f"{name}, {threads} thr"}
            for key, values in (("torch_us", theirs), ("ours_us", ours), ("both_us", both)):
                row |= summary(key, [1e6 * value / LAYERS for value in values], 1)
            rows.append(row | summary("over_the_sum", shares))
    return rows


@contextlib.contextmanager
def burner() -> Iterator[Callable[[bool], None]]:
    """A process that computes on the last CPU that this one may use; called with True it runs, with False it stops."""
    if not hasattr(os, "sched_setaffinity"):
        raise SystemExit("this part needs sched_setaffinity")
    cpu = max(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", BURN % cpu], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()

            def switch(on: bool) -> None:
                process.send_signal(signal.SIGCONT if on else signal.SIGSTOP)
                time.sleep(SETTLE_SECONDS)

            switch(False)
            yield switch
        finally:
            process.kill()


def products_per_second(layers: Layers) -> float:
    begin = time.perf_counter()
    count = 0
    while (elapsed := time.perf_counter() - begin) < BUSY_SECONDS:
        layers.multiply(count)
        count += 1
    return count / elapsed


def busy(options: argparse.Namespace) -> list[Summary]:
    one, all_threads = Layers(1), Layers(options.threads)
    products_per_second(all_threads)
    single, alone, beside = [], [], []
    with burner() as burn:
        for _ in range(options.runs):
            burn(False)
            single.append(products_per_second(one))
            alone.append(products_per_second(all_threads))
            burn(True)
            beside.append(products_per_second(all_threads))
    row = {"what": f"{N} x {K}, 4 bits"} | summary("one_thread_per_s", single, 0) | summary("alone_per_s", alone, 0)
    shares = [taken / free for taken, free in zip(beside, alone, strict=True)]
    return [row | summary("beside_per_s", beside, 0) | summary("share", shares)]


PARTS: dict[str, tuple[Part, tuple[bool, ...]]] = {
    "barrier": (barrier, (False, True)),
    "alternate": (alternate, (True,)),
    "busy": (busy, (False, True)),
}


def run_part(name: str, with_torch: bool, options: argparse.Namespace) -> list[Summary]:
    """The rows of one part, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.threads", "--threads", str(options.threads)]
    command += ["--runs", str(options.runs), "--child", name] + (["--torch"] if with_torch else [])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows: list[Summary] = json.loads(done.stdout)
    return rows


def child(options: argparse.Namespace) -> int:
    if options.torch:
        import torch  # noqa: F401
    backend = _core.thread_backend()
    rows = PARTS[options.child][0](options)
    print(json.dumps([{"part": options.child, "backend": backend, "torch": options.torch} | row for row in rows]))
    return 0


def cells(row: Summary) -> str:
    """The figures of a row as text: median (least..largest)."""
    texts = []
    for key, value in row.items():
        if isinstance(value, dict):
            texts.append(f"{key} {value['median']:g} ({value['min']:g}..{value['max']:g})")
        elif isinstance(value, float):
            texts.append(f"{key} {value:g}")
    return "  ".join(texts)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=_core.get_num_threads())
    parser.add_argument("--runs", type=int, default=11, help="at least 7")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--torch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.runs < 7 or options.threads < 1:
        parser.error("--runs must be at least 7, --threads at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.child:
        return child(options)
    about = machine()
    print(f"{about['cpu']}, {about['cpus']} CPUs, {about['system']}; {options.threads} threads, {options.runs} runs")
    rows = []
    for name in options.parts:
        for with_torch in PARTS[name][1]:
            for row in run_part(name, with_torch, options):
                label = "torch loaded" if with_torch else "no torch"
                print(f"{name:10} {label:13} {row['backend']:7} {row['what']:28} {cells(row)}", flush=True)
                rows.append(row)
    if options.json:
        report = {"machine": about, "command": ["python", "-m", "benchmarks.threads", *(arguments or sys.argv[1:])]}
        options.json.write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
