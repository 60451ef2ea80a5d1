"""Files that other tools wrote, against the values that those tools read from them (README.md beside the fixtures)."""

import numpy as np
import pytest

from tmac.formats import FormatError
from tmac.formats.gguf import GgufFile
from tmac.hf import load_gguf

UNKNOWN_TYPE = "tern-i2_s.gguf"  # microsoft/BitNet's own type 36


def references(path):
    """Tensor name -> values, in the order of the file's rows; empty where no reference lies beside the file."""
    if path.stem == "pyquant":
        with np.load(path.with_name("pyquant_ref.npz")) as arrays:
            return {name: arrays[name] for name in arrays if name.startswith("k.")}
    beside = path.with_name(f"{path.stem}-ref.npz")
    if not beside.is_file():
        return {}
    with np.load(beside) as arrays:
        return dict(arrays)


def test_every_file_gives_the_values_of_the_tool_that_wrote_it(fixtures_dir):
    compared = {}
    for path in sorted((fixtures_dir / "gguf").glob("*.gguf")):
        file, expected = GgufFile(path), references(path)
        for name, values in expected.items():
            assert np.array_equal(file.read(name), values), f"{path.name}: {name}"
        compared[path.stem] = len(expected)
        if path.name != UNKNOWN_TYPE:
            for name, info in file.tensors.items():
                assert file.read(name).shape == info.shape, f"{path.name}: {name}"
    assert compared.pop("pyquant") == 9
    assert compared.pop("base-f16") == compared.pop("tern-i2_s") == 0
    assert len(compared) >= 7
    assert set(compared.values()) == {2}


def test_a_type_that_is_not_known_is_a_format_error(fixtures_dir):
    path = fixtures_dir / "gguf" / UNKNOWN_TYPE
    file, refused = GgufFile(path), []
    for name, info in file.tensors.items():
        if info.nbytes is not None:
            assert file.read(name).shape == info.shape
            continue
        refused.append(name)
        with pytest.raises(FormatError, match=f"{name}: expected a type that the gguf package reads, found type 36"):
            file.read(name)
    assert len(refused) == 7
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.weight: .*found type 36"):
        load_gguf(path)
