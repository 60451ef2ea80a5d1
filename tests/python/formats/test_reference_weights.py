"""Every checkpoint in the folder of fixtures gives the weights that the tool which wrote it computed from it.

`W.<module>` is what the tool dequantizes, in f32 from the file's f16 scales: bit for bit ours. `Wfwd.<module>` is its
layer applied to the identity matrix: sums of one product and zeros, so that no rounding is added and it is the same.
"""

import numpy as np
import packed_models
import pytest

from tmac.formats import open_checkpoint

FORMATS = {"gptq": 6, "autoround": 2, "awq": 1}  # and how many folders there are at least


def folders(fixtures_dir, family):
    return [folder for folder in sorted(fixtures_dir.glob(f"{family}-*")) if (folder / "config.json").exists()]


def references(folder):
    """(module, weight) of every reference file."""
    for path in sorted(folder.glob("ref*.npz")):
        with np.load(path) as arrays:
            for key in arrays:
                kind, _, module = key.partition(".")
                if kind in ("W", "Wfwd"):
                    yield f"model.layers.0.{module}", arrays[key]


@pytest.mark.parametrize("family", FORMATS)
def test_weights_are_those_of_the_tool(fixtures_dir, family):
    found = folders(fixtures_dir, family)
    assert len(found) >= FORMATS[family]
    for folder in found:
        checkpoint, compared = open_checkpoint(folder), 0
        for module, weight in references(folder):
            np.testing.assert_array_equal(
                checkpoint.layers[module].read().dequantize(), weight, f"{folder.name} {module}"
            )
            compared += 1
        assert compared >= 2, folder


@pytest.mark.parametrize("family", FORMATS)
def test_every_layer_packs_into_the_same_words_again(fixtures_dir, family):
    """For the modules without a reference: the file's own words come out of the codes that were read from them."""
    for folder in folders(fixtures_dir, family):
        checkpoint = open_checkpoint(folder)
        source = open_store(folder)
        assert len(checkpoint.layers) == 7
        for name, layer in checkpoint.layers.items():
            codes = layer.read()
            assert codes.spec == layer.spec, (folder, name)
            values = codes.codes
            if codes.perm is not None:
                values = np.empty_like(codes.codes)
                values[:, codes.perm] = codes.codes
            bits = codes.spec.bits
            zeros = np.full(codes.scales.shape, 2 ** (bits - 1)) if codes.zeros is None else codes.zeros
            scales = codes.scales.astype(np.float16)
            if source.entry(f"{name}.qweight").shape[0] == layer.in_features:
                packed = packed_models.awq_tensors(name, values.astype(int), zeros.astype(int), scales)
            else:
                packed = packed_models.gptq_tensors(name, values.astype(int), zeros.astype(int), scales, bits)
            for key, array in packed.items():
                np.testing.assert_array_equal(source.read(key), array, f"{folder.name} {key}")


def open_store(folder):
    from tmac.formats.safetensors_file import open_folder

    return open_folder(folder)
