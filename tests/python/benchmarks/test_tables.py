"""The tables that `python -m benchmarks.kernels` measures by itself."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tmac import _core


def names(table):
    from benchmarks.tables import entries

    return [entry.row["name"] for entry in entries(table)]


def best_isa():
    return next(row["isa"] for row in _core.kernels() if row["selectable"] and row["method"] != "float")


def test_every_vectorized_kernel_of_the_usual_widths_is_in_a_table():
    from benchmarks.tables import BITS, TABLES

    want = {
        row["name"]
        for row in _core.kernels()
        if row["selectable"] and row["method"] != "float" and row["isa"] == best_isa() and row["bits"] in BITS
    }
    assert want <= {name for table in TABLES for name in names(table)}


def test_averages_have_a_table_of_their_own():
    from benchmarks.tables import TABLES

    for table in TABLES:
        fast = table.spec.get("fast_aggregation", False)
        assert table.name == "fast_aggregation" or not fast
        assert all(("_lut_fast_" in name) == fast for name in names(table))


def test_quick_is_a_part_of_the_tables():
    from benchmarks.tables import QUICK, TABLES

    for quick, full in zip(QUICK, TABLES, strict=True):
        assert (quick.name, quick.cached, quick.prompt) == (full.name, full.cached, full.prompt)
        for axis in ("shapes", "group_sizes", "m", "threads"):
            assert set(getattr(quick, axis)) <= set(getattr(full, axis))


def test_a_prompt_is_taken_by_the_kernel_that_is_timed():
    from benchmarks.tables import Table, entries
    from benchmarks.weights import Weights

    found = list(entries(Table("prompt", prompt=True)))
    assert found
    for entry in found:
        weights = Weights(entry.spec(128), 32, 256, entry.packed_for, streamed_bytes=0)
        assert weights.prompt_kernel == entry.row["name"]
        assert entry.packed_for.startswith(weights.kernel)
    described = [(entry.activation, entry.row["name"], entry.packed_for.split(",")[0]) for entry in found]
    assert len(set(described)) == len(described)


def test_only_the_best_instruction_set_runs_on_every_number_of_threads():
    from benchmarks.tables import Table, entries

    for entry in entries(Table("decode")):
        better = [
            other
            for other in entries(Table("decode"))
            if other.spec(128) == entry.spec(128) and other.row["isa"] != entry.row["isa"] and other.best
        ]
        assert entry.best == (not better)


def test_small_weights_are_chained_where_threads_share_them():
    from benchmarks.tables import Table

    table = Table("decode", layers=4)
    assert table.layers_of(4 << 20, 2) == 4
    assert table.layers_of(4 << 20, 1) == 1
    assert table.layers_of(9 << 20, 2) == 1
    assert replace(table, chosen=True).layers_of(9 << 20, 1) == 4


@pytest.fixture
def small_tables(monkeypatch):
    """Every table, on a matrix that takes no time, of at most two widths."""
    from benchmarks import kernels

    tables = [
        replace(table, shapes=((64, 256),), group_sizes=table.group_sizes[:1], m=table.m[-1:])
        for table in kernels.TABLES
    ]
    monkeypatch.setattr(kernels, "TABLES", tuple(tables))
    monkeypatch.setattr(kernels, "STREAMED_BYTES", 1 << 16)
    return tables


def test_without_options_every_table_is_measured(small_tables, tmp_path, capsys):
    from benchmarks import kernels

    path = tmp_path / "rows.json"
    assert kernels.main(["--runs", "7", "--kernels", "w2", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["command"] == [
        "python",
        "-m",
        "benchmarks.kernels",
        "--runs",
        "7",
        "--kernels",
        "w2",
        "--json",
        path.name,
    ]
    for table in small_tables:
        rows = [row for row in report["rows"] if row["table"] == table.name]
        assert [row["kernel"] for row in rows if row["threads"] == table.threads[0]] == [
            name for name in names(table) if "w2" in name
        ]
        assert {row["m"] for row in rows} == set(table.m)
        assert {row["cached"] for row in rows} == {table.cached}
        # Gaussian activations and those with outliers, for act groups of at most 128 columns.
        worst = 10 if table.spec.get("fast_aggregation") else 1
        assert all(0 < row["error"]["nmse"] <= worst * 1e-4 for row in rows)
        assert all(row["outlier_error"]["nmse"] <= worst * 1e-3 for row in rows)
    assert capsys.readouterr().out.count(": weights cycled over") == 4


def test_one_table_can_be_asked_for(small_tables, capsys):
    from benchmarks import kernels

    assert kernels.main(["--runs", "7", "--kernels", "lut_w1", "--tables", "cached"]) == 0
    out = capsys.readouterr().out
    assert "cached: same weight again" in out
    assert "decode:" not in out


def test_further_arguments_of_the_spec_reach_the_weights(small_tables):
    from benchmarks import kernels

    table = replace(small_tables[1], spec={"zero_point": "offset"})
    rows = list(kernels.bench_table(table, "lut_w2", 7))
    assert rows
    assert {(row.zero_point, row.spec["zero_point"]) for row in rows} == {("offset", "offset")}
    assert "zero_point=offset" in str(rows[0])


def test_a_report_is_json_with_a_line_per_row():
    from benchmarks.report import report_text
    from benchmarks.weights import Error

    text = report_text({"machine": {"cpus": 2}, "command": ["a"]}, [Error(1 / 3, 1 / 9), Error(0.5, 0.25)])
    report = json.loads(text)
    assert report["machine"] == {"cpus": 2}
    assert report["rows"][1] == {"relative_l2": 0.5, "nmse": 0.25}
    np.testing.assert_allclose(report["rows"][0]["nmse"], 1 / 9, rtol=1e-7)
    assert sum("nmse" in line for line in text.splitlines()) == 2


def test_the_command_names_no_folder_of_the_machine(tmp_path):
    from benchmarks.report import command

    assert command("m", ["--json", str(tmp_path / "a.json"), "--shapes", "4x4"])[3:] == [
        "--json",
        "a.json",
        "--shapes",
        "4x4",
    ]
