"""The first screen of the README is true: its lines of Python run, and its two commands name extras that exist."""

import importlib.metadata
import re

import pytest


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def test_the_six_lines_of_python_run(readme):
    pytest.importorskip("torch", reason="needs the extra tmac-cpu[torch]")
    block = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    assert len(block.strip().splitlines()) <= 6
    namespace = {}
    exec(block, namespace)
    assert "QuantLinear" in repr(namespace["model"])


def test_the_two_commands_name_extras_that_exist(readme):
    extras = set(re.findall(r"pip install 'torch==[\d.]+' '\.\[(\w+)\]'", readme))
    assert extras == {"demo", "test"}
    assert extras <= set(importlib.metadata.metadata("tmac-cpu").get_all("Provides-Extra"))
