import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from fake_engine import FakeEngine


@pytest.fixture(scope="session")
def tiny_gguf():
    """A llama of two layers in Q4_1, Q8_0 and F32."""
    return Path(__file__).parents[2] / "data" / "tiny_llama.gguf"


@pytest.fixture
def tmac_command():
    """`tmac_command("info", TMAC_ISA="scalar")` runs the command in a process of its own."""

    def run(*arguments, timeout=300, **environment):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TMAC_")}
        command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "tmac", *map(str, arguments)]
        env = {**clean, "TMAC_TUNING": "off", **{name: str(value) for name, value in environment.items()}}
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)

    return run


@pytest.fixture
def engine(monkeypatch):
    """The engine that `tmac generate` and `tmac chat` load."""
    fake = FakeEngine()
    module = types.ModuleType("tmac.runtime.engine")
    module.Engine = fake
    monkeypatch.setitem(sys.modules, "tmac.runtime.engine", module)
    return fake
