"""Files that other tools wrote, against the values that those tools read from them (README.md beside the fixtures)."""

import numpy as np

from tmac.formats.gguf import GgufFile


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
        for name, info in file.tensors.items():
            assert file.read(name).shape == info.shape, f"{path.name}: {name}"
    assert compared.pop("pyquant") == 9
    assert compared.pop("base-f16") == compared.pop("tern-i2_s") == 0
    assert len(compared) >= 7
    assert set(compared.values()) == {2}


def test_i2_s_gives_the_weights_it_was_made_from(fixtures_dir):
    file = GgufFile(fixtures_dir / "gguf" / "tern-i2_s.gguf")
    with np.load(fixtures_dir / "gguf" / "i2s_ref.npz") as arrays:
        ternary = {name[len("ternary.") :]: arrays[name] for name in arrays if name.startswith("ternary.")}
        scales = {name: arrays[f"scale.{name}"] for name in ternary}
    assert len(ternary) == 7
    for name, signs in ternary.items():
        assert file.info(name).type_name == "I2_S"
        assert np.array_equal(file.read(name), signs * scales[name]), name
