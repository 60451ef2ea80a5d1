import json
import platform
import sys

import pytest

import tmac
from tmac import _core


def test_text(tmac_command):
    done = tmac_command("info")
    assert done.returncode == 0
    assert done.stderr == ""
    assert _core.cpu_model() in done.stdout
    assert platform.python_version() in done.stdout
    assert ("own workers" if sys.platform == "linux" else "OpenMP") in done.stdout
    for row in tmac.kernels():
        assert row["name"] in done.stdout


def test_json(tmac_command):
    facts = json.loads(tmac_command("info", "--json", TMAC_ISA="scalar").stdout)
    assert facts["version"] == tmac.__version__
    assert facts["features"] == tmac.cpu_features()
    assert facts["overrides"] == {"TMAC_ISA": "scalar", "TMAC_TUNING": "off"}
    assert facts["threads"] >= 1
    assert facts["thread_backend"] == ("own" if sys.platform == "linux" else "openmp")
    assert {row["name"] for row in facts["kernels"]} == {row["name"] for row in tmac.kernels()}
    assert all(row["selectable"] == (row["isa"] == "scalar") for row in facts["kernels"])
    assert set(facts["selected"]) == {"ternary", *map(str, range(1, 9))}
    assert all(name.endswith("_scalar") for name in facts["selected"].values())
    assert facts["packages"]["numpy"]


def test_one_kernel_forced(tmac_command):
    facts = json.loads(tmac_command("info", "--json", TMAC_KERNEL="qgemm_lut_w2_scalar").stdout)
    assert facts["selected"]["2"] == "qgemm_lut_w2_scalar"


@pytest.mark.parametrize("command", ["info", "demo"])
@pytest.mark.parametrize("variable", ["TMAC_ISA", "TMAC_KERNEL", "TMAC_CPU_FEATURES", "TMAC_TUNING"])
def test_a_wrong_override_is_one_line(tmac_command, tiny_gguf, command, variable):
    done = tmac_command(command, TMAC_DEMO_MODEL=tiny_gguf, **{variable: "-nonsense"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert variable in done.stderr
    assert "nonsense" in done.stderr


def test_a_file_with_types_that_have_no_exact_form_is_described(tmac_command, fixtures_dir):
    path = fixtures_dir / "gguf" / "pyquant.gguf"
    facts = json.loads(tmac_command("info", str(path), "--json").stdout)
    assert facts["inexact_types"] == ["MXFP4"]
    assert "tmac convert --requantize MXFP4" in tmac_command("info", str(path)).stdout
