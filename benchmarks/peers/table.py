"""A peer's kernel and ours on the same job: one printed line and one object of the JSON file."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.peer import Job
from benchmarks.timing import Times


@dataclass(frozen=True)
class Side:
    kernel: str
    bits_per_weight: float
    relative_l2_error: float
    time: Times
    gb_per_s: float
    details: dict[str, Any]

    @classmethod
    def of(cls, kernel: str, job: Job, loaded: dict[str, Any], seconds: list[float]) -> Side:
        time = Times.of(seconds)
        details = {key: value for key, value in loaded.items() if key not in ("bytes", "relative_l2_error")}
        bits = round(8 * loaded["bytes"] / (job.n * job.k), 3)
        rate = round(loaded["bytes"] / time.median_us / 1e3, 2)
        return cls(kernel, bits, loaded["relative_l2_error"], time, rate, details)

    @classmethod
    def read(cls, side: dict[str, Any]) -> Side:
        return cls(**{**side, "time": Times(**side["time"])})

    def __str__(self) -> str:
        return f"{self.bits_per_weight:5.2f} {self.relative_l2_error:8.1e} {self.time} {self.gb_per_s:6.1f}"


@dataclass(frozen=True)
class PeerRow:
    peer: str
    job: Job
    theirs: Side
    ours: Side
    read_gb_per_s: float  # a pass that only reads as many bytes as our weight has
    times_as_fast: float  # median over the rounds of their time over ours

    @classmethod
    def of(
        cls,
        peer: str,
        kernel: dict[str, Any],
        job: Job,
        theirs: dict[str, Any],
        mine: dict[str, Any],
        rounds: list[tuple[float, float, float]],
    ) -> PeerRow:
        """`rounds`: seconds of the peer's kernel, of ours and of the read pass."""
        peer_seconds, our_seconds, read_seconds = map(list, zip(*rounds, strict=True))
        return cls(
            peer,
            job,
            Side.of(kernel["name"], job, theirs, peer_seconds),
            Side.of(f"{mine['kernel']} {spec_words(kernel['ours'])}", job, mine, our_seconds),
            round(mine["bytes"] / statistics.median(read_seconds) / 1e9, 2),
            round(statistics.median(a / b for a, b in zip(peer_seconds, our_seconds, strict=True)), 3),
        )

    @classmethod
    def read(cls, row: dict[str, Any]) -> PeerRow:
        """The inverse of what the JSON file holds of a row."""
        return cls(
            **{**row, "job": Job(**row["job"]), "theirs": Side.read(row["theirs"]), "ours": Side.read(row["ours"])}
        )

    def __str__(self) -> str:
        job, who = self.job, f"{self.peer} {self.theirs.kernel}"
        return (
            f"{who:36} {f'{job.n}x{job.k}':>11} {job.m:3} {job.threads:3} {self.theirs} | {self.ours.kernel:40} "
            f"{self.ours} {self.read_gb_per_s:6.1f} | {self.times_as_fast:6.2f}x"
        )


SIDE = f"{'bits':>5} {'rel. L2':>8} {'us':>9} {'min..max':>19} {'GB/s':>6}"
HEADING = (
    f"{'peer and kernel':36} {'n x k':>11} {'m':>3} {'thr':>3} {SIDE} | {'ours':40} {SIDE} {'read':>6} | faster by"
)


def spec_words(spec: dict[str, Any]) -> str:
    group = "per row" if spec["group_size"] == -1 else f"g{spec['group_size']}"
    return group + (f" {spec['zero_point']}" if "zero_point" in spec else "")
