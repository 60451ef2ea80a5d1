"""The benchmark of GPTQ runs, and its figures belong together."""

import json

import pytest

pytest.importorskip("torch")


def test_its_figures_belong_together(tmp_path, monkeypatch):
    from benchmarks import gptq

    monkeypatch.setattr(gptq, "GEMM_SIZE", 64)
    path = tmp_path / "gptq.json"
    gptq.main(["--shapes", "50x64", "--bits", "3", "--runs", "2", "--json", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert [row["zero_point"] for row in rows] == ["fixed", "offset"]
    for row in rows:
        rate = 50 * 64 * 64 / row["pass_seconds"] / 1e9
        assert row["pass_share"] == pytest.approx(rate / row["gemm_rate"], rel=1e-5)
