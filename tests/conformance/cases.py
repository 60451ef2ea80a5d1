"""Weights, activations and shapes that the conformance tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tmac import _core
from tmac.spec import QuantSpec

from . import bounds, reference
from .reference import F32, Weight

T = TypeVar("T")
Row = dict[str, Any]  # of _core.kernels()
Case = tuple[Row, str]  # a kernel and one of its modes: an activation, or "fast" for fast_aggregation
KERNELS: list[Row] = [dict(row) for row in _core.kernels()]
BUDGET = float(os.environ.get("TMAC_TEST_BUDGET", "1"))

SHAPES = [
    (1, 1),
    (1, 4),
    (2, 3),
    (3, 5),
    (15, 7),
    (16, 8),
    (17, 31),
    (31, 32),
    (32, 33),
    (33, 64),
    (47, 100),
    (5, 127),
    (64, 128),
    (65, 129),
    (20, 130),
    (19, 200),
    (9, 257),
    (48, 384),
    (130, 300),
    (70, 520),
]
GROUP_SIZES = [32, 64, 128, 16, -1, 5, 50, 100, 130, 200, 1]
TOKENS = [0, 1, 2, 3, 5, 8, 9, 17]


@dataclass(frozen=True)
class ZeroKind:
    """One kind of zero point, and the element types that a file may hold for it; two-level scales have their own."""

    name: str
    zero_point: str
    fixed_zero: float | None
    dtype: type[np.generic] | None
    two_level: bool = False


ZERO_KINDS = [
    ZeroKind("centre", "fixed", None, None),
    ZeroKind("half", "fixed", -0.5, None),  # fixed_zero = 2^(bits-1) + this
    ZeroKind("two_level", "fixed", None, None, two_level=True),
    ZeroKind("odd", "fixed", 0.8125, None),
    ZeroKind("integer", "integer", None, np.uint8),
    ZeroKind("real_f16", "real", None, np.float16),
    ZeroKind("real_f32", "real", None, np.float32),
    ZeroKind("offset_f16", "offset", None, np.float16),
    ZeroKind("two_level_offset", "offset", None, np.int8, two_level=True),
    ZeroKind("offset_f32", "offset", None, np.float32),
]


def zero_kinds(codebook: str) -> list[ZeroKind]:
    return [kind for kind in ZERO_KINDS if codebook == "uniform" or kind.zero_point == "fixed"]


SCALE_FORMATS = {"f16": np.float16, "f32": np.float32, "two_level": np.int8}


def modes_of(row: Row) -> list[str]:
    """The modes in which a kernel serves specs."""
    return ["fast"] if row["method"] == "lut_fast" else list(row["activations"])


def make_spec(
    bits: int, codebook: str, mode: str, group_size: int, kind: ZeroKind, scale_format: str = "f16"
) -> QuantSpec:
    if kind.two_level:  # has groups of 16 or 32 only
        scale_format, group_size = "two_level", 32 if group_size % 32 == 0 else 16
    fixed = None if kind.fixed_zero is None else 2.0 ** (bits - 1) + kind.fixed_zero
    return QuantSpec(
        bits=bits,
        group_size=group_size,
        codebook=codebook,  # type: ignore[arg-type]
        zero_point=kind.zero_point,  # type: ignore[arg-type]
        fixed_zero=fixed,
        activation="group" if mode == "fast" else mode,  # type: ignore[arg-type]
        scale_format=scale_format,  # type: ignore[arg-type]
        fast_aggregation=mode == "fast",
    )


def make_weight(
    rng: np.random.Generator, spec: QuantSpec, n: int, k: int, zero_dtype: Any = None, method: Any = None
) -> Weight:
    """Codes over the whole range, scales of both signs, zeros around the middle, for a kernel of `method`."""
    groups = spec.num_groups(k)
    top = 3 if spec.codebook == "ternary" else 2**spec.bits
    codes = rng.integers(0, top, (n, k), dtype=np.uint8)
    if spec.scale_format == "two_level":
        return Weight(spec, codes, *two_level_values(rng, spec, n, k, method))
    scales = rng.uniform(0.01, 0.1, (n, groups)) * rng.choice([-1, 1], (n, groups))
    scales = scales.astype(SCALE_FORMATS[spec.scale_format])
    if spec.zero_point == "fixed":
        return Weight(spec, codes, scales, None, method)
    if spec.zero_point == "offset":
        return Weight(spec, codes, scales, rng.normal(0, 0.3, (n, groups)).astype(zero_dtype), method)
    zeros = rng.uniform(0, top - 1, (n, groups))
    return Weight(spec, codes, scales, (np.rint(zeros) if zero_dtype is np.uint8 else zeros).astype(zero_dtype), method)


def two_level_values(rng: np.random.Generator, spec: QuantSpec, n: int, k: int, method: Any) -> tuple[Any, ...]:
    """The fields of a Weight after its codes: sub-values over the whole range, super values of both signs."""
    scales, offsets = rng.integers(-128, 128, (2, n, spec.num_groups(k)), dtype=np.int8)
    magnitudes = rng.uniform(0.0001, 0.001, (2, n, spec.num_super_groups(k)))
    super_scales, super_offsets = (magnitudes * rng.choice([-1, 1], magnitudes.shape)).astype(np.float16)
    if spec.zero_point == "fixed":
        return scales, None, method, super_scales, None
    return scales, offsets, method, super_scales, super_offsets


def first_rows(weight: Weight, count: int) -> Weight:
    names = ("codes", "scales", "zeros", "super_scales", "super_offsets")
    arrays = {name: getattr(weight, name) for name in names}
    return replace(weight, **{name: array[:count].copy() for name, array in arrays.items() if array is not None})


def make_activations(rng: np.random.Generator, m: int, k: int) -> F32:
    """Normal numbers with outliers and runs of zeros, as in a language model."""
    x = rng.normal(0, 1, (m, k))
    x *= np.where(rng.random((m, k)) < 0.01, 30, 1)
    x[rng.random((m, k)) < 0.02] = 0
    return x.astype(np.float32)


def pack(
    weight: Weight, kernel: str = "", num_threads: int = 1, perm: NDArray[np.int32] | None = None
) -> _core.PackedWeight:
    planes = _core.codes_to_planes(np.ascontiguousarray(weight.codes), weight.spec.bits)
    return _core.pack(
        weight.spec,
        planes,
        weight.codes.shape[1],
        weight.scales,
        weight.zeros,
        perm,
        kernel=kernel,
        num_threads=num_threads,
        super_scales=weight.super_scales,
        super_offsets=weight.super_offsets,
    )


def linear(x: F32, packed: _core.PackedWeight, bias: F32 | None = None, num_threads: int = 1) -> F32:
    return _core.linear(np.ascontiguousarray(x), packed.buffer(), bias, num_threads)


def scalar_twin(row: Row, mode: str) -> str:
    """The scalar kernel of the same numerics class."""
    for other in KERNELS:
        if (
            other["isa"] == "scalar"
            and mode in modes_of(other)
            and all(other[key] == row[key] for key in ("method", "bits", "codebook"))
        ):
            return other["name"]
    raise LookupError(f"no scalar kernel for the class of {row['name']}")


def sample(items: Iterable[T], count: int, seed: int) -> list[T]:
    """At most `count` items (TMAC_TEST_BUDGET times as many), the same ones in every run."""
    pool: Sequence[T] = list(items)
    count = min(len(pool), max(1, round(count * BUDGET)))
    chosen = np.random.default_rng(seed).permutation(len(pool))[:count]
    return [pool[at] for at in sorted(chosen)]


def kernel_cases() -> Iterator[Case]:
    """Every kernel with every mode that it declares."""
    for row in KERNELS:
        for mode in modes_of(row):
            yield row, mode


def same_bits(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Equal bit for bit; any NaN equals any NaN."""
    return a.shape == b.shape and bool(((a.view(np.uint32) == b.view(np.uint32)) | (np.isnan(a) & np.isnan(b))).all())


