"""Every kernel that this CPU runs: its error, its time, and a read-only pass over the same bytes in the same run.

    python -m benchmarks.kernels --shapes 4096x4096 --group-size 128 --m 1 8 --threads 1 --json FILE

A row is one (kernel, shape, m, threads). Weights are cycled over more than 512 MiB, so that they come from memory, as
in decoding; `--cached` multiplies with the same weight again. A run is a number of calls that takes about 2 ms;
runs of the kernel and of the read pass alternate, and each time below is a run's time divided by its calls. The
preparation of the activations is part of every call and of its time. GB/s counts codes, scales and zeros; the share is
the median over the pairs of neighbouring runs, so that a machine that is busy for a while slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac import _core
from tmac.spec import QuantSpec

STREAMED_BYTES = 512 << 20
RUN_SECONDS = 2e-3
# Relative L2 error that random normal activations may have: a step of the tables (or of int8) is about 1/127 of the
# largest of 128 values, uniform rounding leaves step / sqrt(12), which is below 1 % of their root mean square.
LARGEST_ERROR = {"lut": 0.015, "mad": 0.015, "float": 1e-5}

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Times:
    """Microseconds per call."""

    median_us: float
    min_us: float
    max_us: float

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        return cls(*(round(1e6 * value, 2) for value in (statistics.median(seconds), min(seconds), max(seconds))))


@dataclass(frozen=True)
class Row:
    """One line of the table and one object of the JSON file."""

    kernel: str
    activation: str
    n: int
    k: int
    group_size: int
    zero_point: str
    m: int
    threads: int
    cached: bool
    relative_l2_error: float
    bytes: int
    time: Times
    gb_per_s: float
    read_time: Times
    read_gb_per_s: float
    share_of_read_pass: float

    def __str__(self) -> str:
        name = self.kernel + ("/token" if self.activation == "token" else "")
        spread = f"{self.time.min_us:.1f}..{self.time.max_us:.1f}"
        return (
            f"{name:34} {f'{self.n}x{self.k}':>11} {self.m:3} {self.threads:3} {self.relative_l2_error:9.2e} "
            f"{self.time.median_us:9.1f} {spread:>19} {self.gb_per_s:6.1f} "
            f"{self.read_time.median_us:9.1f} {self.read_gb_per_s:6.1f} {self.share_of_read_pass:6.2f}"
        )


HEADING = (
    f"{'kernel':34} {'n x k':>11} {'m':>3} {'thr':>3} {'rel. L2':>9} {'us':>9} {'min..max':>19} {'GB/s':>6} "
    f"{'read us':>9} {'GB/s':>6} {'share':>6}"
)


class Weights:
    """Packed weights of one spec and shape: enough of them that one is out of the caches before it comes again."""

    def __init__(self, spec: QuantSpec, n: int, k: int, kernel: str, cached: bool) -> None:
        rng = np.random.default_rng(n + k)
        groups = spec.num_groups(k)
        self.n, self.k = n, k
        if spec.codebook == "ternary":
            planes = _core.codes_to_planes(rng.integers(0, 3, (n, k), dtype=np.uint8), spec.bits)
        else:
            planes = rng.integers(0, 256, (spec.bits, n, -(-k // 8)), dtype=np.uint8)
            if k % 8:
                planes[..., -1] &= (1 << k % 8) - 1
        scales = rng.uniform(0.005, 0.02, (n, groups)).astype(np.float16)
        zeros = make_zeros(rng, spec, n, groups)
        self.bytes = planes.nbytes + scales.nbytes + (0 if zeros is None else zeros.nbytes)
        first = _core.pack(spec, planes, k, scales, zeros, kernel=kernel)
        count = 1 if cached else STREAMED_BYTES // first.nbytes + 2
        self.packed = [first, *(_core.pack(spec, planes, k, scales, zeros, kernel=kernel) for _ in range(count - 1))]
        self.buffers = [packed.buffer() for packed in self.packed]
        self.planes, self.scales, self.zeros, self.spec = planes, scales, zeros, spec

    def repacked(self, kernel: str) -> Bytes:
        return _core.pack(self.spec, self.planes, self.k, self.scales, self.zeros, kernel=kernel).buffer()


def make_zeros(rng: np.random.Generator, spec: QuantSpec, n: int, groups: int) -> NDArray[Any] | None:
    if spec.zero_point == "fixed":
        return None
    if spec.zero_point == "integer":
        return rng.integers(0, 2**spec.bits, (n, groups), dtype=np.uint8)
    return rng.normal(0, 0.05, (n, groups)).astype(np.float16)


def scalar_twin(row: _core.KernelRow, activation: str) -> str:
    """The scalar kernel whose bits the kernel must give."""
    keys = ("method", "bits", "codebook")
    for other in map(dict, _core.kernels()):
        same = all(other[key] == dict(row)[key] for key in keys)
        if other["isa"] == "scalar" and same and activation in other["activations"]:
            return str(other["name"])
    raise LookupError(f"no scalar kernel for {row['name']}")


def checked_error(row: _core.KernelRow, activation: str, weights: Weights, x: Floats) -> float:
    """Relative L2 distance to the float64 product; fails where the bits are not the scalar kernel's."""
    got = _core.linear(x, weights.buffers[0], None, 0)
    want = x.astype(np.float64) @ _core.dequantize(weights.buffers[0]).astype(np.float64).T
    error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    if not error <= LARGEST_ERROR[row["method"]]:
        raise SystemExit(f"{row['name']}: relative error {error:.3g} is no rounding: not timed")
    twin = scalar_twin(row, activation)
    if row["name"] != twin and not np.array_equal(got, _core.linear(x, weights.repacked(twin), None, 0)):
        raise SystemExit(f"{row['name']}: the bits are not those of {twin}: not timed")
    return error


