"""How fast GPTQ is: its useful operations per second beside those of torch's float32 GEMM, measured in turn.

    python -m benchmarks.gptq                  # the shapes of a model of 1B parameters
    python -m benchmarks.gptq --shapes 2048x2048 --bits 2 3 4 --json gptq.json

What counts as useful, for a weight [n, k]: `n k^2` floating-point operations of the feedback (a multiplication and an
addition for each row and each pair of columns) and `k^3 / 3` of one Cholesky factorization in double precision. GPTQ as
published inverts the Hessian and factors it again, `4/3 k^3`; that is not counted, and the search for grids counts as
nothing. `pass` is the rounding with a factor at hand, as for every spec and layer after the first with the same inputs;
`whole` makes the factor as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import machine
from benchmarks.report import command, report_text
from benchmarks.timing import parse_shape, timed
from tmac import QuantSpec, get_num_threads
from tmac.quant.methods.gptq import round_with_factor
from tmac.quant.methods.hessian_factor import factor

SHAPES = ((2048, 2048), (8192, 2048), (2048, 8192))
GEMM_SIZE = 2048
RUNS = 5


@dataclass(frozen=True)
class Row:
    """One shape and spec; seconds are the least of all runs, rates are in GFLOP/s, shares of the GEMM's rate."""

    n: int
    k: int
    bits: int
    group_size: int
    zero_point: str
    pass_seconds: float
    factor_seconds: float
    gemm_rate: float
    pass_share: float
    whole_share: float


def hessian_of(k: int) -> Tensor:
    """Of inputs whose channels depend on each other, f32 `[k, k]`."""
    generator = torch.Generator().manual_seed(k)
    inputs = torch.randn(max(k // 4, 64), k, generator=generator)
    return inputs.T @ inputs / len(inputs)


def measure(n: int, k: int, specs: list[QuantSpec], runs: int = RUNS) -> list[Row]:
    """All specs of one shape, in turn with the GEMM and the factorization."""
    hessian = hessian_of(k)
    weight = 0.02 * torch.randn(n, k, generator=torch.Generator().manual_seed(1))
    left, right = torch.randn(GEMM_SIZE, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
    made = {spec: factor(hessian, spec.group_size) for spec in specs}
    calls: list[Callable[[int], object]] = [
        lambda _: left @ right,
        # Another damping each time: what is kept of the last is no use.
        lambda run: factor(hessian, specs[0].group_size, mean=0.01 + 1e-6 * (run + 1)),
        *((lambda _, spec=spec: round_with_factor(weight, spec, made[spec])) for spec in specs),
    ]
    seconds = [
        min(times) for times in zip(*([timed(call, run, 1) for call in calls] for run in range(runs)), strict=True)
    ]
    gemm = 2 * GEMM_SIZE**3 / seconds[0]
    feedback, factoring = n * k * k, k**3 / 3
    return [
        Row(
            n,
            k,
            spec.bits,
            spec.group_size,
            spec.zero_point,
            took,
            seconds[1],
            gemm / 1e9,
            feedback / took / gemm,
            (feedback + factoring) / (took + seconds[1]) / gemm,
        )
        for spec, took in zip(specs, seconds[2:], strict=True)
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=SHAPES, metavar="NxK")
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args(arguments)
    torch.set_num_threads(get_num_threads())
    specs = [
        QuantSpec(bits, options.group_size, zero_point=zero_point)
        for bits in options.bits
        for zero_point in ("fixed", "offset")
    ]
    rows: list[Row] = []
    print(f"{'n x k':>12}  bits  zero     pass s  factor s   GEMM GFLOP/s   pass   whole")
    for n, k in options.shapes:
        for row in measure(n, k, specs, options.runs):
            print(
                f"{f'{n} x {k}':>12}  {row.bits:4}  {row.zero_point:6} {row.pass_seconds:8.3f}  "
                f"{row.factor_seconds:8.3f}  {row.gemm_rate:13.0f}  {row.pass_share:5.0%}  {row.whole_share:6.0%}"
            )
            rows.append(row)
    if options.json is not None:
        head = {"machine": machine(), "threads": get_num_threads(), "command": command("benchmarks.gptq", arguments)}
        options.json.write_text(report_text(head, rows))


if __name__ == "__main__":
    main()
