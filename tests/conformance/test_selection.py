"""TMAC_ISA, TMAC_KERNEL, TMAC_METHOD and TMAC_CPU_FEATURES select what they say, in processes of their own, and
change no bit of a numerics class."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

import numpy as np
import pytest

from tmac import _core

from .cases import KERNELS, ZERO_KINDS, Row, make_spec, modes_of, run_child

# Prints what is selected for every width and codebook, a digest of each result, and every kernel's standing.
CHILD = """
import hashlib, json
import numpy as np
from tmac import _core
from {package} import cases
report = {{"selected": {{}}, "digests": {{}}, "features": _core.cpu_features()}}
report["kernels"] = {{row["name"]: [row["runnable"], row["selectable"]] for row in _core.kernels()}}
for bits, codebook, activation in {specs!r}:
    spec = cases.make_spec(bits, codebook, activation, 48, cases.ZERO_KINDS[0])
    key = f"{{bits}} {{codebook}} {{activation}}"
    try:
        report["selected"][key] = _core.select_kernel(spec)
    except _core.UnsupportedSpecError as error:
        report["selected"][key] = f"UnsupportedSpecError: {{error}}"
        continue
    rng = np.random.default_rng(bits)
    packed = cases.pack(cases.make_weight(rng, spec, 37, 203))
    assert packed.kernel == report["selected"][key]
    y = _core.linear(cases.make_activations(rng, 3, 203), packed.buffer())
    report["digests"][key] = hashlib.sha256(y.tobytes()).hexdigest()