def timed(call: Callable[[int], None], first: int, calls: int) -> float:
    begin = time.perf_counter()
    for index in range(first, first + calls):
        call(index)
    return (time.perf_counter() - begin) / calls


def measure(weights: Weights, x: Floats, threads: int, runs: int) -> tuple[list[float], list[float]]:
    """Seconds per call of the kernel and of the read pass, in alternating runs."""
    m, k, n = len(x), weights.k, weights.n
    y = np.empty((m, n), np.float32)
    count, x_at, y_at = len(weights.buffers), x.ctypes.data, y.ctypes.data
    places = [(buffer.ctypes.data, buffer.nbytes) for buffer in weights.buffers]
    parts = [buffer[: weights.bytes] for buffer in weights.buffers]
    run_kernel, run_read = _core.linear_pointers, _core.read_pass

    def multiply(index: int) -> None:
        at, size = places[index % count]
        run_kernel(x_at, 0, k, m, at, size, 0, y_at, 0, n, k, n, threads)

    def read(index: int) -> None:
        run_read(parts[index % count], threads)

    calls = [max(1, min(200, int(RUN_SECONDS / timed(call, 0, 3)))) for call in (multiply, read)]
    seconds: tuple[list[float], list[float]] = ([], [])
    position = 0
    for _ in range(runs):
        for which, call in enumerate((multiply, read)):
            seconds[which].append(timed(call, position, calls[which]))
            position += calls[which]
    return seconds


def bench_kernel(row: _core.KernelRow, activation: str, n: int, k: int, options: argparse.Namespace) -> list[Row]:
    spec = QuantSpec(
        bits=row["bits"],
        codebook=row["codebook"],  # type: ignore[arg-type]
        activation=activation,  # type: ignore[arg-type]
        group_size=options.group_size,
        zero_point="fixed" if row["codebook"] == "ternary" else options.zero_point,
    )
    weights = Weights(spec, n, k, row["name"], options.cached)
    rows = []
    for m in options.m:
        x = np.random.default_rng(m).normal(0, 1, (m, k)).astype(np.float32)
        error = checked_error(row, activation, weights, x)
        for threads in options.threads:
            kernel_seconds, read_seconds = measure(weights, x, threads, options.runs)
            kernel, read = Times.of(kernel_seconds), Times.of(read_seconds)
            rate, read_rate = (round(weights.bytes / each.median_us / 1e3, 2) for each in (kernel, read))
            share = statistics.median(b / a for a, b in zip(kernel_seconds, read_seconds, strict=True))
            result = Row(
                row["name"], activation, n, k, spec.group_size, spec.zero_point, m, threads, options.cached, error,
                weights.bytes, kernel, rate, read, read_rate, round(share, 3),
            )  # fmt: skip
            print(result, flush=True)
            rows.append(result)
    return rows


def shape(text: str) -> tuple[int, int]:
    n, k = text.lower().split("x")
    return int(n), int(k)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", nargs="+", type=shape, default=[(4096, 4096)], metavar="NxK")
    parser.add_argument("--group-size", type=int, default=128, help="columns per scale, -1 for the whole row")
    parser.add_argument("--zero-point", choices=["fixed", "integer", "real", "offset"], default="fixed")
    parser.add_argument("--m", nargs="+", type=int, default=[1], help="tokens per call")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--runs", type=int, default=15, help="at least 7")
    parser.add_argument("--cached", action="store_true", help="the same weight again and again")
    parser.add_argument("--kernels", default="", help="only kernels whose name contains this")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    options = parser.parse_args(arguments)
    if options.runs < 7 or min(options.m) < 1 or min(options.threads) < 1:
        parser.error("--runs must be at least 7, --m and --threads at least 1")
    return options


def machine() -> dict[str, Any]:
    return {
        "cpu": _core.cpu_model(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": [name for name, present in _core.cpu_features().items() if present],
        "system": platform.platform(),
        "versions": {"tmac": _core.__version__, "python": platform.python_version(), "numpy": np.__version__},
    }


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    about = machine()
    print(f"{about['cpu']}, {about['cpus']} CPUs, {about['system']}; {about['versions']}")
    print(
        "same weight again (cached)" if options.cached else f"weights cycled over {STREAMED_BYTES >> 20} MiB", end="; "
    )
    print(f"group {options.group_size}, f16 scales, {options.zero_point} zero; medians of {options.runs} runs")
    print(HEADING)
    rows: list[Row] = []
    for n, k in options.shapes:
        for row in _core.kernels():
            if row["runnable"] and row["selectable"] and options.kernels in row["name"]:
                for activation in row["activations"]:
                    rows += bench_kernel(row, activation, n, k, options)
    if options.json:
        report = {"machine": about, "command": ["python", "-m", "benchmarks.kernels", *(arguments or sys.argv[1:])]}
        options.json.write_text(json.dumps({**report, "rows": [asdict(each) for each in rows]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