def need(row: Row) -> None:
    """Skips the test, with the reason, where this CPU or the environment keeps the kernel from running."""
    if not row["runnable"]:
        have = _core.cpu_features()
        missing = [name for name in row["features"] if not have.get(name, False)]
        pytest.skip(f"{row['name']}: this CPU lacks {', '.join(missing) or row['isa']}")
    if not row["selectable"]:
        pytest.skip(f"{row['name']}: excluded by TMAC_ISA or TMAC_KERNEL")


def case_id(case: Case) -> str:
    return f"{case[0]['name']}-{case[1]}"


def some_kernels(keep: Callable[[Case], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [case for case in kernel_cases() if keep(case)], ids=case_id)


each_kernel = some_kernels(lambda case: True)


def check_kernel(name: str, weight: Weight, x: F32, bias: F32 | None = None) -> None:
    """The kernel's result has the reference's bits and lies in the bound."""
    packed = pack(weight, name)
    assert packed.kernel == name
    got, want = linear(x, packed, bias), reference.linear(x, weight, bias)
    about = f"{name} {weight.spec} n={weight.codes.shape[0]} k={x.shape[1]} scales={weight.scales.dtype}"
    wrong = np.argwhere(~((got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))))
    assert same_bits(got, want), (
        f"{about}: {len(wrong)} of {got.size} differ, first {wrong[0]}: "
        f"{got[tuple(wrong[0])]!r} for {want[tuple(wrong[0])]!r}"
    )
    worst = bounds.ratio(got, reference.exact(x, weight, bias), bounds.bound(x, weight, bias)).max(initial=0)
    assert worst <= 1, f"{about}: {worst} of the bound"


def run_child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own, which finds this package and has only these TMAC_ variables."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TMAC_")}
    paths = [str(Path(__file__).resolve().parents[__name__.count(".")]), os.environ.get("PYTHONPATH", "")]
    inherited["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