print(json.dumps(report))
"""
SPECS = [
    *((bits, "uniform", "group") for bits in range(1, 9)),
    (2, "ternary", "group"),
    (2, "ternary", "token"),
    (4, "uniform", "token"),
    (2, "uniform", "fast"),
    (3, "uniform", "fast"),
    (2, "ternary", "fast"),
    (4, "uniform", "float"),
]
ISAS = sorted({row["isa"] for row in KERNELS})
METHODS = ["lut", "mad"]
FEATURES = sorted({feature for row in KERNELS for feature in row["features"]})


METHODS = ["lut", "mad"]  # the numerics classes: which one is the faster differs between instruction sets


@functools.cache
def report(isa: str = "", features: str = "", kernels: str = "", method: str = "") -> dict[str, Any]:
    values = {"TMAC_ISA": isa, "TMAC_CPU_FEATURES": features, "TMAC_KERNEL": kernels, "TMAC_METHOD": method}
    child = run_child(CHILD.format(package=__package__, specs=SPECS), **{k: v for k, v in values.items() if v})
    assert child.returncode == 0, child.stderr
    result: dict[str, Any] = json.loads(child.stdout)
    return result


def serving(row: Row, spec: tuple[int, str, str]) -> bool:
    return (row["bits"], row["codebook"]) == spec[:2] and spec[2] in modes_of(row)


def key_of(spec: tuple[int, str, str]) -> str:
    return " ".join(map(str, spec))


def runnable(isa: str) -> list[str]:
    """Names of the kernels of `isa` that this CPU can run when nothing is hidden."""
    standing = report()["kernels"]
    return [row["name"] for row in KERNELS if row["isa"] == isa and standing[row["name"]][0]]


@pytest.mark.parametrize("isa", ISAS)
def test_isa_selects_its_kernels_only(isa: str) -> None:
    names = runnable(isa)
    if not names:
        pytest.skip(f"this CPU runs no {isa} kernel")
    forced = report(isa=isa)
    for spec in SPECS:
        chosen = forced["selected"][key_of(spec)]
        if spec[2] == "float":  # the exact path is portable code under every TMAC_ISA
            assert chosen.startswith("qgemm_float_")
        elif any(serving(row, spec) and row["name"] in names for row in KERNELS):
            assert chosen in names
        else:
            assert chosen.startswith("UnsupportedSpecError: ")
            assert isa in chosen
    exact = {row["name"] for row in KERNELS if row["method"] == "float"}
    assert {name for name, (_, selectable) in forced["kernels"].items() if selectable} == set(names) | exact


def test_scalar_serves_every_spec() -> None:
    assert all(name.endswith("_scalar") for name in report(isa="scalar")["selected"].values())


@pytest.mark.parametrize("feature", FEATURES)
def test_hidden_features_take_their_kernels_away(feature: str) -> None:
    if not report()["features"][feature]:
        pytest.skip(f"this CPU lacks {feature}")
    hidden = report(features=f"-{feature}")
    assert not hidden["features"][feature]
    for row in KERNELS:
        may_run = report()["kernels"][row["name"]][0] and feature not in row["features"]
        assert hidden["kernels"][row["name"]][0] == may_run, row["name"]
    chosen = set(hidden["selected"].values())
    assert not any(row["name"] in chosen for row in KERNELS if feature in row["features"])
    for method in METHODS:
        assert report(features=f"-{feature}", method=method)["digests"] == report(method=method)["digests"]


def test_hiding_everything_leaves_scalar() -> None:
    everything = ",".join(f"-{feature}" for feature in _core.cpu_features())
    hidden = report(features=everything)
    assert not any(hidden["features"].values())
    assert all(name.endswith("_scalar") for name in hidden["selected"].values())
    for method in METHODS:
        assert report(features=everything, method=method)["digests"] == report(method=method)["digests"]


def test_kernel_list_binds_the_specs_that_each_name_serves() -> None:
    other = next((name for name in runnable("avx2") if "_lut_w4_" in name), "qgemm_lut_w4_scalar")
    bound = report(kernels=f"qgemm_lut_w2_scalar,{other}")
    assert bound["selected"]["2 uniform group"] == "qgemm_lut_w2_scalar"
    assert bound["selected"]["4 uniform group"] == other
    for key in ("1 uniform group", "3 uniform group", "8 uniform group", "2 ternary group"):
        assert bound["selected"][key] == report()["selected"][key]
    pinned = report(kernels=f"qgemm_lut_w2_scalar,{other}", method="lut")
    assert pinned["selected"]["4 uniform group"] == other
    assert pinned["digests"] == report(method="lut")["digests"]


@pytest.mark.parametrize("method", METHODS)
def test_method_pins_the_specs_that_have_it(method: str) -> None:
    pinned = report(method=method)["selected"]
    for spec in SPECS:
        if any(row["method"] == method and serving(row, spec) for row in KERNELS):
            assert pinned[key_of(spec)].startswith(f"qgemm_{method}_"), spec
        else:
            assert pinned[key_of(spec)] == report()["selected"][key_of(spec)]
    assert pinned["4 uniform group"].startswith(f"qgemm_{method}_")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("isa", ISAS)
def test_isa_changes_no_bit_of_a_method(isa: str, method: str) -> None:
    """What they do not serve together is refused; what they serve has the bits of every other instruction set."""
    if not runnable(isa):
        pytest.skip(f"this CPU runs no {isa} kernel")
    scalar, forced = report(isa="scalar", method=method), report(isa=isa, method=method)
    for spec in SPECS:
        key = key_of(spec)
        if key in forced["digests"]:
            assert forced["digests"][key] == scalar["digests"][key]
        else:
            assert forced["selected"][key].startswith("UnsupportedSpecError: ")
            assert f"TMAC_ISA={isa}" in forced["selected"][key]
            assert f"TMAC_METHOD={method}" in forced["selected"][key]
    assert "8 uniform group" in forced["digests"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TMAC_METHOD", "gemm"),
        ("TMAC_METHOD", "lut,mad"),
        ("TMAC_ISA", "avx9"),
        ("TMAC_ISA", "AVX2"),
        ("TMAC_ISA", "scalar,avx2"),
        ("TMAC_ISA", "neon"),
        ("TMAC_KERNEL", "qgemm_lut_w2"),
        ("TMAC_KERNEL", "qgemm_lut_w2_scalar;qgemm_lut_w3_scalar"),
        ("TMAC_KERNEL", "qgemm_lut_w2_scalar,nonsense"),
        ("TMAC_CPU_FEATURES", "avx2"),
        ("TMAC_CPU_FEATURES", "+avx2"),
        ("TMAC_CPU_FEATURES", "-avx512"),
        ("TMAC_CPU_FEATURES", "-avx2;-fma"),
        ("TMAC_CPU_FEATURES", "-avx2,-nonsense"),
    ],
)
def test_unknown_names_are_errors(variable: str, value: str) -> None:
    if variable == "TMAC_ISA" and value in ISAS and runnable(value):
        pytest.skip(f"this CPU runs {value} kernels")
    child = run_child("from tmac import _core; _core.kernels()", **{variable: value})
    assert child.returncode != 0
    assert f"ValueError: [{variable}]" in child.stderr, child.stderr
    assert re.split("[,;]", value)[-1] in child.stderr, child.stderr


def test_forcing_a_kernel_that_cannot_run_is_an_error() -> None:
    rows = [row for row in KERNELS if row["features"] and row["name"] in runnable(row["isa"])]
    if not rows:
        pytest.skip("this CPU runs only kernels without features")
    row = rows[0]
    child = run_child(
        "from tmac import _core; _core.kernels()", TMAC_KERNEL=row["name"], TMAC_CPU_FEATURES=f"-{row['features'][0]}"
    )
    assert child.returncode != 0
    assert "ValueError" in child.stderr
    assert row["name"] in child.stderr


def test_an_unknown_kernel_argument_is_an_error() -> None:
    spec = make_spec(2, "uniform", "group", 32, ZERO_KINDS[0])
    planes = _core.codes_to_planes(np.zeros((4, 64), np.uint8), 2)
    scales = np.ones((4, 2), np.float16)
    with pytest.raises(ValueError, match="nonsense"):
        _core.pack(spec, planes, 64, scales, kernel="nonsense")
    with pytest.raises((ValueError, _core.UnsupportedSpecError), match="qgemm_lut_w4_scalar"):
        _core.pack(spec, planes, 64, scales, kernel="qgemm_lut_w4_scalar")
