"""Every kernel that this CPU runs: its error, its time, and what the machine allows in the same run.

    python -m benchmarks.kernels --json FILE             # every table of benchmarks/tables.py
    python -m benchmarks.kernels --quick
    python -m benchmarks.kernels --shapes 4096x4096 --group-size 128 --m 1 8 --threads 1 --json FILE

A row is one (kernel, shape, m, threads). Weights are cycled over more than 512 MiB, so that they come from memory, as
in decoding; `--cached` multiplies with the same weight again. Runs of about 2 ms alternate: the kernel, a pass that
only reads as many bytes of the same buffers, and a loop of the instruction set's int8 dot products in registers. The
preparation of the activations is part of every call and of its time; `--chain L` multiplies L layers with the same
input, as attention and feed-forward blocks do. docs/kernels.md explains the columns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.checks import Checked
from benchmarks.machine import machine
from benchmarks.multiply import fastest_reader, multiplier, prepared
from benchmarks.report import command, report_text
from benchmarks.rows import Limits, Row, heading
from benchmarks.tables import QUICK, TABLES, Entry, Table, entries
from benchmarks.timing import LEAST_RUNS, RUN_SECONDS, STREAMED_BYTES, Timed, Times, parse_shape
from benchmarks.weights import Floats, Weights, gaussian
from tmac import _core
from tmac.runtime.energy import CostMeter

AXES = ("shapes", "group_size", "zero_point", "m", "threads", "cached", "chain")


def preparation(weights: Weights, x: Floats, threads: int, runs: int) -> Times:
    """Encoding the activations for one weight, alone."""
    first = _core.prepare_seconds(x, weights.buffers[0], 1, threads)
    repeats = max(1, int(RUN_SECONDS / first))
    return Times.of([_core.prepare_seconds(x, weights.buffers[0], repeats, threads) for _ in range(runs)])


def measure(isa: str, weights: Weights, x: Floats, threads: int, layers: int, runs: int) -> dict[str, Any]:
    """Times of the kernel, of the read pass and of the dot products that `isa` names, in alternating runs."""
    kernel = Timed(multiplier(weights, x, layers, threads))
    read = Timed(fastest_reader(weights, threads))
    kernel.calibrate()
    read.calibrate()
    meter, peaks = CostMeter(), []
    position = 0
    for _ in range(runs):
        meter.start()
        position = kernel.run(position)
        meter.stop()
        position = read.run(position)
        if isa:
            peaks.append(_core.dot_peak(isa, threads))
    seconds = [value / layers for value in kernel.seconds]
    operations = 2 * len(x) * weights.n * weights.k
    time = Times.of(seconds)
    return {
        "time": time,
        "gb_per_s": round(weights.bytes / time.median_us / 1e3, 2),
        "gops": round(operations / time.median_us / 1e3, 1),
        "limits": Limits.of(seconds, read.seconds, peaks, weights.bytes, operations),
        "prepare": preparation(weights, x, threads, runs),
        "cost_per_layer": meter.total / (runs * kernel.calls * layers),
        "cost_unit": meter.unit,
    }


def peak_of(row: _core.KernelRow) -> str:
    """The loop of dot products that a kernel is held against; none for one that takes no integer products."""
    if row["method"] == "float":
        return ""
    named_after = {"avx2_vnni": "avx2_vnni", "neon_dotprod": "neon_dotprod", "neon_i8mm": "neon_dotprod"}
    return next((loop for end, loop in named_after.items() if row["name"].endswith(end)), row["isa"])


def bench_kernel(table: Table, entry: Entry, weights: Weights, runs: int) -> Iterator[Row]:
    row, spec = entry.row, weights.spec
    checked = Checked(row, entry.activation, weights)
    for m in table.m:
        x = gaussian(m, weights.k)
        error, outlier_error = checked.errors(x)
        for threads in table.threads if entry.best else table.threads[:1]:
            layers = table.layers_of(weights.bytes, threads)
            yield Row(
                table=table.name, kernel=row["name"], activation=entry.activation, layout=weights.layout, n=weights.n,
                k=weights.k, group_size=spec.group_size, zero_point=spec.zero_point, spec=table.spec, m=m,
                threads=threads, cached=table.cached, layers=layers, prepared=prepared(layers), error=error,
                outlier_error=outlier_error, bytes=weights.bytes,
                **measure(peak_of(row), weights, x, threads, layers, runs),
            )  # fmt: skip


def bench_table(table: Table, pattern: str, runs: int) -> Iterator[Row]:
    for n, k in table.shapes:
        for group_size in table.group_sizes:
            for entry in entries(table, pattern):
                spec = entry.spec(group_size, **table.spec)
                weights = Weights(spec, n, k, entry.packed_for, 0 if table.cached else STREAMED_BYTES)
                yield from bench_kernel(table, entry, weights, runs)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=(__doc__ or "").split("\n")[0],
        epilog="With one of the options of a single table, that table alone; without, all tables.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer shapes and tokens")
    parser.add_argument("--tables", nargs="+", choices=[table.name for table in TABLES], help="only these")
    parser.add_argument("--kernels", default="", help="only kernels whose name contains this")
    parser.add_argument("--runs", type=int, default=15, help=f"at least {LEAST_RUNS}")
    parser.add_argument(
        "--json", type=Path, nargs="?", const=Path("kernels.json"), help="write machine and rows to this file"
    )
    single = parser.add_argument_group("a single table, of every kernel")
    single.add_argument("--shapes", nargs="+", type=parse_shape, metavar="NxK", help="default 4096x4096")
    single.add_argument("--group-size", type=int, help="columns per scale, default 128, -1 for the whole row")
    single.add_argument("--zero-point", choices=["fixed", "integer", "real", "offset"], help="default fixed")
    single.add_argument("--m", nargs="+", type=int, help="tokens per call, default 1")
    single.add_argument("--threads", nargs="+", type=int, help="default 1")
    single.add_argument("--cached", action="store_true", default=None, help="the same weight again and again")
    single.add_argument("--chain", type=int, help="layers per call that have the same input")
    options = parser.parse_args(arguments)
    counts = [*(options.m or []), *(options.threads or []), *([] if options.chain is None else [options.chain])]
    if options.runs < LEAST_RUNS or min(counts, default=1) < 1:
        parser.error(f"--runs must be at least {LEAST_RUNS}, --m, --threads and --chain at least 1")
    if chosen(options) and (options.quick or options.tables):
        parser.error("--quick and --tables name tables; the options of a single table make another one")
    return options


def chosen(options: argparse.Namespace) -> bool:
    return any(getattr(options, axis) is not None for axis in AXES)


def plan(options: argparse.Namespace) -> list[Table]:
    if chosen(options):
        single = Table(
            "chosen",
            shapes=tuple(options.shapes or [(4096, 4096)]),
            group_sizes=(128 if options.group_size is None else options.group_size,),
            m=tuple(options.m or [1]),
            threads=tuple(options.threads or [1]),
            cached=bool(options.cached),
            layers=options.chain or 1,
            spec={"zero_point": options.zero_point} if options.zero_point else {},
            chosen=True,
        )
        return [single]
    tables = QUICK if options.quick else TABLES
    return [table for table in tables if not options.tables or table.name in options.tables]


def describe(table: Table, runs: int) -> str:
    where = "same weight again (cached)" if table.cached else f"weights cycled over {STREAMED_BYTES >> 20} MiB"
    return f"{table.name}: {where}; f16 scales; medians of {runs} runs; cost: {cost_words(CostMeter().unit)}"


def cost_words(unit: str) -> str:
    return "energy of the CPU package (RAPL)" if unit == "J" else "CPU time per call, no energy counter to read here"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    about = machine()
    print(f"{about['cpu']}, {about['cpus']} CPUs, {about['system']}; {about['versions']}")
    rows: list[Row] = []
    for table in plan(options):
        print(describe(table, options.runs))
        print(heading(CostMeter().unit))
        for row in bench_table(table, options.kernels, options.runs):
            print(row, flush=True)
            rows.append(row)
    if options.json:
        head = {"machine": about, "command": command("benchmarks.kernels", arguments)}
        options.json.write_text(report_text(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
