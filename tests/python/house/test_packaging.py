"""The installed package: what it needs, what it holds, and what it shares with torch."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tmac

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and ELF")


def python(code):
    """Runs code in a fresh interpreter and returns what it prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_needs_neither_torch_nor_transformers():
    code = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; import tmac; print(tmac.kernels())"
    assert "scalar" in python(code)


def test_importing_does_not_import_torch():
    code = "import sys, tmac; print(sorted({'torch', 'transformers', 'matplotlib', 'rich'} & set(sys.modules)))"
    assert python(code).strip() == "[]"


@LINUX
@pytest.mark.parametrize("order", ["torch, tmac", "tmac, torch"])
def test_a_process_has_one_openmp_runtime(order):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("needs the extra tmac-cpu[torch]")
    code = (
        f"import {order}\nimport re\ntorch.ones(64, 64) @ torch.ones(64, 64)\ntmac.kernels()\n"
        "print(*sorted(set(re.findall(r'/\\S*lib[gi]?omp\\d*[-.]\\S*', open('/proc/self/maps').read()))))"
    )
    assert len(python(code).split()) == 1


@LINUX
def test_the_extension_needs_libgomp_by_its_plain_name(require_tool):
    readelf = require_tool("readelf", package="binutils")
    dynamic = subprocess.run([readelf, "-d", tmac._core.__file__], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert "libgomp.so.1" in needed
    assert not [name for name in needed if "torch" in name]
    assert not list(Path(tmac._core.__file__).parent.rglob("libgomp*"))


@LINUX
def test_the_extension_stays_in_memory_for_its_workers(require_tool):
    readelf = require_tool("readelf", package="binutils")
    dynamic = subprocess.run([readelf, "-d", tmac._core.__file__], capture_output=True, text=True, check=True).stdout
    assert re.search(r"\(FLAGS_1\).*\bNODELETE\b", dynamic)


def test_the_typing_files_stand_beside_the_package():
    folder = Path(tmac.__file__).parent
    assert (folder / "py.typed").is_file()
    assert (folder / "_core.pyi").is_file()


def test_the_version_is_the_distribution_s():
    assert tmac.__version__ == importlib.metadata.version("tmac-cpu")


def test_the_extras_keep_torch_out_of_the_base():
    requirements = importlib.metadata.requires("tmac-cpu")
    base = {re.split(r"[<>=~! ]", requirement)[0] for requirement in requirements if "extra ==" not in requirement}
    assert base == {"numpy", "safetensors"}
    extras = set(importlib.metadata.metadata("tmac-cpu").get_all("Provides-Extra"))
    assert {"torch", "hf", "engine", "demo", "test", "dev"} <= extras


def test_building_needs_no_torch(repository):
    requires = re.search(r"requires = \[(.*?)\]", (repository / "pyproject.toml").read_text(), re.DOTALL)[1]
    assert "torch" not in requires


def test_the_stub_names_what_the_extension_has(repository):
    stub = (repository / "tmac" / "_core.pyi").read_text(encoding="utf-8")
    names = set(re.findall(r"^(?:def|class) (\w+)", stub, re.MULTILINE)) - {"KernelRow"}
    assert names - set(dir(tmac._core)) == set()
