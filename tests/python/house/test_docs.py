"""What the documentation shows is true: the README's first screen, and the reader in docs/format.md."""

import importlib.metadata
import re

import numpy as np
import pytest

import tmac


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


def rounded_codes(spec, n, k):
    return tmac.round_to_nearest(np.random.default_rng(0).standard_normal((n, k), dtype=np.float32), spec)


def two_level_codes(spec, n, k):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**spec.bits, (n, k), dtype=np.uint8)
    scales, offsets = rng.integers(-128, 128, (2, n, spec.num_groups(k)), dtype=np.int8)
    super_scales, super_offsets = rng.standard_normal((2, n, spec.num_super_groups(k))).astype(np.float16)
    if spec.zero_point == "fixed":
        return tmac.Codes(spec, codes, scales, super_scales=super_scales)
    return tmac.Codes(spec, codes, scales, offsets, super_scales=super_scales, super_offsets=super_offsets)


@pytest.mark.parametrize("k", [1, 130, 576])
@pytest.mark.parametrize(
    "spec",
    [
        {"bits": 1, "group_size": 32},
        {"bits": 3, "group_size": 100, "zero_point": "offset"},
        {"bits": 4, "group_size": 128, "zero_point": "integer"},
        {"bits": 8, "group_size": -1, "zero_point": "real", "scale_format": "f32"},
        {"bits": 2, "group_size": 64, "codebook": "ternary"},
        {"bits": 4, "group_size": 32, "zero_point": "offset", "scale_format": "two_level"},
        {"bits": 6, "group_size": 16, "scale_format": "two_level"},
    ],
    ids=lambda spec: "-".join(map(str, spec.values())),
)
def test_the_reader_in_format_md_reads_what_the_package_writes(repository, spec, k):
    block = re.search(
        r"```python\n(.*?)```", (repository / "docs" / "format.md").read_text(encoding="utf-8"), re.DOTALL
    )
    namespace = {}
    exec(block[1], namespace)
    spec = tmac.QuantSpec(**spec)
    codes = two_level_codes(spec, 5, k) if spec.scale_format == "two_level" else rounded_codes(spec, 5, k)
    tensors = tmac.codes.buffer_to_tensors(codes.pack().buffer(), "layer.")
    read = namespace["read_weight"](tensors, "layer", spec.to_dict(), k)
    np.testing.assert_array_equal(read, tmac._core.dequantize(codes.pack().buffer()))
