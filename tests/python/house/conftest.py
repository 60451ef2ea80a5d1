"""The C++ tests, built once for every test that looks at them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run, tool_path

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


@pytest.fixture(scope="session")
def cpp_build(repository, require_tool):
    """The build folder of the C++ tests, configured as a release is and up to date."""
    require_tool("c++", package="g++")
    cmake, ninja = tool_path("cmake"), tool_path("ninja")
    assert cmake is not None, "cmake is missing: pip install '.[test]'"
    assert ninja is not None, "ninja is missing: pip install '.[test]'"
    folder = repository / "build" / f"cpp-{sys.implementation.cache_tag}"
    configure = [
        cmake,
        *("-G", "Ninja", "-S", repository, "-B", folder, f"-DCMAKE_MAKE_PROGRAM={ninja}"),
        *("-DTMAC_PYTHON=OFF", "-DTMAC_TESTS=ON", f"-DTMAC_WERROR={'ON' if IN_CI else 'OFF'}"),
    ]
    result = subprocess.run(list(map(str, configure)), capture_output=True, text=True, check=False)
    if re.search(r"Findcatch2|Catch2Config\.cmake", result.stderr, re.IGNORECASE):
        reason = "Catch2 is missing: install the system package catch2"
        pytest.fail(reason, pytrace=False) if IN_CI else pytest.skip(reason)
    assert result.returncode == 0, result.stdout + result.stderr
    run(cmake, "--build", folder, "--parallel", str(os.cpu_count() or 1))
    return folder


@pytest.fixture(scope="session")
def objects(cpp_build):
    """`objects("kernels/avx2")` lists the object files of a folder of csrc."""

    def find(folder):
        return sorted(Path(cpp_build).glob(f"CMakeFiles/*.dir/csrc/{folder}/*.o"))

    return find
