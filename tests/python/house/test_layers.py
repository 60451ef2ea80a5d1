"""Arrows between layers point down only, and a few other rules that hold for every file of a folder."""

import re

import pytest
from layers import (
    cpp_spec_parameters,
    cpp_violations,
    kernel_words,
    py_spec_parameters,
    py_violations,
    without_comments,
)


def read(root, folder, *suffixes):
    """{path relative to root/folder: text} of the files with one of the suffixes."""
    base = root / folder
    return {
        path.relative_to(base).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(base.rglob("*"))
        if path.suffix in suffixes
    }


@pytest.fixture(scope="module")
def csrc(repository):
    return read(repository, "csrc", ".h", ".cpp")


@pytest.fixture(scope="module")
def package(repository):
    return read(repository, "tmac", ".py")


def test_every_include_points_down(csrc):
    assert csrc
    assert cpp_violations(csrc) == []


def test_every_import_points_down(package):
    assert package
    assert py_violations(package) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("core/half.h", '#include "layout/bitplane.h"'),
        ("core/half.h", "#include <omp.h>"),
        ("layout/bitplane.cpp", "#include <thread>"),
        ("layout/bitplane.cpp", '#include "core/thread_pool.h"'),
        ("kernels/kernel.h", '#include "kernels/registry.h"'),
        ("kernels/avx2/qgemm_lut.cpp", "#include <vector>"),
        ("kernels/avx2/qgemm_lut.cpp", '#include "kernels/avx512/simd.h"'),
        ("kernels/avx2/qgemm_lut.cpp", '#include "core/check.h"'),
        ("kernels/registry.cpp", '#include "ops/linear.h"'),
        ("ops/linear.cpp", '#include "runtime/model.h"'),
        ("ops/linear.cpp", '#include "kernels/avx2/simd.h"'),
        ("ops/linear.cpp", '#include "core/worker_pool.h"'),
        ("ops/linear.cpp", "  #  include <pybind11/pybind11.h>"),
        ("runtime/model.cpp", '#include "bindings/arrays.h"'),
        ("bindings/module.cpp", "#include <torch/extension.h>"),
        ("utilities/strings.h", ""),
    ],
)
def test_a_wrong_include_is_found(path, text):
    assert len(cpp_violations({path: text})) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("core/thread_pool.cpp", '#include <omp.h>\n#include "core/worker_pool.h"'),
        ("core/half.h", '// #include "layout/bitplane.h"'),
        ("kernels/avx2/qgemm_lut.cpp", '#include "kernels/avx2/simd.h"\n#include <immintrin.h>'),
        ("bindings/module.cpp", "#include <pybind11/pybind11.h>"),
    ],
)
def test_a_right_include_is_not(path, text):
    assert cpp_violations({path: text}) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("spec.py", "import torch"),
        ("codes.py", "from tmac.nn import QuantLinear"),
        ("formats/gptq.py", "def read():\n    import torch"),
        ("nn/linear.py", "from ..formats import gptq"),
        ("nn/linear.py", "from tmac import hf"),
        ("quant/search.py", "from tmac.hf.load import open_model"),
        ("hf/load.py", "from tmac.cli import main"),
        ("runtime/engine.py", "def generate():\n    import torch"),
        ("serve/app.py", "import transformers"),
        ("cli/demo.py", "import torch"),
        ("cli/demo.py", "from tmac.nn import QuantLinear"),
        ("__init__.py", "def __getattr__(name):\n    import torch"),
        ("__init__.py", "from tmac.nn import QuantLinear"),
        ("extras/plot.py", ""),
    ],
)
def test_a_wrong_import_is_found(path, text):
    assert len(py_violations({path: text})) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("spec.py", "from tmac import _core\nimport numpy as np\nimport json"),
        ("nn/linear.py", "import torch\nfrom ..codes import Codes\nfrom . import swap"),
        ("cli/demo.py", "import argparse\ndef run():\n    import torch\n    from tmac.nn import QuantLinear"),
        ("__init__.py", "def __getattr__(name):\n    from tmac.nn import QuantLinear"),
        ("__init__.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tmac.nn import QuantLinear"),
    ],
)
def test_a_right_import_is_not(path, text):
    assert py_violations({path: text}) == []


def test_below_the_readers_no_parameter_repeats_the_spec(csrc, package):
    found = {
        f"csrc/{path}": cpp_spec_parameters(text)
        for path, text in csrc.items()
        if path.startswith(("ops/", "runtime/"))
    } | {
        f"tmac/{path}": py_spec_parameters(text)
        for path, text in package.items()
        if path.startswith(("nn/", "runtime/"))
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_such_a_parameter_is_found():
    assert cpp_spec_parameters("void run(const float* x, int64_t group_size);") == ["group_size"]
    assert cpp_spec_parameters("int f(uint8_t bits = 4, int k);") == ["bits"]
    assert cpp_spec_parameters("f(spec.bits, a, group_size); int bits = 3; // (int bits)") == []
    assert py_spec_parameters("def f(x, *, group_size=64): ...") == ["f(group_size)"]
    assert py_spec_parameters("def f(spec): bits = spec.bits") == []


def test_kernels_hold_no_container_allocation_exception_or_thread(csrc):
    found = {
        path: kernel_words(text)
        for path, text in csrc.items()
        if path.startswith("kernels/") and "registry" not in path
    }
    assert {path: words for path, words in found.items() if words} == {}
    assert kernel_words("auto* a = new float[4]; std::vector<int> v;\n#pragma omp parallel\n// throw") == [
        "new",
        "std::vector",
        "#pragma omp",
    ]


def test_openmp_stays_in_the_thread_pool(csrc):
    users = [path for path, text in csrc.items() if re.search(r"\bomp_\w+|pragma\s+omp", without_comments(text))]
    assert {path.rpartition(".")[0] for path in users} <= {"core/thread_pool"}


def test_compiler_extensions_stay_in_the_portable_header(csrc):
    pattern = re.compile(r"__attribute__|__builtin_|__declspec|__forceinline|__restrict__")
    users = {path for path, text in csrc.items() if pattern.search(without_comments(text))}
    assert users <= {"core/portable.h"}


@pytest.mark.parametrize("folder", ["csrc", "tmac", "tests", "benchmarks"])
def test_files_are_short_and_named_for_what_they_hold(repository, folder):
    for path, text in read(repository, folder, ".h", ".cpp", ".py", ".pyi").items():
        assert text.count("\n") <= 500, f"{folder}/{path} has more than 500 lines"
        assert not re.search(r"(^|/|_)(utils?|common|helpers?)(_|\.|/)", path), f"{folder}/{path}"
