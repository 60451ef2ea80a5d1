"""Every kernel that this CPU runs: its error, its time, and what the machine allows in the same run.

    python -m benchmarks.kernels --shapes 4096x4096 --group-size 128 --m 1 8 --threads 1 --json FILE

A row is one (kernel, shape, m, threads). Weights are cycled over more than 512 MiB, so that they come from memory, as
in decoding; `--cached` multiplies with the same weight again. Runs of about 2 ms alternate: the kernel, a pass that
only reads as many bytes of the same buffers, and a loop of the instruction set's int8 dot products in registers. The
preparation of the activations is part of every call and of its time; `--chain L` multiplies L layers with the same
input, as attention and feed-forward blocks do. docs/kernels.md explains the columns.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.energy import CostMeter
from benchmarks.machine import machine
from benchmarks.multiply import multiplier, prepared
from benchmarks.rows import Limits, Row, heading
from benchmarks.timing import LEAST_RUNS, RUN_SECONDS, STREAMED_BYTES, Timed, Times, parse_shape, timed
from benchmarks.weights import Error, Floats, Weights, gaussian, with_outliers
from tmac import _core
from tmac.spec import QuantSpec

# Relative L2 error that random normal activations may have: a step of the tables (or of int8) is about 1/127 of the
# largest of 128 values, uniform rounding leaves step / sqrt(12), which is below 1 % of their root mean square.
LARGEST_ERROR = {"lut": 0.015, "mad": 0.015, "float": 1e-5}
TWIN_TOKENS = 8


def scalar_twin(row: _core.KernelRow, activation: str) -> str:
    """The scalar kernel whose bits the kernel must give."""
    for other in _core.kernels():
        same = all(other[key] == row[key] for key in ("method", "bits", "codebook"))
        if other["isa"] == "scalar" and same and activation in other["activations"]:
            return other["name"]
    raise LookupError(f"no scalar kernel for {row['name']}")


def checked_errors(row: _core.KernelRow, activation: str, weights: Weights, x: Floats) -> tuple[Error, Error]:
    """(Gaussian, with outliers) against the float64 product; fails where the bits are not the scalar kernel's."""
    results = []
    for values in (x, with_outliers(x)):
        got = _core.linear(values, weights.buffers[0], None, 0)
        results.append((got, Error.of(got, values.astype(np.float64) @ weights.exact)))
    got, error = results[0]
    if not error.relative_l2 <= LARGEST_ERROR[row["method"]]:
        raise SystemExit(f"{row['name']}: relative error {error.relative_l2:.3g} is no rounding: not timed")
    twin = scalar_twin(row, activation)
    if row["name"] != twin:
        # A token's result does not depend on its neighbours, so that a few of many tokens suffice; the last is one.
        tokens = np.unique(np.linspace(0, len(x) - 1, TWIN_TOKENS).astype(int))
        want = _core.linear(np.ascontiguousarray(x[tokens]), weights.pack(twin).buffer(), None, 0)
        if not np.array_equal(got[tokens], want):
            raise SystemExit(f"{row['name']}: the bits are not those of {twin}: not timed")
    return error, results[1][1]


def fastest_read(weights: Weights, threads: int) -> Timed:
    """What the memory gives is what the faster way to read gets."""
    parts = [buffer[: weights.bytes] for buffer in weights.buffers]
    count, read = len(parts), _core.read_pass

    def one(index: int) -> int:
        return read(parts[index % count], threads, 1)

    def four(index: int) -> int:
        return read(parts[index % count], threads, 4)

    return Timed(min((one, four), key=lambda call: min(timed(call, 5 * i, 5) for i in range(8))))


def preparation(weights: Weights, x: Floats, threads: int, runs: int) -> Times:
    """Encoding the activations for one weight, alone."""
    first = _core.prepare_seconds(x, weights.buffers[0], 1, threads)
    repeats = max(1, int(RUN_SECONDS / first))
    return Times.of([_core.prepare_seconds(x, weights.buffers[0], repeats, threads) for _ in range(runs)])


