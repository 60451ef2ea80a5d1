"""What `import tmac` loads, and what it says when something is missing."""

import os
import subprocess
import sys

import pytest

import tmac

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )


def test_import_loads_neither_torch_nor_transformers():
    result = run("import sys, tmac; print(sorted({'torch', 'transformers'} & sys.modules.keys()), tmac.__version__)")
    assert result.stdout.split() == ["[]", tmac.__version__], result.stderr


def test_a_missing_core_says_how_to_build_it():
    result = run(BLOCK.format(name="tmac._core") + "import tmac")
    assert result.returncode == 1
    assert "ImportError: tmac._core" in result.stderr
    assert "Did you forget to build it?" in result.stderr


@pytest.mark.parametrize("name", ["nn", "quant", "QuantConfig", "quantize_"])
def test_without_torch_the_extra_is_named(name):
    result = run(BLOCK.format(name="torch") + f"import tmac; tmac.QuantSpec(); tmac.{name}")
    assert f"ImportError: tmac.{name} needs torch: pip install 'tmac-cpu[torch]'" in result.stderr


@pytest.mark.parametrize("name", ["nn", "quant"])
def test_importing_a_package_without_torch_names_the_extra(name):
    result = run(BLOCK.format(name="torch") + f"import tmac.{name}")
    assert f"\nImportError: tmac.{name} needs torch: pip install 'tmac-cpu[torch]'" in result.stderr


@pytest.mark.parametrize(
    ("missing", "code", "message"),
    [
        (
            "gguf",
            "from tmac.formats.gguf_floats import can_dequantize; can_dequantize('IQ4_XS')",
            "GGUF files with IQ4_XS need the gguf package: pip install 'tmac-cpu[engine]'",
        ),
        ("torch", "import tmac.hf", "tmac.hf needs torch: pip install 'tmac-cpu[hf]'"),
        ("transformers", "import tmac.hf", "tmac.hf needs transformers: pip install 'tmac-cpu[hf]'"),
    ],
)
def test_without_a_package_of_a_reader_the_extra_is_named(missing, code, message):
    result = run(BLOCK.format(name=missing) + code)
    assert result.stderr.splitlines()[-1] == f"ImportError: {message}"


def test_every_public_name_is_there():
    for name in tmac.__all__:
        assert getattr(tmac, name) is not None
    assert set(tmac.__all__) <= set(dir(tmac))
    with pytest.raises(AttributeError, match="no attribute 'quantise_'"):
        tmac.quantise_  # noqa: B018


@pytest.mark.parametrize(
    ("variable", "value"), [("TMAC_KERNEL", "qgemm_nonsense"), ("TMAC_ISA", "mmx"), ("TMAC_CPU_FEATURES", "-avx1024")]
)
def test_an_unknown_choice_in_the_environment_is_a_value_error_at_first_use(variable, value):
    result = run("import tmac; print('imported'); tmac.kernels()", **{variable: value})
    assert result.stdout == "imported\n", result.stderr
    assert "ValueError" in result.stderr
    assert value.lstrip("-") in result.stderr


def test_kernels_and_features_describe_this_machine():
    rows = tmac.kernels()
    assert len({row["name"] for row in rows}) == len(rows)
    assert any(row["isa"] == "scalar" and row["runnable"] for row in rows)
    features = tmac.cpu_features()
    for row in rows:
        assert set(row["features"]) <= features.keys()
        assert row["runnable"] == all(features[name] for name in row["features"])


def test_number_of_threads_follows_the_request_then_torch():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    try:
        tmac.set_num_threads(3)
        assert tmac.get_num_threads() == 3
        tmac.set_num_threads(0)
        torch.set_num_threads(1)
        assert tmac.get_num_threads() == 1
    finally:
        tmac.set_num_threads(0)
        torch.set_num_threads(before)
    with pytest.raises(ValueError, match="set_num_threads"):
        tmac.set_num_threads(-1)


def test_without_torch_the_default_is_what_the_process_may_use():
    result = run("import tmac; print(tmac.get_num_threads())", OMP_NUM_THREADS="")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert 1 <= int(result.stdout) <= available
