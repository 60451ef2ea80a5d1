"""One line of the kernels' table and one object of the JSON file."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from benchmarks.timing import Times
from benchmarks.weights import Error


@dataclass(frozen=True)
class Limits:
    """What the machine allowed in the same run, and how near the kernel came: medians over neighbouring runs."""

    read_time: Times
    read_gb_per_s: float
    share_of_read_pass: float
    peak_gops: float | None  # of this instruction set's int8 dot products; None where it has none
    share_of_peak: float | None
    limit_us: float  # the larger of the time to read the weight and the time of the operations at the peak
    share_of_limit: float

    @classmethod
    def of(
        cls, seconds: list[float], reads: list[float], peaks: list[float], weight_bytes: int, operations: int
    ) -> Limits:
        read = Times.of(reads)
        limits, on_peak = reads, None
        if peaks:
            limits = [max(one, operations / peak) for one, peak in zip(reads, peaks, strict=True)]
            rates = [operations / one / peak for one, peak in zip(seconds, peaks, strict=True)]
            on_peak = round(statistics.median(rates), 3)
        return cls(
            read,
            round(weight_bytes / read.median_us / 1e3, 2),
            median_ratio(reads, seconds),
            round(statistics.median(peaks) / 1e9, 1) if peaks else None,
            on_peak,
            round(1e6 * statistics.median(limits), 2),
            median_ratio(limits, seconds),
        )


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 3)


@dataclass(frozen=True)
class Row:
    kernel: str
    activation: str
    n: int
    k: int
    group_size: int
    zero_point: str
    m: int
    threads: int
    cached: bool
    layers: int  # that one call multiplies with the same activations
    prepared: str  # "per layer", or "once" for all layers of a call
    error: Error  # Gaussian activations
    outlier_error: Error  # 1 % of the channels 100 times larger
    bytes: int
    time: Times  # per layer
    gb_per_s: float
    gops: float
    limits: Limits
    prepare: Times  # the activations alone, all tokens
    cost_per_layer: float
    cost_unit: str

    def __str__(self) -> str:
        name = self.kernel + ("/token" if self.activation == "token" else "")
        limits = self.limits
        peak, on_peak = (
            ("-", "-") if limits.peak_gops is None else (f"{limits.peak_gops:.0f}", f"{limits.share_of_peak:.2f}")
        )
        cost = 1e6 * self.cost_per_layer
        return (
            f"{name:34} {f'{self.n}x{self.k}':>11} {self.m:3} {self.threads:3} {self.error.relative_l2:8.1e} "
            f"{self.error.nmse:8.1e} {self.outlier_error.nmse:8.1e} {self.time} {self.gb_per_s:6.1f} "
            f"{limits.read_gb_per_s:6.1f} {limits.share_of_read_pass:6.2f} {self.gops:7.0f} {peak:>7} {on_peak:>5} "
            f"{limits.limit_us:9.1f} {limits.share_of_limit:6.2f} {self.prepare.median_us:7.2f} {cost:9.1f}"
        )


def heading(cost_unit: str) -> str:
    return (
        f"{'kernel':34} {'n x k':>11} {'m':>3} {'thr':>3} {'rel. L2':>8} {'NMSE':>8} {'outliers':>8} {'us':>9} "
        f"{'min..max':>19} {'GB/s':>6} {'read':>6} {'share':>6} {'GOPS':>7} {'peak':>7} {'share':>5} {'limit us':>9} "
        f"{'share':>6} {'prep us':>7} {'u' + cost_unit:>9}"
    )