def measure(
    row: _core.KernelRow, weights: Weights, x: Floats, threads: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Times of the kernel, of the read pass and of the dot products, in alternating runs."""
    kernel = Timed(multiplier(weights, x, options.chain, threads))
    read = fastest_read(weights, threads)
    kernel.calibrate()
    read.calibrate()
    meter, peaks = CostMeter(), []
    position = 0
    for _ in range(options.runs):
        meter.start()
        position = kernel.run(position)
        meter.stop()
        position = read.run(position)
        if row["method"] != "float":
            peaks.append(_core.dot_peak(row["isa"], threads))
    seconds = [value / options.chain for value in kernel.seconds]
    operations = 2 * len(x) * weights.n * weights.k
    time = Times.of(seconds)
    return {
        "time": time,
        "gb_per_s": round(weights.bytes / time.median_us / 1e3, 2),
        "gops": round(operations / time.median_us / 1e3, 1),
        "limits": Limits.of(seconds, read.seconds, peaks, weights.bytes, operations),
        "prepare": preparation(weights, x, threads, options.runs),
        "cost_per_layer": meter.total / (options.runs * kernel.calls * options.chain),
        "cost_unit": meter.unit,
    }


def bench_kernel(row: _core.KernelRow, activation: str, n: int, k: int, options: argparse.Namespace) -> Iterator[Row]:
    spec = QuantSpec(
        bits=row["bits"],
        codebook=row["codebook"],  # type: ignore[arg-type]
        activation=activation,  # type: ignore[arg-type]
        group_size=options.group_size,
        zero_point="fixed" if row["codebook"] == "ternary" else options.zero_point,
    )
    weights = Weights(spec, n, k, row["name"], options.cached)
    for m in options.m:
        x = gaussian(m, k)
        error, outlier_error = checked_errors(row, activation, weights, x)
        for threads in options.threads:
            yield Row(
                kernel=row["name"], activation=activation, n=n, k=k, group_size=spec.group_size,
                zero_point=spec.zero_point, m=m, threads=threads, cached=options.cached, layers=options.chain,
                prepared=prepared(options.chain), error=error, outlier_error=outlier_error, bytes=weights.bytes,
                **measure(row, weights, x, threads, options),
            )  # fmt: skip


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=[(4096, 4096)], metavar="NxK")
    parser.add_argument("--group-size", type=int, default=128, help="columns per scale, -1 for the whole row")
    parser.add_argument("--zero-point", choices=["fixed", "integer", "real", "offset"], default="fixed")
    parser.add_argument("--m", nargs="+", type=int, default=[1], help="tokens per call")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--runs", type=int, default=15, help=f"at least {LEAST_RUNS}")
    parser.add_argument("--cached", action="store_true", help="the same weight again and again")
    parser.add_argument("--chain", type=int, default=1, help="layers per call that have the same input")
    parser.add_argument("--kernels", default="", help="only kernels whose name contains this")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    options = parser.parse_args(arguments)
    if options.runs < LEAST_RUNS or min(*options.m, *options.threads, options.chain) < 1:
        parser.error(f"--runs must be at least {LEAST_RUNS}, --m, --threads and --chain at least 1")
    return options


def describe(options: argparse.Namespace) -> str:
    where = "same weight again (cached)" if options.cached else f"weights cycled over {STREAMED_BYTES >> 20} MiB"
    chain = f"; {options.chain} layers a call, activations prepared {prepared(options.chain)}"
    return (
        f"{where}; group {options.group_size}, f16 scales, {options.zero_point} zero; medians of {options.runs} runs"
        f"{chain if options.chain > 1 else ''}; cost: {cost_words(CostMeter().unit)}"
    )


def cost_words(unit: str) -> str:
    return "energy of the CPU package (RAPL)" if unit == "J" else "CPU time per call, no energy counter to read here"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    about = machine()
    print(f"{about['cpu']}, {about['cpus']} CPUs, {about['system']}; {about['versions']}")
    print(describe(options))
    print(heading(CostMeter().unit))
    rows: list[Row] = []
    for n, k in options.shapes:
        for row in _core.kernels():
            if row["runnable"] and row["selectable"] and options.kernels in row["name"]:
                for activation in row["activations"]:
                    for result in bench_kernel(row, activation, n, k, options):
                        print(result, flush=True)
                        rows.append(result)
    if options.json:
        report = {"machine": about, "command": ["python", "-m", "benchmarks.kernels", *(arguments or sys.argv[1:])]}
        options.json.write_text(json.dumps({**report, "rows": [asdict(each) for each in rows]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
