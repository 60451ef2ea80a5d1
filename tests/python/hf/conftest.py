import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_gguf():
    """A llama of two layers in Q4_1, Q8_0 and F32."""
    return Path(__file__).parents[2] / "data" / "tiny_llama.gguf"


@pytest.fixture(scope="session")
def emulated():
    """`emulated(x, codes, kernel)`: what docs/numerics.md says, in torch."""
    path = Path(__file__).parents[1] / "quant" / "emulation.py"
    spec = importlib.util.spec_from_file_location("emulation", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.emulated
