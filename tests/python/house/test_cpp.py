"""The C++ unit tests, through CTest."""

import re

from commands import run, tool_path


def test_cpp_unit_tests(cpp_build):
    result = run(tool_path("ctest"), "--test-dir", cpp_build, "--output-on-failure", "--no-tests=error", "-j2")
    assert re.search(r"100% tests passed.* out of [1-9]", result.stdout), result.stdout
