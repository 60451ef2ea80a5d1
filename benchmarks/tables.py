"""What `python -m benchmarks.kernels` measures where it is not told: one table per question that a user may have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tmac import _core
from tmac.spec import QuantSpec

Shape = tuple[int, int]

SHAPES: tuple[Shape, ...] = ((4096, 4096), (11008, 4096), (4096, 11008), (2560, 2560), (6912, 2560), (2560, 6912))
BITS = (1, 2, 3, 4, 8)
SMALL_BYTES = 8 << 20  # one such weight is read in less time than starting and joining the threads leaves unseen


@dataclass(frozen=True)
class Table:
    name: str
    shapes: tuple[Shape, ...] = SHAPES[:1]
    group_sizes: tuple[int, ...] = (128,)
    m: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)  # instruction sets before the best run on the first number only
    cached: bool = False
    layers: int = 1  # that a call multiplies with one input, where one weight is small and there are several threads
    prompt: bool = False  # the kernels that take prompts, over the bytes of the kernel that decodes beside them
    spec: dict[str, Any] = field(default_factory=dict)  # further arguments of QuantSpec for every row
    chosen: bool = False  # by the caller: every kernel, every number of threads, always `layers` layers

    def layers_of(self, weight_bytes: int, threads: int) -> int:
        small = weight_bytes < SMALL_BYTES and threads > 1
        return self.layers if self.chosen or small else 1


FAST = {"fast_aggregation": True}
TABLES = (
    Table("decode", SHAPES, (128, 64), threads=(1, 2), layers=4),
    Table("cached", cached=True),
    Table("batch", m=(1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16)),
    Table("prompt", group_sizes=(128, 64, 32), m=(128, 512), threads=(1, 2), prompt=True),
    Table("fast_aggregation", group_sizes=(128, 64, 32), m=(1, 8), spec=FAST),
)
QUICK = (
    Table("decode", layers=4),
    Table("cached", cached=True),
    Table("batch", m=(4, 8, 16)),
    Table("prompt", m=(128,), prompt=True),
    Table("fast_aggregation", spec=FAST),
)


@dataclass(frozen=True)
class Entry:
    """A kernel to be timed, and the names that its weights are packed for."""

    row: _core.KernelRow
    activation: str
    packed_for: str
    best: bool  # no better instruction set serves the spec here

    def spec(self, group_size: int, **more: Any) -> QuantSpec:
        return spec_of(self.row, self.activation, group_size, **more)


def spec_of(row: _core.KernelRow, activation: str, group_size: int, **more: Any) -> QuantSpec:
    more |= {"bits": row["bits"], "codebook": row["codebook"], "activation": activation, "group_size": group_size}
    more["fast_aggregation"] = averages(row)
    if row["codebook"] == "ternary":
        more["zero_point"] = "fixed"
    return QuantSpec(**more)


def averages(row: _core.KernelRow) -> bool:
    """Whether the kernel is of the class that serves `fast_aggregation`."""
    return row["method"] == "lut_fast"


def selectable(pattern: str) -> list[_core.KernelRow]:
    return [row for row in _core.kernels() if row["runnable"] and row["selectable"] and pattern in row["name"]]


def entries(table: Table, pattern: str = "") -> Iterator[Entry]:
    """The kernels of a table whose names contain `pattern`, in the registry's order."""
    if table.chosen:
        for row in selectable(pattern):
            yield from (Entry(row, activation, row["name"], True) for activation in row["activations"])
        return
    found = prompt_entries() if table.prompt else vectorized(table.spec.get("fast_aggregation", False))
    yield from (entry for entry in found if pattern in entry.row["name"])


def vectorized(fast_aggregation: bool = False) -> list[Entry]:
    """Rows of the widths and activations that models have; the portable ones only where there is nothing else."""
    rows = [row for row in selectable("") if row["method"] != "float" and row["bits"] in BITS]
    rows = [row for row in rows if averages(row) == fast_aggregation]
    rows = [row for row in rows if row["isa"] != "scalar"] or rows
    found = [
        Entry(row, activation, row["name"], False)
        for row in rows
        for activation in row["activations"]
        if activation == "group" or (activation == "token" and row["codebook"] == "ternary")
    ]
    isas: dict[QuantSpec, str] = {}
    for entry in found:
        isas.setdefault(entry.spec(128), entry.row["isa"])
    return [replace(entry, best=isas[entry.spec(128)] == entry.row["isa"]) for entry in found]


def prompt_entries() -> Iterator[Entry]:
    """The kernel for prompts beside each that decodes; once per layout that it reads."""
    rows = {row["name"]: row for row in _core.kernels()}
    seen = set()
    for entry in vectorized():
        pairs = dict(_core.candidate_kernels(entry.spec(128)))
        prompt = pairs.get(entry.row["name"])
        if prompt is None or (prompt, entry.activation, entry.row["layout"]) in seen:
            continue
        seen.add((prompt, entry.activation, entry.row["layout"]))
        yield replace(entry, row=rows[prompt], packed_for=f"{entry.row['name']},{prompt}")
