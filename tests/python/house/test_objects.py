"""What the object files hold: symbols that the linker may merge, undefined names, and instructions.

Two files that instantiate one template leave two weak copies, and the linker keeps either: the portable table could
then run code that was compiled for AVX-512. So a kernel object exports no weak symbol, and instructions beyond the
baseline appear in the folder of their ISA only.
"""

import re

import pytest
from commands import run

ISAS = ("scalar", "avx2", "avx512")
WEAK = "WwVvu"

# Compilers turn loops into mem* calls, and baseline x86-64 has no instruction for fma and rint.
ALLOWED_UNDEFINED = re.compile(
    r"mem(cpy|move|set)|(fma|rint|nearbyint|lrint|fabs|floor|ceil|trunc|round|ldexp|scalbn)f?|_GLOBAL_OFFSET_TABLE_"
    r"|__stack_chk_fail|__(asan|ubsan)_\w+"
)


def symbols(nm, path):
    """[(type, demangled name)] of an object file."""
    lines = run(nm, "-C", "--format=posix", path).stdout.splitlines()
    matches = (re.match(r"(.+?) ([A-Za-z])(?: [0-9a-f]+)*\s*$", line) for line in lines)
    return [(match[2], match[1]) for match in matches if match]


def weak_symbols(nm, path):
    return [name for kind, name in symbols(nm, path) if kind in WEAK]


@pytest.fixture
def nm(require_tool):
    return require_tool("nm", package="binutils")


@pytest.mark.parametrize("isa", ISAS)
def test_a_kernel_object_has_no_weak_symbol(nm, objects, isa):
    files = objects(f"kernels/{isa}")
    assert files
    assert {path.name: weak_symbols(nm, path) for path in files if weak_symbols(nm, path)} == {}


@pytest.mark.parametrize("isa", ISAS)
def test_a_kernel_object_needs_only_libm_and_memcpy(nm, objects, isa):
    foreign = {}
    for path in objects(f"kernels/{isa}"):
        names = [name for kind, name in symbols(nm, path) if kind == "U"]
        foreign[path.name] = [
            name for name in names if not ALLOWED_UNDEFINED.fullmatch(name) and not name.startswith(f"tmac::{isa}::")
        ]
    assert {path: names for path, names in foreign.items() if names} == {}


@pytest.mark.parametrize("isa", ISAS)
def test_a_kernel_object_runs_nothing_when_it_is_loaded(nm, objects, isa):
    for path in objects(f"kernels/{isa}"):
        assert not [name for _, name in symbols(nm, path) if "_GLOBAL__sub_I" in name], path.name


def test_a_weak_symbol_is_found(nm, require_tool, tmp_path):
    source = tmp_path / "weak.cpp"
    source.write_text(
        "template <int Bits> int run(int x) { return x << Bits; }\nextern int (*const table[])(int);\n"
        "int (*const table[])(int) = {run<2>};\n"
    )
    target = source.with_suffix(".o")
    run(require_tool("c++", package="g++"), "-std=c++20", "-O2", "-c", source, "-o", target)
    assert weak_symbols(nm, target) == ["int run<2>(int)"]


def test_the_portable_code_uses_baseline_instructions(objects, require_tool):
    objdump = require_tool("objdump", package="binutils")
    files = [path for folder in ("core", "layout", "kernels", "kernels/scalar", "ops") for path in objects(folder)]
    assert files
    for path in files:
        assert not re.search(r"%[yz]mm|\bv[a-z0-9]+ .*%xmm", run(objdump, "-d", path).stdout), path.name


def test_the_avx512_code_uses_its_instructions(objects, require_tool):
    objdump = require_tool("objdump", package="binutils")
    assert any("%zmm" in run(objdump, "-d", path).stdout for path in objects("kernels/avx512"))
