"""The benchmarks run and say what they claim, at sizes where no time means anything."""

import json

import numpy as np
import pytest

from tmac import _core


@pytest.fixture
def small_run(run_benchmark, tmp_path):
    """Rows of the JSON file and the lines that were printed."""

    def run(*arguments):
        path = tmp_path / "rows.json"
        result = run_benchmark("benchmarks.kernels", "--shapes", "64x128", "--runs", 7, "--json", path, *arguments)
        assert result.returncode == 0, result.stderr
        report = json.loads(path.read_text())
        assert report["machine"]["features"] == [name for name, present in _core.cpu_features().items() if present]
        assert report["command"][:3] == ["python", "-m", "benchmarks.kernels"]
        return report["rows"], result.stdout.splitlines()

    return run


def test_every_kernel_has_a_row_per_m(small_run):
    rows, lines = small_run("--cached", "--m", 1, 3)
    want = [
        (row["name"], activation, m)
        for row in _core.kernels()
        if row["runnable"] and row["selectable"]
        for activation in row["activations"]
        for m in (1, 3)
    ]
    assert [(row["kernel"], row["activation"], row["m"]) for row in rows] == want
    assert len(lines) == 3 + len(want)
    assert all(row["cached"] and row["layers"] == 1 for row in rows)


def test_a_row_is_consistent(small_run):
    rows, _ = small_run("--cached", "--m", 2, "--threads", 1, 2, "--kernels", "w8_")
    assert {row["threads"] for row in rows} == {1, 2}
    for row in rows:
        assert row["bytes"] == 64 * 128 + 2 * 64
        for times in (row["time"], row["limits"]["read_time"], row["prepare"]):
            assert 0 < times["min_us"] <= times["median_us"] <= times["max_us"]
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["time"]["median_us"] / 1e3, abs=0.01)
        assert row["gops"] == pytest.approx(2 * 2 * 64 * 128 / row["time"]["median_us"] / 1e3, abs=0.1)
        assert row["error"]["nmse"] == pytest.approx(row["error"]["relative_l2"] ** 2)
        assert 0 < row["outlier_error"]["nmse"] < 1e-2
        assert (row["limits"]["peak_gops"] is None) == ("_float_" in row["kernel"])
        assert row["limits"]["limit_us"] >= row["limits"]["read_time"]["min_us"] - 0.01
        assert row["cost_unit"] in ("J", "core-s")


def test_weights_are_cycled_and_layers_chained(small_run):
    rows, lines = small_run("--shapes", "512x1024", "--kernels", "lut_w4_scalar", "--chain", 3)
    assert [(row["cached"], row["layers"]) for row in rows] == [(False, 3)]
    assert rows[0]["prepared"] == ("once" if hasattr(_core, "linear_shared") else "per layer")
    assert "512 MiB" in lines[1]
    assert "3 layers a call" in lines[1]


@pytest.mark.parametrize("arguments", [("--runs", 6), ("--m", 0), ("--threads", 0), ("--chain", 0)])
def test_options_that_measure_nothing_are_refused(run_benchmark, arguments):
    result = run_benchmark("benchmarks.kernels", *arguments)
    assert result.returncode == 2
    assert "at least" in result.stderr


def first_kernel():
    return next(row for row in _core.kernels() if row["selectable"] and row["method"] == "lut")


def weights_of(row):
    from benchmarks.weights import Weights
    from tmac.spec import QuantSpec

    spec = QuantSpec(bits=row["bits"], codebook=row["codebook"], group_size=128)
    return Weights(spec, 64, 128, row["name"], cached=True)


def test_a_wrong_answer_is_not_timed(monkeypatch):
    from benchmarks import kernels
    from benchmarks.weights import gaussian

    row, x = first_kernel(), gaussian(2, 128)
    kernels.checked_errors(row, "group", weights_of(row), x)
    right = _core.linear
    monkeypatch.setattr(_core, "linear", lambda *arguments: right(*arguments) * 1.1)
    with pytest.raises(SystemExit, match="is no rounding"):
        kernels.checked_errors(row, "group", weights_of(row), x)


def test_other_bits_than_the_scalar_kernel_s_are_not_timed(monkeypatch):
    from benchmarks import kernels
    from benchmarks.weights import gaussian

    row = next(
        (row for row in _core.kernels() if row["selectable"] and row["method"] == "lut" and row["isa"] != "scalar"),
        None,
    )
    if row is None:
        pytest.skip("this CPU has the scalar kernels only")
    weights, x = weights_of(row), gaussian(2, 128)
    right = _core.linear

    def one_bit_off(values, buffer, *rest):
        result = right(values, buffer, *rest)
        if buffer is weights.buffers[0]:
            result[-1, -1] = np.nextafter(result[-1, -1], np.float32(np.inf))
        return result

    monkeypatch.setattr(_core, "linear", one_bit_off)
    with pytest.raises(SystemExit, match="the bits are not those of"):
        kernels.checked_errors(row, "group", weights, x)


def test_outliers_are_one_percent_of_the_channels():
    from benchmarks.weights import gaussian, with_outliers

    x = gaussian(3, 1000)
    ratio = with_outliers(x) / x
    assert (np.isclose(ratio, 100).sum(axis=1) == 10).all()
    assert ((ratio == 1).sum(axis=1) == 990).all()


def test_the_error_is_relative_to_the_exact_product():
    from benchmarks.weights import Error

    error = Error.of(np.array([3.0, 4.4]), np.array([3.0, 4.0]))
    assert error.relative_l2 == pytest.approx(0.08)
    assert error.nmse == pytest.approx(0.0064)


def test_the_preparation_can_be_timed_alone():
    from benchmarks.weights import gaussian

    buffer = weights_of(first_kernel()).buffers[0]
    assert 0 < _core.prepare_seconds(gaussian(3, 128), buffer, 5, 1) < 1
    with pytest.raises(ValueError, match="in_features=64"):
        _core.prepare_seconds(gaussian(3, 64), buffer, 5)
    with pytest.raises(ValueError, match="nothing to time"):
        _core.prepare_seconds(gaussian(3, 128), buffer, 0)
    with pytest.raises(ValueError, match="nothing to time"):
        _core.prepare_seconds(np.empty((0, 128), np.float32), buffer, 1)


def test_dot_peak_names_what_it_cannot_run():
    assert _core.dot_peak("scalar", 1) > 0
    with pytest.raises(ValueError, match="'mmx'"):
        _core.dot_peak("mmx")
    with pytest.raises(ValueError, match="num_threads"):
        _core.dot_peak("scalar", -1)
