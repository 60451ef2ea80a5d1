from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_gguf():
    """A llama of two layers in Q4_1, Q8_0 and F32."""
    return Path(__file__).parents[2] / "data" / "tiny_llama.gguf"
