import os
import subprocess
import sys

import pytest


@pytest.fixture
def run_benchmark(repository):
    """Runs `python -m MODULE ARGUMENTS` in the checkout and returns the finished process."""

    def run(module, *arguments, python=sys.executable):
        return subprocess.run(
            [python, "-m", module, *map(str, arguments)],
            cwd=repository,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "PYTHONPATH": ""},
        )

    return run


@pytest.fixture(autouse=True)
def checkout_on_path(repository, monkeypatch):
    """`import benchmarks` in this process; the package itself takes the checkout off the path again."""
    monkeypatch.syspath_prepend(str(repository))
