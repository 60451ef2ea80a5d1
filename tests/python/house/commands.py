"""Running the tools that the tests of the build look with."""

import os
import shutil
import subprocess
import sysconfig

import pytest


def run(*command, **options):
    """Runs a command and returns its result; a failure shows the whole output."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    if result.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}", pytrace=False)
    return result


def tool_path(name):
    """A tool of this environment (cmake and ninja come from PyPI), or of the system."""
    return shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
